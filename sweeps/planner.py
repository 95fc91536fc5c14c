"""What a sweep will cost before it starts: trials, sizes, operations, memory, time. No Ray, no Optuna.

Counting needs the data alone. Time comes from a measured speed (`sweeps.throughput`) played on a clock with the sweep's
slots and early stopping (`sweeps.rehearsal`). The plan is written beside the sweep, as `plan.json`, so that a report
can set what happened against it.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import random
import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from genrec.config import RunConfig
from genrec.errors import InputError
from sweeps.budget import Budget, hours
from sweeps.costs import Shape, memory_bytes, parameters
from sweeps.rehearsal import REPEATS, Clock, Outcome, Played, rehearse
from sweeps.space import Point
from sweeps.spec import SweepSpec, trials_of
from sweeps.stopping import rule_of
from sweeps.throughput import Speed, Work, Workbench, measure_speed, recorded_speed

if TYPE_CHECKING:
    from sweeps.ledger import Ledger

PLAN = "plan.json"
VERSION = 1
MAX_CONFIGS = 300
"trials that are planned one by one; of a longer sweep these stand for the rest"
TRIES = 500
"points that the infeasible share is counted over, unless the space has fewer"
PROBES = 4
"configs whose speed is measured"


@dataclass(frozen=True)
class Range:
    """Least, median and most of a quantity over the planned trials."""

    low: float
    median: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Range:
        return cls(min(values), statistics.median(values), max(values))


@dataclass(frozen=True)
class Stage:
    """Time of the search or of the finalists. `low_seconds`, `high_seconds`: the middle nine tenths of rehearsals."""

    runs: int
    epochs: float
    seconds: float
    low_seconds: float
    high_seconds: float
    busy_seconds: float
    "of all slots together"


@dataclass(frozen=True)
class Plan:
    """What a sweep will cost; what isn't known is None."""

    name: str
    spec_hash: str
    trials: int | None
    space_points: int | None
    grid_points: int
    infeasible_share: float
    infeasible_checked: int
    infeasible_example: str | None
    parameters: Range
    train_flops: Range
    "of a trial that isn't stopped"
    memory_bytes: Range
    tokenizers: int
    "different ones among the planned trials; each is trained once"
    epochs_without_stopping: int | None
    slots: int
    cpus_per_trial: float
    gpus_per_trial: float
    taken_over: float = 0.0
    "share of the trials whose result an earlier sweep has (`reuse`)"
    price_per_hour: float | None = None
    "of what one trial holds"
    search: Stage | None = None
    fewest_workers: int | None = None
    "of an elastic trial; the other figures are those of trials with their most workers"
    search_with_fewest: Stage | None = None
    finalists: Stage | None = None
    speed: Speed | None = None
    created: str = ""
    version: int = VERSION

    @property
    def seconds(self) -> float | None:
        """Of the whole sweep."""
        if self.search is None or self.finalists is None:
            return None
        return self.search.seconds + self.finalists.seconds

    @property
    def trained_share(self) -> float | None:
        """Of the epochs that would be trained without early stopping."""
        if self.search is None or not self.epochs_without_stopping:
            return None
        return self.search.epochs / self.epochs_without_stopping

    def hours(self, per_trial: float) -> float | None:
        """CPU-hours or GPU-hours, by what one trial holds."""
        if self.search is None or self.finalists is None:
            return None
        return (self.search.busy_seconds + self.finalists.busy_seconds) / 3600 * per_trial

    @property
    def cost(self) -> float | None:
        """Of search and finalists, where a price is known."""
        hours = self.hours(1.0)
        return None if hours is None or self.price_per_hour is None else hours * self.price_per_hour

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON; also the numbers that are computed from others."""
        return asdict(self) | {
            "speed": self.speed.to_dict() if self.speed else None,
            "seconds": self.seconds,
            "trained_share": self.trained_share,
            "cpu_hours": self.hours(self.cpus_per_trial),
            "gpu_hours": self.hours(self.gpus_per_trial),
            "cost": self.cost,
        }

    def write(self, folder: Path) -> Path:
        """Leave the plan beside the sweep."""
        from genrec.durable import write_json

        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / PLAN, self.to_dict())
        return folder / PLAN


def read_plan(folder: Path) -> dict[str, Any] | None:
    """The plan that lies beside a sweep, as plain JSON; None when none was made or it can't be read."""
    try:
        plan = json.loads((folder / PLAN).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return plan if isinstance(plan, dict) and plan.get("version") == VERSION else None


def plan_sweep(
    spec: SweepSpec,
    storage: str | Path,
    *,
    measure: bool = True,
    like: Ledger | None = None,
    cpus: int | None = None,
    gpus: int | None = None,
) -> Plan:
    """Plan a sweep and write the plan beside it, in the folder `storage`.

    Speed comes from the trials of the sweep `like`, else from a few batches trained here unless `measure` is off or
    this machine lacks the GPU that a trial asks for. `cpus` and `gpus` are those of the cluster, by default this
    machine's. Raises `InputError` for a space without a feasible point and for resources too small for one trial.
    """
    from sweeps.folders import artifact_store, working_folder

    slots = local_slots(spec, cpus, gpus)
    bench = Workbench(artifact_store(storage))
    works: dict[str, Work] = {}
    resources = spec.resources
    speed = slower = None
    if like is not None:
        speed = recorded_speed(like, bench)
        if speed is None:
            raise InputError(f"{like.spec.name}: no trial of it has trained and validated an epoch: nothing to go by")
    elif measure and not _lacks_gpu(spec):
        configs = planned_configs(spec)
        probes = probe_configs(configs, [_work(config, bench, works) for config in configs])
        of_one = measure_speed(
            probes,
            bench.store.address,
            processes=_processes(spec, slots),
            threads=max(1, int(resources.cpus_per_worker)),
        )
        speed, slower = of_one.over(resources.most_workers), of_one.over(resources.fewest_workers)
    taken_over = _taken_over(spec, storage)
    plan = make_plan(spec, bench, slots, speed, works, taken_over)
    if slower is not None and resources.fewest_workers < resources.most_workers:
        smallest = make_plan(spec, bench, slots, slower, works, taken_over).search
        plan = dataclasses.replace(plan, fewest_workers=resources.fewest_workers, search_with_fewest=smallest)
    plan.write(working_folder(storage) / spec.name)
    return plan


def _taken_over(spec: SweepSpec, storage: str | Path) -> Callable[[RunConfig], bool]:
    """Whether an earlier sweep has a config's result."""
    if not spec.reuse:
        return _nothing
    from genrec.pipeline import stage_keys
    from sweeps.ledger import Ledger
    from sweeps.reuse import EarlierResults

    earlier = EarlierResults(spec, storage, lambda: stage_keys(spec.base_config())["dataset"], Ledger.read)
    return lambda config: earlier.of(config) is not None


def _nothing(config: RunConfig) -> bool:
    return False


def _lacks_gpu(spec: SweepSpec) -> bool:
    from genrec.pipeline import pick_device

    return spec.resources.gpus_per_worker > 0 and pick_device() != "cuda"


def _processes(spec: SweepSpec, slots: int) -> int:
    """How many trials will share this machine, or the GPU that is measured."""
    gpus = spec.resources.gpus_per_worker
    room = 1 / gpus if gpus else _own_cpus() / spec.resources.cpus_per_worker
    return max(1, min(slots, int(room)))


# -- what will run ----------------------------------------------------------------------------------------------------


def planned_points(spec: SweepSpec, limit: int = MAX_CONFIGS) -> list[Point]:
    """Points as the sweep will try them: the grid's in turn, the rest drawn at random, infeasible ones left out."""
    space, base = spec.search_space, spec.base_values
    grid = [point for point in space.grid_points() if space.grid_infeasible_reason(base, point) is None]
    wanted = min(limit, spec.budget.trials or limit)
    if not grid:
        return []
    if space.pure_grid:
        feasible = [point for point in grid if space.infeasible_reason(base, point) is None]
        return feasible[: spec.budget.trials] if len(feasible) <= limit else _spread(feasible, wanted)
    rng = random.Random(spec.seed)
    seen: set[str] = set()
    points: list[Point] = []
    for attempt in range(50 * wanted):
        point = space.draw(rng, grid[len(points) % len(grid)])
        text = json.dumps(point, sort_keys=True)
        if text in seen or space.infeasible_reason(base, point) is not None:
            continue
        seen.add(text)
        points.append(point)
        if len(points) == wanted:
            break
        if attempt > 20 * wanted and len(points) < wanted / 10:
            break  # a small or hardly feasible space: what was found stands for it
    return points


def _spread(points: list[Point], count: int) -> list[Point]:
    return [points[index * len(points) // count] for index in range(count)]


def num_trials(spec: SweepSpec, infeasible_share: float) -> int | None:
    """Trials that will run; None when only time ends the sweep."""
    space, counts = spec.search_space, []
    if spec.budget.trials is not None:
        counts.append(spec.budget.trials)
    points = space.num_points()
    if space.pure_grid:
        feasible = sum(space.infeasible_reason(spec.base_values, point) is None for point in space.grid_points())
        counts.append(feasible)
    elif points is not None:
        counts.append(max(1, round(points * (1 - infeasible_share))))
    return min(counts) if counts else None


def make_plan(
    spec: SweepSpec,
    bench: Workbench,
    slots: int,
    speed: Speed | None = None,
    works: dict[str, Work] | None = None,
    taken_over: Callable[[RunConfig], bool] = _nothing,
) -> Plan:
    """Count, and with a speed also time. `works` keeps what was computed of a config, by its hash; `taken_over` tells
    which configs' results are known, so that they take no time.

    Raises `InputError` for a space in which no point is feasible.
    """
    space, works = spec.search_space, {} if works is None else works
    share, example = space.infeasible_share(spec.base_values, TRIES)
    configs = planned_configs(spec)
    total = num_trials(spec, share)
    done = [_work(config, bench, works) for config in configs]
    new = [work for config, work in zip(configs, done, strict=True) if not taken_over(config)]
    known = 1 - len(new) / len(done)
    shapes = [Shape.of(config.to_dict()) for config in configs]
    plan = Plan(
        name=spec.name,
        spec_hash=spec.hash,
        trials=total,
        space_points=space.num_points(),
        grid_points=0 if not space.grid else len(space.grid_points()),
        infeasible_share=share,
        infeasible_checked=len(space.trial_points(TRIES)),
        infeasible_example=example,
        parameters=Range.of([parameters(shape) for shape in shapes]),
        train_flops=Range.of([work.train_flops * work.epochs for work in done]),
        memory_bytes=Range.of(
            [
                memory_bytes(shape, config.train.batch_size, config.train.mixed_precision_type != "no")
                for shape, config in zip(shapes, configs, strict=True)
            ]
        ),
        tokenizers=len({work.tokenizer_key for work in done}),
        epochs_without_stopping=_scaled_epochs(new, len(done), total),
        slots=slots,
        cpus_per_trial=spec.resources.cpus_per_worker * spec.resources.most_workers,
        gpus_per_trial=spec.resources.gpus_per_worker * spec.resources.most_workers,
        taken_over=known,
        price_per_hour=spec.budget.price_per_hour,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
    )
    if speed is None:
        return plan
    search = _search_time(spec, new, None if total is None else round(total * (1 - known)), slots, speed)
    trials = round(search.runs * len(done) / len(new)) if total is None and new else total
    finalists = _finalists_time(spec, bench, configs, works, slots, speed)
    return dataclasses.replace(
        plan,
        trials=trials,
        epochs_without_stopping=_scaled_epochs(new, len(done), trials),
        search=search,
        finalists=finalists,
        speed=speed,
    )


def planned_configs(spec: SweepSpec) -> list[RunConfig]:
    """The configs of `planned_points`. Raises `InputError` when there is none."""
    points = planned_points(spec)
    if not points:
        raise InputError(f"{spec.name}: no feasible point was found; fix: relax the constraints or the ranges")
    return [spec.search_space.build(spec.base_values, point) for point in points]


def probe_configs(configs: Sequence[RunConfig], works: Sequence[Work]) -> list[RunConfig]:
    """Those whose speed stands for all: spread from the cheapest to the most expensive epoch, every tokenizer kind."""
    order = sorted(range(len(configs)), key=lambda index: works[index].train_flops)
    last = len(order) - 1
    chosen = list(dict.fromkeys(order[round(place * last / max(1, PROBES - 1))] for place in range(PROBES)))
    kinds = {works[index].tokenizer_kind for index in chosen}
    for index in order:
        if works[index].tokenizer_kind not in kinds:
            chosen.append(index)
            kinds.add(works[index].tokenizer_kind)
    return [configs[index] for index in chosen]


def _work(config: RunConfig, bench: Workbench, works: dict[str, Work]) -> Work:
    if config.hash not in works:
        works[config.hash] = bench.work(config)
    return works[config.hash]


def _scaled_epochs(works: Sequence[Work], planned: int, trials: int | None) -> int | None:
    """Of `trials` trials, if so many `planned` ones train `works`."""
    return None if trials is None else round(sum(work.epochs for work in works) * trials / planned)


# -- time -------------------------------------------------------------------------------------------------------------


def _played(work: Work, speed: Speed, epochs: int | None = None) -> Played:
    return Played(
        epoch_seconds=work.epoch_seconds(speed),
        epochs=epochs or work.epochs,
        setup_seconds=speed.setup,
        tokenizer_key=work.tokenizer_key,
        tokenizer_seconds=work.tokenizer_seconds(speed),
        epoch_steps=work.steps,
    )


def _search_time(spec: SweepSpec, works: Sequence[Work], trials: int | None, slots: int, speed: Speed) -> Stage:
    """The search, rehearsed many times; a sweep without a number of trials is played with enough to spend its budget.

    Nobody knows when a `target` will be reached: the plan is that of a sweep that does not reach it."""
    if not works:
        return Stage(0, 0.0, 0.0, 0.0, 0.0, 0.0)
    played = [_played(work, speed) for work in works]
    if trials is None:
        shortest = min(trial.epoch_seconds for trial in played)
        trials = min(MAX_CONFIGS, int(slots * (_seconds_allowed(spec, slots) / max(shortest, 1e-3) + 1)))
    played = [played[index % len(played)] for index in range(trials)]
    longest = max(work.epochs for work in works)
    outcomes = []
    for seed in range(1 if spec.scheduler.type == "none" else REPEATS):
        clock = Clock()
        outcomes.append(
            rehearse(
                played,
                slots,
                start_seconds=speed.start,
                rule=rule_of(spec.scheduler, "max", longest),
                budget=Budget(spec, elapsed=clock.time, target=False),
                clock=clock,
                seed=seed,
            )
        )
    return _stage(outcomes)


def _seconds_allowed(spec: SweepSpec, slots: int) -> float:
    """How long the search may take with all slots busy, by the tightest of its limits."""
    budget, an_hour = spec.budget, hours(3600, spec.resources)
    an_hour["cost"] = budget.price_per_hour or 0.0
    limits = [3600 / slots * limit / an_hour[name] for name in an_hour if (limit := getattr(budget, name)) is not None]
    return min([*limits, budget.time or math.inf])


def _stage(outcomes: Sequence[Outcome]) -> Stage:
    seconds = sorted(outcome.wall_seconds for outcome in outcomes)
    cut = round(0.05 * (len(seconds) - 1))
    return Stage(
        runs=round(statistics.mean(outcome.started for outcome in outcomes)),
        epochs=statistics.mean(outcome.epochs for outcome in outcomes),
        seconds=statistics.mean(seconds),
        low_seconds=seconds[cut],
        high_seconds=seconds[-1 - cut],
        busy_seconds=statistics.mean(outcome.busy_seconds for outcome in outcomes),
    )


def _finalists_time(
    spec: SweepSpec,
    bench: Workbench,
    configs: Sequence[RunConfig],
    works: dict[str, Work],
    slots: int,
    speed: Speed,
) -> Stage:
    """The best trials (of middling cost, for all we know) and the base, with every seed; both splits are read."""
    finalists = spec.finalists
    by_cost = sorted(configs, key=lambda config: works[config.hash].epoch_seconds(speed))
    middle = spec.finalist_of(by_cost[len(by_cost) // 2])
    contenders = [middle] * finalists.top_k + [spec.finalist_config(spec.base_config())]
    known = {works[planned.hash].tokenizer_key for planned in configs}
    runs = []
    for config in contenders * finalists.seeds:
        work = _work(config, bench, works)
        run = _played(work, speed)
        tokenizer = 0.0 if work.tokenizer_key in known else run.tokenizer_seconds
        setup = run.setup_seconds + work.test_seconds(speed)
        trained = finalists.seeds > 1 or config is contenders[-1]
        runs.append(
            Played(
                epoch_seconds=run.epoch_seconds if trained else 0.0,
                epochs=run.epochs if trained else 1,
                setup_seconds=setup,
                tokenizer_key=run.tokenizer_key,
                tokenizer_seconds=tokenizer,
            )
        )
    return _stage([rehearse(runs, slots, start_seconds=speed.start)])


def local_slots(spec: SweepSpec, cpus: int | None = None, gpus: int | None = None) -> int:
    """How many trials run at once on so many CPUs and GPUs, by default this machine's."""
    from genrec.pipeline import pick_device

    resources = spec.resources
    cpus = cpus or _own_cpus()
    workers = int(cpus / resources.cpus_per_worker + 1e-6)
    if resources.gpus_per_worker:
        if gpus is None:
            gpus = _own_gpus() if pick_device() == "cuda" else 0
        workers = min(workers, int(gpus / resources.gpus_per_worker + 1e-6))
    slots = trials_of(workers, resources.fewest_workers, resources.most_workers)
    if slots < 1:
        have = f"{cpus} CPUs and {gpus or 0} GPUs"
        raise InputError(
            f"a trial needs {resources.fewest_workers} x ({resources.cpus_per_worker:g} CPUs, "
            f"{resources.gpus_per_worker:g} GPUs), there are {have}; fix: name what the cluster has with --cpus and "
            "--gpus, or change resources"
        )
    return min(slots, resources.max_concurrent or slots)


def _own_cpus() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _own_gpus() -> int:
    import torch

    return torch.cuda.device_count()


# -- planned against actual -------------------------------------------------------------------------------------------


def planned_against_actual(plan: dict[str, Any], ledger: Ledger) -> list[tuple[str, float | None, float]]:
    """Name, planned and actual value of what can be compared; times are those of the search."""
    records = [record for record in ledger.trials() if record.duplicate_of is None]
    ran = [record for record in records if record.status != "infeasible"]
    infeasible = sum(record.status == "infeasible" for record in records)
    starts = [record.started for record in ran if record.started]
    ends = [record.finished for record in ran if record.finished]
    wall = (max(ends) - min(starts)).total_seconds() if starts and ends else 0.0
    search = plan.get("search") or {}
    return [
        ("trials", plan.get("trials"), len(ran)),
        ("infeasible share", plan.get("infeasible_share"), infeasible / max(1, len(records))),
        ("epochs", search.get("epochs"), sum(len(record.epochs) for record in ran)),
        ("search seconds", search.get("seconds"), wall),
        ("search slot seconds", search.get("busy_seconds"), sum(record.duration or 0.0 for record in ran)),
    ]


def plan_lines(plan: Plan) -> list[str]:
    """The plan as a person reads it."""
    trials = "until the budget is spent" if plan.trials is None else f"{plan.trials}"
    size = "endless" if plan.space_points is None else f"{plan.space_points} points"
    grid = f", of which {plan.grid_points} grid points take turns" if plan.grid_points else ""
    lines = [
        f"{plan.name}: plan",
        f"  trials            {trials} ({plan.slots} at once); space: {size}{grid}",
        f"  infeasible        {plan.infeasible_share:.1%} of {plan.infeasible_checked} points"
        + (f"; the first: {plan.infeasible_example}" if plan.infeasible_example else ""),
        f"  parameters        {_range(plan.parameters)}",
        f"  training          {_range(plan.train_flops)}FLOP a trial that is not stopped",
        f"  memory            {_range(plan.memory_bytes)}B a trial, beside the process itself",
        f"  tokenizers        {plan.tokenizers} different among the planned trials, each trained once",
    ]
    if plan.taken_over:
        lines.append(f"  taken over        {plan.taken_over:.0%} of the trials, which earlier sweeps have run")
    if plan.search is None or plan.finalists is None or plan.speed is None:
        return [*lines, "  time              not known: no speed was measured here (see --like)"]
    stopping = ""
    if plan.trained_share is not None and plan.trained_share < 0.999:
        stopping = f"; early stopping leaves {plan.trained_share:.0%} of {plan.epochs_without_stopping} epochs"
    if plan.trials is not None and plan.search.runs < round(plan.trials * (1 - plan.taken_over)):
        stopping += f"; the budget ends it after {plan.search.runs} trials"
    cost = f", {plan.cost:.2f} at {plan.price_per_hour:g} an hour of a trial" if plan.cost is not None else ""
    spread = f"{clock(plan.search.low_seconds)} to {clock(plan.search.high_seconds)}"
    elastic = []
    if plan.search_with_fewest is not None:
        longest = clock(plan.search_with_fewest.seconds)
        elastic = [f"  elastic           {longest} if every trial has only its fewest workers ({plan.fewest_workers})"]
    return [
        *lines,
        f"  search            {clock(plan.search.seconds)} ({spread}){stopping}",
        *elastic,
        f"  finalists         {clock(plan.finalists.seconds)} for {plan.finalists.runs} runs",
        f"  in all            {clock(plan.seconds or 0.0)}, {plan.hours(plan.cpus_per_trial) or 0.0:.2f} CPU-hours, "
        f"{plan.hours(plan.gpus_per_trial) or 0.0:.2f} GPU-hours{cost}",
        f"  speed             {plan.speed.source}",
    ]


def _range(values: Range) -> str:
    if values.low == values.high:
        return _short(values.low)
    return f"{_short(values.low)} to {_short(values.high)}, median {_short(values.median)}"


def _short(value: float) -> str:
    for unit, size in (("P", 1e15), ("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if value >= size:
            return f"{value / size:.3g} {unit}"
    return f"{value:.3g} "


def clock(seconds: float) -> str:
    """`1 h 5 min`, `3 min 20 s`, `12 s`."""
    whole = round(seconds)
    if whole >= 3600:
        return f"{whole // 3600} h {whole % 3600 // 60} min"
    return f"{whole // 60} min {whole % 60} s" if whole >= 60 else f"{whole} s"
