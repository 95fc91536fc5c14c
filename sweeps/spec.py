"""SweepSpec: one YAML file = one sweep. Every fault of a file is reported at once, before anything starts.

A loaded spec holds the whole base config (`base_values`), so that the copy in the ledger needs no file any more:
`SweepSpec.from_dict(spec.to_dict()) == spec`.
"""

from __future__ import annotations

import importlib.util
import math
import re
from collections.abc import Collection, Iterable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    Discriminator,
    Field,
    Tag,
    ValidationError,
    model_validator,
)

from genrec.config import (
    ConfigError,
    RunConfig,
    Section,
    config_keys,
    content_hash,
    load_config,
    nearest,
    nearest_setting,
    validate_config,
    with_values,
)
from genrec.object_store import checked_storage
from genrec.settings.base import PositiveInt
from genrec.settings.evaluation import METRICS
from genrec.strict_yaml import YamlDocument, YamlError, load_yaml, parse_yaml
from sweeps.ledger_url import checked_url
from sweeps.parameters import Float, Int, paths_of
from sweeps.space import PointError, Space, setting_value, value_at
from sweeps.space_file import fault, parse_space, show
from sweeps.unread_settings import faults_of_path

NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$"
MAX_TRIALS = 100_000
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
_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}


def seconds(value: Any) -> Any:
    """`90m`, `1h30m`, `45s` or a number of seconds -> seconds."""
    if not isinstance(value, str):
        return value
    parts = re.findall(r"(\d+(?:\.\d+)?)([smhd])", value)
    if not parts or "".join(number + unit for number, unit in parts) != value.strip():
        raise ValueError("expected a duration such as 45s, 90m, 2h or 1h30m")
    return float(sum(float(number) * _UNITS[unit] for number, unit in parts))


Seconds = Annotated[float, BeforeValidator(seconds), Field(gt=0, allow_inf_nan=False)]


class SamplerSpec(Section):
    """How values are proposed for the settings that are sampled, and in which order grid points come."""

    type: Literal["tpe", "random", "gp", "cma-es", "nsga2"] = "tpe"
    "`random` repeats no point; what another sampler cannot do (categories for cma-es, settings with `when`) tpe does"
    startup_trials: PositiveInt = 10
    "random trials before the first that `tpe` or `gp` proposes"
    multivariate: bool = True
    "whether `tpe` looks at settings jointly"
    population: Annotated[int, Field(ge=2)] | None = None
    "trials of one generation (`cma-es`, `nsga2`); by default 4 + 3 ln(settings), and 20"
    grid: Literal["in_order", "shuffled"] = "in_order"


class SchedulerSpec(Section):
    """Whether weak trials are stopped early (`median`, `asha`), or all pause and the best go on (`promote`)."""

    type: Literal["none", "median", "asha", "promote"] = "none"
    grace_epochs: PositiveInt = 1
    "epochs that every trial gets"
    grace_steps: PositiveInt | None = None
    "instead of `grace_epochs`: optimizer steps; trials of different batch sizes are then compared at equal steps"
    reduction_factor: Annotated[int, Field(ge=2)] = 3
    "`asha`, `promote`: of so many trials one goes on at a rung; the next rung is so many times as far"
    min_trials: PositiveInt = 3
    "`median`: trials that must have come as far before one is stopped"


Limit = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class BudgetSpec(Section):
    """When the search ends: the first limit that is reached counts. After `trials` no new one is started; after any
    other limit running trials also end, at their next epoch. The finalists are not counted."""

    trials: Annotated[int, Field(ge=1, le=MAX_TRIALS)] | None = None
    "infeasible points and duplicates are not counted"
    time: Seconds | None = None
    "of the search, in all sessions of the sweep; in the file also as 45s, 90m, 2h"
    cpu_hours: Limit | None = None
    "hours that trials ran x the CPUs of a trial"
    gpu_hours: Limit | None = None
    "hours that trials ran x the GPUs of a trial"
    cost: Limit | None = None
    "hours that trials ran x `price_per_hour`"
    price_per_hour: Limit | None = None
    "of what one trial holds, all its workers together, in the currency of `cost`"
    target: Annotated[float, Field(allow_inf_nan=False)] | None = None
    "a value of the metric that is good enough; the trial that reaches it ranks among the completed ones"

    @property
    def how_many(self) -> str:
        """How many trials there will be, in words: a number, or what must be spent first."""
        if self.trials is not None:
            return str(self.trials)
        limits = {"time": self.time, "CPU-hours": self.cpu_hours, "GPU-hours": self.gpu_hours, "money": self.cost}
        names = [name for name, limit in limits.items() if limit is not None]
        return f"until the {' or '.join(names)} {'are' if names[-1].endswith('s') else 'is'} spent"


