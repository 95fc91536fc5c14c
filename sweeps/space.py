"""The search space of a sweep: which settings vary, over which values, under which constraints.

Keys are config paths. A `grid` setting is enumerated in the order of the file; `float`, `int` and `choice` settings
are sampled, by the ledger. Everything is checked when the file is read; no Ray, torch or Optuna here.
"""

from __future__ import annotations

import itertools
import json
import math
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Annotated, Any

from pydantic import ConfigDict, TypeAdapter, ValidationError

from genrec.config import ConfigError, RunConfig, config_keys, nearest, validate_config, with_values
from genrec.strict_yaml import YamlDocument
from sweeps.constraints import Constraint, ConstraintError, parse_constraint

MAX_VALUES = 1000
MAX_GRID_POINTS = 100_000


@dataclass(frozen=True)
class Float:
    """A number from `low` to `high`, both included; `log`: uniform in its logarithm."""

    low: float
    high: float
    log: bool = False
    step: float | None = None

    @property
    def probes(self) -> list[float]:
        """Low, middle, high: what a setting must accept for the range to make sense."""
        if self.step is not None:
            middle = self.low + self.step * (round((self.high - self.low) / self.step) // 2)
        else:
            middle = math.sqrt(self.low * self.high) if self.log else (self.low + self.high) / 2
        return [self.low, middle, self.high]

    def draw(self, rng: random.Random) -> float:
        if self.step is not None:
            return self.low + self.step * rng.randint(0, round((self.high - self.low) / self.step))
        if self.log:
            return min(max(math.exp(rng.uniform(math.log(self.low), math.log(self.high))), self.low), self.high)
        return rng.uniform(self.low, self.high)


@dataclass(frozen=True)
class Int:
    """A whole number from `low` to `high`, both included."""

    low: int
    high: int
    log: bool = False
    step: int = 1

    @property
    def probes(self) -> list[int]:
        if self.log:
            return [self.low, round(math.sqrt(self.low * self.high)), self.high]
        return [self.low, self.low + self.step * ((self.high - self.low) // self.step // 2), self.high]

    def draw(self, rng: random.Random) -> int:
        if self.log:
            return min(round(math.exp(rng.uniform(math.log(self.low), math.log(self.high + 1)))), self.high)
        return rng.randrange(self.low, self.high + 1, self.step)


@dataclass(frozen=True)
class Choice:
    """One of `values` (scalars or lists), sampled."""

    values: tuple[Any, ...]

    @property
    def probes(self) -> list[Any]:
        return list(self.values)

    def draw(self, rng: random.Random) -> Any:
        return rng.choice(self.values)


@dataclass(frozen=True)
class Grid:
    """All of `values`, one after the other; `ordered`: their order means something (a report draws them as a line)."""

    values: tuple[Any, ...]
    ordered: bool = False

    @property
    def probes(self) -> list[Any]:
        return list(self.values)

    def draw(self, rng: random.Random) -> Any:
        return rng.choice(self.values)


Parameter = Float | Int | Choice | Grid


@dataclass(frozen=True)
class Space:
    """The settings that vary, by config path and in the order of the file, and the constraints on them."""

    parameters: Mapping[str, Parameter]
    constraints: tuple[Constraint, ...] = ()

    @property
    def grid(self) -> dict[str, Grid]:
        return {key: p for key, p in self.parameters.items() if isinstance(p, Grid)}

    @property
    def sampled(self) -> dict[str, Float | Int | Choice]:
        return {key: p for key, p in self.parameters.items() if not isinstance(p, Grid)}

    @property
    def pure_grid(self) -> bool:
        return not self.sampled

    def grid_points(self) -> list[dict[str, Any]]:
        """The cartesian product of the grid settings, the first one slowest; one empty point without grid settings."""
        grid = self.grid
        return [
            dict(zip(grid, values, strict=True)) for values in itertools.product(*(p.values for p in grid.values()))
        ]

    def build(self, base: Mapping[str, Any], params: Mapping[str, Any]) -> RunConfig:
        """The config of the point `params` over the nested dict `base`. Raises `ConfigError`; constraints not asked."""
        return validate_config(with_values(base, params))

    def infeasible_reason(self, base: Mapping[str, Any], params: Mapping[str, Any]) -> str | None:
        """Why the point may not run: a false constraint, or settings that do not go together. `base` has all keys."""
        values = with_values(base, params)
        for constraint in self.constraints:
            if (violation := constraint.violation(values)) is not None:
                return violation
        try:
            validate_config(values)
        except ConfigError as error:
            return "; ".join(error.faults)
        return None

    def grid_infeasible_reason(self, base: Mapping[str, Any], point: Mapping[str, Any]) -> str | None:
        """Why the grid point may not run whatever is sampled beside it, or None."""
        values = with_values(base, point)
        sampled = self.sampled
        for constraint in self.constraints:
            if constraint.paths.isdisjoint(sampled) and (violation := constraint.violation(values)) is not None:
                return violation
        try:
            validate_config(values)
        except ConfigError as error:
            sections = {fault.partition(":")[0] for fault in error.faults}
            involved = any(key == s or key.startswith(f"{s}.") for key in sampled for s in sections)
            if not involved and "config" not in sections:
                return "; ".join(error.faults)
        return None

    def draws(self, seed: int = 0) -> Iterator[dict[str, Any]]:
        """Endless random points: to try the space out, not to search it."""
        rng = random.Random(seed)
        while True:
            yield {key: parameter.draw(rng) for key, parameter in self.parameters.items()}

    def trial_points(self, tries: int = 200) -> list[dict[str, Any]]:
        """Points that stand for the space: all of a small grid, random ones otherwise."""
        if self.pure_grid and math.prod(len(p.values) for p in self.grid.values()) <= tries:
            return self.grid_points()
        return list(itertools.islice(self.draws(), tries))

    def infeasible_share(self, base: Mapping[str, Any], tries: int = 200) -> tuple[float, str | None]:
        """Share of infeasible points among `trial_points`, and the reason of the first."""
        points = self.trial_points(tries)
        reasons = [reason for point in points if (reason := self.infeasible_reason(base, point)) is not None]
        return len(reasons) / len(points), reasons[0] if reasons else None


def fault(where: str, key: str, got: str | None, rule: str, fix: str | None = None) -> str:
    """One line in the form `FILE:LINE: KEY: got VALUE; rule; fix: ...`."""
    parts = [f"got {got}" if got is not None else None, rule, f"fix: {fix}" if fix else None]
    return (f"{where}: " if where else "") + f"{key}: " + "; ".join(part for part in parts if part)


def show(value: Any, limit: int = 80) -> str:
    """A value as text for a message, cut to `limit` characters."""
    text = repr(value)
    return text if len(text) <= limit else f"{text[: limit - 3]}..."


@cache
def _adapter(key: str) -> TypeAdapter[Any]:
    info = config_keys()[key]
    annotation: Any = Annotated[info.annotation, *info.metadata] if info.metadata else info.annotation
    return TypeAdapter(annotation, config=ConfigDict(strict=True, allow_inf_nan=False))


def setting_value(key: str, value: Any) -> Any:
    """`value` as the setting at the path `key` keeps it (plain JSON). Raises ValueError with the setting's rule."""
    adapter = _adapter(key)
    try:
        return adapter.dump_python(adapter.validate_python(value), mode="json")
    except ValidationError as error:
        message = error.errors()[0]["msg"]
        raise ValueError(message[:1].lower() + message[1:]) from None


def parse_space(
    space: Mapping[str, Any], constraints: Sequence[str] = (), document: YamlDocument | None = None
) -> Space:
    """A Space from the `space:` and `constraints:` of a sweep file. Raises `ConfigError` with every fault at once."""
    faults: list[str] = []
    parameters: dict[str, Parameter] = {}
    for key, text in space.items():
        where = document.where("space", key) if document else ""
        if key not in config_keys():
            faults.append(fault(where, f"space.{key}", None, f"unknown setting{nearest(key, config_keys())}"))
            continue
        parameter = _Entry(key, text, document).parse(faults)
        if parameter is not None:
            parameters[key] = parameter
    if not space:
        where = document.where("space") if document else ""
        faults.append(fault(where, "space", "nothing", "expected at least one setting", _EXAMPLE))
    points = math.prod(len(p.values) for p in parameters.values() if isinstance(p, Grid))
    if points > MAX_GRID_POINTS:
        rule = f"at most {MAX_GRID_POINTS} points"
        faults.append(fault(document.where("space") if document else "", "space", f"{points} grid points", rule))
    parsed = _parse_constraints(constraints, document, faults)
    if faults:
        raise ConfigError(faults)
    return Space(parameters, parsed)


_EXAMPLE = "train.learning_rate: {type: float, low: 1e-4, high: 1e-2, log: true}"


def _parse_constraints(
    constraints: Sequence[str], document: YamlDocument | None, faults: list[str]
) -> tuple[Constraint, ...]:
    parsed = []
    for index, text in enumerate(constraints):
        where = document.where("constraints", str(index)) if document else ""
        if not isinstance(text, str):
            faults.append(fault(where, f"constraints.{index}", show(text), "expected an expression as text"))
            continue
        try:
            parsed.append(parse_constraint(text))
        except ConstraintError as error:
            faults.append(fault(where, f"constraints.{index}", show(text), str(error)))
    return tuple(parsed)


_KEYS = {
    "float": ("low", "high", "log", "step"),
    "int": ("low", "high", "log", "step"),
    "choice": ("values",),
    "grid": ("values", "ordered"),
}


class _Entry:
    """One entry of `space:` on its way to a Parameter."""

    def __init__(self, key: str, text: Any, document: YamlDocument | None):
        self.key = key
        self.text = text
        self.document = document
        self.faults: list[str] = []

    def parse(self, faults: list[str]) -> Parameter | None:
        parameter = self._parse()
        if parameter is not None and not self.faults:
            parameter = self._fitted(parameter)
        faults += self.faults
        return None if self.faults else parameter

    def _fault(self, name: str | None, got: str | None, rule: str, fix: str | None = None) -> None:
        path = ("space", self.key, name) if name else ("space", self.key)
        where = self.document.where(*path) if self.document else ""
        self.faults.append(fault(where, ".".join(path), got, rule, fix))

    def _parse(self) -> Parameter | None:
        if not isinstance(self.text, Mapping):
            values = self.text if isinstance(self.text, list) else [self.text]
            self._fault(None, show(self.text), "expected a mapping with a type", f"{{type: grid, values: {values}}}")
            return None
        kind = self.text.get("type")
        if kind not in _KEYS:
            hint = nearest(kind, _KEYS) if isinstance(kind, str) else ""
            got = "no type" if kind is None else show(kind)
            self._fault("type", got, f"expected one of {', '.join(_KEYS)}{hint}")
            return None
        for name in self.text:
            if name not in ("type", *_KEYS[kind]):
                self._fault(name, None, f"unknown key of type {kind}{nearest(name, _KEYS[kind])}")
        if self.faults:
            return None
        return self._values(kind) if kind in ("choice", "grid") else self._range(kind)

    def _values(self, kind: str) -> Choice | Grid | None:
        values = self.text.get("values")
        if not isinstance(values, list) or not 0 < len(values) <= MAX_VALUES:
            self._fault("values", show(values), f"expected a list of 1 to {MAX_VALUES} values", "values: [64, 128]")
            return None
        ordered = self._flag("ordered") if kind == "grid" else False
        return Choice(tuple(values)) if kind == "choice" else Grid(tuple(values), ordered)

    def _flag(self, name: str) -> bool:
        value = self.text.get(name, False)
        if not isinstance(value, bool):
            self._fault(name, show(value), "expected true or false")
        return bool(value)

    def _number(self, name: str, kind: str, default: Any = None) -> Any:
        value = self.text.get(name, default)
        if value is None and name == "step":
            return None
        allowed = (int, float) if kind == "float" else (int,)
        if isinstance(value, bool) or not isinstance(value, allowed) or not math.isfinite(value):
            expected = "a number" if kind == "float" else "a whole number"
            self._fault(name, "nothing" if value is None else show(value), f"expected {expected}")
            return None
        return float(value) if kind == "float" else value

    def _range(self, kind: str) -> Float | Int | None:
        log = self._flag("log")
        step = self._number("step", kind, None if kind == "float" else 1)
        low, high = self._number("low", kind), self._number("high", kind)
        if self.faults:
            return None
        if low > high:
            self._fault("low", show(low), f"low must be at most high ({high})", f"low: {high}, high: {low}")
        elif log and low <= 0:
            self._fault("low", show(low), "a log range must start above 0", "a small positive low, or log: false")
        elif step is not None and step <= 0:
            self._fault("step", show(step), "step must be above 0")
        elif log and (step is not None if kind == "float" else step != 1):
            self._fault("step", show(step), "a log range has no step", "leave step out, or log: false")
        elif step is not None and not _divides(step, high - low):
            nearest_high = low + step * math.floor((high - low) / step)
            self._fault(
                "step", show(step), f"high - low ({high - low}) must be a multiple of step", f"high: {nearest_high}"
            )
        return Float(low, high, log, step) if kind == "float" else Int(low, high, log, step)

    def _fitted(self, parameter: Parameter) -> Parameter | None:
        """The parameter with its values as the setting keeps them, or faults."""
        fitted = []
        for index, value in enumerate(parameter.probes):
            name = "values" if isinstance(parameter, (Choice, Grid)) else ("low", "low", "high")[index]
            try:
                fitted.append(setting_value(self.key, value))
            except ValueError as error:
                fix = "type: int" if isinstance(parameter, Float) and "integer" in str(error) else None
                self._fault(name, show(value), str(error), fix)
                if isinstance(parameter, Float):
                    return None
        if not isinstance(parameter, (Choice, Grid)):
            return parameter
        texts = [json.dumps(value) for value in fitted]
        for text in sorted({text for text in texts if texts.count(text) > 1}):
            self._fault("values", text, "a value stands twice", "leave one out")
        values = tuple(fitted)
        return Choice(values) if isinstance(parameter, Choice) else Grid(values, parameter.ordered)


def _divides(step: float, span: float) -> bool:
    return math.isclose(span / step, round(span / step), rel_tol=0, abs_tol=1e-8)
