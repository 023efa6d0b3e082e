"""The browser client as an npm package: packed, and installed into another project.

The project is in tests/support/npm, with the example for React of docs/howto/use-the-client.md.
"""

import shutil
import tarfile
from pathlib import Path

import pytest

from tests.support.fixtures import StartSite
from tests.support.pairings import Pairing
from tests.support.programs.servers import CHECKOUT
from tests.support.programs.wheels import run

pytestmark = pytest.mark.acceptance

STATIC = "realtime/static/realtime"
QUIET = ("--no-audit", "--no-fund", "--no-package-lock", "--no-update-notifier", "--prefer-offline")


@pytest.fixture(scope="module")
def tarball(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if shutil.which("npm") is None:
        pytest.skip("there is no npm")
    folder = tmp_path_factory.mktemp("packed")
    run("npm", "pack", "--pack-destination", folder, cwd=CHECKOUT)
    (packed,) = folder.glob("*.tgz")
    return packed


@pytest.fixture(scope="module")
def project(tarball: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project in which the packed client is installed and everything is compiled."""
    folder = tmp_path_factory.mktemp("npm")
    shutil.copytree(CHECKOUT / "tests/support/npm", folder, dirs_exist_ok=True)
    shutil.copy(CHECKOUT / "docs/howto/client/useGroup.ts", folder)
    # Under another name, because TypeScript reads the declarations instead of a file that has them beside it.
    shutil.copy(CHECKOUT / STATIC / "realtime.js", folder / "client.js")
    try:
        run("npm", "install", *QUIET, cwd=folder)
    except AssertionError as error:
        pytest.skip(f"the packages of the project cannot be installed: {error}")
    run("npm", "install", *QUIET, "--no-save", tarball, cwd=folder)
    return folder


@pytest.fixture(scope="module")
def compiled(project: Path) -> Path:
    """The project after TypeScript accepted all of it with `strict`."""
    run("npx", "--no-install", "tsc", "--project", project, cwd=project)
    return project


def test_the_package_has_the_client_and_no_other_file(tarball: Path) -> None:
    with tarfile.open(tarball) as archive:
        names = {name.removeprefix("package/") for name in archive.getnames()}
    own = {f"{STATIC}/realtime.js", f"{STATIC}/realtime.d.ts"}
    assert names == own | {"package.json", "README.md", "LICENSE"}


def test_typescript_accepts_the_declarations_and_the_code(compiled: Path) -> None:
    assert (compiled / "built/types.js").exists()


def test_a_mistake_in_the_declarations_is_found(project: Path) -> None:
    """Otherwise the test above would show nothing."""
    declarations = project / "node_modules/django-channels-realtime" / STATIC / "realtime.d.ts"
    text = declarations.read_text()
    try:
        declarations.write_text(text.replace("check(): Promise<number>", "check(): Promise<string>"))
        with pytest.raises(AssertionError, match=r"implementation\.ts"):
            run("npx", "--no-install", "tsc", "--project", project, "--noEmit", "--skipLibCheck", cwd=project)
    finally:
        declarations.write_text(text)


def test_node_connects_recovers_and_publishes_with_ws(project: Path) -> None:
    assert run("node", "connects.mjs", cwd=project) == "done\n"


def test_the_hook_for_react_shows_what_was_missed(compiled: Path) -> None:
    assert run("node", "react.mjs", cwd=compiled) == "done\n"


def test_the_client_recovers_from_a_real_server(project: Path, start_site: StartSite) -> None:
    history = {"public.*": {"size": 100, "ttl": 60}}
    server = start_site(Pairing("pubsub", "daphne", "sqlite"), HISTORY=history).serve()
    address = server.websocket("")
    assert run("node", "recovers.mjs", address, cwd=project) == "done\n"
