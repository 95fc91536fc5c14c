"""How fast things go: samples of work and seconds, and the two numbers that `Speed.fitted` takes from them for training
and for evaluating each: seconds a unit (target, user) and seconds an operation."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    pass


GROUP_START = 15.0
"seconds until the workers of a group train: as measured for two on two CPU cores (tests/benchmarks/group_start.py)"


class Sample(NamedTuple):
    """Something that took `seconds`: so many units (targets, users, passes over the catalogue), so many operations."""

    units: float
    flops: float
    seconds: float


@dataclass(frozen=True)
class Samples:
    """What was seen of each part of a trial."""

    train: list[Sample] = field(default_factory=list)
    evaluate: list[Sample] = field(default_factory=list)
    tokenize: dict[str, list[Sample]] = field(default_factory=dict)
    "by the tokenizer's kind"
    setup: list[float] = field(default_factory=list)
    "seconds of a trial that are none of these"
    start: list[float] = field(default_factory=list)
    "seconds until a new process can train; trials share processes"

    def add(self, other: Samples) -> None:
        self.train.extend(other.train)
        self.evaluate.extend(other.evaluate)
        self.setup.extend(other.setup)
        self.start.extend(other.start)
        for kind, samples in other.tokenize.items():
            self.tokenize.setdefault(kind, []).extend(samples)


class Pace(NamedTuple):
    """Seconds = units * `per_unit` + operations * `per_flop`."""

    per_unit: float
    per_flop: float

    def seconds(self, units: float, flops: float) -> float:
        return units * self.per_unit + flops * self.per_flop

    @classmethod
    def fitted(cls, samples: Sequence[Sample]) -> Pace:
        """The two numbers, neither negative, with the least squared relative error."""
        import numpy as np
        from scipy.optimize import nnls

        rows = np.array([[s.units / s.seconds, s.flops / s.seconds] for s in samples])
        scale = rows.max(axis=0)
        scale[scale == 0] = 1.0
        found, _ = nnls(rows / scale, np.ones(len(rows)))
        return cls(*(float(x) for x in found / scale))


@dataclass(frozen=True)
class Speed:
    """What turns work into seconds, and where it comes from."""

    train: Pace
    evaluate: Pace
    tokenize: dict[str, Pace]
    setup: float
    start: float
    source: str

    @classmethod
    def fitted(cls, samples: Samples, source: str) -> Speed | None:
        """None where training or evaluating was not seen."""
        if not samples.train or not samples.evaluate:
            return None
        return cls(
            train=Pace.fitted(samples.train),
            evaluate=Pace.fitted(samples.evaluate),
            tokenize={kind: Pace.fitted(found) for kind, found in samples.tokenize.items()},
            setup=statistics.median(samples.setup or [0.0]),
            start=statistics.median(samples.start or [0.0]),
            source=source,
        )

    def over(self, workers: int) -> Speed:
        """Of a worker group of `workers`, whose start every trial pays; they share every batch, as if that cost
        nothing."""
        share = 1 / workers
        return dataclasses.replace(
            self,
            train=Pace(self.train.per_unit * share, self.train.per_flop * share),
            evaluate=Pace(self.evaluate.per_unit * share, self.evaluate.per_flop * share),
            setup=self.setup + GROUP_START,
            source=f"{self.source}, divided by {workers} workers, and {GROUP_START:g} s for the start of every group, "
            "which is an estimate",
        )

    def to_dict(self) -> dict[str, Any]:
        return asdict(self) | {
            "train": self.train._asdict(),
            "evaluate": self.evaluate._asdict(),
            "tokenize": {kind: pace._asdict() for kind, pace in self.tokenize.items()},
        }
