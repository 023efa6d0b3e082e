#!/bin/sh
# Makes .venv with the first Python that is new enough, unless .venv exists, and installs a requirements file.
# Usage: sh project/make-venv.sh [requirements.txt]
#        sh project/make-venv.sh --check    only looks for a Python; if there is none, exits 1 and names the remedy
set -eu
cd "$(dirname "$0")/.."

new_enough() {
    # Run it: pyenv leaves a shim for every version, and a version that is not chosen fails.
    "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1
}

find_python() {
    without_venv=
    for name in python3.14 python3.13 python3.12 python3.11 python3; do
        new_enough "$name" || continue
        if "$name" -c 'import venv, ensurepip' >/dev/null 2>&1; then
            echo "$name"
            return
        fi
        without_venv=${without_venv:-$name}
    done
    if [ -n "$without_venv" ]; then
        echo "$without_venv lacks the venv module: install it (Debian, Ubuntu: apt-get install python3-venv) and try again." >&2
    else
        echo "No Python 3.11 or newer was found as python3.14, python3.13, python3.12, python3.11 or python3: install one (Debian, Ubuntu: apt-get install python3 python3-venv) and try again." >&2
    fi
    return 1
}

if [ "${1:-}" = --check ]; then
    find_python >/dev/null
    exit
fi
if ! new_enough .venv/bin/python || ! .venv/bin/python -m pip --version >/dev/null 2>&1; then
    python=$(find_python)
    echo "Making .venv with $("$python" --version)"
    "$python" -m venv --clear .venv
fi
if [ -n "${1:-}" ]; then
    echo "Installing $1 into .venv"
    .venv/bin/python -m pip install --quiet --disable-pip-version-check -r "$1"
fi
