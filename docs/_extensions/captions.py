"""Show the title of a fenced block, as in ```` ```python title="chat/consumers.py" ````, above its code."""

import re

from sphinx.application import Sphinx

_TITLED = re.compile(r'^(?P<fence>`{3,})(?P<language>\w+) title="(?P<title>[^"]+)"$', re.MULTILINE)


def _add_captions(app: Sphinx, page: str, source: list[str]) -> None:
    source[0] = _TITLED.sub(r"\g<fence>{code-block} \g<language>\n:caption: \g<title>\n", source[0])


def setup(app: Sphinx) -> dict[str, bool]:
    app.connect("source-read", _add_captions)
    return {"parallel_read_safe": True}
