"""The ledger as pandas DataFrames."""

from __future__ import annotations

from typing import Any

import pandas as pd

from sweeps.finalists import finalist_name
from sweeps.ledger import Ledger
from sweeps.records import TrialRecord


def trials_frame(ledger: Ledger) -> pd.DataFrame:
    """One row a trial, indexed by number."""
    records = ledger.trials()
    # Parameters keep the order of the file; one that a trial does not have is empty.
    names = [name for name in ledger.space.parameters if any(name in record.params for record in records)]
    names += [name for record in records for name in record.params if name not in names]
    frame = pd.DataFrame([_trial_row(record, list(dict.fromkeys(names))) for record in records])
    return frame.set_index("number") if records else pd.DataFrame(columns=["trial", "status", "value"])


def _trial_row(record: TrialRecord, parameters: list[str]) -> dict[str, Any]:
    further = {name: value for name, value in list(record.objectives.items())[1:]}
    return {
        "number": record.number,
        "trial": record.id,
        "status": record.status,
        "value": record.value,
        **further,
        **{name: record.params.get(name) for name in parameters},
        "epochs": len(record.epochs),
        "seconds": record.duration,
        "seed": record.seed,
        "reason": record.reason,
        "collision_rate": record.health.get("collision_rate"),
        "min_usage": min(record.health.get("usage") or [None]),
        "trained": ", ".join(record.trained),
        "reused": ", ".join(record.reused),
        "changes": "; ".join(record.changes),
        "node": record.node,
        "started": record.started,
        "finished": record.finished,
        "duplicate_of": record.duplicate_of,
        "taken_from": f"{record.source['sweep']} {record.source['trial']}" if record.source else None,
        "code": record.code,
        "config_hash": record.config_hash,
    }


def curves_frame(ledger: Ledger) -> pd.DataFrame:
    """One row an epoch of a trial."""
    rows = [{"trial": record.id, **row} for record in ledger.trials() for row in record.epochs]
    frame = pd.DataFrame(rows)
    first = [name for name in ("trial", "epoch", ledger.spec.metric) if name in frame]
    return frame[first + [name for name in frame if name not in first]]


def finalists_frame(ledger: Ledger) -> pd.DataFrame:
    """One row a re-evaluation, earlier ones included."""
    rows = []
    for run in ledger.finalist_runs():
        row: dict[str, Any] = {"trial": finalist_name(run.finalist), "seed": run.seed, "status": run.status}
        for split in ("validation", "test"):
            row |= {f"{split}.{name}": value for name, value in run.result.get(split, {}).items()}
        rows.append(row | {"parameters": run.result.get("parameters"), "seconds": run.result.get("duration")})
    return pd.DataFrame(rows, columns=None if rows else ["trial", "seed", "status"])


def comparisons_frame(ledger: Ledger) -> pd.DataFrame:
    """One row a comparison, as the verdict was made of."""
    return pd.DataFrame(ledger.fact("comparisons") or [])