class WorkerRange(Section):
    """Workers of an elastic trial: as many as the cluster has room for, between these."""

    min: PositiveInt = 1
    max: PositiveInt

    @model_validator(mode="after")
    def _ordered(self) -> WorkerRange:
        if self.min > self.max:
            raise ValueError(f"min {self.min} is above max {self.max}")
        return self


_WORKER_FORMS = ("a number of workers", "a range of workers")


def _form_of_workers(value: Any) -> str:
    return _WORKER_FORMS[isinstance(value, (Mapping, WorkerRange))]


Workers = Annotated[
    Annotated[PositiveInt, Tag(_WORKER_FORMS[0])] | Annotated[WorkerRange, Tag(_WORKER_FORMS[1])],
    Discriminator(_form_of_workers),
]


class ResourcesSpec(Section):
    """What one trial gets, and how many run at once."""

    workers: Workers = 1
    "a number, or {min: 1, max: 4}: as many as there is room for, more or fewer when nodes come or go"
    cpus_per_worker: Annotated[float, Field(gt=0)] = 1.0
    gpus_per_worker: Annotated[float, Field(ge=0)] = 0.0
    "a whole number, or a share of one GPU where a trial has a single worker"
    accelerator_type: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")] | None = None
    "GPUs of this type alone, by Ray's name for it, such as A100 or L4"
    memory_per_worker: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0
    "GiB that a node must have free for each worker; what a worker takes is not limited by it"
    max_concurrent: PositiveInt | None = None
    "trials at once; by default as many as the cluster holds at the time"

    @property
    def most_workers(self) -> int:
        return self.workers.max if isinstance(self.workers, WorkerRange) else self.workers

    @property
    def fewest_workers(self) -> int:
        return self.workers.min if isinstance(self.workers, WorkerRange) else self.workers


def trials_of(workers: int, fewest: int, most: int) -> int:
    """How many trials so many workers make up: each gets `most`, one more what is left if that is not too few."""
    whole, rest = divmod(workers, most)
    return whole + (rest >= fewest)


class FinalistsSpec(Section):
    """Re-evaluation: the best `top_k` trials and the base, each with `seeds` seeds, on the test split. Trials that were
    trained to their end come first, then the best of those that were stopped."""

    top_k: Annotated[int, Field(ge=1, le=100)] = 3
    seeds: Annotated[int, Field(ge=1, le=100)] = 3
    "with 1 the search's models are measured, a stopped one trained to its end first; with more all are trained anew"
    set: dict[str, Any] = Field(default_factory=dict)
    "settings of the finalists alone, by config path; for example all users and more epochs"


class HealthSpec(Section):
    """The tokenizer's health gate: a trial whose semantic IDs break a rule is stopped before TIGER trains on them.

    The defaults stop nothing: a small catalogue, or a code that is short on purpose, collides without being broken.
    """

    max_collision_rate: Annotated[float, Field(ge=0, le=1)] = 1.0
    "largest share of items that may share their tuple with another, before collisions are resolved"
    min_usage: Annotated[float, Field(ge=0, le=1)] = 0.0
    "smallest share of its codes that every level must use"


class NotifySpec(Section):
    """Who is told how the sweep ended (`sweeps.notify`)."""

    webhook_env: Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")] | None = None
    "environment variable with an http(s) address that takes JSON with a `text`, as chat programs do"
    command: Annotated[list[str], Field(min_length=1)] | None = None
    "program and arguments, run without a shell; it reads the message as JSON from its standard input"

    @model_validator(mode="after")
    def _somebody(self) -> NotifySpec:
        if self.webhook_env is None and self.command is None:
            raise ValueError("notify needs webhook_env, command or both")
        return self


