"""The browser client, collected by the storages of Django that put a hash into file names."""

import re
from pathlib import Path

import pytest
from django.contrib.staticfiles.storage import ManifestStaticFilesStorage
from django.core.management import call_command
from django.test import override_settings

HASHED = re.compile(r"realtime\.[0-9a-f]{12}\.js")


class Rewriting(ManifestStaticFilesStorage):
    """Rewrites the imports between modules."""

    support_js_module_import_aggregation = True


@pytest.mark.parametrize("storage", [ManifestStaticFilesStorage, Rewriting])
def test_the_client_can_be_served_with_a_hashed_name(storage: type, tmp_path: Path) -> None:
    backend = {"BACKEND": f"{storage.__module__}.{storage.__name__}"}
    with override_settings(STATIC_ROOT=tmp_path, STORAGES={"staticfiles": backend}):
        call_command("collectstatic", interactive=False, verbosity=0)
    scripts = {path.name: path.read_text() for path in (tmp_path / "realtime").glob("*.js")}
    (hashed,) = (name for name in scripts if HASHED.fullmatch(name))
    assert scripts[hashed] == scripts["realtime.js"]
    # It works alone: nothing that it imports can be missing or of another release.
    assert re.findall(r"^\s*(?:import|export .* from)\b", scripts[hashed], re.MULTILINE) == []
