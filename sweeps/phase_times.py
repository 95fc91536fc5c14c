"""How long search and finalists take: their trials, as long as a measured speed makes them, played on a clock with the
sweep's slots, early stopping and budget (`sweeps.rehearsal`)."""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections.abc import Sequence

from genrec.config import RunConfig
from genrec.pipeline import stage_keys
from sweeps.budget import Budget, hours
from sweeps.plan import PhaseTime
from sweeps.rehearsal import REPEATS, Clock, Outcome, Played, rehearse
from sweeps.spec import SweepSpec
from sweeps.speed import Speed
from sweeps.stopping import rule_of
from sweeps.work import Work, Workbench


def _played(work: Work, speed: Speed, epochs: int | None = None) -> Played:
    return Played(
        epoch_seconds=work.epoch_seconds(speed),
        epochs=epochs or work.epochs,
        setup_seconds=speed.setup,
        tokenizer_key=work.tokenizer_key,
        tokenizer_seconds=work.tokenizer_seconds(speed),
        epoch_steps=work.steps,
    )


def search_time(spec: SweepSpec, works: Sequence[Work], trials: int | None, slots: int, speed: Speed) -> PhaseTime:
    """The search, rehearsed many times; a sweep without a number of trials is played with enough to spend its budget.

    Nobody knows when a `target` will be reached: the plan is that of a sweep that does not reach it."""
    if not works:
        return PhaseTime(0, 0.0, 0.0, 0.0, 0.0, 0.0)
    played = [_played(work, speed) for work in works]
    if trials is None:
        shortest = min(trial.epoch_seconds for trial in played)
        trials = min(300, int(slots * (_seconds_allowed(spec, slots) / max(shortest, 1e-3) + 1)))
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
    left = [left for outcome in outcomes for left in outcome.left[: max(0, spec.finalists.top_k - outcome.completed)]]
    return dataclasses.replace(
        _phase_time(outcomes),
        completed=statistics.mean(outcome.completed for outcome in outcomes),
        left_to_train=statistics.mean(left) if left else 0.0,
    )


def _seconds_allowed(spec: SweepSpec, slots: int) -> float:
    """How long the search may take with all slots busy, by the tightest of its limits."""
    budget, an_hour = spec.budget, hours(3600, spec.resources)
    an_hour["cost"] = budget.price_per_hour or 0.0
    limits = [3600 / slots * limit / an_hour[name] for name in an_hour if (limit := getattr(budget, name)) is not None]
    return min([*limits, budget.time or math.inf])


def _phase_time(outcomes: Sequence[Outcome]) -> PhaseTime:
    seconds = sorted(outcome.wall_seconds for outcome in outcomes)
    cut = round(0.05 * (len(seconds) - 1))
    return PhaseTime(
        runs=round(statistics.mean(outcome.started for outcome in outcomes)),
        epochs=statistics.mean(outcome.epochs for outcome in outcomes),
        seconds=statistics.mean(seconds),
        low_seconds=seconds[cut],
        high_seconds=seconds[-1 - cut],
        busy_seconds=statistics.mean(outcome.busy_seconds for outcome in outcomes),
    )


def finalists_time(
    spec: SweepSpec,
    bench: Workbench,
    configs: Sequence[RunConfig],
    slots: int,
    speed: Speed,
    *,
    trials: int,
    completed: int,
    left_to_train: float,
) -> PhaseTime:
    """The best trials (of middling cost, for all we know) and the base, with every seed; both splits are read.

    Of `trials` trials the search has `completed` so many. With a single seed those are measured as they are, and the
    others are trained on: `left_to_train` is the share of their epochs.
    """
    finalists, count = spec.finalists, min(spec.finalists.top_k, trials)
    by_cost = sorted(configs, key=lambda config: bench.work(config).epoch_seconds(speed))
    searched = by_cost[len(by_cost) // 2]
    middle, base = spec.finalist_of(searched), spec.finalist_config(spec.base_config())
    is_anew = finalists.seeds > 1 or stage_keys(middle)["tiger"] != stage_keys(searched)["tiger"]
    shares = [1.0 if is_anew else 0.0 if place < completed else left_to_train for place in range(count)]
    known = {bench.work(planned).tokenizer_key for planned in configs}
    runs = []
    for config, share in [*((middle, share) for share in shares), (base, 1.0)] * finalists.seeds:
        work = bench.work(config)
        run = _played(work, speed)
        tokenizer = 0.0 if work.tokenizer_key in known else run.tokenizer_seconds
        setup = run.setup_seconds + work.test_seconds(speed)
        runs.append(
            Played(
                epoch_seconds=run.epoch_seconds if share else 0.0,
                epochs=max(1, round(share * run.epochs)),
                setup_seconds=setup,
                tokenizer_key=run.tokenizer_key,
                tokenizer_seconds=tokenizer,
            )
        )
    return _phase_time([rehearse(runs, slots, start_seconds=speed.start)])
