"""Measure the browser client, and fail above its limit.

`python -m tests.support.lint.client_size` prints the size of `realtime.js` without comments, indentation and
empty lines, compressed with gzip at level 9. A build tool that also shortens names makes it smaller. Django
serves the file with its comments, which is larger; the output has both sizes.
"""

import gzip
import re
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
CLIENT = ROOT / "realtime" / "static" / "realtime" / "realtime.js"
#: Bytes; see docs/decisions/0039-the-client-may-grow-with-the-protocol.md.
LIMIT = 6_400

_COMMENT = re.compile(r"//[^\n]*|/\*.*?\*/", re.DOTALL)
_STRING = re.compile(r'"(?:\\.|[^"\\\n])*"|\'(?:\\.|[^\'\\\n])*\'', re.DOTALL)
_REGEX = re.compile(r"/(?![*/])(?:\\.|\[(?:\\.|[^\]\\\n])*\]|[^/\\\[\n])+/[a-z]*")
_WORD = re.compile(r"[\w$]+")
#: After one of these words, a slash begins a regular expression. After other words it divides.
_BEFORE_A_VALUE = frozenset(
    ("return", "typeof", "case", "delete", "void", "in", "of", "do", "else", "throw", "await")
)


class UnreadableScript(ValueError):
    """A part of the script that has no end."""


def strip(source: str) -> str:
    """Return a script without comments, indentation, trailing spaces and empty lines.

    Strings, templates and regular expressions stay as they are. A slash after `)` is taken for a division,
    so a regular expression must not follow the condition of an `if` directly.

    Args:
        source: The text of an ES module.

    Raises:
        UnreadableScript: If a string, template, comment or regular expression has no end.
    """
    # Line breaks within a template are part of its text, so they are hidden while lines are trimmed.
    text = "".join(part.replace("\n", "\0") if verbatim else part for part, verbatim in _tokens(source, 0))
    lines = (line.strip() for line in text.split("\n"))
    return "\n".join(line for line in lines if line).replace("\0", "\n") + "\n"


def _tokens(source: str, at: int) -> Iterator[tuple[str, bool]]:
    """Yield the parts of a script. True marks a part whose white space must stay."""
    before = ""  # the last token: it decides what a slash is
    #: The open braces: True if the brace belongs to a `${` of a template.
    braces: list[bool] = []
    while at < len(source):
        character = source[at]
        if source.startswith(("//", "/*"), at):
            comment = _match(_COMMENT, source, at)
            at = comment.end()
            # A comment with a line break ends a line, as ECMA-262, section 12.4 has it.
            yield ("\n" if "\n" in comment[0] else " "), False
            continue
        if character.isspace():
            yield character, False
            at += 1
            continue
        if character in "\"'":
            token, verbatim = _match(_STRING, source, at)[0], True
        elif character == "`" or (character == "}" and braces and braces[-1]):
            if character == "}":
                braces.pop()
            token, opens = _template(source, at)
            if opens:
                braces.append(True)
            verbatim = True
            character = "{" if opens else "`"
        elif character == "/" and _begins_a_regex(before):
            token, verbatim = _match(_REGEX, source, at)[0], True
        else:
            word = _WORD.match(source, at)
            token, verbatim = (word[0] if word else character), False
            if character == "{":
                braces.append(False)
            elif character == "}" and braces:
                braces.pop()
        yield token, verbatim
        at += len(token)
        before = token if _WORD.fullmatch(token) else character


def _match(pattern: re.Pattern[str], source: str, at: int) -> re.Match[str]:
    found = pattern.match(source, at)
    if found is None:
        line = source.count("\n", 0, at) + 1
        raise UnreadableScript(f"Line {line} opens something that has no end: {source[at : at + 20]!r}")
    return found


def _template(source: str, at: int) -> tuple[str, bool]:
    """Return the part of a template up to its end or to its next `${`, and True for the latter."""
    end = at + 1
    while end < len(source):
        if source[end] == "\\":
            end += 2
        elif source[end] == "`":
            return source[at : end + 1], False
        elif source.startswith("${", end):
            return source[at : end + 2], True
        else:
            end += 1
    raise UnreadableScript(f"Line {source.count(chr(10), 0, at) + 1} opens a template that has no end.")


def _begins_a_regex(before: str) -> bool:
    if _WORD.fullmatch(before):
        return before in _BEFORE_A_VALUE
    return before not in (")", "]", "}", '"', "'", "`", "/")


def measure(path: Path = CLIENT) -> tuple[int, int]:
    """Return two sizes in bytes, both after gzip: of the stripped script, and of the file itself.

    Args:
        path: The file of an ES module.
    """
    source = path.read_text(encoding="utf-8")
    # Without a time stamp, so that the same text has the same size.
    stripped, whole = (gzip.compress(text.encode(), 9, mtime=0) for text in (strip(source), source))
    return len(stripped), len(whole)


def main() -> int:
    """Print the sizes, and return the exit code: 1 above the limit."""
    stripped, whole = measure()
    print(
        f"{CLIENT.name}: {stripped:,} bytes of {LIMIT:,} (gzip, without comments and indentation; "
        f"{whole:,} with them)"
    )
    if stripped > LIMIT:
        print(f"{CLIENT.name} is {stripped - LIMIT:,} bytes too large", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
