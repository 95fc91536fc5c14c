"""Every fault of a sweep file at once, before anything starts: each names the line or key, the rule and the fix."""

from __future__ import annotations

import importlib.util
import math
import re
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from genrec.config import (
    ConfigError,
    RunConfig,
    config_keys,
    load_config,
    nearest,
    nearest_setting,
    validate_config,
    with_values,
)
from genrec.settings.evaluation import METRICS
from genrec.strict_yaml import YamlDocument, YamlError
from sweeps.parameters import Float, Int, paths_of
from sweeps.space import Space, setting_value, value_at
from sweeps.space_file import fault, parse_space, show
from sweeps.spec import WORKER_FORMS, SweepSpec, finalist_of
from sweeps.unread_settings import faults_of_path

FEASIBILITY_TRIES = 1000
"points that are tried before a space counts as having no feasible one"
LOSSES = ("loss", "validation_loss")
_READ_BY = {
    "startup_trials": ("tpe", "gp"),
    "multivariate": ("tpe",),
    "population": ("cma-es", "nsga2"),
}
_STOPPING = ("median", "asha", "promote")
_SCHEDULER_READ_BY = {"reduction_factor": ("asha", "promote"), "min_trials": ("median",)}


def checked_spec(
    data: Mapping[str, Any],
    document: YamlDocument | None,
    folder: Path | None = None,
    overridden: Collection[str] = (),
) -> SweepSpec:
    """The spec of a sweep file, or of what `SweepSpec.to_dict` dumped (`document` None). `overridden`: keys of `set`
    that the command line gave. Raises `ConfigError` with every fault, one line each."""
    checker = _Checker(dict(data), document, folder, overridden)
    spec = checker.check()
    if checker.faults or spec is None:
        raise ConfigError(checker.faults)
    return spec


