"""Which trials are trained on: rules over (trial, how far it is trained, value) alone. No Ray, no ledger, no clock.

A rule remembers what trials were worth at their validations. How far a trial is trained is counted in the rule's unit,
epochs or optimizer steps. A rule never asks when something happened, so that what the ledger has recorded (`recall`)
puts it into the state that it was in before an interruption.
"""

from __future__ import annotations

import bisect
import math
import statistics
from collections.abc import Collection, Mapping, Sequence
from typing import Any, Literal, NamedTuple

from sweeps.records import TrialRecord
from sweeps.spec import SchedulerSpec, SweepSpec

GATE = "health gate"
BUDGET = "budget"
TARGET = "target"
"what stops a trial, beside a scheduler by its type"
_OLD_BUDGET = "ended with the budget"
"how the reason of a trial begins that the budget ended, where the cause was not recorded"
Mode = Literal["max", "min"]
Unit = Literal["epoch", "step"]
Curve = Sequence[tuple[int, float]]
"how far, in the rule's unit, and the value there; oldest first"
FARTHEST = 10**9
"steps that no trial takes"


class Verdict(NamedTuple):
    """What becomes of a trial after an epoch, why in words, and by what it was stopped."""

    action: Literal["go", "pause", "stop"]
    reason: str = ""
    by: str = ""
    "a scheduler's type, `BUDGET`, `TARGET` or `GATE`"


GO = Verdict("go")


class Rule:
    """Every trial is trained to its end: what the other rules start from.

    Trials are named by their ids; values are finite, for a trial whose metric is not fails anyway.
    """

    def __init__(self, unit: Unit = "epoch") -> None:
        self.unit = unit

    def point(self, row: Mapping[str, Any]) -> int:
        """How far a trial was trained when it reported `row`. Raises KeyError for a row without the rule's unit."""
        return row[self.unit]

    def judge(self, trial: str, at: int, value: float) -> Verdict:
        """Remember one validation and decide. One that comes again is not judged again."""
        return GO

    def recall(self, trial: str, curve: Curve) -> None:
        """Remember the recorded validations of a trial; nothing is decided."""

    def forget(self, trial: str) -> None:
        """The trial failed: others are not measured by it."""

    def is_paused(self, trial: str) -> bool:
        """By what is remembered: does the trial wait for a promotion?"""
        return False

    def promoted(self, paused: Collection[str], *, last: bool = False) -> str | None:
        """Whom of the paused trials to train on, None for nobody. `last`: nothing runs and nothing new will come."""
        return None

    def standing(self, trial: str) -> str:
        """Where a paused trial stands: `epoch 3: rank 5 of 9`, `step 600: rank 5 of 9`."""
        return ""


class Median(Rule):
    """Median stopping (Golovin et al., 2017): a trial ends when its best value so far is worse than the median of the
    running averages that the others had when they were trained as far. At least `min_trials` others must have come as
    far."""

    def __init__(self, *, grace: int, min_trials: int, mode: Mode, unit: Unit = "epoch"):
        super().__init__(unit)
        self._grace, self._min_trials, self._sign = grace, min_trials, _sign(mode)
        self._seen: dict[str, _Course] = {}

    def judge(self, trial: str, at: int, value: float) -> Verdict:
        mine = self._seen.setdefault(trial, _Course())
        if not mine.add(at, self._sign * value) or at < self._grace:
            return GO
        others = [course.average(at) for course in self._seen.values() if course is not mine and course.reaches(at)]
        if len(others) < self._min_trials:
            return GO
        median = statistics.median(others)
        if mine.best >= median:
            return GO
        return Verdict(
            "stop",
            f"stopped at {self.unit} {at}: its best value {self._sign * mine.best:.4g} is worse than the median "
            f"{self._sign * median:.4g} of {len(others)} others",
            "median",
        )

    def recall(self, trial: str, curve: Curve) -> None:
        for at, value in curve:
            self._seen.setdefault(trial, _Course()).add(at, self._sign * value)

    def forget(self, trial: str) -> None:
        self._seen.pop(trial, None)


