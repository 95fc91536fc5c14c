"""What a report consists of, before it becomes HTML or Markdown: sections of texts, tables, commands and pictures.

Everything in it may come from strangers (titles, names, reasons): it is plain text here, and the writers escape it.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Any

from genrec.terminal import printable
from sweeps.wording import plus_minus


@dataclass(frozen=True)
class Spread:
    """Mean and sample deviation over so many seeds."""

    mean: float
    std: float
    seeds: int

    def __str__(self) -> str:
        return plus_minus({"mean": self.mean, "std": self.std}, self.seeds)


Cell = str | int | float | Spread | None


@dataclass(frozen=True)
class Text:
    """A paragraph; `strong` ones are what a reader should not miss."""

    text: str
    strong: bool = False


@dataclass(frozen=True)
class Table:
    """Rows under named columns; an empty cell is None."""

    caption: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    note: str = ""
    high: Collection[str] = ()
    "columns whose largest value is the best: sorting begins with it"

    def is_numeric(self, column: int) -> bool:
        """Whether the cells of a column are numbers, empty ones aside."""
        cells = [row[column] for row in self.rows if row[column] is not None]
        return bool(cells) and all(is_number(cell) for cell in cells)


@dataclass(frozen=True)
class Commands:
    """Lines for a shell, each with what it does."""

    lines: Sequence[tuple[str, str]]
    "(purpose, command)"


@dataclass(frozen=True)
class Picture:
    """A figure in Plotly's JSON form, or the reason why there is none."""

    title: str
    figure: dict[str, Any] | None
    note: str
    "what one sees; without a figure: why"


Block = Text | Table | Commands | Picture


@dataclass(frozen=True)
class Section:
    """One heading and what stands below it. `id` is its anchor."""

    id: str
    title: str
    blocks: list[Block] = field(default_factory=list)


@dataclass(frozen=True)
class Document:
    """A whole report."""

    title: str
    lead: str
    "one line below the title: state, trials, when this was written"
    sections: list[Section]


def one_line(text: str) -> str:
    """A foreign text on one line, without control characters."""
    return printable(" ".join(text.split()))


def shown(value: Cell) -> str:
    """A cell as a person reads it."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return f"{value:.4g}" if abs(value) < 1e4 else f"{value:,.0f}"
    return str(value)


def is_number(cell: Cell) -> bool:
    """Whether a cell is to be read, aligned and sorted as a number."""
    return isinstance(cell, (int, float, Spread)) and not isinstance(cell, bool)


def sort_key(value: Cell) -> float | str:
    """What a column is sorted by."""
    if isinstance(value, Spread):
        return value.mean
    return "" if value is None else value


def scalar(value: Any) -> Cell:
    """Any setting as a cell: lists and switches as YAML would write them."""
    if isinstance(value, bool):
        return str(value).lower()
    if value is None or isinstance(value, (str, int, float)):
        return value
    return str(value)
