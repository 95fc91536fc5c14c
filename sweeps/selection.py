"""Which trials are the best, and which are re-evaluated: functions over records alone.

A trial's value is *full* when the search has got out of it what it wanted: it was trained to its end, or it reached
the budget's target. Other stopped trials come after those. Their best values were reached after different times, so two
of them are compared by what they had when both were trained as far as the shorter one was.
"""

from __future__ import annotations

import bisect
import functools
import math
from collections.abc import Iterable, Sequence

from sweeps.records import TrialRecord
from sweeps.spec import SweepSpec
from sweeps.stopping import TARGET, grace_of


def is_full(record: TrialRecord) -> bool:
    """Whether its value is what the search wanted of it; of another one more training might make more."""
    return record.status == "completed" or record.stopped_by == TARGET


def leaderboard(records: Iterable[TrialRecord], spec: SweepSpec) -> list[TrialRecord]:
    """Trials with a value, best first: full ones by their values, then the others. A config stands once."""
    full, others = _with_values(records)
    return _by_value(full, spec) + _by_equal_training(others, spec)


def best(records: Iterable[TrialRecord], spec: SweepSpec) -> TrialRecord | None:
    """The first of the leaderboard."""
    full, others = _with_values(records)
    ranked = _by_value(full, spec) if full else _by_equal_training(others, spec)
    return next(iter(ranked), None)


def select(records: Iterable[TrialRecord], spec: SweepSpec, count: int) -> list[TrialRecord]:
    """The best `count` trials to re-evaluate: full ones, then the best of those that were stopped before.

    With several objectives they are spread over the Pareto front, the best of the metric first.
    """
    if not spec.against:
        return leaderboard(records, spec)[:count]
    front = pareto_front(records, spec)
    chosen = _spread([record for record in front if is_full(record)], count)
    return chosen + _spread([record for record in front if not is_full(record)], count - len(chosen))


def _spread(front: Sequence[TrialRecord], count: int) -> list[TrialRecord]:
    if count >= len(front):
        return list(front)
    places = [round(i * (len(front) - 1) / max(1, count - 1)) for i in range(count)]
    return [front[place] for place in places]


def pareto_front(records: Iterable[TrialRecord], spec: SweepSpec) -> list[TrialRecord]:
    """Trials that no other beats in one objective without losing in another, by the metric; one of equals. Full trials
    are measured by full ones, the others by the others."""
    signs = [-1 if mode == "max" else 1 for mode in spec.objectives.values()]
    ranked = leaderboard(records, spec)
    losses = {r.number: [sign * x for sign, x in zip(signs, r.objectives.values(), strict=True)] for r in ranked}
    front: list[TrialRecord] = []
    for record in ranked:
        mine = losses[record.number]
        others = [losses[other.number] for other in ranked if is_full(other) == is_full(record)]
        beaten = any(all(a <= b for a, b in zip(other, mine, strict=True)) and other != mine for other in others)
        if not beaten and all(losses[kept.number] != mine for kept in front):
            front.append(record)
    return front


def _with_values(records: Iterable[TrialRecord]) -> tuple[list[TrialRecord], list[TrialRecord]]:
    """Full trials, and the others that have a value."""
    found = [record for record in records if record.value is not None and record.duplicate_of is None]
    return [record for record in found if is_full(record)], [record for record in found if not is_full(record)]


def _by_value(records: Iterable[TrialRecord], spec: SweepSpec) -> list[TrialRecord]:
    sign = -1 if spec.mode == "max" else 1
    return sorted(records, key=lambda record: (sign * (record.value or 0.0), record.number))


def _by_equal_training(records: Iterable[TrialRecord], spec: SweepSpec) -> list[TrialRecord]:
    courses = [_Course(record, spec) for record in _by_value(records, spec)]
    return [course.record for course in sorted(courses, key=functools.cmp_to_key(_compared))]


class _Course:
    """The best loss of a trial so far, by how far it was trained: in epochs, or in steps where the scheduler counts
    them."""

    def __init__(self, record: TrialRecord, spec: SweepSpec):
        self.record = record
        sign, unit = (-1 if spec.mode == "max" else 1), grace_of(spec.scheduler)[0]
        self.loss = sign * (record.value or 0.0)
        self.points: list[int] = []
        self._losses: list[float] = []
        least = math.inf
        for row in record.epochs:
            value = row.get(spec.metric)
            if value is not None:
                least = min(least, sign * value)
                self.points.append(row.get(unit, row["epoch"]))
                self._losses.append(least)

    def at(self, point: int) -> float | None:
        """None before the first validation."""
        index = bisect.bisect_right(self.points, point) - 1
        return self._losses[index] if index >= 0 else None


def _compared(one: _Course, other: _Course) -> int:
    """Negative where `one` is better at the last point that both have reached; of equals by their best losses."""
    if one.points and other.points:
        both = min(one.points[-1], other.points[-1])
        mine, theirs = one.at(both), other.at(both)
        if mine is not None and theirs is not None:
            return _sign(mine - theirs) or _sign(one.loss - other.loss)
    return _sign(one.loss - other.loss)


def _sign(number: float) -> int:
    return (number > 0) - (number < 0)
