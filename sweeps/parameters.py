"""What one searched setting may be: a range, a choice or a grid, where it lives, and what its values set.

A parameter is named by a config path, or, when each of its values sets several settings together (`zip`), by any other
name; its values are then labels. Bounds are included, as in Optuna. No Ray, torch or Optuna here.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any

When = Mapping[str, tuple[Any, ...]]
"names of parameters above -> values of theirs under which this one lives; empty: always"


@dataclass(frozen=True)
class Float:
    """A number from `low` to `high`, both included; `log`: uniform in its logarithm."""

    low: float
    high: float
    log: bool = False
    step: float | None = None
    when: When = field(default_factory=dict)

    @property
    def count(self) -> int | None:
        """How many values there are; None: endlessly many."""
        if self.step is None:
            return 1 if self.low == self.high else None
        return round((self.high - self.low) / self.step) + 1

    @property
    def probes(self) -> list[float]:
        """Low, middle, high: what a setting must accept for the range to make sense."""
        return [self.low, self.at(0.5), self.high]

    def at(self, place: float) -> float:
        """The value at `place` of the way from low (0) to high (1)."""
        count = self.count
        if count is not None:
            return self._value(min(int(place * count), count - 1))
        if self.log:
            span = math.log(self.high) - math.log(self.low)
            return min(max(math.exp(math.log(self.low) + place * span), self.low), self.high)
        return min(self.low + place * (self.high - self.low), self.high)

    def draw(self, rng: random.Random) -> float:
        return self.at(rng.random())

    def all_values(self) -> Iterator[float]:
        return (self._value(index) for index in range(self.count or 0))

    def nearest(self, value: float) -> float:
        """The value of the range that a sampler means, which computes steps in binary."""
        return value if self.step is None else self._value(round((value - self.low) / self.step))

    def _value(self, index: int) -> float:
        """In decimal, so that the third step of 0.1 is 0.3."""
        return float(Decimal(str(self.low)) + index * Decimal(str(self.step or 0)))


@dataclass(frozen=True)
class Int:
    """A whole number from `low` to `high`, both included."""

    low: int
    high: int
    log: bool = False
    step: int = 1
    when: When = field(default_factory=dict)

    @property
    def count(self) -> int:
        return (self.high - self.low) // self.step + 1

    @property
    def probes(self) -> list[int]:
        return [self.low, self.at(0.5), self.high]

    def at(self, place: float) -> int:
        """The value at `place` of the way from low (0) to high (1)."""
        if self.log:
            low, high = math.log(self.low - 0.5), math.log(self.high + 0.5)
            return min(max(round(math.exp(low + place * (high - low))), self.low), self.high)
        return self.low + self.step * min(int(place * self.count), self.count - 1)

    def draw(self, rng: random.Random) -> int:
        return self.at(rng.random())

    def all_values(self) -> range:
        return range(self.low, self.high + 1, self.step)

    def has(self, value: Any) -> bool:
        """Whether the value is one of the range; a range itself would look at all of its values for some types."""
        return isinstance(value, int) and not isinstance(value, bool) and value in self.all_values()

    def __str__(self) -> str:
        if self.count <= 10:
            return f"one of {[*self.all_values()]}"
        step = f" in steps of {self.step}" if self.step != 1 else ""
        return f"a whole number from {self.low} to {self.high}{step}"


@dataclass(frozen=True)
class Listed:
    """One of `values` (scalars or lists).

    `settings`: what each value sets, by config path; None: the setting that names the parameter.
    """

    values: tuple[Any, ...]
    when: When = field(default_factory=dict)
    settings: tuple[Mapping[str, Any], ...] | None = None

    @property
    def count(self) -> int:
        return len(self.values)

    @property
    def probes(self) -> list[Any]:
        return list(self.values)

    def draw(self, rng: random.Random) -> Any:
        return rng.choice(self.values)

    def all_values(self) -> tuple[Any, ...]:
        return self.values

    def has(self, value: Any) -> bool:
        return value in self.values


@dataclass(frozen=True)
class Choice(Listed):
    """Sampled."""


@dataclass(frozen=True)
class Grid(Listed):
    """All values, one after the other; `ordered`: their order means something (a report draws them as a line)."""

    ordered: bool = False


Parameter = Float | Int | Choice | Grid


def paths_of(name: str, parameter: Parameter) -> list[str]:
    """The config paths that the parameter sets."""
    if isinstance(parameter, Listed) and parameter.settings is not None:
        return list(parameter.settings[0])
    return [name]


def settings_of(name: str, parameter: Parameter, value: Any) -> dict[str, Any]:
    """What `value` of the parameter sets, by config path."""
    if isinstance(parameter, Listed) and parameter.settings is not None:
        return dict(parameter.settings[parameter.values.index(value)])
    return {name: value}
