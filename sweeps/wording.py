"""How numbers, counts and tables read in text: one way for terminal, logs, report and exported config."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path

from genrec.settings.evaluation import METRICS


def counted(count: int, noun: str) -> str:
    """`1 trial`, `3 trials`."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def number(value: float | None) -> str:
    """A metric as tables show it; empty where there is none."""
    return "" if value is None else f"{value:.4f}"


def plus_minus(value: dict[str, float], seeds: int) -> str:
    """Mean and deviation; of one seed there is no deviation."""
    return f"{value['mean']:.4f}" + (f" ± {value['std']:.4f}" if seeds > 1 else "")


def in_order(metrics: Iterable[str]) -> list[str]:
    """Names such as `ndcg@10` and `tuple_ndcg@10` by what they measure, then by K; others are left out."""
    found = [name for name in metrics if name.partition("@")[0].removeprefix("tuple_") in METRICS]
    return sorted(found, key=lambda name: (METRICS.index(name.partition("@")[0].removeprefix("tuple_")), _cutoff(name)))


def _cutoff(name: str) -> int:
    return int(name.partition("@")[2])


def aligned(rows: Iterable[Sequence[str]]) -> list[str]:
    """Cells as lines: columns under each other, the first to the left, the others to the right."""
    rows = [list(row) for row in rows]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return [
        "  ".join(
            cell.ljust(width) if column == 0 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    ]


def example_history(folder: Path) -> str:
    """Two items of the catalogue of a sweep's bundle, as `--history` takes them."""
    with open(folder / "bundle" / "items.jsonl", encoding="utf-8") as file:
        return ",".join(json.loads(line)["item"] for line, _ in zip(file, range(2), strict=False))