class _Checker:
    """Collects the faults of one spec; later checks run as far as earlier ones allow."""

    def __init__(
        self, data: dict[str, Any], document: YamlDocument | None, folder: Path | None, overridden: Collection[str]
    ):
        """`overridden`: keys of `set` that the command line gave."""
        self.data = data
        self.overridden = overridden
        self.document = document
        self.folder = folder
        self.faults: list[str] = []

    def check(self) -> SweepSpec | None:
        if self.document is not None and "base_values" in self.data:
            self._fault(("base_values",), None, "unknown key", "use base and set")
            return None
        base = self._base()
        space = self._space()
        finalists = self._mapping("set", self._mapping("finalists"))
        fit = self._settings_fit(("finalists", "set"), finalists)
        if fit and base is not None:
            fit = self._merged(base.to_dict(), ("finalists", "set"), finalists) is not None
        if base is not None and space is not None:
            self._feasible(base, space)
            if self.document is not None:
                self._searched(base, space)
                self._not_overridden(space)
                if fit and finalists:
                    self._finalists(base, space, finalists)
        self._chosen_on_validation(base, space, finalists)
        self._budget(space)
        self._accelerator()
        self._gpus()
        self._sampler(space)
        self._scheduler(base, space)
        spec = self._model({**self.data, "base_values": base.to_dict() if base else {}})
        self.faults = list(dict.fromkeys(self.faults))
        return spec

    def _searched(self, base: RunConfig, space: Space) -> None:
        """Every parameter, and every derived setting, is one that trials can be compared by."""
        values = {path: value_at(base.to_dict(), path) for path in config_keys()}
        owners = {("space", name): paths_of(name, parameter) for name, parameter in space.parameters.items()}
        owners |= {("derive", path): [path] for path in space.derived}
        for owner, paths in owners.items():
            found = [list(faults_of_path(path, space.paths, values)) for path in paths]
            if all(found):  # of several settings that vary together one may do nothing
                self._fault(owner, None, found[0][0], "leave it out, or see search_spaces/README.md")

    def _not_overridden(self, space: Space) -> None:
        for key in self.overridden:
            if key in space.derived:
                self.faults.append(f"--set {key}: is computed by derive.{key}, so no trial would have this value")
            for name, parameter in space.parameters.items():
                if key in paths_of(name, parameter) and not parameter.when:
                    rule = f"is searched by space.{name}, so no trial would have this value"
                    self.faults.append(f"--set {key}: {rule}; fix: take it out of the space")

    def _finalists(self, base: RunConfig, space: Space, settings: Mapping[str, Any]) -> None:
        """`finalists.set` leaves what was searched as it is, and goes together with it."""
        path = ("finalists", "set")
        undone = [key for key in settings if key in space.paths]
        for key in undone:
            rule = "was chosen by the search, and all finalists would have this value instead"
            self._fault((*path, key), show(settings[key]), rule, "leave it out")
        if undone:
            return
        for point, config in space.samples(base.to_dict()):
            try:
                finalist_of(space, config, settings)
            except ConfigError as error:
                rule = f"a trial with {show(point)} could be no finalist: {'; '.join(error.faults)}"
                self._fault(path, None, rule, "a constraint that keeps such points out, or other settings")
                return

    def _chosen_on_validation(self, base: RunConfig | None, space: Space | None, finalists: Mapping[str, Any]) -> None:
        """Validation items that were learnt cannot say which trial or finalist is the better one."""
        key, rule = "train.fit_on", "a sweep chooses on validation, so its trials must not learn from it"
        fix = "genrec train RUNS/NAME/best.yaml --set train.fit_on=train+validation, when the sweep has its winner"
        if base is not None and base.train.refit:
            self._fault(("set", key) if key in self._mapping("set") else ("base",), base.train.fit_on, rule, fix)
        if space is not None and key in space.paths:
            self._fault(("space", key), None, rule, fix)
        if key in finalists:
            self._fault(("finalists", "set", key), None, rule, fix)

    def _fault(self, path: tuple[str, ...], got: str | None, rule: str, fix: str | None = None) -> None:
        where = self.document.where(*path) if self.document else ""
        self.faults.append(fault(where, ".".join(path), got, rule, fix))

    def _mapping(self, name: str, parent: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """The mapping at `name`, empty when it is absent or of a wrong type (the model reports the type)."""
        value = (self.data if parent is None else parent).get(name)
        return dict(value) if isinstance(value, Mapping) else {}

    def _base(self) -> RunConfig | None:
        if "base_values" in self.data:
            try:
                base = validate_config(self.data["base_values"])
                return base if self._metric(base.to_dict()["evaluation"]) else None
            except (ConfigError, TypeError, ValueError) as error:
                self.faults.append(f"base_values: {error}")
                return None
        settings = self._mapping("set")
        fit = self._settings_fit(("set",), settings)
        try:
            values = load_config(self._base_source()).to_dict()
        except (ConfigError, YamlError) as error:
            where = f"{self.document.where('base')}: " if self.document and "base" in self.data else ""
            self.faults += [f"{where}base: {line}" for line in str(error).splitlines()]
            return None
        if not fit or not self._metric(with_values(values, settings)["evaluation"]):
            return None
        return self._merged(values, ("set",), {**settings, "evaluation.monitor": self.data["metric"]})

    def _base_source(self) -> str | Path | None:
        """The recipe's name, or the file: beside the sweep file first, then in the current directory."""
        base = self.data.get("base")
        if not isinstance(base, str):
            return None
        if self.folder is not None and (self.folder / base).is_file():
            return self.folder / base
        return base

    def _settings_fit(self, path: tuple[str, ...], settings: Mapping[str, Any]) -> bool:
        """Whether every path exists and takes its value; a fault for each that does not."""
        before = len(self.faults)
        for key, value in settings.items():
            if key not in config_keys():
                self._fault((*path, key), None, f"unknown setting{nearest_setting(key)}")
                continue
            try:
                setting_value(key, value)
            except ValueError as error:
                self._fault((*path, key), show(value), str(error))
        return len(self.faults) == before

    def _merged(
        self, values: Mapping[str, Any], path: tuple[str, ...], settings: Mapping[str, Any]
    ) -> RunConfig | None:
        """`values` with `settings`, or None and a fault where they do not go together."""
        try:
            return validate_config(with_values(values, settings))
        except ConfigError as error:
            where = f"{self.document.where(*path)}: " if self.document else ""
            self.faults += [f"{where}{'.'.join(path)}: {line}" for line in error.faults]
            return None

    def _space(self) -> Space | None:
        constraints = self.data.get("constraints")
        if "space" not in self.data:
            self._fault(("space",), "nothing", "a sweep needs a search space")
        try:
            listed = constraints if isinstance(constraints, list) else []
            space = parse_space(self._mapping("space"), listed, self.document, self._mapping("derive"))
            if "evaluation.monitor" in space.paths:
                section = "derive" if "evaluation.monitor" in space.derived else "space"
                self._fault((section, "evaluation.monitor"), None, "the sweep's metric decides", "use metric:")
            return space
        except ConfigError as error:
            self.faults += error.faults if "space" in self.data else []
            return None

    def _metric(self, evaluation: Mapping[str, Any]) -> bool:
        """Fill in and check metric and mode. The metric also becomes `evaluation.monitor`: the epoch that a trial
        keeps is the one that it is judged by."""
        metric = self.data.setdefault("metric", evaluation["monitor"])
        allowed = [f"{name}@{k}" for k in evaluation["ks"] for name in METRICS] + list(LOSSES)
        if metric not in allowed:
            found = re.fullmatch(rf"(?:{'|'.join(METRICS)})@(\d+)", metric) if isinstance(metric, str) else None
            hint = nearest(metric, allowed) if isinstance(metric, str) and not found else ""
            fix = f"set evaluation.ks to {sorted({*evaluation['ks'], int(found[1])})}" if found else None
            self._fault(("metric",), show(metric), f"expected one of {', '.join(allowed)}{hint}", fix)
            return False
        if metric in LOSSES and self.data.setdefault("mode", "min") == "max":
            self._fault(("mode",), "'max'", f"the metric {metric} is minimised", "mode: min")
        self._against([name for name in ["parameters", *allowed] if name != metric])
        return True

    def _against(self, allowed: list[str]) -> None:
        """Further objectives: known, turned the right way, and nothing stops trials by one of several objectives."""
        against = self._mapping("against")
        for name, mode in against.items():
            if name not in allowed:
                rule = f"expected one of {', '.join(allowed)}{nearest(name, allowed)}"
                self._fault(("against", name), None, rule)
            elif name in ("parameters", *LOSSES) and mode == "max":
                self._fault(("against", name), "'max'", f"{name} is minimised", f"{name}: min")
        if not against:
            return
        if self._mapping("scheduler").get("type", "none") != "none":
            rule = "with several objectives no trial can be stopped early by one of them"
            self._fault(("scheduler", "type"), None, rule, "scheduler: {type: none}")
        if self._mapping("sampler").get("type") == "cma-es":
            self._fault(("sampler", "type"), "'cma-es'", "takes one objective", "sampler: {type: nsga2}")

    def _sampler(self, space: Space | None) -> None:
        """What a sampler needs; what it would not read is refused."""
        sampler = self._mapping("sampler")
        kind = sampler.get("type", "tpe")
        for key, kinds in _READ_BY.items():
            if key in sampler and self.document is not None and isinstance(kind, str) and kind not in kinds:
                self._fault(("sampler", key), None, f"sampler {kind} does not read it; {' and '.join(kinds)} do")
        if "grid" in sampler and self.document is not None and space is not None and not space.grid:
            self._fault(("sampler", "grid"), None, "the space has no grid, so it has no order", "leave it out")
        stopping = self._mapping("scheduler").get("type", "none") != "none"
        if kind in ("gp", "nsga2") and stopping:
            rule = f"{kind} learns from trials that run to their end only"
            self._fault(("sampler", "type"), show(kind), rule, "scheduler: {type: none}, or sampler tpe or cma-es")
        if kind != "cma-es":
            return
        if space is not None and not any(isinstance(p, (Float, Int)) and not p.when for p in space.sampled.values()):
            rule = "cma-es needs a float or int setting without `when`"
            self._fault(("sampler", "type"), show(kind), rule, "sampler: {type: tpe}")
        if self.document is not None and importlib.util.find_spec("cmaes") is None:
            rule = "needs the package cmaes, which is not installed"
            self._fault(("sampler", "type"), show(kind), rule, "pip install 'genrec-sweeps[search]'")

    def _feasible(self, base: RunConfig, space: Space) -> None:
        values = base.to_dict()
        points = space.trial_points(FEASIBILITY_TRIES)
        reason = None
        for point in points:
            point_reason = space.infeasible_reason(values, point)
            if point_reason is None:
                return
            reason = reason or point_reason
        rule = f"none of {len(points)} points is feasible; the first: {reason}"
        self._fault(("space",), None, rule, "relax the constraints or the ranges")

    def _budget(self, space: Space | None) -> None:
        """A pure grid is its own budget; a sampled space needs one. Limits that could never be reached are refused."""
        budget = self._mapping("budget")
        self._prices(budget)
        if space is None or budget.get("trials") is not None or self.data.get("budget", budget) != budget:
            return
        if space.pure_grid:
            # Infeasible points are not counted, so the sweep ends with the grid.
            self.data["budget"] = {**budget, "trials": space.num_grid_points()}
        elif all(budget.get(name) is None for name in ("time", "cpu_hours", "gpu_hours", "cost")):
            rule = "a space with sampled settings needs a number of trials, a time, hours or a cost"
            self._fault(("budget",), "no limit", rule, "budget: {trials: 20}")

    def _prices(self, budget: Mapping[str, Any]) -> None:
        for name, other in (("cost", "price_per_hour"), ("price_per_hour", "cost")):
            if budget.get(name) is not None and budget.get(other) is None:
                self._fault(("budget", name), None, f"means nothing without {other}", f"add budget.{other}")
        if budget.get("gpu_hours") is not None and not self._mapping("resources").get("gpus_per_worker"):
            rule = "no trial has a GPU, so no GPU-hours are spent"
            self._fault(
                ("budget", "gpu_hours"), None, rule, "budget: {cpu_hours: ...}, or resources.gpus_per_worker: 1"
            )

    def _accelerator(self) -> None:
        resources = self._mapping("resources")
        if resources.get("accelerator_type") is not None and not resources.get("gpus_per_worker"):
            rule = "no trial has a GPU, so none has one of this type"
            self._fault(("resources", "accelerator_type"), None, rule, "add resources.gpus_per_worker: 1")

    def _gpus(self) -> None:
        """What Ray gives out and NCCL takes: whole GPUs, or one worker's share of a single one."""
        resources = self._mapping("resources")
        gpus, workers = resources.get("gpus_per_worker"), resources.get("workers", 1)
        most = workers.get("max") if isinstance(workers, Mapping) else workers
        if not isinstance(gpus, (int, float)) or isinstance(gpus, bool) or not 0 < gpus < math.inf:
            return
        where = ("resources", "gpus_per_worker")
        if gpus > 1 and gpus % 1:
            rule = "above 1 a worker gets whole GPUs"
            self._fault(where, show(gpus), rule, f"gpus_per_worker: {math.ceil(gpus)}, or a share of one, such as 0.5")
        elif gpus < 1 and isinstance(most, int) and most > 1:
            rule = "several workers of a trial cannot share a GPU (NCCL refuses two ranks on one)"
            self._fault(where, show(gpus), rule, "gpus_per_worker: 1, or workers: 1")

    def _scheduler(self, base: RunConfig | None, space: Space | None) -> None:
        scheduler = self._mapping("scheduler")
        kind = scheduler.get("type", "none")
        grace = scheduler.get("grace_epochs")
        if self.document is not None and base is not None and space is not None and isinstance(grace, int):
            most = max(space.possible_values(base.to_dict(), "train.epochs"), default=grace)
            if kind in _STOPPING and grace > most:
                rule = f"no trial has more than {most} epochs, so none would be stopped"
                self._fault(("scheduler", "grace_epochs"), show(grace), rule, f"at most {most}")
        if self.document is not None and {"grace_epochs", "grace_steps"} <= {*scheduler}:
            rule = "a scheduler counts epochs or steps, not both"
            self._fault(("scheduler", "grace_steps"), None, rule, "leave out one of grace_epochs and grace_steps")
        for key, kinds in _SCHEDULER_READ_BY.items():
            if key in scheduler and self.document is not None and kind in _STOPPING and kind not in kinds:
                rule = f"scheduler {kind} does not read it; {' and '.join(kinds)} do"
                self._fault(("scheduler", key), None, rule)

    def _model(self, data: dict[str, Any]) -> SweepSpec | None:
        data = {key: value for key, value in data.items() if value is not None or key == "base"}
        try:
            return SweepSpec.model_validate(data)
        except ValidationError as error:
            for item in error.errors():
                self._model_fault(item)
            return None

    def _model_fault(self, item: Any) -> None:
        path = tuple(str(part) for part in item["loc"] if part not in WORKER_FORMS)
        name = path[-1] if path else "sweep"
        if item["type"] == "missing":
            if path != ("space",):
                self._fault(path, "nothing", "a required key")
        elif item["type"] == "extra_forbidden":
            self._fault(path, None, f"unknown key{nearest(name, _siblings(path))}")
        elif path[0] in ("space", "constraints", "derive") and len(path) > 1:
            pass  # parse_space has said it, with more detail
        else:
            self._fault(path, show(item["input"]), _rule(item, path), _suggestion(item))


def _rule(item: Any, path: tuple[str, ...]) -> str:
    if path == ("name",) and item["type"] == "string_pattern_mismatch":
        return "expected 1 to 63 letters, digits, '.', '_' or '-', the first a letter or digit"
    message = str(item["msg"]).removeprefix("Value error, ")
    return message[:1].lower() + message[1:]


def _suggestion(item: Any) -> str | None:
    """The allowed word that was probably meant (`minimise` -> `min`)."""
    if item["type"] != "literal_error" or not isinstance(item["input"], str):
        return None
    words = re.findall(r"'([^']*)'", item["ctx"]["expected"])
    word = item["input"].lower()
    found = next((w for w in words if word.startswith(w) or w.startswith(word)), None)
    return found or nearest(word, words).removeprefix("; did you mean '").removesuffix("'?") or None


def _siblings(path: tuple[str, ...]) -> Iterable[str]:
    model: Any = SweepSpec
    for part in path[:-1]:
        info = model.model_fields.get(part)
        members = get_args(info.annotation) if info else ()
        candidates = [info.annotation, *members, *(part for m in members for part in get_args(m))] if info else []
        model = next((c for c in candidates if isinstance(c, type) and issubclass(c, BaseModel)), None)
        if model is None:
            return []
    return [name for name in model.model_fields if name != "base_values"]
