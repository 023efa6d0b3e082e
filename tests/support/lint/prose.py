"""Count odd words and odd openings in the prose of this project; fail above a threshold.

`python -m tests.support.lint.prose` prints each finding as `path:line: "else" → otherwise`, and a summary
line for each area. Files or folders can be named. The numbers are a floor: prose that passes may still be
hard to read.
"""

import argparse
import ast
import io
import math
import re
import sys
import tokenize
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tests.support.lint.words import ODD_OPENINGS, ODD_WORDS

ROOT = Path(__file__).resolve().parents[3]
#: `python -m tests.faults.table` writes this page from test docstrings, which are checked where they stand.
GENERATED = frozenset({"docs/faults-measured.md"})
#: The area that is held to `SECTIONS`: the others have no public functions.
PUBLIC = "realtime"

#: Odd words per 1,000 words, at most.
ODD_PER_THOUSAND = 2.5
#: Percent of docstrings with an odd opening, at most.
OPENINGS = 1.0
#: Percent of the public functions with arguments or a `raise` that have sections like `Args:`, at least.
SECTIONS = 30.0
#: Characters in the name of a test, at most.
TEST_NAME = 60

_FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
#: Longer phrases first, and any white space between their words.
_PHRASES = (re.escape(phrase).replace(r"\ ", r"\s+") for phrase in sorted(ODD_WORDS, key=len, reverse=True))
_PHRASE = re.compile(rf"(?<![\w-])(?:{'|'.join(_PHRASES)})(?![\w-])", re.IGNORECASE)
_OPENING = re.compile(rf"\s*({'|'.join(ODD_OPENINGS)})\b", re.IGNORECASE)
_SECTION = re.compile(r"^\s*(?:Args|Returns|Yields|Raises):\s*$", re.MULTILINE)
_WORD = re.compile(r"\w+")
#: Comments for tools.
_DIRECTIVE = re.compile(r"#\s*(?:noqa|type:|pragma|fmt:|mypy:|ruff:|!).*")

_FENCE = re.compile(r"^([ \t>]*)(```+|~~~+).*?^\1\2`*~*[ \t]*$", re.MULTILINE | re.DOTALL)
_HTML_COMMENT = re.compile(r"<!--.*?-->", re.DOTALL)
#: In one paragraph: a single backquote must not hide the rest of a page.
_CODE_SPAN = re.compile(r"(?<!`)(`+)(?!`)(?:(?!\n[ \t]*\n).)*?(?<!`)\1(?!`)", re.DOTALL)
_LINK_TARGET = re.compile(r"(?<=\])\([^()\s]*\)|https?://\S+")


@dataclass(frozen=True)
class Prose:
    """A docstring, a comment or a page: text that is read, and the line where it starts."""

    path: str
    line: int
    text: str
    is_docstring: bool = False


@dataclass(frozen=True, order=True)
class Finding:
    """A place to mend."""

    path: str
    line: int
    message: str

    def __str__(self) -> str:
        return f"{self.path}:{self.line}: {self.message}"


