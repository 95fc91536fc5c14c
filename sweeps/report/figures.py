"""Figures in Plotly's JSON form: made small, and safe to show whatever stands in them.

Plotly reads a little markup in texts, links too. So every `<` that is not one of a few harmless tags is taken away from
it. Colours, fonts and grid lines are left to the page, which knows whether it is light or dark.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from genrec.terminal import printable

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

LABEL_WIDTH = 60
_FEW = 8
STATUS_COLOURS = {
    "completed": "#2a78b8",
    "stopped": "#c9820a",
    "failed": "#c0392b",
    "running": "#2f9e5b",
    "waiting": "#7f6bb3",
}
BEST_COLOUR = "#8e44ad"
GREY = "#b3bac1"
_FOREIGN = re.compile(r"<(?!br>|/?b>|/?extra>)")


def label(text: object) -> str:
    """A foreign text as Plotly shows it: one short line, no markup."""
    line = printable(str(text))
    line = line if len(line) <= LABEL_WIDTH else line[: LABEL_WIDTH - 1] + "…"
    return line.replace("&", "&amp;").replace("<", "&lt;")


def as_json(figure: Figure, height: int = 380) -> dict[str, Any]:
    """Data and layout, without Plotly's own theme."""
    figure.update_layout(height=height, title=None)
    found = json.loads(figure.to_json())
    found["layout"].pop("template", None)
    return {"data": _safe(found["data"]), "layout": _safe(found["layout"])}


def _safe(value: Any) -> Any:
    if isinstance(value, str):
        return _FOREIGN.sub("&lt;", value)
    if isinstance(value, list):
        return [_safe(item) for item in value]
    if isinstance(value, dict):
        return {key: _safe(item) for key, item in value.items()}
    return value


def rounded(value: float | None, digits: int = 5) -> float | None:
    """So many significant digits: what a picture can show. None for what can't be drawn."""
    if value is None or not math.isfinite(value):
        return None
    return float(f"{value:.{digits}g}")


def whole_numbers(values: Sequence[float]) -> dict[str, Any]:
    """Of an axis that counts: no tick between two whole numbers, however few there are."""
    few = max(values, default=0) - min(values, default=0) <= _FEW
    return {"dtick": 1, "tickformat": "d"} if few else {"tickformat": "d"}


def joined(lines: Iterable[Sequence[Any]]) -> list[Any]:
    """Many lines as one: with a gap between, so that a thousand of them are a single trace."""
    flat: list[Any] = []
    for line in lines:
        flat += [*line, None]
    return flat[:-1]
