"""Plays a sweep's trials on a clock: slots, shared tokenizers, stopping, promotion, budgets. No training, no Ray.

What decides is what decides in a sweep (`sweeps.scheduled_queue`, `sweeps.stopping`, `sweeps.budget`); processes and
time alone are played. A plan plays trials whose metric is a number drawn at random that says how good they are: a rule
that compares trials at equal epochs then stops as many as it will stop of a real sweep, whichever they are.
"""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from sweeps.records import Task
from sweeps.scheduled_queue import Budget, Queue, ScheduledQueue
from sweeps.stopping import Rule

REPEATS = 24
METRIC = "quality"
"of the trials that are played for a plan"


class Played(NamedTuple):
    """One trial to play: seconds of an epoch, epochs, seconds until its first one, the tokenizer that it needs, and
    optimizer steps of an epoch."""

    epoch_seconds: float
    epochs: int
    setup_seconds: float
    tokenizer_key: str
    tokenizer_seconds: float
    epoch_steps: int = 1


@dataclass
class Outcome:
    """What one rehearsal came to."""

    wall_seconds: float = 0.0
    busy_seconds: float = 0.0
    "over all slots"
    epochs: int = 0
    started: int = 0
    "trials; one that was paused counts once"
    tokenizers: set[str] = field(default_factory=set)
    completed: int = 0
    "trials that came to their last epoch"
    left: list[float] = field(default_factory=list)
    "of the others, best first: the share of its epochs that each has yet to train"


@dataclass
class Clock:
    """What time it is in a rehearsal, in seconds."""

    now: float = 0.0

    def time(self) -> float:
        return self.now


def rehearse(
    trials: Sequence[Played],
    slots: int,
    *,
    start_seconds: float = 0.0,
    rule: Rule | None = None,
    budget: Budget | None = None,
    clock: Clock | None = None,
    seed: int = 0,
) -> Outcome:
    """Play `trials` in order, each as good as chance has it. `start_seconds`: until the process of a slot can train."""
    rng = random.Random(seed)
    quality = [rng.random() for _ in trials]
    play = Rehearsal(
        _Listed(len(trials)),
        slots,
        trial_of=lambda payload: trials[payload["number"]],
        value_of=lambda payload, epoch: quality[payload["number"]],
        metric=METRIC,
        rule=rule or Rule(),
        budget=budget,
        clock=clock or Clock(),
        start_seconds=start_seconds,
    )
    return play.run()


class Rehearsal:
    """Plays the trials of a queue. `trial_of` tells from a task's payload what it costs, `value_of` what it reports at
    an epoch; `on_epoch` gets each epoch: task id, epoch, value."""

    def __init__(
        self,
        queue: Queue,
        slots: int,
        *,
        trial_of: Callable[[dict[str, Any]], Played],
        value_of: Callable[[dict[str, Any], int], float],
        metric: str,
        rule: Rule,
        budget: Budget | None = None,
        clock: Clock,
        start_seconds: float = 0.0,
        on_epoch: Callable[[str, int, float], None] = lambda task_id, epoch, value: None,
    ):
        self.outcome = Outcome()
        self._trial_of, self._value_of, self._metric, self._on_epoch = trial_of, value_of, metric, on_epoch
        self._clock, self._start_seconds = clock, start_seconds
        self._free = self._cold = slots
        self._ready: dict[str, float] = {}
        self._paused_at: dict[str, int] = {}
        self._since: dict[str, float] = {}
        self._left: dict[str, tuple[float, float]] = {}  # the last value, and what is left to train
        self._events: list[tuple[float, int, int, Task]] = []  # end of an epoch, tie-breaker, epoch
        self._count = 0
        self._queue = ScheduledQueue(
            queue,
            rule,
            history={},
            epochs_of=lambda payload: trial_of(payload).epochs,
            budget=budget,
            trial_seconds=self._trial_seconds,
        )

    def run(self) -> Outcome:
        """Play to the end."""
        self._fill()
        while self._events:
            self._clock.now, _, epoch, task = heapq.heappop(self._events)
            self._end_epoch(task, epoch)
            self._fill()
        for task_id, verdict in self._queue.never_promoted().items():
            self._queue.finish(task_id, "stopped", {"reason": verdict.reason})
        self.outcome.left = [left for _, left in sorted(self._left.values(), reverse=True)]
        return self.outcome

    def _trial_seconds(self) -> float:
        return self.outcome.busy_seconds + sum(self._clock.now - since for since in self._since.values())

    def _fill(self) -> None:
        """Give every free slot something to do."""
        while self._free and (task := self._queue.next()) is not None:
            self._free -= 1
            self._start(task)

    def _start(self, task: Task) -> None:
        trial, now = self._trial_of(task.payload), self._clock.now
        self._since[task.id] = begin = now
        if self._cold:
            self._cold -= 1
            begin += self._start_seconds
        if task.id not in self._paused_at:
            self.outcome.started += 1
        if trial.tokenizer_key not in self._ready:
            self._ready[trial.tokenizer_key] = begin + trial.tokenizer_seconds
            self.outcome.tokenizers.add(trial.tokenizer_key)
        begin = max(begin, self._ready[trial.tokenizer_key]) + trial.setup_seconds
        self._train(task, self._paused_at.get(task.id, 0) + 1, begin)

    def _train(self, task: Task, epoch: int, begin: float) -> None:
        self._count += 1
        end = begin + self._trial_of(task.payload).epoch_seconds
        heapq.heappush(self._events, (end, self._count, epoch, task))

    def _end_epoch(self, task: Task, epoch: int) -> None:
        self.outcome.wall_seconds = self._clock.now
        self.outcome.epochs += 1
        trial, value = self._trial_of(task.payload), self._value_of(task.payload, epoch)
        row = {"epoch": epoch, "step": epoch * trial.epoch_steps, self._metric: value}
        verdict = self._queue.judge(task.id, row, value)
        self._queue.report(task.id, row)
        self._on_epoch(task.id, epoch, value)
        over = epoch >= trial.epochs
        self._left[task.id] = value, 1 - epoch / trial.epochs
        if verdict.action == "go" and not over:
            self._train(task, epoch + 1, self._clock.now)
            return
        if over:
            self.outcome.completed += 1
            del self._left[task.id]
        self._free += 1
        self.outcome.busy_seconds += self._clock.now - self._since.pop(task.id)
        if verdict.action == "pause":
            self._paused_at[task.id] = epoch
            self._queue.pause(task.id)
        else:
            self._queue.finish(task.id, "completed" if over else "stopped", {"reason": verdict.reason or None})


class _Listed:
    """The numbers of a plan's trials as a queue."""

    def __init__(self, count: int):
        self._numbers = iter(range(count))

    def next(self) -> Task | None:
        number = next(self._numbers, None)
        return None if number is None else Task(f"trial-{number:04d}", {"number": number})

    def report(self, task_id: str, metrics: dict[str, Any]) -> None:
        """Nobody reads it."""

    def finish(self, task_id: str, status: str, result: dict[str, Any]) -> None:
        """Nobody reads it."""
