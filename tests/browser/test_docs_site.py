"""The site that `make docs` builds: nothing is broken, and nothing comes from another host."""

import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

import pytest
from playwright.async_api import Browser, ConsoleMessage, Request

from tests.support.programs.servers import CHECKOUT

pytestmark = pytest.mark.acceptance

#: The attributes of elements that make a browser load a file. An `<a>` only leads to one.
LOADED = {
    "audio": "src",
    "embed": "src",
    "iframe": "src",
    "img": "src",
    "input": "src",
    "link": "href",
    "object": "data",
    "script": "src",
    "source": "src",
    "video": "src",
}
ELSEWHERE = re.compile(r"(?:https?:)?//", re.IGNORECASE)


class Assets(HTMLParser):
    """The addresses that a page loads."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        self.found += [values.get(LOADED.get(tag, "")) or "", *(values.get("srcset") or "").split(",")]


def built(*options: str, folder: Path, source: Path = CHECKOUT) -> subprocess.CompletedProcess[str]:
    """Build the documentation in `source` with the options of `make docs`, and others."""
    makefile = (CHECKOUT / "Makefile").read_text()
    strict = re.search(r"^SPHINX := \$\(PYTHON\) (.+)$", makefile, re.MULTILINE)
    assert strict is not None
    return subprocess.run(
        [sys.executable, *strict[1].split(), *options, str(source), str(folder)],
        cwd=source,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the built site."""
    folder = tmp_path_factory.mktemp("site")
    done = built("-b", "html", "-d", str(tmp_path_factory.mktemp("doctrees")), folder=folder)
    assert done.returncode == 0, done.stderr
    return folder


def pages(site: Path) -> Iterator[Path]:
    yield from site.rglob("*.html")


def test_no_page_loads_anything_from_another_host(site: Path) -> None:
    loaded = {}
    for page in pages(site):
        assets = Assets()
        assets.feed(page.read_text())
        loaded[page.relative_to(site).as_posix()] = [each.strip() for each in assets.found if each.strip()]

    assert {"docs/index.html", "docs/reference.html", "README.html"} <= set(loaded)
    # The root only leads on, and a page to download is an example for readers.
    styled = [page for page in loaded if page != "index.html" and not page.startswith("_downloads/")]
    assert all(loaded[page] for page in styled)
    assert {page: [each for each in found if ELSEWHERE.match(each)] for page, found in loaded.items()} == {
        page: [] for page in loaded
    }


def test_no_style_sheet_loads_anything_from_another_host(site: Path) -> None:
    sheets = [sheet.read_text() for sheet in site.rglob("*.css")]
    addresses = re.findall(r"""(?:url\(|@import)\s*["']?([^"')\s]+)""", "\n".join(sheets))

    assert addresses
    assert [address for address in addresses if ELSEWHERE.match(address)] == []


def test_the_root_leads_to_the_first_page(site: Path) -> None:
    target = re.search(r'url=([^"]+)"', (site / "index.html").read_text())
    assert target is not None
    assert (site / target[1]).is_file()


def test_a_code_block_has_its_title(site: Path) -> None:
    page = (site / "docs/tutorial/sleeping-phone.html").read_text()
    assert "code-block-caption" in page
    assert "chat/consumers.py" in page


def test_links_and_anchors_that_lead_nowhere_fail_the_check(tmp_path: Path) -> None:
    lint = re.search(r"^\t\$\(SPHINX\) (-b dummy) ", (CHECKOUT / "Makefile").read_text(), re.MULTILINE)
    assert lint is not None
    source = tmp_path / "source"
    shutil.copytree(
        CHECKOUT / "docs", source / "docs", ignore=shutil.ignore_patterns("*.md", "images", "_static")
    )
    (source / "docs/_static").mkdir()
    good = "[a](../README.md) [b](../README.md#here) [c](conf.py) [d](#title)"
    broken = "[e](gone.md) [f](gone.py) [g](#gone) [h](../README.md#lost)"
    (source / "docs/index.md").write_text(f"# Title\n\n{good} {broken}\n")
    (source / "README.md").write_text("# Title\n\n## Here\n")
    done = built(*lint[1].split(), folder=tmp_path / "built", source=source)

    assert done.returncode != 0
    found = re.findall(r"(?:target not found|local id not found in .*): '(.+?)'", done.stderr)
    assert sorted(found) == ["gone", "gone.md", "gone.py", "lost"]


@pytest.mark.browser
@pytest.mark.asyncio(loop_scope="module")
async def test_each_diagram_is_drawn_without_another_host(chromium: Browser, site: Path) -> None:
    with_diagrams = [page for page in pages(site) if 'class="mermaid"' in page.read_text()]
    assert site / "docs/tutorial/sleeping-phone.html" in with_diagrams
    context = await chromium.new_context()
    requests: list[str] = []
    complaints: list[str] = []

    def note(message: ConsoleMessage) -> None:
        if message.type in ("error", "warning"):
            complaints.append(message.text)

    def requested(request: Request) -> None:
        requests.append(request.url)

    for path in with_diagrams:
        page = await context.new_page()
        page.on("console", note)
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("request", requested)
        await page.goto(path.as_uri())
        diagrams = await page.locator("pre.mermaid").all()
        for diagram in diagrams:
            await diagram.locator("svg").wait_for()
            # Mermaid draws a picture of its own when it cannot read a diagram.
            assert await diagram.locator("svg[aria-roledescription=error]").count() == 0, path
            box = await diagram.locator("svg").bounding_box()
            assert box is not None
            assert min(box["width"], box["height"]) > 50
        await page.close()
    await context.close()

    assert complaints == []
    assert [url for url in requests if not url.startswith(("file:", "data:"))] == []
