"""The comparison of two runs of one suite, without I/O.

A result is "passed", "failed", "error" or "skipped".
"""

from collections.abc import Mapping

from tests.compatibility.suites import Name, Suite

Results = Mapping[Name, str]


def disagreements(suite: Suite, plain: Results, ours: Results) -> list[str]:
    """Return a sentence for each test that breaks the promise, and for each wrong line of the lists.

    Args:
        suite: The suite with its two lists. Names of modules that did not run are not judged.
        plain: The results on the classes of Channels.
        ours: The results on our classes.
    """
    modules = {_module(name) for name in (*plain, *ours)}
    sentences = [
        f"{name} ran only on {'ours' if name in ours else 'plain Channels'}."
        for name in sorted(plain.keys() ^ ours.keys())
    ]
    for name in sorted(plain.keys() & ours.keys()):
        before, after = plain[name], ours[name]
        excepted, left_out = name in suite.exceptions, name in suite.left_out
        if left_out and before == "passed":
            sentences.append(f"{name} is left out, and passes on plain Channels: remove it from the list.")
        elif not left_out and before in ("failed", "error"):
            sentences.append(f"{name}: {before} on plain Channels: a fault of the suite or of this machine.")
        elif excepted and after == before:
            sentences.append(f"{name} is a named exception, and {after} on both: remove it from the list.")
        elif not excepted and not left_out and after != before:
            sentences.append(f"{name}: {before} on plain Channels, {after} on ours.")
    sentences += [
        f"{name} is in the lists, and no such test ran."
        for name in sorted({*suite.exceptions, *suite.left_out} - {*plain, *ours})
        if _module(name) in modules
    ]
    return sentences


def summary(name: str, plain: Results, ours: Results) -> str:
    """Return one line for the table of docs/compatibility.md."""
    passed = [sum(result == "passed" for result in results.values()) for results in (plain, ours)]
    return f"{name}: of {len(plain)} tests, {passed[0]} pass on plain Channels and {passed[1]} on ours"


def _module(name: Name) -> str:
    """Return the module of a test. If a class stands between, it begins with a capital letter."""
    parts = name.partition("::")[0].split(".")
    return ".".join(part for part in parts if not part[:1].isupper())
