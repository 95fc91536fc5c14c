"""The queue of the re-evaluations of a sweep."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from optuna.trial import TrialState

from genrec.config import content_hash
from sweeps.records import PlannedRun, Task, finalist_id, metric_in, plain

if TYPE_CHECKING:
    from sweeps.ledger import Ledger


class FinalistQueue:
    """Handed out: what was running when a driver died, then what has no result yet
    (on a resume that includes what failed before)."""

    def __init__(self, ledger: Ledger, runs: Iterable[PlannedRun | tuple[int | str, dict[str, Any], int]]):
        self._record = ledger.finalists
        self._ledger = ledger
        self._stopping = False
        latest = {(t.user_attrs["finalist"], t.user_attrs["seed"]): t.state for t in self._record.trials()}
        plans = [PlannedRun(*run) for run in runs]
        done = (TrialState.COMPLETE, TrialState.PRUNED)
        open_plans = [plan for plan in plans if latest.get((plan.finalist, plan.seed)) not in done]
        self._todo = sorted(open_plans, key=lambda plan: latest.get((plan.finalist, plan.seed)) != TrialState.RUNNING)
        self._running = {key for key, state in latest.items() if state == TrialState.RUNNING}
        if ledger.fact("phase") != "finalists":
            ledger.mark("finalists")

    def next(self) -> Task | None:
        """The next run, or None."""
        if self._stopping or not self._todo:
            return None
        plan = self._todo.pop(0)
        task_id = finalist_id(plan.finalist, plan.seed)
        config = plain(plan.config) | {"seed": plan.seed}
        if (plan.finalist, plan.seed) not in self._running:
            attrs = {"id": task_id, "finalist": plan.finalist, "seed": plan.seed, "config_hash": content_hash(config)}
            self._record.create(TrialState.RUNNING, attrs)
        payload = {"config": config, "seed": plan.seed, "finalist": plan.finalist, "kind": "finalist"}
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
