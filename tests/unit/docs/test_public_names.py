"""The table of public names in the reference, compared with the package."""

import importlib
import pkgutil
import re
from pathlib import Path

import pytest

import realtime

REFERENCE = Path(__file__).resolve().parents[3] / "docs" / "reference.md"
#: The sentence in the docstring of a private module, or of the private package that it is in.
PRIVATE = "Private: docs/reference.md lists the public names."
#: Django finds these by their place.
OF_DJANGO = ("realtime.migrations", "realtime.management")


def documented() -> dict[str, set[str]]:
    """Return the names in the table, by module."""
    section = re.search(r"^## Public names$(.*?)^## ", REFERENCE.read_text(), re.MULTILINE | re.DOTALL)
    assert section is not None
    names: dict[str, set[str]] = {}
    for module, cell in re.findall(r"^\| `([\w.]+)` \| ([^|]+) \|", section[1], re.MULTILINE):
        names.setdefault(module, set()).update(re.findall(r"`(\w+)`", cell))
    return names


def packages_of(module: str) -> list[str]:
    """Return the module and the packages around it, except the top."""
    parts = module.split(".")
    return [".".join(parts[: end + 1]) for end in range(1, len(parts))]


def is_private(module: str) -> bool:
    return any(PRIVATE in (importlib.import_module(each).__doc__ or "") for each in packages_of(module))


MODULES = sorted(
    info.name
    for info in pkgutil.walk_packages(realtime.__path__, "realtime.")
    if not info.name.startswith(OF_DJANGO)
)


def test_the_table_names_modules() -> None:
    assert documented().keys() <= {"realtime", *MODULES}


@pytest.mark.parametrize("module", sorted(documented()))
def test_a_public_module_exports_the_names_in_the_table(module: str) -> None:
    found = importlib.import_module(module)

    assert set(found.__all__) == documented()[module]
    assert all(hasattr(found, name) for name in found.__all__)


@pytest.mark.parametrize("module", MODULES)
def test_every_other_module_is_marked_as_private(module: str) -> None:
    # The modules in a package with public names are private: the names are those of the package.
    in_public_package = any(each in documented() for each in packages_of(module)[:-1])

    assert (module in documented()) != (is_private(module) or in_public_package)