class SweepSpec(Section):
    """A search space, a base config, a metric and a budget."""

    name: Annotated[str, Field(pattern=NAME_PATTERN)]
    base: str | None = None
    "where `base_values` came from: a recipe or a file"
    set: dict[str, Any] = Field(default_factory=dict)
    "overrides of the base, by config path; `base_values` contains them"
    space: dict[str, dict[str, Any]]
    derive: dict[str, str] = Field(default_factory=dict)
    "settings computed from others: config path -> expression"
    constraints: list[str] = Field(default_factory=list)
    metric: str = "ndcg@10"
    "of the validation split; the default is the base's `evaluation.monitor`, which it replaces"
    mode: Literal["max", "min"] = "max"
    against: dict[str, Literal["max", "min"]] = Field(default_factory=dict)
    "further objectives: `parameters` or validation metrics, and which way is better"
    sampler: SamplerSpec = SamplerSpec()
    scheduler: SchedulerSpec = SchedulerSpec()
    health: HealthSpec = HealthSpec()
    budget: BudgetSpec = BudgetSpec()
    resources: ResourcesSpec = ResourcesSpec()
    finalists: FinalistsSpec = FinalistsSpec()
    notify: NotifySpec | None = None
    max_failures: Annotated[int, Field(ge=0, le=100)] = 2
    "how often a trial whose worker died is started again"
    max_failed_trials: Annotated[int, Field(ge=0)] | None = None
    "more failed trials end the search; without it only the first five do, if no trial has come to an epoch by then"
    seed: int = 0
    ledger: Annotated[str, AfterValidator(checked_url)] | None = None
    "URL of a database for the record of the trials; by default it is a file in the sweep's folder"
    storage: Annotated[str, AfterValidator(checked_storage)] | None = None
    "folder of all sweeps, or s3:// or gs://BUCKET/PREFIX, where the command line names none"
    reuse: list[str] = Field(default_factory=list)
    "earlier sweeps of the same storage folder whose completed trials are taken over instead of run again"
    base_values: dict[str, Any]

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> SweepSpec:
        """The spec that `to_dict` dumped, fully checked again. Raises `ConfigError`."""
        return _build(data, None)

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain JSON types; reads no file when it is loaded again."""
        return self.model_dump(mode="json")

    @property
    def hash(self) -> str:
        return content_hash(self.to_dict())

    def base_config(self) -> RunConfig:
        return validate_config(self.base_values)

    @cached_property
    def search_space(self) -> Space:
        return parse_space(self.space, self.constraints, derive=self.derive)

    @property
    def objectives(self) -> dict[str, str]:
        """Name -> `max` or `min`: the metric first, then what it stands against."""
        return {self.metric: self.mode, **self.against}

    def finalist_config(self, config: RunConfig) -> RunConfig:
        """`config` with the settings of `finalists.set`: the base among the finalists."""
        return validate_config(with_values(config.to_dict(), self.finalists.set))

    def finalist_of(self, config: RunConfig) -> RunConfig:
        """A trial's config as a finalist: as `finalist_config`, and what `derive` computes from these settings follows
        them."""
        return finalist_of(self.search_space, config, self.finalists.set)


def finalist_of(space: Space, config: RunConfig, settings: Mapping[str, Any]) -> RunConfig:
    """The config of a trial with the settings of `finalists.set`. Raises `ConfigError`."""
    try:
        return validate_config(space.derived_again(with_values(config.to_dict(), settings), settings))
    except PointError as error:
        raise ConfigError([str(error)]) from None


def load_spec(
    path: str | Path,
    overrides: Mapping[str, Any] | None = None,
    config_overrides: Mapping[str, Any] | None = None,
    *,
    config_defaults: Mapping[str, Any] | None = None,
) -> SweepSpec:
    """Read a sweep file.

    `overrides` replace values of the spec by dotted path (`budget.trials`), `config_overrides` are added to `set`, and
    so are those of `config_defaults` that the file's own `set` does not name.
    Raises `ConfigError` with every fault of the file, one line each.
    """
    try:
        document = load_yaml(path)
    except YamlError as error:
        raise ConfigError([str(error)]) from None
    document.data.setdefault("name", re.sub(r"[^A-Za-z0-9._-]", "-", Path(path).stem))
    named = document.data.get("set")
    own = named if isinstance(named, Mapping) else {}
    kept = {key: value for key, value in (config_defaults or {}).items() if key not in own}
    config_overrides = {**kept, **(config_overrides or {})}
    return _with_overrides(document, Path(path).parent, overrides, config_overrides)


def parse_spec(text: str, source: str) -> SweepSpec:
    """A sweep file's text as a spec; `source` stands where a file's name stands in a fault. Raises `ConfigError`."""
    try:
        return _with_overrides(parse_yaml(text, source), None, None, None)
    except YamlError as error:
        raise ConfigError([str(error)]) from None


def _with_overrides(
    document: YamlDocument,
    folder: Path | None,
    overrides: Mapping[str, Any] | None,
    config_overrides: Mapping[str, Any] | None,
) -> SweepSpec:
    data = dict(document.data)
    for key, value in (overrides or {}).items():
        data = _with_override(data, key, value)
    if config_overrides:
        own = data.get("set")
        data["set"] = {**(own if isinstance(own, Mapping) else {}), **config_overrides}
    return _build(data, document, folder, config_overrides or {})


def _with_override(data: dict[str, Any], key: str, value: Any) -> dict[str, Any]:
    name, _, rest = key.partition(".")
    if not rest or name in ("set", "space"):
        return {**data, name: value if not rest else {**(data.get(name) or {}), rest: value}}
    section = data.get(name)
    return {**data, name: _with_override(dict(section) if isinstance(section, Mapping) else {}, rest, value)}


def _build(
    data: Mapping[str, Any],
    document: YamlDocument | None,
    folder: Path | None = None,
    overridden: Collection[str] = (),
) -> SweepSpec:
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
        path = tuple(str(part) for part in item["loc"] if part not in _WORKER_FORMS)
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