@dataclass
class Count:
    """The counts of one area."""

    area: str
    words: int = 0
    odd: int = 0
    docstrings: int = 0
    openings: int = 0
    functions: int = 0
    with_sections: int = 0
    findings: list[Finding] = field(default_factory=list)
    long_names: list[Finding] = field(default_factory=list)

    @property
    def odd_per_thousand(self) -> float:
        return 1000 * self.odd / self.words if self.words else 0.0

    @property
    def openings_percent(self) -> float:
        return 100 * self.openings / self.docstrings if self.docstrings else 0.0

    @property
    def sections_percent(self) -> float:
        return 100 * self.with_sections / self.functions if self.functions else 100.0

    def failures(self) -> list[str]:
        """Return a sentence for each threshold that does not hold, with the number of places to mend."""
        found = []
        if self.odd_per_thousand > ODD_PER_THOUSAND:
            places = self.odd - math.floor(ODD_PER_THOUSAND * self.words / 1000)
            found.append(f"more than {ODD_PER_THOUSAND} odd words per 1,000; mend {places}")
        if self.openings_percent > OPENINGS:
            places = self.openings - math.floor(OPENINGS * self.docstrings / 100)
            found.append(f"more than {OPENINGS:.0f} % odd openings; mend {places}")
        if self.area == PUBLIC and self.sections_percent < SECTIONS:
            places = math.ceil(SECTIONS * self.functions / 100) - self.with_sections
            found.append(f"fewer than {SECTIONS:.0f} % with sections; describe {places} more functions")
        if self.long_names:
            found.append(f"test names above {TEST_NAME} characters; shorten {len(self.long_names)}")
        return [f"{self.area}: {sentence}" for sentence in found]

    def summary(self) -> str:
        """Return the counts in one line."""
        parts = [f"{self.odd} odd of {self.words} words ({self.odd_per_thousand:.1f} per 1,000)"]
        if self.docstrings:
            share = f"{self.openings} of {self.docstrings} docstrings ({self.openings_percent:.1f} %)"
            parts.append(f"odd openings {share}")
        if self.area.partition("/")[0] == PUBLIC:
            share = f"{self.with_sections} of {self.functions} functions ({self.sections_percent:.0f} %)"
            parts.append(f"with sections {share}")
        if self.long_names:
            parts.append(f"long test names {len(self.long_names)}")
        return f"{self.area}: " + ", ".join(parts)


def check_python(path: str, source: str, count: Count) -> None:
    """Add the docstrings, comments, functions and test names of a Python file to `count`.

    Args:
        path: As findings name it.
        source: The text of the file.
        count: What the file is added to.

    Raises:
        SyntaxError: If the source is no Python.
    """
    tree = ast.parse(source, path)
    for prose in (*_docstrings(path, tree), *_comments(path, source)):
        _add_prose(prose, count)
    for function in _public_functions(tree):
        count.functions += 1
        count.with_sections += function
    for node in ast.walk(tree):
        if isinstance(node, _FUNCTIONS) and node.name.startswith("test_") and len(node.name) > TEST_NAME:
            message = f"{len(node.name)} characters, at most {TEST_NAME}: {node.name}"
            count.long_names.append(Finding(path, node.lineno, message))


def check_markdown(path: str, text: str, count: Count) -> None:
    """Add a page to `count`, without its code, its comments and the targets of its links.

    Args:
        path: As findings name it.
        text: The text of the page.
        count: What the page is added to.
    """
    for code in (_FENCE, _HTML_COMMENT):
        text = code.sub(_only_line_breaks, text)
    _add_prose(Prose(path, 1, text), count)


def _only_line_breaks(match: re.Match[str]) -> str:
    return "\n" * match[0].count("\n")


def _add_prose(prose: Prose, count: Count) -> None:
    text = _LINK_TARGET.sub(
        " ", _CODE_SPAN.sub(lambda match: "`" + _only_line_breaks(match) + "`", prose.text)
    )
    count.words += len(_WORD.findall(text))
    for match in _PHRASE.finditer(text):
        count.odd += 1
        phrase = " ".join(match[0].split())
        line = prose.line + text.count("\n", 0, match.start())
        count.findings.append(Finding(prose.path, line, f'"{phrase}" → {ODD_WORDS[phrase.lower()]}'))
    if prose.is_docstring:
        count.docstrings += 1
        if opening := _OPENING.match(text):
            count.openings += 1
            message = f'opens with "{opening[1]}" → start with an imperative verb or a noun'
            count.findings.append(Finding(prose.path, prose.line, message))