class _Course:
    """The validations of one trial: where they were, and the running average up to each."""

    def __init__(self) -> None:
        self.best = -math.inf
        self._points: list[int] = []
        self._averages: list[float] = []
        self._sum = 0.0

    def add(self, at: int, score: float) -> bool:
        """Whether it is a new one."""
        if self.reaches(at):
            return False
        self.best, self._sum = max(self.best, score), self._sum + score
        self._points.append(at)
        self._averages.append(self._sum / len(self._points))
        return True

    def reaches(self, at: int) -> bool:
        return bool(self._points) and self._points[-1] >= at

    def average(self, at: int) -> float:
        """The running average at the last validation that is no later; minus infinity before the first."""
        index = bisect.bisect_right(self._points, at) - 1
        return self._averages[index] if index >= 0 else -math.inf


class Rung:
    """The trials that were trained so far, by what they were worth there; a larger score is better."""

    def __init__(self, at: int):
        self.at = at
        self.scores: dict[str, float] = {}
        self._order: list[tuple[float, str]] = []

    def __len__(self) -> int:
        return len(self.scores)

    def __contains__(self, trial: str) -> bool:
        return trial in self.scores

    def add(self, trial: str, score: float) -> None:
        self.scores[trial] = score
        bisect.insort(self._order, (-score, trial))

    def remove(self, trial: str) -> None:
        if trial in self.scores:
            self._order.remove((-self.scores.pop(trial), trial))

    def best(self, count: int) -> list[str]:
        """Of equals the first by name, whoever came first."""
        return [trial for _, trial in self._order[:count]]

    def cutoff(self, share: float) -> float:
        """The score that the best `share` reach, interpolated; minus infinity in an empty rung."""
        if not self._order:
            return -math.inf
        place = share * (len(self) - 1)
        low = math.floor(place)
        below, above = (-self._order[min(at, len(self) - 1)][0] for at in (low, low + 1))
        return below + (place - low) * (above - below)

    def rank(self, trial: str) -> str:
        better = bisect.bisect_left(self._order, (-self.scores[trial], ""))
        return f"rank {better + 1} of {len(self)}"


class Halving(Rule):
    """Rungs at `grace`, `grace` x `factor`, `grace` x `factor`^2, ... epochs or steps, below `longest`.

    A trial stands once in a rung, with the value of its first validation there or later.
    """

    def __init__(self, *, grace: int, factor: int, longest: int, mode: Mode, unit: Unit = "epoch"):
        super().__init__(unit)
        self.factor, self._sign = factor, _sign(mode)
        self.rungs: list[Rung] = []
        while grace < longest:
            self.rungs.append(Rung(grace))
            grace *= factor

    def recall(self, trial: str, curve: Curve) -> None:
        for at, value in curve:
            if (rung := self.new_rung(trial, at)) is not None:
                rung.add(trial, self._sign * value)

    def forget(self, trial: str) -> None:
        for rung in self.rungs:
            rung.remove(trial)

    def new_rung(self, trial: str, at: int) -> Rung | None:
        """The highest rung that is reached, unless the trial stands in it already."""
        reached = [rung for rung in self.rungs if rung.at <= at]
        return reached[-1] if reached and trial not in reached[-1] else None


class Asha(Halving):
    """Asynchronous successive halving, stopping form: at a rung a trial goes on if it is among the best 1/`factor` of
    those that came there before it. Nobody waits, so the first always goes on."""

    def judge(self, trial: str, at: int, value: float) -> Verdict:
        rung = self.new_rung(trial, at)
        if rung is None:
            return GO
        cutoff = rung.cutoff(1 / self.factor)
        rung.add(trial, self._sign * value)
        if rung.scores[trial] >= cutoff:
            return GO
        reason = f"stopped at {self.unit} {at}: {rung.rank(trial)}, the best 1/{self.factor} go on"
        return Verdict("stop", reason, "asha")


