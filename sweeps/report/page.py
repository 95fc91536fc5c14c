"""The report as one HTML file that needs nothing else: no network, no second file, no inline handler.

Its Content-Security-Policy allows two scripts by their hashes, the page's own and Plotly's, and nothing from elsewhere.
Plotly's is kept compressed, since it is 4.5 MB long, and unpacked by the browser when the page opens.
"""

from __future__ import annotations

import base64
import functools
import gzip
import hashlib
import json
import re
from importlib.resources import files
from typing import Any

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from genrec.terminal import printable
from sweeps.report.document import Commands, Document, Picture, Table, Text, is_number, shown, sort_key

TALL = 30
"rows beyond which a table is scrolled in a frame of its own"
LONG = 40
"characters beyond which a cell may have several lines"
_STYLES = ("plotly.js-style-global",)
"elements that Plotly would make for its styles: found in the page, they need no permission"


def page(document: Document) -> str:
    """The whole document as HTML."""
    css, script = _resource("page.css"), _resource("page.js")
    plotly, packed = _plotly()
    figures: dict[str, Any] = {}
    for section in document.sections:
        for block in section.blocks:
            if isinstance(block, Picture) and block.figure is not None:
                figures[f"picture-{len(figures)}"] = block.figure
    names = iter(figures)
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {"shown": lambda cell: printable(shown(cell)), "plain": printable}
    environment.tests |= {
        "text": lambda block: isinstance(block, Text),
        "table": lambda block: isinstance(block, Table),
        "commands": lambda block: isinstance(block, Commands),
        "number": is_number,
        "long": lambda cell: len(shown(cell)) > LONG,
    }
    return environment.from_string(_resource("page.html")).render(
        document=document,
        policy=_policy(css, script, plotly),
        css=Markup(css),
        script=Markup(script),
        packed=Markup(packed),
        figures=Markup(_as_data(figures)),
        next_picture=lambda: next(names),
        sort_key=sort_key,
        styles=_STYLES,
        tall=TALL,
        templates=_guards(plotly),
    )


def _policy(css: str, script: str, plotly: str) -> str:
    """Everything is forbidden but two scripts, our own styles, and pictures that the page makes itself. Plotly sets
    `style=` on what it draws; such attributes can load nothing here."""
    rules = {
        "default-src": "'none'",
        "script-src": f"{_hash(script)} {_hash(plotly)}",
        "style-src": f"{_hash(css)} {_hash('')}",
        "style-src-attr": "'unsafe-inline'",
        "img-src": "data: blob:",
        "base-uri": "'none'",
        "form-action": "'none'",
    }
    return "; ".join(f"{name} {value}" for name, value in rules.items())


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


@functools.lru_cache(maxsize=1)
def _plotly() -> tuple[str, str]:
    """Plotly's script, and compressed as base64."""
    from plotly.offline import get_plotlyjs

    script = get_plotlyjs()
    return script, base64.b64encode(gzip.compress(script.encode(), 9, mtime=0)).decode()


def _guards(plotly: str) -> list[str]:
    """Ids by which the bundle sees that the styles of its maps, which we don't draw, are there already."""
    return sorted(set(re.findall(r'getElementById\("([0-9a-f]{64})"\)', plotly)))


def _as_data(figures: dict[str, Any]) -> str:
    """JSON that no HTML parser sees anything in."""
    text = json.dumps(figures, separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _resource(name: str) -> str:
    return (files("sweeps.report") / name).read_text(encoding="utf-8")
