"""What the ledger tells and takes: plain records, and values as strict JSON. No Optuna, no files."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Literal, NamedTuple

Status = Literal["waiting", "running", "stopped", "completed", "failed", "infeasible"]
State = Literal["searching", "finalists", "finished", "interrupted", "failed"]

STATUSES: tuple[Status, ...] = ("waiting", "running", "stopped", "completed", "failed", "infeasible")
_NON_FINITE = {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}


class ClusterLost(ConnectionError):
    """The cluster cannot run a single trial any more, or the driver has lost its own node. The sweep is resumable."""


class Stopped(Exception):
    """Raised by a trial that a rule ends before its budget is spent: it counts as `stopped`, not as failed. `by` names
    the rule (`sweeps.stopping.stopped_by`)."""

    def __init__(self, reason: str, by: str | None = None):
        super().__init__(reason)
        self.by = by


@dataclass(frozen=True)
class Task:
    """Something to run: `id` names its folder and log, `payload` is plain JSON."""

    id: str
    payload: dict[str, Any]


class Run(NamedTuple):
    """A process that had a trial: from when to when, and on which node."""

    start: datetime
    end: datetime
    node: str | None


@dataclass(frozen=True)
class TrialRecord:
    """What the ledger knows of one trial. `epochs`: the rows reported, by epoch; `value`: the best of the metric."""

    number: int
    id: str
    status: Status
    params: dict[str, Any]
    value: float | None
    epochs: list[dict[str, Any]]
    seed: int
    config_hash: str
    duration: float | None
    node: str | None
    reason: str | None
    artifacts: dict[str, str]
    reused: list[str]
    trained: list[str]
    started: datetime | None
    finished: datetime | None
    stopped_by: str | None = None
    "what stopped it (`sweeps.stopping.stopped_by`); None in ledgers of earlier versions"
    broken: str | None = None
    "of an infeasible point: the constraint or setting that it breaks"
    duplicate_of: int | None = None
    grid_index: int | None = None
    source: dict[str, Any] | None = None
    "sweep, trial and duration of the earlier result that was taken over; None: the trial was run"
    code: str | None = None
    "commit or version of the code that it began with"
    objectives: dict[str, float] = field(default_factory=dict)
    "the metric and what it stands against, by name"
    health: dict[str, Any] = field(default_factory=dict)
    "of its semantic IDs (`genrec.semantic_ids.Health`), once they are there"
    restarts: list[str] = field(default_factory=list)
    "why it was started again in the session in which it ended: a lost node, a process that died"
    changes: list[str] = field(default_factory=list)
    "of workers or threads in mid-training, in words; empty where its numbers are those of an undisturbed run"
    runs: list[Run] = field(default_factory=list)
    "by time; several where it paused, was resumed or started again; empty in ledgers that do not have them"


class PlannedRun(NamedTuple):
    """One re-evaluation to make: of a trial's number or `"base"`, with this config and seed."""

    finalist: int | str
    config: dict[str, Any]
    seed: int


@dataclass(frozen=True)
class FinalistRun:
    """One re-evaluation in the ledger; `result["test"]` holds the metrics on the test split."""

    finalist: int | str
    seed: int
    status: Status
    result: dict[str, Any] = field(default_factory=dict)
    epochs: list[dict[str, Any]] = field(default_factory=list)
    "what every epoch reported, on the validation split"


def plain(value: Any) -> Any:
    """`value` as strict JSON: numbers of other libraries become Python's, NaN and infinities text."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if value is None or isinstance(value, (bool, str, int)):
        return value
    if hasattr(value, "item"):
        return plain(value.item())
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    return str(value)


def metric_in(row: Mapping[str, Any], name: str) -> float | None:
    """The metric in a stored row as a number, possibly not finite; None where the row has none."""
    value = row.get(name)
    if isinstance(value, str):
        return _NON_FINITE.get(value)
    return None if value is None else float(value)


def finalist_id(finalist: int | str, seed: int) -> str:
    """`finalist-0007-s1`, `finalist-base-s1`."""
    name = f"{finalist:04d}" if isinstance(finalist, int) else finalist
    return f"finalist-{name}-s{seed}"


def readable(row: Mapping[str, Any]) -> dict[str, Any]:
    """A stored row with NaN and infinities as numbers again."""
    return {key: _NON_FINITE.get(value, value) if isinstance(value, str) else value for key, value in row.items()}