class Promotion(Halving):
    """Asynchronous successive halving, promotion form (Li et al., 2020): every trial pauses at a rung, and a free slot
    trains on the best paused trial among the best 1/`factor` of the highest rung that has one, before anything new.

    At the end, where a rung has fewer than `factor` trials, its best goes on all the same: one comes to its last epoch.
    """

    def __init__(self, *, grace: int, factor: int, longest: int, mode: Mode, unit: Unit = "epoch"):
        super().__init__(grace=grace, factor=factor, longest=longest, mode=mode, unit=unit)
        self._paused: dict[str, tuple[int, Rung]] = {}  # since when, in which rung

    def judge(self, trial: str, at: int, value: float) -> Verdict:
        is_new = self.new_rung(trial, at) is not None
        self.recall(trial, [(at, value)])
        return Verdict("pause", f"paused at {self.standing(trial)}") if is_new else GO

    def recall(self, trial: str, curve: Curve) -> None:
        for at, value in curve:
            if (rung := self.new_rung(trial, at)) is not None:
                rung.add(trial, self._sign * value)
                self._paused[trial] = at, rung
            elif trial in self._paused and at > self._paused[trial][0]:
                del self._paused[trial]

    def forget(self, trial: str) -> None:
        super().forget(trial)
        self._paused.pop(trial, None)

    def is_paused(self, trial: str) -> bool:
        return trial in self._paused

    def promoted(self, paused: Collection[str], *, last: bool = False) -> str | None:
        for rung in reversed(self.rungs):
            places = len(rung) // self.factor or int(last)
            for trial in rung.best(places):
                if trial in paused and self._paused[trial][1] is rung:
                    return trial
        return None

    def standing(self, trial: str) -> str:
        at, rung = self._paused[trial]
        return f"{self.unit} {at}: {rung.rank(trial)}"


def rule_of(scheduler: SchedulerSpec, mode: Mode, longest: int) -> Rule:
    """The rule of a sweep. `longest`: the most epochs that a trial may train."""
    if scheduler.type == "none":
        return Rule()
    unit, grace = grace_of(scheduler)
    if scheduler.type == "median":
        return Median(grace=grace, min_trials=scheduler.min_trials, mode=mode, unit=unit)
    form = Asha if scheduler.type == "asha" else Promotion
    longest = longest if unit == "epoch" else FARTHEST  # a trial at its last epoch is let go, whatever its steps
    return form(grace=grace, factor=scheduler.reduction_factor, longest=longest, mode=mode, unit=unit)


def grace_of(scheduler: SchedulerSpec) -> tuple[Unit, int]:
    """In what the rule counts, and how far every trial gets."""
    return ("epoch", scheduler.grace_epochs) if scheduler.grace_steps is None else ("step", scheduler.grace_steps)


def stopped_by(record: TrialRecord, scheduler: SchedulerSpec) -> str:
    """What stopped a trial: `health gate`, `budget`, `target`, the scheduler's type, or `unknown`. Ledgers of earlier
    versions hold it in the words of the reason alone."""
    if record.stopped_by is not None:
        return record.stopped_by
    said = record.reason or ""
    if said.startswith((GATE, _OLD_BUDGET)):
        return GATE if said.startswith(GATE) else BUDGET
    return "unknown" if scheduler.type == "none" else scheduler.type


def rules_in_words(spec: SweepSpec) -> dict[str, str]:
    """What each of the names that `stopped_by` gives means in this sweep, in a sentence."""
    scheduler, health = spec.scheduler, spec.health
    (unit, grace), factor = grace_of(scheduler), scheduler.reduction_factor
    rungs = f"at {unit} {grace} and at its multiples by {factor}"
    return {
        GATE: (
            f"before TIGER is trained, a trial ends if more than {health.max_collision_rate:.4g} of the items share "
            f"their tuple or a level uses less than {health.min_usage:.4g} of its codes."
        ),
        "median": (
            f"from {unit} {grace} on, a trial ends when its best value so far is worse than the median of what the "
            f"others had on average up to that {unit}; at least {scheduler.min_trials} others must have come as far."
        ),
        "asha": f"{rungs}, a trial goes on only if it is among the best 1/{factor} of those that came there before it.",
        "promote": (
            f"{rungs}, every trial pauses; of the best 1/{factor} there the best is trained on when a slot is free. "
            "Who is never chosen ends with the search."
        ),
        BUDGET: "at a limit other than the number of trials, what runs ends at its next epoch, what waits at once.",
        TARGET: "its value has reached the budget's target, which ends the search: it ranks with completed trials.",
        "unknown": "no reason is recorded that this version knows.",
    }


def _sign(mode: Mode) -> float:
    return 1.0 if mode == "max" else -1.0
