#!/bin/sh
# Writes requirements.txt and requirements-dev.txt from pyproject.toml, for Python 3.11 and all later ones.
# A version that is locked stays as long as pyproject.toml allows it.
# Usage: sh project/lock.sh [--upgrade | --upgrade-package NAME]
set -eu
cd "$(dirname "$0")/.."
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# uv reads the output file first, and prefers the versions that it names. The packages that are not emitted are for
# Windows only.
compile() {
    output=$1
    shift
    UV_CUSTOM_COMPILE_COMMAND="make lock" "${UV:-.venv/bin/uv}" pip compile --quiet \
        --universal --python-version 3.11 --no-emit-package colorama --no-emit-package tzdata \
        --annotation-style line --extra daphne --group run --output-file "$output" "$@" pyproject.toml
}

cat requirements.txt requirements-dev.txt | grep -v '^-r ' >"$work/all.txt"
compile requirements.txt "$@"
compile "$work/all.txt" --group dev --constraint requirements.txt "$@"

# No version is in both files: the second has only the lines that the first lacks. It begins with uv's two lines.
{
    head -n 2 "$work/all.txt"
    echo "-r requirements.txt"
    awk '{ line = $0; sub(/ *#.*/, "") } NR == FNR { run[$0]; next } !($0 in run) { print line }' \
        requirements.txt "$work/all.txt"
} >requirements-dev.txt
