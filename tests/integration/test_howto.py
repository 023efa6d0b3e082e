"""The examples of `docs/howto/test-your-consumers.md`, run as they stand there."""

from typing import Any

from django.test import TestCase

from tests.support.applications.tutorial import blocks

_names: dict[str, Any] = {"__name__": __name__}
for _example in blocks("test-your-consumers.md", "python"):
    exec(compile(_example, "test-your-consumers.md", "exec"), _names)  # noqa: S102 - our own documentation

ShoutingTest: type[TestCase] = _names["ShoutingTest"]
PolicyTest: type[TestCase] = _names["PolicyTest"]
PublishTest: type[TestCase] = _names["PublishTest"]
CatchUpTest: type[TestCase] = _names["CatchUpTest"]
