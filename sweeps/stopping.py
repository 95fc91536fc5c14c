"""Which trials are trained on: rules over (trial, epoch, value) alone. No Ray, no ledger, no clock.

A rule remembers what trials were worth at their epochs. It never asks when something happened, so that what the ledger
has recorded (`recall`) puts it into the state that it was in before an interruption.
"""

from __future__ import annotations

import bisect
import math
import statistics
from collections.abc import Collection, Sequence
from typing import Literal, NamedTuple

from sweeps.spec import SchedulerSpec, SweepSpec

GATE = "health gate"
BUDGET = "ended with the budget"
"how the reason of a trial begins that no scheduler stopped"
Mode = Literal["max", "min"]
Curve = Sequence[tuple[int, float]]


class Verdict(NamedTuple):
    """What becomes of a trial after an epoch, and why."""

    action: Literal["go", "pause", "stop"]
    reason: str = ""


GO = Verdict("go")


class Rule:
    """Every trial is trained to its end: what the other rules start from.

    Trials are named by their ids; values are finite, for a trial whose metric is not fails anyway.
    """

    def judge(self, trial: str, epoch: int, value: float) -> Verdict:
        """Remember one epoch's value and decide. An epoch that comes again is not judged again."""
        return GO

    def recall(self, trial: str, curve: Curve) -> None:
        """Remember the recorded epochs of a trial, oldest first; nothing is decided."""

    def forget(self, trial: str) -> None:
        """The trial failed: others are not measured by it."""

    def is_paused(self, trial: str) -> bool:
        """By what is remembered: does the trial wait for a promotion?"""
        return False

    def promoted(self, paused: Collection[str], *, last: bool = False) -> str | None:
        """Whom of the paused trials to train on, None for nobody. `last`: nothing runs and nothing new will come."""
        return None

    def standing(self, trial: str) -> str:
        """Where a paused trial stands: `epoch 3: rank 5 of 9`."""
        return ""


class Median(Rule):
    """Median stopping (Golovin et al., 2017): a trial ends when its best value so far is worse than the median of the
    running averages that the others had at that epoch. At least `min_trials` others must have come as far."""

    def __init__(self, *, grace: int, min_trials: int, mode: Mode):
        self._grace, self._min_trials, self._sign = grace, min_trials, _sign(mode)
        self._scores: dict[str, list[float]] = {}
        self._averages: dict[int, dict[str, float]] = {}  # epoch -> trial -> running average

    def judge(self, trial: str, epoch: int, value: float) -> Verdict:
        if not self._see(trial, epoch, value) or epoch < self._grace:
            return GO
        others = [average for name, average in self._averages[epoch].items() if name != trial]
        if len(others) < self._min_trials:
            return GO
        median, best = statistics.median(others), max(self._scores[trial])
        if best >= median:
            return GO
        return Verdict(
            "stop",
            f"stopped at epoch {epoch}: its best value {self._sign * best:.4g} is worse than the median "
            f"{self._sign * median:.4g} of {len(others)} others",
        )

    def recall(self, trial: str, curve: Curve) -> None:
        for epoch, value in curve:
            self._see(trial, epoch, value)

    def forget(self, trial: str) -> None:
        self._scores.pop(trial, None)
        for averages in self._averages.values():
            averages.pop(trial, None)

    def _see(self, trial: str, epoch: int, value: float) -> bool:
        """Whether the epoch is a new one."""
        averages = self._averages.setdefault(epoch, {})
        if trial in averages:
            return False
        scores = self._scores.setdefault(trial, [])
        scores.append(self._sign * value)
        averages[trial] = statistics.fmean(scores)
        return True


class Rung:
    """The trials that came to some epoch, by what they were worth there; a larger score is better."""

    def __init__(self, epoch: int):
        self.epoch = epoch
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
    """Rungs at `grace`, `grace` x `factor`, `grace` x `factor`^2, ... epochs, below `longest`.

    A trial stands once in a rung, with the value of its first validation at that epoch or after it.
    """

    def __init__(self, *, grace: int, factor: int, longest: int, mode: Mode):
        self.factor, self._sign = factor, _sign(mode)
        self.rungs: list[Rung] = []
        while grace < longest:
            self.rungs.append(Rung(grace))
            grace *= factor

    def recall(self, trial: str, curve: Curve) -> None:
        for epoch, value in curve:
            if (rung := self.new_rung(trial, epoch)) is not None:
                rung.add(trial, self._sign * value)

    def forget(self, trial: str) -> None:
        for rung in self.rungs:
            rung.remove(trial)

    def new_rung(self, trial: str, epoch: int) -> Rung | None:
        """The highest rung that the epoch reaches, unless the trial stands in it already."""
        reached = [rung for rung in self.rungs if rung.epoch <= epoch]
        return reached[-1] if reached and trial not in reached[-1] else None


