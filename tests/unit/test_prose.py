"""The prose check counts what it says, and fails on a bad text."""

import textwrap
from pathlib import Path

import pytest

from tests.support.lint import prose
from tests.support.lint.words import ODD_WORDS

GOOD = '''
"""The frames that a client sends."""


def write(frame: bytes) -> int:
    """Write the frame to the socket.

    Args:
        frame: The bytes of one WebSocket frame.
    """
    return len(frame)  # The socket takes all of it.
'''


def python(source: str, area: str = "realtime") -> prose.Count:
    count = prose.Count(area)
    prose.check_python("sample.py", textwrap.dedent(source).lstrip(), count)
    return count


def markdown(text: str) -> prose.Count:
    count = prose.Count("docs")
    prose.check_markdown("page.md", textwrap.dedent(text).lstrip(), count)
    return count


def found(count: prose.Count) -> list[str]:
    return [str(finding) for finding in sorted(count.findings)]


# -- odd words


def test_a_finding_names_its_line_and_a_suggestion() -> None:
    count = python(
        '''
        """Frames."""
        # Wait, or else
        # nobody is told.
        '''
    )

    assert found(count) == [
        'sample.py:2: "or else" → otherwise',
        'sample.py:3: "nobody" → name the actor: no client, no process, no user',
    ]


def test_code_strings_and_names_do_not_count() -> None:
    count = python(
        '''
        """Frames."""
        whose = "at once" if True else "nobody"  # noqa: else
        '''
    )

    assert count.odd == 0
    assert count.words == 1


@pytest.mark.parametrize("span", ["`else`", "``else``", "`if a\nelse b`"])
def test_code_spans_do_not_count(span: str) -> None:
    assert python(f'"""Return {span}."""').odd == 0
    assert markdown(f"The clause {span} is code.").odd == 0


def test_a_single_backquote_hides_one_paragraph_at_most() -> None:
    assert found(markdown("A ` alone.\n\nOr else.\n\nAnother ` alone.")) == [
        'page.md:3: "Or else" → otherwise'
    ]


def test_a_phrase_may_be_broken_over_two_lines() -> None:
    count = python(
        '''
        def close() -> None:
            """Close the connection at
            once."""
            return  # It is nothing
                    # but a number.
        '''
    )

    assert [finding.line for finding in count.findings] == [2, 4]


def test_comments_apart_are_not_read_as_one_sentence() -> None:
    assert python("# Look at\n\n# once-only values").odd == 0
    assert python("first = 1  # at\nsecond = 2  # once").odd == 0


def test_fenced_code_and_link_targets_do_not_count() -> None:
    count = markdown(
        """
        # Title

        ```python
        if a: ...
        else: ...
        ```

        1. Indented:

           ~~~
           nobody
           ~~~

        See [the page](pages/else.md) and [another](pages/whose/else.md#else) at https://example.com/else
        <!-- nobody reads
        this --> but everybody reads this.
        """
    )

    assert [str(finding).partition(" →")[0] for finding in count.findings] == ['page.md:16: "everybody"']


@pytest.mark.parametrize("phrase", sorted(ODD_WORDS))
def test_every_phrase_of_the_list_is_found_whole(phrase: str) -> None:
    (finding,) = markdown(f"Then {phrase} then.").findings
    assert finding.message == f'"{phrase}" → {ODD_WORDS[phrase]}'


def test_no_suggestion_is_itself_an_odd_word() -> None:
    for suggestion in ODD_WORDS.values():
        assert markdown(suggestion).odd == 0, suggestion


# -- openings


@pytest.mark.parametrize("opening", ["What", "Who", "Whether", "How", "Of", "By", "Whose", "\nWhere"])
def test_a_docstring_that_opens_oddly_is_found(opening: str) -> None:
    count = python(f'class A:\n    """{opening} is sent."""')

    assert count.openings == count.docstrings == 1
    assert f'opens with "{opening.strip()}"' in str(count.findings[-1])


def test_the_docstring_of_an_attribute_counts() -> None:
    count = python(
        '''
        class A:
            """A frame."""

            size: int
            """Whether it is long."""

            def __init__(self) -> None:
                self.rest = b""
                """What is left."""
                text = """Whose?"""
        '''
    )

    assert (count.docstrings, count.openings) == (3, 2)
    assert [finding.line for finding in count.findings] == [5, 9]


@pytest.mark.parametrize("opening", ["Whole frames.", "Offer a frame.", "Bytes to send.", "`what` is sent."])
def test_a_docstring_that_opens_plainly_is_not_found(opening: str) -> None:
    assert python(f'"""{opening}"""').openings == 0


