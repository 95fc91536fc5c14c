"""Reads `space:`, `constraints:` and `derive:` of a sweep file; all faults at once, with line, value, rule and fix."""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from genrec.config import ConfigError, config_keys, nearest, nearest_setting
from genrec.masking import without_login
from genrec.strict_yaml import YamlDocument
from sweeps.constraints import Constraint, ConstraintError, Expression, parse_constraint, parse_formula
from sweeps.parameters import Choice, Float, Grid, Int, Parameter, When, paths_of
from sweeps.space import MAX_POINTS, Space, setting_value

MAX_VALUES = 1000
_EXAMPLE = "train.learning_rate: {type: float, low: 1e-4, high: 1e-2, log: true}"
_KEYS = {
    "float": ("low", "high", "log", "step", "when"),
    "int": ("low", "high", "log", "step", "when"),
    "choice": ("values", "zip", "names", "when"),
    "grid": ("values", "zip", "names", "ordered", "when"),
}


def fault(where: str, key: str, got: str | None, rule: str, fix: str | None = None) -> str:
    """One line in the form `FILE:LINE: KEY: got VALUE; rule; fix: ...`."""
    parts = [f"got {got}" if got is not None else None, rule, f"fix: {fix}" if fix else None]
    return (f"{where}: " if where else "") + f"{key}: " + "; ".join(part for part in parts if part)


def show(value: Any, limit: int = 80) -> str:
    """A value as text for a message, without logins, cut to `limit` characters."""
    text = without_login(repr(value))
    return text if len(text) <= limit else f"{text[: limit - 3]}..."


def parse_space(
    space: Mapping[str, Any],
    constraints: Sequence[str] = (),
    document: YamlDocument | None = None,
    derive: Mapping[str, Any] | None = None,
) -> Space:
    """A Space from a sweep file. Raises `ConfigError` with every fault at once."""
    faults: list[str] = []
    parameters: dict[str, Parameter] = {}
    owners: dict[str, str] = {}
    for name, text in space.items():
        entry = _Entry(name, text, document, parameters, space)
        parameter = entry.parse(faults)
        if parameter is None:
            continue
        for path in paths_of(name, parameter):
            if path in owners:
                where = document.where("space", name) if document else ""
                faults.append(fault(where, f"space.{name}", None, f"{path} is set by {owners[path]!r} already"))
            owners[path] = name
        parameters[name] = parameter
    if not space:
        where = document.where("space") if document else ""
        faults.append(fault(where, "space", "nothing", "expected at least one setting", _EXAMPLE))
    parsed = _parse_constraints(constraints, document, faults)
    derived = _parse_derived(derive or {}, owners, document, faults)
    result = Space(parameters, parsed, derived)
    _check_size(result, document, faults)
    if faults:
        raise ConfigError(faults)
    return result


def _check_size(space: Space, document: YamlDocument | None, faults: list[str]) -> None:
    if space.num_grid_points() is None:
        points = math.prod(grid.count for grid in space.grid.values())
        where = document.where("space") if document else ""
        faults.append(fault(where, "space", f"{points} grid points", f"at most {MAX_POINTS} points"))


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


def _parse_derived(
    derive: Mapping[str, Any], owners: Mapping[str, str], document: YamlDocument | None, faults: list[str]
) -> dict[str, Expression]:
    """Formulas, each after those that it reads."""
    formulas: dict[str, Expression] = {}
    for path, text in derive.items():
        where = document.where("derive", path) if document else ""
        key = f"derive.{path}"
        if path not in config_keys():
            faults.append(fault(where, key, None, f"unknown setting{nearest_setting(path)}"))
        elif path in owners:
            faults.append(fault(where, key, None, f"is set by space.{owners[path]} already", "leave one out"))
        elif not isinstance(text, str):
            faults.append(fault(where, key, show(text), "expected an expression as text", f"set: {{{path}: {text}}}"))
        else:
            try:
                formulas[path] = parse_formula(text)
            except ConstraintError as error:
                faults.append(fault(where, key, show(text), str(error)))
                continue
            if any(read.startswith("cost.") for read in formulas[path].paths):
                faults.append(fault(where, key, show(text), "a cost depends on all settings", "use a constraint"))
    return _in_order(formulas, document, faults)


