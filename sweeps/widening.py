"""A space that was widened: what its earlier points are in the present one, and which points it has gained.

A parameter that was added later had the base's value before; a point is *completed* with it. The order of the points
that can be listed is that of the first space, then what each later one adds: what has been handed out stays in place.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from sweeps.parameters import Float, Int, Listed, Parameter, paths_of, settings_of
from sweeps.space import Point, Space, value_at
from sweeps.spec import SweepSpec


def base_value(name: str, parameter: Parameter, base: Mapping[str, Any]) -> Any:
    """The value of the parameter that leaves the base as it is. Raises ValueError where it has none."""
    wanted = {path: value_at(base, path) for path in paths_of(name, parameter)}
    if isinstance(parameter, Listed):
        for value in parameter.values:
            if settings_of(name, parameter, value) == wanted:
                return value
    elif holds(parameter, wanted[name]):
        return wanted[name]
    raise ValueError(f"the base's value {', '.join(repr(value) for value in wanted.values())} is not among its values")


def holds(parameter: Float | Int, value: Any) -> bool:
    """Whether the range has the value."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not parameter.low <= value <= parameter.high:
        return False
    return parameter.step is None or _is_whole((value - parameter.low) / parameter.step)


def _is_whole(number: float) -> bool:
    return math.isclose(number, round(number), abs_tol=1e-6)


def completed(space: Space, base: Mapping[str, Any], point: Mapping[str, Any]) -> Point:
    """`point` of an earlier, narrower space as a point of `space`."""
    full: Point = {}
    for name, parameter in space.parameters.items():
        if name in point:
            full[name] = point[name]
        elif space.is_active(name, full):
            full[name] = base_value(name, parameter, base)
    return full


def grid_points_in_turn(specs: Sequence[SweepSpec], points_of: Callable[[SweepSpec], list[Point]]) -> list[Point]:
    """The points of a sweep's specs, oldest first, each once and completed. In a grid that is gone through once, a
    point that a constraint forbade and no longer does comes again."""
    present = specs[-1]
    reopens = present.search_space.pure_grid and any(spec.constraints != present.constraints for spec in specs)
    grid = Space(present.search_space.grid)
    found: list[Point] = []
    forbidden: dict[str, bool] = {}
    for spec in specs:
        for point in points_of(spec):
            full = completed(grid, present.base_values, point)
            key = json.dumps(full, sort_keys=True)
            is_forbidden = reopens and spec.search_space.grid_infeasible_reason(spec.base_values, point) is not None
            if key not in forbidden or (forbidden[key] and not is_forbidden):
                found.append(full)
            forbidden[key] = is_forbidden
    return found


def sampled_points_in_turn(
    specs: Sequence[SweepSpec], grid_point: Point, order: Callable[[list[Point], int], list[Point]]
) -> list[Point] | None:
    """All values of the sampled parameters beside a grid point of the present space, those of older specs first.

    `order` gets the points of each spec and its place. None where the present space can't be listed."""
    present = specs[-1]
    space, base = present.search_space, present.base_values
    if space.sampled_points(grid_point) is None:
        return None
    found: dict[str, Point] = {}
    for place, spec in enumerate(specs):
        beside = {name: value for name, value in grid_point.items() if name in spec.search_space.grid}
        if spec is not present and not _has(spec, beside, grid_point, present):
            continue
        for point in order(spec.search_space.sampled_points(beside) or [], place):
            full = completed(space, base, {**beside, **point})
            sampled = {name: value for name, value in full.items() if name in space.sampled}
            key = json.dumps(sampled, sort_keys=True)
            if key in found and _reopened(specs[:place], spec, {**beside, **point}):
                key += f" again {place}"
            found.setdefault(key, sampled)
    return list(found.values())


def _has(spec: SweepSpec, beside: Point, grid_point: Point, present: SweepSpec) -> bool:
    """Whether a grid point of the present space is one of the earlier spec: there it is `beside`."""
    same = completed(Space(present.search_space.grid), present.base_values, beside) == grid_point
    return same and beside in spec.search_space.grid_points()


def _reopened(before: Sequence[SweepSpec], spec: SweepSpec, point: Point) -> bool:
    """Whether the last earlier spec with the point forbade it, and `spec` does not."""
    earlier = before[-1]
    if earlier.constraints == spec.constraints:
        return False
    known = {name: value for name, value in point.items() if name in earlier.search_space.parameters}
    forbidden = earlier.search_space.infeasible_reason(earlier.base_values, known) is not None
    return forbidden and spec.search_space.infeasible_reason(spec.base_values, point) is None
