"""Build the navigation from the setting `navigation`: `docs/index.md` then holds no directives of Sphinx."""

from sphinx.application import Sphinx


def _add_navigation(app: Sphinx, page: str, source: list[str]) -> None:
    if page == app.config.root_doc:
        for caption, pages in app.config.navigation.items():
            listed = "\n".join(f"/{each}" for each in pages)
            source[0] += f"\n```{{toctree}}\n:hidden:\n:caption: {caption}\n\n{listed}\n```\n"
    elif page == "docs/decisions/README":
        source[0] += "\n```{toctree}\n:hidden:\n:glob:\n\n0*\n```\n"


def setup(app: Sphinx) -> dict[str, bool]:
    app.add_config_value("navigation", {}, "env")
    app.connect("source-read", _add_navigation)
    return {"parallel_read_safe": True}