def _docstrings(path: str, tree: ast.AST) -> Iterator[Prose]:
    """Yield the docstrings, including those below an attribute."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            text = node.value.value
            if isinstance(text, str):
                yield Prose(path, node.lineno, text, is_docstring=True)


def _comments(path: str, source: str) -> Iterator[Prose]:
    """Yield the comments; those on consecutive lines of their own are one, like their sentences."""
    first, last = 0, 0
    lines: list[str] = []
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type != tokenize.COMMENT:
            continue
        text = _DIRECTIVE.sub("", token.string).lstrip("#:")
        own_line = not token.line[: token.start[1]].strip()
        if lines and own_line and token.start[0] == last + 1:
            lines.append(text)
        else:
            if lines:
                yield Prose(path, first, "\n".join(lines))
            first, lines = token.start[0], [text]
        last = token.start[0]
    if lines:
        yield Prose(path, first, "\n".join(lines))


def _public_functions(tree: ast.Module) -> Iterator[bool]:
    """Yield, for each public function that takes arguments or raises, True if it has sections."""
    holders: list[ast.Module | ast.ClassDef] = [tree]
    while holders:
        holder = holders.pop()
        for node in holder.body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                holders.append(node)
            elif isinstance(node, _FUNCTIONS) and _wants_sections(node):
                described = [ast.get_docstring(node)]
                if node.name == "__init__":
                    described.append(ast.get_docstring(holder))
                yield any(text and _SECTION.search(text) for text in described)


def _wants_sections(function: ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    if function.name.startswith("_") and function.name != "__init__":
        return False
    decorators = {ast.unparse(decorator).rpartition(".")[2] for decorator in function.decorator_list}
    if decorators & {"overload", "override"}:
        return False
    arguments = function.args
    names = [argument.arg for argument in (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs)]
    takes = {*names} - {"self", "cls"} or arguments.vararg or arguments.kwarg
    return bool(takes) or any(isinstance(node, ast.Raise) for node in ast.walk(function))


def areas() -> dict[str, list[Path]]:
    """Return the files of each area. Each area must hold the thresholds: a good one hides no bad one."""
    python = {name: _below(ROOT / name, "*.py") for name in ("realtime", "project", "benchmarks", "tests")}
    docs = [*_below(ROOT / "docs", "*.md"), *_below(ROOT / "docs", "*.py")]
    pages = [*sorted(ROOT.glob("*.md")), *docs, *_below(ROOT / "benchmarks", "*.md")]
    return {**python, "docs": [page for page in pages if _name(page) not in GENERATED]}


def _below(folder: Path, pattern: str) -> list[Path]:
    return sorted(path for path in folder.rglob(pattern) if "node_modules" not in path.parts)


def _name(path: Path) -> str:
    path = path.resolve()
    return path.relative_to(ROOT).as_posix() if path.is_relative_to(ROOT) else str(path)


def count_files(area: str, files: Iterable[Path]) -> Count:
    """Return the counts of the Python and Markdown files together.

    Args:
        area: The name of the area in the summary.
        files: The files to read, in UTF-8.
    """
    count = Count(area)
    for path in files:
        check = check_python if path.suffix == ".py" else check_markdown
        check(_name(path), path.read_text(encoding="utf-8"), count)
    return count


def main(arguments: Sequence[str] | None = None) -> int:
    """Print what was found and return the exit code: 1 if a threshold does not hold.

    Args:
        arguments: Those of the command line.
    """
    parser = argparse.ArgumentParser(prog="python -m tests.support.lint.prose", description=__doc__)
    parser.add_argument("paths", nargs="*", type=Path, help="files or folders; all areas if none is named")
    parser.add_argument("--quiet", action="store_true", help="print no findings of areas that pass")
    options = parser.parse_args(arguments)
    counts = [count_files(area, files) for area, files in (_named(options.paths) or areas()).items()]
    failures = [failure for count in counts for failure in count.failures()]
    for count in counts:
        if not options.quiet or count.failures():
            for finding in sorted([*count.findings, *count.long_names]):
                print(finding)
    for count in counts:
        print(count.summary())
    for failure in failures:
        print(failure, file=sys.stderr)
    return 1 if failures else 0


def _named(paths: Iterable[Path]) -> dict[str, list[Path]]:
    found = {}
    for path in paths:
        files = [*_below(path, "*.py"), *_below(path, "*.md")] if path.is_dir() else [path]
        found[_name(path)] = [file for file in files if _name(file) not in GENERATED]
    return found


if __name__ == "__main__":
    sys.exit(main())
