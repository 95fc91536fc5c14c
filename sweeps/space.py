"""The search space of a sweep: which settings vary, over which values, and how a point becomes a config.

A point is a dict of parameter names and values; a parameter whose condition (`when`) fails is not in it. `grid`
parameters are enumerated in the order of the file; `float`, `int` and `choice` are sampled, by the ledger. Derived
settings are computed last and constraints asked of the result. No Ray, torch or Optuna here.
"""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, cached_property
from typing import Annotated, Any

from pydantic import ConfigDict, TypeAdapter, ValidationError

from genrec.config import ConfigError, RunConfig, config_keys, validate_config, with_values
from sweeps.constraints import Constraint, Expression, Unusable
from sweeps.costs import QUANTITIES
from sweeps.parameters import Choice, Float, Grid, Int, Parameter, When, paths_of, settings_of

MAX_POINTS = 100_000
"that are ever listed: grid points, and the points of a finite space for sampling without replacement"
Point = dict[str, Any]
_OTHER = object()
"stands for a value that no condition names"


class PointError(ValueError):
    """A derived setting cannot have the value that its expression gives at a point."""


@dataclass(frozen=True)
class Space:
    """The parameters in the order of the file, conditions on what the config may be, and formulas of derived settings
    in the order of their evaluation."""

    parameters: Mapping[str, Parameter]
    constraints: tuple[Constraint, ...] = ()
    derived: Mapping[str, Expression] = field(default_factory=dict)

    @property
    def grid(self) -> dict[str, Grid]:
        return {name: p for name, p in self.parameters.items() if isinstance(p, Grid)}

    @property
    def sampled(self) -> dict[str, Float | Int | Choice]:
        return {name: p for name, p in self.parameters.items() if not isinstance(p, Grid)}

    @property
    def pure_grid(self) -> bool:
        return not self.sampled

    @cached_property
    def paths(self) -> set[str]:
        """Every config path that a point sets or derives."""
        return {path for name, p in self.parameters.items() for path in paths_of(name, p)} | set(self.derived)

    def is_active(self, name: str, point: Mapping[str, Any]) -> bool:
        """Whether the parameter lives at `point`, which has the values of those above it."""
        return all(above in point and point[above] in values for above, values in self.parameters[name].when.items())

    # -- points -------------------------------------------------------------------------------------------------------

    @cached_property
    def is_listable(self) -> bool:
        """Whether the points beside every grid point can be listed, so that a search through them comes to an end."""
        counts = [parameter.count for parameter in self.sampled.values()]
        return None not in counts and math.prod(count or 0 for count in counts) <= MAX_POINTS

    def grid_points(self) -> list[Point]:
        """All points of the grid parameters, the first one slowest; one empty point without grid parameters."""
        return list(self._points(list(self.grid), {}))

    def num_points(self) -> int | None:
        """How many different points the space has; None: endlessly many, or more than `MAX_POINTS`."""
        return self._count(list(self.parameters), {})

    def num_grid_points(self) -> int | None:
        """How many different points the grid has; 1 without grid parameters, None: more than `MAX_POINTS`."""
        return self._count(list(self.grid), {})

    def sampled_points(self, grid_point: Mapping[str, Any]) -> list[Point] | None:
        """All values of the sampled parameters beside a grid point, None when they can't be listed."""
        names = list(self.sampled)
        if self._count(names, grid_point) is None:
            return None
        return list(self._points(names, grid_point))

    def sampled_groups(self) -> list[tuple[When, list[str]]]:
        """The sampled parameters by their condition, those above first: what can be sampled jointly."""
        groups: dict[tuple[tuple[str, str], ...], tuple[When, list[str]]] = {}
        for name, parameter in self.sampled.items():
            key = tuple(sorted((above, repr(values)) for above, values in parameter.when.items()))
            groups.setdefault(key, (parameter.when, []))[1].append(name)
        return list(groups.values())

    def _count(self, names: Sequence[str], given: Mapping[str, Any]) -> int | None:
        """Without listing anything: it may be far too many."""
        if any(self.parameters[name].count is None for name in names):
            return None
        count = self._product(names, given)
        return count if count <= MAX_POINTS else None

    def _product(self, names: Sequence[str], given: Mapping[str, Any]) -> int:
        """Number of the points of finite parameters. Values that no condition below names have equally many below."""
        if not names:
            return 1
        name, rest = names[0], names[1:]
        if not self.is_active(name, given):
            return self._product(rest, given)
        named: list[Any] = []
        for below in rest:
            named += [value for value in self.parameters[below].when.get(name, ()) if value not in named]
        count = sum(self._product(rest, {**given, name: value}) for value in named)
        others = (self.parameters[name].count or 0) - len(named)
        return count + (others * self._product(rest, {**given, name: _OTHER}) if others else 0)

    def _points(self, names: Sequence[str], given: Mapping[str, Any]) -> Iterator[Point]:
        """Values of `names` beside those of `given`, the first name slowest."""
        if not names:
            yield {}
            return
        name, rest = names[0], names[1:]
        if not self.is_active(name, given):
            yield from self._points(rest, given)
            return
        for value in self.parameters[name].all_values():
            for tail in self._points(rest, {**given, name: value}):
                yield {name: value, **tail}

    def _corners(self, names: Sequence[str], given: Point) -> Iterator[Point]:
        if not names:
            yield given
            return
        parameter = self.parameters[names[0]]
        active = self.is_active(names[0], given)
        for extra in [{names[0]: value} for value in parameter.probes] if active else [{}]:
            yield from self._corners(names[1:], {**given, **extra})

    def draws(self, seed: int = 0) -> Iterator[Point]:
        """Endless random points: to try the space out, not to search it."""
        rng = random.Random(seed)
        while True:
            yield self.draw(rng)

    def draw(self, rng: random.Random, given: Mapping[str, Any] | None = None) -> Point:
        """A random point with the values of `given`."""
        point: Point = {}
        for name, parameter in self.parameters.items():
            if given and name in given:
                point[name] = given[name]
            elif self.is_active(name, point):
                point[name] = parameter.draw(rng)
        return point

    def trial_points(self, tries: int = 200) -> list[Point]:
        """Points that stand for the space: all of a small one, random ones otherwise."""
        count = self.num_points()
        if count is not None and count <= tries:
            return list(self._points(list(self.parameters), {}))
        return list(itertools.islice(self.draws(), tries))

    # -- from a point to a config -------------------------------------------------------------------------------------

    def values(self, base: Mapping[str, Any], point: Mapping[str, Any]) -> dict[str, Any]:
        """All settings at `point` over the nested dict `base`, which has all of them. Raises `PointError`."""
        settings: dict[str, Any] = {}
        for name, value in point.items():
            settings |= settings_of(name, self.parameters[name], value)
        values = with_values(base, settings)
        return self._derived(values, self.derived)

    def derived_again(self, values: Mapping[str, Any], changed: Collection[str]) -> dict[str, Any]:
        """`values` after the settings `changed` were given others: what is derived from them follows. Raises
        `PointError`."""
        stale: dict[str, Expression] = {}
        for path, formula in self.derived.items():
            if not formula.paths.isdisjoint({*changed, *stale}):
                stale[path] = formula
        return self._derived(values, stale)

    def _derived(self, values: Mapping[str, Any], formulas: Mapping[str, Expression]) -> dict[str, Any]:
        result = dict(values)
        for path, formula in formulas.items():
            try:
                result = with_values(result, {path: derived_value(path, formula.value(result))})
            except (Unusable, ValueError) as error:
                raise PointError(f"derive.{path}: {formula.text!r}: {error}") from None
        return result

    def build(self, base: Mapping[str, Any], point: Mapping[str, Any]) -> RunConfig:
        """The config at `point`. Raises `ConfigError`; constraints are not asked."""
        try:
            return validate_config(self.values(base, point))
        except PointError as error:
            raise ConfigError([str(error)]) from None

    def infeasible_reason(self, base: Mapping[str, Any], point: Mapping[str, Any]) -> str | None:
        """Why the point may not run: a false constraint, or settings that do not go together."""
        try:
            values = self.values(base, point)
        except PointError as error:
            return str(error)
        for constraint in self.constraints:
            if (violation := constraint.violation(values)) is not None:
                return violation
        try:
            validate_config(values)
        except ConfigError as error:
            return "; ".join(error.faults)
        return None

    def grid_infeasible_reason(self, base: Mapping[str, Any], grid_point: Mapping[str, Any]) -> str | None:
        """Why the grid point may not run whatever is sampled beside it, or None."""
        unsettled = self._unsettled()
        try:
            values = self._settled_values(base, grid_point, unsettled)
        except PointError as error:
            return str(error)
        for constraint in self.constraints:
            if constraint.paths.isdisjoint(unsettled) and (violation := constraint.violation(values)) is not None:
                return violation
        try:
            validate_config(values)
        except ConfigError as error:
            sections = {fault.partition(":")[0] for fault in error.faults}
            involved = any(path == s or path.startswith(f"{s}.") for path in unsettled for s in sections)
            if not involved and "config" not in sections:
                return "; ".join(error.faults)
        return None

    def _unsettled(self) -> set[str]:
        """Paths whose value depends on what is sampled; a cost depends on everything."""
        paths = {path for name, p in self.sampled.items() for path in paths_of(name, p)}
        if paths:
            paths |= set(QUANTITIES)
        for path, formula in self.derived.items():
            if not formula.paths.isdisjoint(paths):
                paths.add(path)
        return paths

    def _settled_values(
        self, base: Mapping[str, Any], grid_point: Mapping[str, Any], unsettled: set[str]
    ) -> dict[str, Any]:
        settled = {path: formula for path, formula in self.derived.items() if path not in unsettled}
        return Space(self.parameters, (), settled).values(base, grid_point)

    def possible_values(self, base: Mapping[str, Any], path: str) -> list[Any]:
        """Values that the setting can have: all of a choice or grid, ends of a range, of a derived setting those at
        random points and at the corners of the space."""
        if path in self.derived:
            points = self.trial_points() + list(itertools.islice(self._corners(list(self.parameters), {}), 1000))
            feasible = [point for point in points if self.infeasible_reason(base, point) is None]
            return [value_at(self.values(base, point), path) for point in feasible]
        found = []
        for name, parameter in self.parameters.items():
            if path in paths_of(name, parameter):
                found += [settings_of(name, parameter, value)[path] for value in parameter.probes]
        return found or [value_at(base, path)]

    def samples(self, base: Mapping[str, Any], tries: int = 200) -> Iterator[tuple[Point, RunConfig]]:
        """Feasible points that stand for the space, with their configs: `trial_points`, and where these are random the
        corners as well."""
        points = self.trial_points(tries)
        if self.num_points() != len(points):
            points += itertools.islice(self._corners(list(self.parameters), {}), tries)
        for point in points:
            if self.infeasible_reason(base, point) is None:
                yield point, self.build(base, point)

    def infeasible_share(self, base: Mapping[str, Any], tries: int = 200) -> tuple[float, str | None]:
        """Share of infeasible points among `trial_points`, and the reason of the first."""
        points = self.trial_points(tries)
        reasons = [reason for point in points if (reason := self.infeasible_reason(base, point)) is not None]
        return len(reasons) / len(points), reasons[0] if reasons else None


def value_at(config: Mapping[str, Any], path: str) -> Any:
    """What a nested dict has at a config path."""
    value: Any = config
    for part in path.split("."):
        value = value[part]
    return value


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


def derived_value(key: str, value: Any) -> Any:
    """As `setting_value`; arithmetic may also give a whole number as 64.0. The error names the value."""
    try:
        return setting_value(key, value)
    except ValueError as error:
        if isinstance(value, float) and value.is_integer():
            return setting_value(key, int(value))
        raise ValueError(f"got {value!r}; {error}") from None
