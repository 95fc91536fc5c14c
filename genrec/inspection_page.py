"""All that `genrec inspect` shows on one page of HTML: it opens offline, and nothing in it runs or loads."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Mapping
from pathlib import Path

from matplotlib.figure import Figure

from genrec.durable import write_text
from genrec.errors import InputError

_HEAD = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src-attr 'unsafe-inline'">
<meta name="viewport" content="width=device-width, initial-scale=1">
"""


def write_page(path: Path | str, title: str, table: str, pictures: Mapping[str, Figure]) -> Path:
    """Write a page with a table, which is shown as it is, and pictures below their titles. Raises `InputError` for a
    path that is not named as HTML."""
    path = Path(path)
    if path.suffix.lower() not in (".html", ".htm"):
        raise InputError(f"{path}: a page's name must end in .html")
    parts = [_HEAD, f"<title>{html.escape(title)}</title>\n</head>\n<body>\n<h1>{html.escape(title)}</h1>\n"]
    parts.append(f'<pre style="overflow-x: auto">{html.escape(table)}</pre>\n')
    for name, figure in pictures.items():
        shown = html.escape(name)
        parts.append(f'<h2>{shown}</h2>\n<img src="{_embedded(figure)}" alt="{shown}" style="max-width: 100%">\n')
    write_text(path, "".join([*parts, "</body>\n</html>\n"]))
    return path


def _embedded(figure: Figure) -> str:
    """As an address that holds the picture itself; scripts in a picture that is shown so are never run."""
    file = io.BytesIO()
    figure.savefig(file, format="svg")
    return f"data:image/svg+xml;base64,{base64.b64encode(file.getvalue()).decode()}"
