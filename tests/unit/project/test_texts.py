"""The texts of the demo page in other languages: each is there, and the compiled files are up to date."""

import ast
import gettext
import re
from pathlib import Path

import pytest

from project import settings, views
from realtime.conf import Settings

PROJECT = Path(settings.__file__).parent
CATALOGS = PROJECT / "locale/zh_Hans/LC_MESSAGES"
#: The file of each catalog whose texts it has, and the form of a text in that file.
SOURCES = {
    "django": ("templates/index.html", r'{% translate "([^"]+)" %}'),
    "djangojs": ("static/demo.js", r'gettext\(\s*"([^"]+)"'),
}
domains = pytest.mark.parametrize("domain", list(SOURCES))


def read(domain: str) -> dict[str, str]:
    """Read a .po file: the translation of each text. A text with a plural has its singular as key."""
    found: dict[str, str] = {}
    name, text = "", {"msgid": "", "msgstr": ""}
    for line in [*(CATALOGS / f"{domain}.po").read_text().splitlines(), ""]:
        if match := re.fullmatch(r'(msgid|msgid_plural|msgstr)(?:\[0\])? (".*")', line):
            name = match[1]
            text[name] = ast.literal_eval(match[2])
        elif line.startswith('"'):
            text[name] += ast.literal_eval(line)
        elif not line and text["msgid"]:
            found[text["msgid"]] = text["msgstr"]
            text = {"msgid": "", "msgstr": ""}
    return found


@domains
def test_every_text_of_the_page_is_translated(domain: str) -> None:
    path, form = SOURCES[domain]
    texts = set(re.findall(form, (PROJECT / path).read_text()))
    translated = read(domain)
    assert texts == set(translated)
    chinese = re.compile("[\u3001\u4e00-\u9fff\uff00-\uffef]")
    assert [text for text, translation in translated.items() if not chinese.search(translation)] == []


@domains
def test_a_translation_has_the_values_of_its_text(domain: str) -> None:
    for text, translation in read(domain).items():
        assert translation.count("%s") == text.count("%s"), text


@domains
def test_the_compiled_texts_are_up_to_date(domain: str) -> None:
    with (CATALOGS / f"{domain}.mo").open("rb") as file:
        compiled = gettext.GNUTranslations(file)
    catalog: dict[str | tuple[str, int], str] = compiled._catalog  # type: ignore[attr-defined]
    texts = {key[0] if isinstance(key, tuple) else key: text for key, text in catalog.items() if key}
    assert texts == read(domain)


def test_the_page_knows_the_defaults_of_the_settings() -> None:
    assert {name: getattr(Settings(), name) for name in views.DEFAULTS} == views.DEFAULTS


def test_the_page_offers_sleeps_on_both_sides_of_the_limits() -> None:
    said = views.sleep()
    assert said["choices"] == [5, 20, 40]
    assert (said["unnoticed"], said["written"], said["gone"]) == (8, 13, 28)
