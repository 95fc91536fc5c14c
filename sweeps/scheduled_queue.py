"""A queue whose trials are judged at every epoch: stopped, or paused and handed out again, or ended with the budget.

The part of a search that decides, without the part that runs: Ray Tune drives it in a sweep, a clock in a rehearsal.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, Literal, Protocol

from sweeps.records import Task
from sweeps.stopping import BUDGET, GO, TARGET, Curve, Rule, Verdict

Ending = Literal["stopped", "completed", "failed"]


class Queue(Protocol):
    """Hands out tasks and is told what became of them."""

    def next(self) -> Task | None: ...
    def report(self, task_id: str, metrics: dict[str, Any]) -> None: ...
    def finish(self, task_id: str, status: Ending, result: dict[str, Any]) -> None: ...


class Budget(Protocol):
    """See `sweeps.budget.Budget`."""

    def see(self, value: float) -> None: ...
    def reached(self, trial_seconds: float) -> str | None: ...
    def is_target(self, value: float) -> bool: ...


class ScheduledQueue:
    """Hands out what may run: first what the rule promotes, then what `queue` has.

    Args:
        history: the recorded curves of earlier sessions, by task id. A task that was paused then, and that `queue`
            hands out again, waits for its promotion.
        epochs_of: from a task's payload, the number of its last epoch; after it nothing stops the task.
        trial_seconds: what all tasks together have run so far in this session.
    """

    def __init__(
        self,
        queue: Queue,
        rule: Rule,
        *,
        history: Mapping[str, Curve],
        epochs_of: Callable[[dict[str, Any]], int | None],
        budget: Budget | None,
        trial_seconds: Callable[[], float],
    ):
        self._queue, self._rule, self._budget = queue, rule, budget
        self._epochs_of, self._trial_seconds = epochs_of, trial_seconds
        self._out: dict[str, Task] = {}
        self._paused: dict[str, Task] = {}
        for task_id, curve in history.items():
            rule.recall(task_id, [(epoch, value) for epoch, value in curve if math.isfinite(value)])

    def spent(self) -> str | None:
        """Which limit of the budget is reached."""
        return self._budget.reached(self._trial_seconds()) if self._budget else None

    def next(self) -> Task | None:
        """A task to run now, or None."""
        if self.spent():
            return None
        task = self._promoted() or self._fresh()
        if task is None and not self._out:
            task = self._promoted(last=True)
        if task is not None:
            self._out[task.id] = task
        return task

    def _promoted(self, last: bool = False) -> Task | None:
        found = self._rule.promoted(self._paused, last=last)
        return self._paused.pop(found) if found is not None else None

    def _fresh(self) -> Task | None:
        """What the queue hands out first may be what an interrupted session left paused."""
        while (task := self._queue.next()) is not None:
            if not self._rule.is_paused(task.id):
                return task
            self._paused[task.id] = task
            if (promoted := self._promoted()) is not None:
                return promoted
        return None

    def judge(self, task_id: str, row: Mapping[str, Any], value: float | None) -> Verdict:
        """What becomes of a running task after the epoch that reported `row`; `value` is None without a validation."""
        task, verdict, epoch = self._out[task_id], GO, row["epoch"]
        if value is not None:
            verdict = self._rule.judge(task_id, self._rule.point(row), value)
            if self._budget:
                self._budget.see(value)
        if epoch >= (self._epochs_of(task.payload) or epoch + 1):
            return GO
        if limit := self.spent():
            is_target = value is not None and self._budget is not None and self._budget.is_target(value)
            return Verdict("stop", f"ended with the budget at epoch {epoch}: {limit}", TARGET if is_target else BUDGET)
        if verdict.action == "pause" and self._rule.promoted({*self._paused, task_id}) == task_id:
            return GO
        return verdict

    def pause(self, task_id: str) -> None:
        """The task has let go of what it held and waits."""
        self._paused[task_id] = self._out.pop(task_id)

    def task(self, task_id: str) -> Task:
        """A task that is paused."""
        return self._paused[task_id]

    def never_promoted(self) -> dict[str, Verdict]:
        """After the search: the tasks that still wait, and why they were not trained on."""
        limit = self.spent()
        because = f"; {limit}" if limit else ""
        return {
            name: Verdict("stop", f"not promoted at {self._rule.standing(name)}{because}", "promote")
            for name in self._paused
        }

    def report(self, task_id: str, metrics: dict[str, Any]) -> None:
        self._queue.report(task_id, metrics)

    def finish(self, task_id: str, status: Ending, result: dict[str, Any]) -> None:
        self._out.pop(task_id, None)
        self._paused.pop(task_id, None)
        if status == "failed":
            self._rule.forget(task_id)
        self._queue.finish(task_id, status, result)
