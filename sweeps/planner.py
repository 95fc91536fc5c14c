"""What a sweep will cost before it starts: trials, sizes, operations, memory, time. No Ray, no Optuna.

Counting needs the data alone. Time comes from a measured speed (`sweeps.measured_speed`, `sweeps.recorded_speed`)
played on a clock (`sweeps.phase_times`). The plan is written beside the sweep (`sweeps.plan`).
"""

from __future__ import annotations

import dataclasses
import json
import os
import random
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from genrec.config import RunConfig
from genrec.errors import InputError
from sweeps.costs import Shape, memory_bytes, parameters
from sweeps.measured_speed import measure_speed
from sweeps.phase_times import conclusion_seconds, finalists_time, search_time
from sweeps.plan import Plan, Range
from sweeps.recorded_speed import recorded_speed
from sweeps.resources import workers_in
from sweeps.space import Point
from sweeps.spec import SweepSpec, trials_of
from sweeps.speed import Speed
from sweeps.work import Work, Workbench

if TYPE_CHECKING:
    from sweeps.ledger import Ledger

MAX_CONFIGS = 300
"trials that are planned one by one; of a longer sweep these stand for the rest"
TRIES = 500
"points that the infeasible share is counted over, unless the space has fewer"
PROBES = 4
"configs whose speed is measured"


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
    resources = spec.resources
    speed = slower = None
    if like is not None:
        speed = recorded_speed(like, bench)
        if speed is None:
            raise InputError(f"{like.spec.name}: no trial of it has trained and validated an epoch: nothing to go by")
    elif measure and not _lacks_gpu(spec):
        configs = planned_configs(spec)
        probes = probe_configs(configs, [bench.work(config) for config in configs])
        of_one = measure_speed(
            probes,
            bench.store.address,
            processes=_processes(spec, slots),
            threads=max(1, int(resources.cpus_per_worker)),
        )
        speed = slower = of_one
        if resources.most_workers > 1:
            speed, slower = of_one.over(resources.most_workers), of_one.over(resources.fewest_workers)
    taken_over = _taken_over(spec, storage)
    plan = make_plan(spec, bench, slots, speed, taken_over)
    if slower is not None and resources.fewest_workers < resources.most_workers:
        smallest = make_plan(spec, bench, slots, slower, taken_over).search
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
    taken_over: Callable[[RunConfig], bool] = _nothing,
) -> Plan:
    """Count, and with a speed also time. `taken_over` tells which configs' results are known, so that they take no
    time.

    Raises `InputError` for a space in which no point is feasible.
    """
    space = spec.search_space
    share, example = space.infeasible_share(spec.base_values, TRIES)
    configs = planned_configs(spec)
    total = num_trials(spec, share)
    done = [bench.work(config) for config in configs]
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
    search = search_time(spec, new, None if total is None else round(total * (1 - known)), slots, speed)
    trials = round(search.runs * len(done) / len(new)) if total is None and new else total
    taken = round((trials or 0) * known)
    finalists = finalists_time(
        spec,
        bench,
        configs,
        slots,
        speed,
        trials=search.runs + taken,
        completed=round(search.completed) + taken,
        left_to_train=search.left_to_train,
    )
    return dataclasses.replace(
        plan,
        trials=trials,
        epochs_without_stopping=_scaled_epochs(new, len(done), trials),
        search=search,
        finalists=finalists,
        conclusion_seconds=conclusion_seconds(bench.work(spec.base_config()).test_users),
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


def _scaled_epochs(works: Sequence[Work], planned: int, trials: int | None) -> int | None:
    """Of `trials` trials, if so many `planned` ones train `works`."""
    return None if trials is None else round(sum(work.epochs for work in works) * trials / planned)


# -- slots -------------------------------------------------------------------------------------------------------------


def local_slots(spec: SweepSpec, cpus: int | None = None, gpus: int | None = None) -> int:
    """How many trials run at once on so many CPUs and GPUs, by default this machine's."""
    from genrec.pipeline import pick_device

    resources = spec.resources
    cpus = cpus or _own_cpus()
    if gpus is None and resources.gpus_per_worker:
        gpus = _own_gpus() if pick_device() == "cuda" else 0
    need = {"CPU": resources.cpus_per_worker, "GPU": resources.gpus_per_worker}
    workers = workers_in({"CPU": cpus, "GPU": gpus or 0}, need)
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