class Asha(Halving):
    """Asynchronous successive halving, stopping form: at a rung a trial goes on if it is among the best 1/`factor` of
    those that came there before it. Nobody waits, so the first always goes on."""

    def judge(self, trial: str, epoch: int, value: float) -> Verdict:
        rung = self.new_rung(trial, epoch)
        if rung is None:
            return GO
        cutoff = rung.cutoff(1 / self.factor)
        rung.add(trial, self._sign * value)
        if rung.scores[trial] >= cutoff:
            return GO
        return Verdict("stop", f"stopped at epoch {epoch}: {rung.rank(trial)}, the best 1/{self.factor} go on")


class Promotion(Halving):
    """Asynchronous successive halving, promotion form (Li et al., 2020): every trial pauses at a rung, and a free slot
    trains on the best paused trial among the best 1/`factor` of the highest rung that has one, before anything new.

    At the end, where a rung has fewer than `factor` trials, its best goes on all the same: one comes to its last epoch.
    """

    def __init__(self, *, grace: int, factor: int, longest: int, mode: Mode):
        super().__init__(grace=grace, factor=factor, longest=longest, mode=mode)
        self._paused: dict[str, tuple[int, Rung]] = {}  # since which epoch, in which rung

    def judge(self, trial: str, epoch: int, value: float) -> Verdict:
        is_new = self.new_rung(trial, epoch) is not None
        self.recall(trial, [(epoch, value)])
        return Verdict("pause", f"paused at {self.standing(trial)}") if is_new else GO

    def recall(self, trial: str, curve: Curve) -> None:
        for epoch, value in curve:
            if (rung := self.new_rung(trial, epoch)) is not None:
                rung.add(trial, self._sign * value)
                self._paused[trial] = epoch, rung
            elif trial in self._paused and epoch > self._paused[trial][0]:
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
        epoch, rung = self._paused[trial]
        return f"epoch {epoch}: {rung.rank(trial)}"


def rule_of(scheduler: SchedulerSpec, mode: Mode, longest: int) -> Rule:
    """The rule of a sweep. `longest`: the most epochs that a trial may train."""
    if scheduler.type == "none":
        return Rule()
    grace, factor = scheduler.grace_epochs, scheduler.reduction_factor
    if scheduler.type == "median":
        return Median(grace=grace, min_trials=scheduler.min_trials, mode=mode)
    form = Asha if scheduler.type == "asha" else Promotion
    return form(grace=grace, factor=factor, longest=longest, mode=mode)


def stopped_by(reason: str | None, scheduler: SchedulerSpec) -> str:
    """What stopped a trial, by its recorded reason: `health gate`, `budget`, the scheduler's type, or `unknown`."""
    said = reason or ""
    if said.startswith((GATE, BUDGET)):
        return GATE if said.startswith(GATE) else "budget"
    return "unknown" if scheduler.type == "none" else scheduler.type


def rules_in_words(spec: SweepSpec) -> dict[str, str]:
    """What each of the names that `stopped_by` gives means in this sweep, in a sentence."""
    scheduler, health = spec.scheduler, spec.health
    grace, factor = scheduler.grace_epochs, scheduler.reduction_factor
    rungs = f"at epoch {grace} and at its multiples by {factor}"
    return {
        GATE: (
            f"before TIGER is trained, a trial ends if more than {health.max_collision_rate:.4g} of the items share "
            f"their tuple or a level uses less than {health.min_usage:.4g} of its codes."
        ),
        "median": (
            f"from epoch {grace} on, a trial ends when its best value so far is worse than the median of what the "
            f"others had on average up to that epoch; at least {scheduler.min_trials} others must have come as far."
        ),
        "asha": f"{rungs}, a trial goes on only if it is among the best 1/{factor} of those that came there before it.",
        "promote": (
            f"{rungs}, every trial pauses; of the best 1/{factor} there the best is trained on when a slot is free. "
            "Who is never chosen ends with the search."
        ),
        "budget": "at a limit other than the number of trials, what runs ends at its next epoch, what waits at once.",
        "unknown": "no reason is recorded that this version knows.",
    }


def _sign(mode: Mode) -> float:
    return 1.0 if mode == "max" else -1.0
