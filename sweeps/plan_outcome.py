"""What a sweep came to, set against its plan."""

from __future__ import annotations

from typing import Any

from sweeps.ledger import Ledger


def planned_against_actual(plan: dict[str, Any], ledger: Ledger) -> list[tuple[str, float | None, float]]:
    """Name, planned and actual value of what can be compared; times are those of the search."""
    records = [record for record in ledger.trials() if record.duplicate_of is None]
    ran = [record for record in records if record.status != "infeasible"]
    infeasible = sum(record.status == "infeasible" for record in records)
    starts = [record.started for record in ran if record.started]
    ends = [record.finished for record in ran if record.finished]
    wall = (max(ends) - min(starts)).total_seconds() if starts and ends else 0.0
    search = plan.get("search") or {}
    return [
        ("trials", plan.get("trials"), len(ran)),
        ("infeasible share", plan.get("infeasible_share"), infeasible / max(1, len(records))),
        ("epochs", search.get("epochs"), sum(len(record.epochs) for record in ran)),
        ("search seconds", search.get("seconds"), wall),
        ("search slot seconds", search.get("busy_seconds"), sum(record.duration or 0.0 for record in ran)),
    ]
