"""A plan: what a sweep will cost before it starts. It lies beside the sweep as `plan.json`, so that a report can set
what happened against it."""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from sweeps.speed import Speed

PLAN = "plan.json"
VERSION = 1


@dataclass(frozen=True)
class Range:
    """Least, median and most of a quantity over the planned trials."""

    low: float
    median: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Range:
        return cls(min(values), statistics.median(values), max(values))


@dataclass(frozen=True)
class PhaseTime:
    """Time of the search or of the finalists. `low_seconds`, `high_seconds`: the middle nine tenths of rehearsals."""

    runs: int
    epochs: float
    seconds: float
    low_seconds: float
    high_seconds: float
    busy_seconds: float
    "of all slots together"
    completed: float = 0.0
    "trials of the search that are trained to their end"
    left_to_train: float = 0.0
    "share of its epochs that a stopped trial, which becomes a finalist for want of completed ones, has yet to train"


@dataclass(frozen=True)
class Plan:
    """What a sweep will cost; what isn't known is None."""

    name: str
    spec_hash: str
    trials: int | None
    space_points: int | None
    grid_points: int
    infeasible_share: float
    infeasible_checked: int
    infeasible_example: str | None
    parameters: Range
    train_flops: Range
    "of a trial that isn't stopped"
    memory_bytes: Range
    tokenizers: int
    "different ones among the planned trials; each is trained once"
    epochs_without_stopping: int | None
    slots: int
    cpus_per_trial: float
    gpus_per_trial: float
    taken_over: float = 0.0
    "share of the trials whose result an earlier sweep has (`reuse`)"
    price_per_hour: float | None = None
    "of what one trial holds"
    search: PhaseTime | None = None
    fewest_workers: int | None = None
    "of an elastic trial; the other figures are those of trials with their most workers"
    search_with_fewest: PhaseTime | None = None
    finalists: PhaseTime | None = None
    conclusion_seconds: float = 0.0
    "an estimate of baselines and comparisons; ensemble and export are not in it"
    speed: Speed | None = None
    created: str = ""
    version: int = VERSION

    @property
    def seconds(self) -> float | None:
        """Of the whole sweep."""
        if self.search is None or self.finalists is None:
            return None
        return self.search.seconds + self.finalists.seconds + self.conclusion_seconds

    @property
    def trained_share(self) -> float | None:
        """Of the epochs that would be trained without early stopping."""
        if self.search is None or not self.epochs_without_stopping:
            return None
        return self.search.epochs / self.epochs_without_stopping

    def hours(self, per_trial: float) -> float | None:
        """CPU-hours or GPU-hours, by what one trial holds."""
        if self.search is None or self.finalists is None:
            return None
        return (self.search.busy_seconds + self.finalists.busy_seconds) / 3600 * per_trial

    @property
    def cost(self) -> float | None:
        """Of search and finalists, where a price is known."""
        hours = self.hours(1.0)
        return None if hours is None or self.price_per_hour is None else hours * self.price_per_hour

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON; also the numbers that are computed from others."""
        return asdict(self) | {
            "speed": self.speed.to_dict() if self.speed else None,
            "seconds": self.seconds,
            "trained_share": self.trained_share,
            "cpu_hours": self.hours(self.cpus_per_trial),
            "gpu_hours": self.hours(self.gpus_per_trial),
            "cost": self.cost,
        }

    def write(self, folder: Path) -> Path:
        """Leave the plan beside the sweep."""
        from genrec.durable import write_json

        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / PLAN, self.to_dict())
        return folder / PLAN


def read_plan(folder: Path) -> dict[str, Any] | None:
    """The plan that lies beside a sweep, as plain JSON; None when none was made or it can't be read."""
    try:
        plan = json.loads((folder / PLAN).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return plan if isinstance(plan, dict) and plan.get("version") == VERSION else None
