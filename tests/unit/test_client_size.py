"""The measure of the browser client takes comments and indentation away, and nothing that runs."""

from pathlib import Path

import pytest

from tests.support.lint import client_size
from tests.support.lint.client_size import UnreadableScript, strip


def test_comments_indentation_and_empty_lines_are_left_out() -> None:
    source = """
/** A page. */
class Page {

  // Why.
  open() {
    return 1; // One.
  }
}
"""
    assert strip(source) == "class Page {\nopen() {\nreturn 1;\n}\n}\n"


@pytest.mark.parametrize(
    "script",
    [
        'const url = "https://example.com/*";',
        "const quote = '\\'// no comment';",
        "const rule = /[/*]\\/\\/.*/g.test(text);",
        "return /\\/\\*/;",
        "const half = whole / 2 / parts; const third = (a + b) / 3;",
        "const rest = list[0] / 2; const other = list[1] / 2;",
        "const text = `// ${map({ a: `/* ${b} */` })} // still text`;",
        "const text = `a \\` // b`;",
    ],
)
def test_what_looks_like_a_comment_stays(script: str) -> None:
    assert strip(f"  {script}  // A comment.\n") == f"{script}\n"


def test_the_lines_of_a_template_keep_their_indentation() -> None:
    assert strip("const text = `a\n\n    b`;\n    next();\n") == "const text = `a\n\n    b`;\nnext();\n"


def test_a_comment_over_two_lines_ends_a_line() -> None:
    """Otherwise the two statements around it would be one."""
    assert strip("first()/* a\nb */second()") == "first()\nsecond()\n"


@pytest.mark.parametrize("script", ['"open', "`open ${a}", "/* open", "a = /open"])
def test_a_part_without_an_end_is_an_error(script: str) -> None:
    with pytest.raises(UnreadableScript):
        strip(script)


def test_the_limit_counts_what_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = tmp_path / "client.js"
    script.write_text("// " + "".join(map(chr, range(0x4E00, 0x9000))) + "\nrun();\n")
    stripped, whole = client_size.measure(script)
    assert (stripped < 40, whole > 10_000) == (True, True)
    monkeypatch.setattr(client_size, "LIMIT", client_size.measure()[0] - 1)
    assert client_size.main() == 1


def test_the_client_is_within_its_limit(capsys: pytest.CaptureFixture[str]) -> None:
    assert client_size.main() == 0
    assert "bytes of 6,400" in capsys.readouterr().out
