"""Check what docs/howto/rights-and-limits.md says of settings, tests and codes."""

import re
from typing import Any

from django.test import override_settings

from realtime.checks import check_settings
from realtime.closing import CloseReason
from realtime.conf import Settings
from tests.support.applications.tutorial import blocks
from tests.support.unlimited import UNLIMITED
from tests.unit.docs.test_security_page import ROOT, missing

PAGE = (ROOT / "docs" / "howto" / "rights-and-limits.md").read_text()


def examples() -> list[dict[str, Any]]:
    """Return the values of REALTIME on the page."""
    found = []
    for block in blocks("rights-and-limits.md", "python"):
        names: dict[str, Any] = {}
        exec(compile(block, "rights-and-limits.md", "exec"), names)  # noqa: S102 - our own documentation
        found += [names["REALTIME"]] if "REALTIME" in names else []
    return found


def test_the_settings_of_the_page_are_accepted() -> None:
    assert len(examples()) == 2
    for example in examples():
        with override_settings(REALTIME=example):
            assert check_settings(None) == []


def test_the_page_switches_off_every_limit_that_is_on() -> None:
    (unlimited,) = [each for each in examples() if "MAX_GROUPS" in each]
    assert unlimited == UNLIMITED


def test_every_setting_on_the_page_exists() -> None:
    named = set(re.findall(r"`([A-Z]+(?:_[A-Z]+)+)`", PAGE))
    assert named <= {*Settings.__dataclass_fields__, "CSRF_TRUSTED_ORIGINS"}


def test_every_code_on_the_page_is_that_of_its_reason() -> None:
    pairs = set(re.findall(r"`(\w+)`, (4\d{3})", PAGE))
    assert len(pairs) > 3
    assert all(CloseReason(reason).code == int(code) for reason, code in pairs)


def test_every_test_on_the_page_exists() -> None:
    assert missing(PAGE) == []
