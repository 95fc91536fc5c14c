"""SweepSpec: one YAML file = one sweep (`sweeps.spec_file` reads it, `sweeps.spec_checks` finds its faults).

A loaded spec holds the whole base config (`base_values`), so that the copy in the ledger needs no file any more:
`SweepSpec.from_dict(spec.to_dict()) == spec`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cached_property
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Discriminator,
    Field,
    Tag,
    model_validator,
)

from genrec.config import (
    ConfigError,
    RunConfig,
    Section,
    content_hash,
    validate_config,
    with_values,
)
from genrec.object_store import checked_storage
from genrec.settings.base import PositiveInt
from sweeps.ledger_url import checked_url
from sweeps.space import PointError, Space
from sweeps.space_file import parse_space

NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$"
MAX_TRIALS = 100_000
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


WORKER_FORMS = ("a number of workers", "a range of workers")


def _form_of_workers(value: Any) -> str:
    return WORKER_FORMS[isinstance(value, (Mapping, WorkerRange))]


Workers = Annotated[
    Annotated[PositiveInt, Tag(WORKER_FORMS[0])] | Annotated[WorkerRange, Tag(WORKER_FORMS[1])],
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
    progress_timeout: Seconds | None = None
    "a trial that shows no sign of life for so long, no epoch of its model or tokenizer, is ended as one that died"
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
        from sweeps.spec_checks import checked_spec  # which builds what is defined here

        return checked_spec(data, None)

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
