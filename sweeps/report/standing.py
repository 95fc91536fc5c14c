"""The trials as they stand: those that have a value, and those that are paused, by the best of their epochs."""

from __future__ import annotations

import dataclasses
import math

from genrec.config import RunConfig
from sweeps.finalists import config_of_run, winning_run
from sweeps.ledger import Ledger
from sweeps.records import TrialRecord, metric_in


def standing(ledger: Ledger) -> list[TrialRecord]:
    """The leaderboard with the paused trials in it: completed trials before all others, best first.

    A paused trial has the best of its epochs as its value; its other objectives are not known yet.
    """
    paused = [r for r in map(lambda record: _valued(record, ledger), ledger.trials()) if r is not None]
    sign = -1 if ledger.spec.mode == "max" else 1
    found = [*ledger.leaderboard(), *paused]
    return sorted(found, key=lambda r: (r.status != "completed", sign * (r.value or 0.0), r.number))


def _valued(record: TrialRecord, ledger: Ledger) -> TrialRecord | None:
    """A paused trial with its value; None for all others, and where it has none."""
    if record.status != "waiting" or record.duplicate_of is not None:
        return None
    metric = ledger.spec.metric
    values = [v for row in record.epochs if (v := metric_in(row, metric)) is not None and math.isfinite(v)]
    if not values:
        return None
    value = max(values) if ledger.spec.mode == "max" else min(values)
    return dataclasses.replace(record, value=value, objectives={metric: value})


def best_so_far(ledger: Ledger) -> TrialRecord | None:
    """The first that stands."""
    return next(iter(standing(ledger)), None)


def chosen_config(ledger: Ledger) -> RunConfig | None:
    """The winner's; before there is one, that of the best trial so far; None before any trial has a value."""
    run = winning_run(ledger)
    if run is not None:
        return config_of_run(ledger, run)
    best = best_so_far(ledger)
    return None if best is None else ledger.config_of(best.number)
