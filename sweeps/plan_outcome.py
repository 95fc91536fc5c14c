"""What a sweep came to, set against its plan."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import pairwise
from typing import Any

from sweeps.cluster_use import SIZES
from sweeps.ledger import Ledger

Interval = tuple[float, float]
"from and until, in seconds since 1970"


def planned_against_actual(plan: dict[str, Any], ledger: Ledger) -> list[tuple[str, float | None, float]]:
    """Name, planned and actual value of what can be compared; times are those of the search. What was taken over from
    earlier sweeps counts as trials alone."""
    records = [record for record in ledger.trials() if record.duplicate_of is None]
    ran = [record for record in records if record.status != "infeasible"]
    own = [record for record in ran if record.source is None]
    infeasible = sum(record.status == "infeasible" for record in records)
    spans = [(r.started.timestamp(), r.finished.timestamp()) for r in own if r.started and r.finished]
    search = plan.get("search") or {}
    concluded = ledger.fact("conclusion_seconds")
    conclusion = [] if concluded is None else [("conclusion seconds", plan.get("conclusion_seconds"), concluded)]
    return [
        ("trials", plan.get("trials"), len(ran)),
        ("infeasible share", plan.get("infeasible_share"), infeasible / max(1, len(records))),
        ("epochs", search.get("epochs"), sum(len(record.epochs) for record in own)),
        ("search seconds", search.get("seconds"), seconds_of(spans, _driven(ledger))),
        ("search slot seconds", search.get("busy_seconds"), sum(record.duration or 0.0 for record in own)),
        *conclusion,
    ]


def seconds_of(spans: Iterable[Interval], driven: Iterable[Interval] | None) -> float:
    """In which at least one of `spans` lasted, of the time that was `driven` (None: all the time)."""
    if driven is not None:
        spans = [(max(a, start), min(b, end)) for a, b in spans for start, end in driven]
    seconds, until = 0.0, float("-inf")
    for start, end in sorted(spans):
        seconds += max(0.0, end - max(start, until))
        until = max(until, end)
    return seconds


def _driven(ledger: Ledger) -> list[Interval] | None:
    """When a driver was at work; None where the ledger does not tell."""
    sizes = ledger.fact(SIZES)
    if not sizes:
        return None
    ends = [*(after[0] for _, after in pairwise(sizes)), float("inf")]
    return [(size[0], end) for size, end in zip(sizes, ends, strict=True) if any(size[1:])]