def test_a_comment_may_open_with_any_word() -> None:
    assert python("# What is sent.").findings == []


# -- sections


@pytest.mark.parametrize(
    ("source", "functions", "with_sections"),
    [
        ('def f(a):\n    """Do.\n\n    Args:\n        a: Seconds.\n    """', 1, 1),
        ('def f():\n    """Do.\n\n    Raises:\n        E: No.\n    """\n    raise E', 1, 1),
        ('def f(a):\n    """Args: none of these words is a section."""', 1, 0),
        ("def f(a): ...", 1, 0),
        ("def f(): ...", 0, 0),
        ("def _f(a): ...", 0, 0),
        ("def f(self): ...", 0, 0),
        ("@typing.overload\ndef f(a): ...", 0, 0),
        ("class A:\n    def f(self, *a): ...\n    def __eq__(self, b): ...", 1, 0),
        ("class _A:\n    def f(self, a): ...", 0, 0),
        ('class A:\n    """A.\n\n    Args:\n        a: A.\n    """\n    def __init__(self, a): ...', 1, 1),
        ("async def f(a):\n    def inner(b): ...", 1, 0),
    ],
)
def test_functions_that_should_have_sections_are_counted(
    source: str, functions: int, with_sections: int
) -> None:
    count = python(source)
    assert (count.functions, count.with_sections) == (functions, with_sections)


# -- the names of tests


def test_a_long_test_name_is_a_finding_and_a_failure() -> None:
    name = "test_" + "a" * (prose.TEST_NAME - 4)
    count = python(f"class TestIt:\n    async def {name}(self): ...\ndef {name[:-1]}(): ...", "tests")

    assert [str(finding) for finding in count.long_names] == [
        f"sample.py:2: 61 characters, at most 60: {name}"
    ]
    assert count.failures() == ["tests: test names above 60 characters; shorten 1"]


# -- thresholds


def test_thresholds_are_the_ones_that_were_agreed() -> None:
    limits = (prose.ODD_PER_THOUSAND, prose.OPENINGS, prose.SECTIONS, prose.TEST_NAME)
    assert limits == (2.5, 1.0, 30.0, 60)


def test_a_failure_says_how_many_places_to_mend() -> None:
    count = prose.Count("realtime", 1000, 4, 200, 5, 100, 27)

    assert count.failures() == [
        "realtime: more than 2.5 odd words per 1,000; mend 2",
        "realtime: more than 1 % odd openings; mend 3",
        "realtime: fewer than 30 % with sections; describe 3 more functions",
    ]


def test_the_thresholds_themselves_pass() -> None:
    assert prose.Count("realtime", 2000, 5, 100, 1, 10, 3).failures() == []


def test_sections_are_held_in_the_package_only() -> None:
    assert prose.Count("tests", functions=10).failures() == []


def test_an_area_without_prose_passes() -> None:
    assert prose.Count("realtime").failures() == []


# -- the command


def test_a_good_text_passes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "good.py").write_text(GOOD)

    assert prose.main([str(tmp_path)]) == 0

    output = capsys.readouterr()
    assert (
        output.out
        == f"{tmp_path}: 0 odd of 26 words (0.0 per 1,000), odd openings 0 of 2 docstrings (0.0 %)\n"
    )
    assert output.err == ""


def test_a_bad_text_fails(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "bad.py").write_text('"""Whose frames are lost."""')
    (tmp_path / "bad.md").write_text("Nobody knows.")

    assert prose.main([str(tmp_path)]) == 1

    output = capsys.readouterr()
    assert f'{tmp_path}/bad.py:1: "Whose" → ' in output.out
    assert f'{tmp_path}/bad.py:1: opens with "Whose" → ' in output.out
    assert f'{tmp_path}/bad.md:1: "Nobody" → ' in output.out
    assert "more than 2.5 odd words per 1,000; mend 2" in output.err


def test_quiet_prints_no_findings_of_a_text_that_passes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "fair.md").write_text("Nobody " + "writes plain words. " * 200)

    assert prose.main([str(tmp_path), "--quiet"]) == 0

    assert len(capsys.readouterr().out.splitlines()) == 1


def test_the_areas_hold_all_prose_that_is_not_generated() -> None:
    areas = prose.areas()
    names = {path.relative_to(prose.ROOT).as_posix() for files in areas.values() for path in files}

    assert set(areas) == {"realtime", "project", "benchmarks", "tests", "docs"}
    assert all(areas.values())
    assert {"README.md", "CHANGELOG.md", "docs/decisions/README.md", "realtime/__init__.py"} <= names
    assert "docs/faults-measured.md" not in names
