"""The site of the documentation: `make docs` builds it with Sphinx into site/.

The source folder is the root of the repository. The relative links between pages, to README.md and to
other files are therefore the same on the site and in the repository.
"""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "docs" / "_extensions"))

project = "realtime"
html_title = "realtime"

extensions = ["myst_parser", "captions", "diagrams", "navigation"]
include_patterns = ["docs/**", "benchmarks/README.md", "*.md"]
exclude_patterns = [".*", "docs/_*", "site", "var", "**/node_modules"]
root_doc = "docs/index"

# The anchors of headings are the same as on the hosts of repositories.
myst_heading_anchors = 4

html_theme = "furo"
html_static_path = ["_static"]
templates_path = ["_templates"]
# No page of this name has a source: the root of the site sends the reader to `root_doc`.
html_additional_pages = {"index": "root.html"}
html_copy_source = False
html_show_copyright = False

#: The parts of the site, and the pages of each, by their paths without suffix. A page that is missing here
#: fails the build. The decisions need no line: the extension adds them to their index.
navigation = {
    "Tutorial": ["docs/tutorial/sleeping-phone"],
    "How-to": [
        "docs/howto/move-an-existing-project",
        "docs/howto/test-your-consumers",
        "docs/howto/publish-from-workers",
        "docs/howto/catch-up",
        "docs/howto/show-who-is-here",
        "docs/howto/connect-with-tickets",
        "docs/howto/rights-and-limits",
        "docs/howto/other-clients",
        "docs/howto/use-the-client",
        "docs/howto/push-when-asleep",
        "docs/howto/look-at-connections",
        "docs/howto/stop-a-server",
        "docs/howto/servers",
        "docs/howto/behind-a-proxy",
        "docs/howto/run-redis",
    ],
    "Reference": ["docs/reference", "docs/glossary", "CHANGELOG"],
    "Explanation": [
        "docs/architecture",
        "docs/failure-modes",
        "docs/faults-measured",
        "docs/compatibility",
        "docs/scaling",
        "docs/profiles",
        "benchmarks/README",
        "docs/decisions/README",
    ],
    "Project": [
        "README",
        *sorted(page.stem for page in ROOT.glob("*.md") if page.stem not in ("README", "CHANGELOG")),
    ],
}
