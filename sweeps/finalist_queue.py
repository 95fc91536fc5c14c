"""The queue of the re-evaluations of a sweep."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from optuna.trial import FrozenTrial, TrialState

from genrec.config import content_hash
from sweeps.records import PlannedRun, Task, finalist_id, metric_in, plain

if TYPE_CHECKING:
    from sweeps.ledger import Ledger


class _Key(NamedTuple):
    """What makes two runs the same."""

    finalist: int | str
    seed: int
    config_hash: str


def _config(plan: PlannedRun) -> dict[str, Any]:
    config: dict[str, Any] = plain(plan.config) | {"seed": plan.seed}
    return config


def _key(plan: PlannedRun) -> _Key:
    return _Key(plan.finalist, plan.seed, content_hash(_config(plan)))


def _key_of(trial: FrozenTrial) -> _Key:
    attrs = trial.user_attrs
    return _Key(attrs["finalist"], attrs["seed"], attrs["config_hash"])


class FinalistQueue:
    """Handed out: what was running when a driver died, then what has no result yet (on a resume that includes what
    failed before). A run whose config has changed since, as another revision of the sweep may want it, is made anew."""

    def __init__(self, ledger: Ledger, runs: Iterable[PlannedRun | tuple[int | str, dict[str, Any], int]]):
        self._record = ledger.finalists
        self._ledger = ledger
        self._stopping = False
        plans = {_key(plan): plan for plan in (PlannedRun(*run) for run in runs)}
        latest = {_key_of(trial): trial for trial in self._record.trials()}
        self._running = {key for key, trial in latest.items() if trial.state == TrialState.RUNNING}
        for key in self._running - set(plans):
            self._record.finish(latest[key].user_attrs["id"], "failed", {"reason": "not planned any more"})
        done = {key for key, trial in latest.items() if trial.state in (TrialState.COMPLETE, TrialState.PRUNED)}
        todo = [key for key in plans if key not in done]
        self._todo = [(key, plans[key]) for key in sorted(todo, key=lambda key: key not in self._running)]
        if ledger.fact("phase") != "finalists":
            ledger.mark("finalists")

    @property
    def left(self) -> int:
        """How many runs are still to be handed out."""
        return len(self._todo)

    def next(self) -> Task | None:
        """The next run, or None."""
        if self._stopping or not self._todo:
            return None
        key, plan = self._todo.pop(0)
        task_id = finalist_id(plan.finalist, plan.seed)
        if key not in self._running:
            attrs = {"id": task_id, "finalist": plan.finalist, "seed": plan.seed, "config_hash": key.config_hash}
            self._record.create(TrialState.RUNNING, attrs)
        payload = {"config": _config(plan), "seed": plan.seed, "finalist": plan.finalist, "kind": "finalist"}
        return Task(task_id, payload)

    def report(self, task_id: str, metrics: Mapping[str, Any]) -> None:
        self._record.report(task_id, metrics)

    def finish(self, task_id: str, status: str, result: Mapping[str, Any]) -> None:
        """Record the end of a run; the value of a completed one is the sweep's metric on the test split."""
        value = metric_in(plain(result.get("test") or {}), self._record.metric)
        if self._record.finish(task_id, status, result, value) is not None:
            self._ledger.heartbeat()

    def stop_asking(self) -> None:
        """Hand out nothing any more in this session."""
        self._stopping = True
