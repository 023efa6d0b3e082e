"""Let the browser draw fenced blocks of the language `mermaid`, with the Mermaid of `_static/mermaid/`."""

import html
from typing import Any

from docutils import nodes
from docutils.parsers.rst import Directive
from sphinx.application import Sphinx


class Diagram(Directive):
    has_content = True

    def run(self) -> list[nodes.Node]:
        source = html.escape("\n".join(self.content))
        return [nodes.raw("", f'<pre class="mermaid">{source}</pre>', format="html")]


def _load_mermaid(
    app: Sphinx, page: str, template: str, context: dict[str, Any], doctree: nodes.document | None
) -> None:
    """Load Mermaid only on the pages that have a diagram: it is 2.5 MB."""
    if 'class="mermaid"' in context.get("body", ""):
        app.add_js_file("mermaid/mermaid.tiny.js")
        app.add_js_file("diagrams.js")


def setup(app: Sphinx) -> dict[str, bool]:
    app.config.myst_fence_as_directive.add("mermaid")
    app.add_directive("mermaid", Diagram)
    app.connect("html-page-context", _load_mermaid)
    return {"parallel_read_safe": True}