def _in_order(
    formulas: dict[str, Expression], document: YamlDocument | None, faults: list[str]
) -> dict[str, Expression]:
    ordered: dict[str, Expression] = {}
    while len(ordered) < len(formulas):
        ready = [
            p for p, f in formulas.items() if p not in ordered and not (f.paths & formulas.keys()) - ordered.keys()
        ]
        if not ready:
            path = next(path for path in formulas if path not in ordered)
            where = document.where("derive", path) if document else ""
            faults.append(fault(where, f"derive.{path}", show(formulas[path].text), "is computed from itself"))
            break
        ordered |= {path: formulas[path] for path in ready}
    return ordered


class _Entry:
    """One entry of `space:` on its way to a Parameter; `above` are those before it in the file."""

    def __init__(
        self,
        name: str,
        text: Any,
        document: YamlDocument | None,
        above: Mapping[str, Parameter],
        space: Mapping[str, Any],
    ):
        self.name = name
        self.text = text
        self.document = document
        self.above = above
        self.space = space
        self.faults: list[str] = []

    def parse(self, faults: list[str]) -> Parameter | None:
        parameter = self._parse()
        faults += self.faults
        return None if self.faults else parameter

    def _fault(self, name: str | None, got: str | None, rule: str, fix: str | None = None) -> None:
        path = ("space", self.name, *(name.split("/") if name else ()))
        where = self.document.where(*path) if self.document else ""
        self.faults.append(fault(where, ".".join(path), got, rule, fix))

    def _parse(self) -> Parameter | None:
        paired = isinstance(self.text, Mapping) and "zip" in self.text
        if not paired and self.name not in config_keys():
            self._fault(None, None, f"unknown setting{nearest_setting(self.name)}")
            return None
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
        when = self._when(kind)
        if self.faults:
            return None
        if kind in ("float", "int"):
            return self._range(kind, when)
        return self._paired(kind, when) if paired else self._listed(kind, when)

    # -- conditions ---------------------------------------------------------------------------------------------------

    def _when(self, kind: str) -> When:
        text = self.text.get("when", {})
        if not isinstance(text, Mapping) or ("when" in self.text and not text):
            self._fault("when", show(text), "expected a mapping", "when: {tokenizer.kind: rqvae}")
            return {}
        return {name: values for name, wanted in text.items() if (values := self._condition(kind, name, wanted))}

    def _condition(self, kind: str, name: str, wanted: Any) -> tuple[Any, ...] | None:
        key = f"when/{name}"
        parent = self.above.get(name)
        if parent is None:
            if name in self.space and name != self.name:
                listed = list(self.space)
                if listed.index(name) < listed.index(self.name):
                    return None  # its own fault is reported
                self._fault(key, None, "a condition names a parameter that stands above", f"move {name} up")
            else:
                self._fault(key, None, f"is not in the space{nearest(name, self.above)}")
            return None
        if kind == "grid" and not isinstance(parent, Grid):
            self._fault(key, None, "a grid can only depend on grids: it is laid out before anything is sampled")
            return None
        if isinstance(parent, Float):
            self._fault(key, None, "a condition needs a parameter with listed values, got a float range")
            return None
        values = [wanted] if parent.has(wanted) or not isinstance(wanted, list) else wanted
        for value in values:
            if parent.has(value):
                continue
            if isinstance(parent, Int):
                self._fault(key, show(value), f"expected {parent}")
                continue
            hint = nearest(value, [v for v in parent.values if isinstance(v, str)]) if isinstance(value, str) else ""
            self._fault(key, show(value), f"expected one of {show(list(parent.values))}{hint}")
        return tuple(values) or None

    # -- values -------------------------------------------------------------------------------------------------------

    def _listed(self, kind: str, when: When) -> Choice | Grid | None:
        if "names" in self.text:
            self._fault("names", None, "names belong to a zip")
        values = self._list("values", self.text.get("values"))
        if values is None:
            return None
        fitted = [self._fitted("values", self.name, value) for value in values]
        if not self.faults:
            self._no_repeats("values", fitted)
        return self._choice(kind, tuple(fitted), when)

    def _choice(
        self, kind: str, values: tuple[Any, ...], when: When, settings: tuple[Mapping[str, Any], ...] | None = None
    ) -> Choice | Grid:
        if kind == "choice":
            return Choice(values, when, settings)
        return Grid(values, when, settings, ordered=self._flag("ordered"))

    def _paired(self, kind: str, when: When) -> Choice | Grid | None:
        """`zip: {path: values, ...}`: the first values together, the second together, ..."""
        if self.name in config_keys() or not re.fullmatch(r"[A-Za-z]\w*", self.name):
            self._fault(None, None, "paired values need a name of their own: letters and digits, and no setting's")
        if "values" in self.text:
            self._fault("values", None, "values and zip exclude each other")
        zipped = self.text["zip"]
        if not isinstance(zipped, Mapping) or not zipped:
            self._fault("zip", show(zipped), "expected settings and their values", "zip: {tiger.n_layers: [4, 6]}")
            return None
        columns = {path: self._column(path, values) for path, values in zipped.items()}
        lengths = {len(values) for values in columns.values() if values is not None}
        if len(lengths) > 1:
            shown = ", ".join(f"{path} has {len(values)}" for path, values in columns.items() if values is not None)
            self._fault("zip", None, f"all lists must be equally long: {shown}")
        if self.faults:
            return None
        settings = tuple(dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True))
        self._no_repeats("zip", list(settings))
        names = self._names(settings)
        return None if self.faults else self._choice(kind, names, when, settings)

    def _column(self, path: str, values: Any) -> list[Any] | None:
        key = f"zip/{path}"
        if path not in config_keys():
            self._fault(key, None, f"unknown setting{nearest_setting(path)}")
            return None
        listed = self._list(key, values)
        return None if listed is None else [self._fitted(key, path, value) for value in listed]

    def _names(self, settings: Sequence[Mapping[str, Any]]) -> tuple[str, ...]:
        """The labels in `names`, or ones made of the values."""
        if "names" not in self.text:
            return tuple(
                ", ".join(f"{path.rsplit('.', 1)[-1]}={json.dumps(value)}" for path, value in row.items())
                for row in settings
            )
        names = self.text["names"]
        if not isinstance(names, list) or len(names) != len(settings) or not all(isinstance(n, str) for n in names):
            self._fault("names", show(names), f"expected a list of {len(settings)} texts")
            return ()
        self._no_repeats("names", names)
        return tuple(names)

    def _list(self, name: str, values: Any) -> list[Any] | None:
        if isinstance(values, list) and 0 < len(values) <= MAX_VALUES:
            return values
        self._fault(name, show(values), f"expected a list of 1 to {MAX_VALUES} values", "values: [64, 128]")
        return None

    def _fitted(self, name: str, path: str, value: Any) -> Any:
        """The value as the setting keeps it, or a fault."""
        try:
            return setting_value(path, value)
        except ValueError as error:
            self._fault(name, show(value), str(error))
            return None

    def _no_repeats(self, name: str, values: Sequence[Any]) -> None:
        texts = Counter(json.dumps(value) for value in values)
        for text in sorted(text for text, count in texts.items() if count > 1):
            self._fault(name, text, "a value stands twice", "leave one out")

    # -- ranges -------------------------------------------------------------------------------------------------------

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

    def _range(self, kind: str, when: When) -> Float | Int | None:
        log = self._flag("log")
        step = self._number("step", kind, None if kind == "float" else 1)
        low, high = self._number("low", kind), self._number("high", kind)
        if self.faults or not self._range_fits(kind, low, high, log, step):
            return None
        parameter = Float(low, high, log, step, when) if kind == "float" else Int(low, high, log, step, when)
        for name, value in zip(("low", "low", "high"), parameter.probes, strict=True):
            try:
                setting_value(self.name, value)
            except ValueError as error:
                fix = "type: int" if kind == "float" and "integer" in str(error) else None
                self._fault(name, show(value), str(error), fix)
                if kind == "float":
                    return None
        return parameter

    def _range_fits(self, kind: str, low: Any, high: Any, log: bool, step: Any) -> bool:
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
        return not self.faults


def _divides(step: float, span: float) -> bool:
    return math.isclose(span / step, round(span / step), rel_tol=0, abs_tol=1e-8)
