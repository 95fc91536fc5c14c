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

PLAYED, ROUNDS, MOST_PLAYED = 300, 20, 1000
"trials of a search that are played: so many, or so many for every slot, but no more than the last"
FEWEST_REPEATS = 3
BASELINES_PER_USER, COMPARISON = 0.85e-3, 0.6
"seconds on one core: as measured with the 1,500 users of the embedded catalogue, three seeds each"


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
    """The search, rehearsed many times. `trials`: None where only a limit ends it.

    Of a long search a shorter one is played, with its limits and what is paid once as much smaller; its sums are
    multiplied. Nobody knows when a `target` will be reached: the plan is that of a sweep that does not reach it."""
    if not works:
        return PhaseTime(0, 0.0, 0.0, 0.0, 0.0, 0.0)
    most = min(max(PLAYED, ROUNDS * slots), MOST_PLAYED)
    played = [_played(work, speed) for work in works]
    longest = max(work.epochs for work in works)
    if trials is None:
        rule = rule_of(spec.scheduler, "max", longest)
        at_first = rehearse(_cycled(played, most), slots, start_seconds=speed.start, rule=rule)
        shrink = max(1.0, _seconds_allowed(spec, slots) / max(at_first.wall_seconds, 1e-3))
        count = most + most // 4 + slots  # somewhat more than the limit lets begin
    else:
        shrink = max(1.0, trials / most)
        count = round(trials / shrink)
    played = _cycled(_shrunk(played, shrink), count)
    repeats = 1 if spec.scheduler.type == "none" else max(FEWEST_REPEATS, REPEATS * PLAYED // max(PLAYED, count))
    outcomes = []
    for seed in range(repeats):
        clock, rule = Clock(), rule_of(spec.scheduler, "max", longest)  # a rule learns from the trials that it has seen
        budget = _ShrunkBudget(spec, clock, shrink)
        outcome = rehearse(
            played, slots, start_seconds=speed.start / shrink, rule=rule, budget=budget, clock=clock, seed=seed
        )
        outcomes.append(outcome)
    late = 0.0 if outcomes[0].started >= count else _lateness(outcomes, _seconds_allowed(spec, slots) / shrink)
    times, top_k = shrink - (shrink - 1) * late, spec.finalists.top_k
    left = [left for outcome in outcomes for left in outcome.left[: max(0, top_k - round(times * outcome.completed))]]
    return dataclasses.replace(
        _phase_time(outcomes, times),
        completed=times * statistics.mean(outcome.completed for outcome in outcomes),
        left_to_train=statistics.mean(left) if left else 0.0,
    )


class _ShrunkBudget(Budget):
    """The budget of a search of which one `shrink` times shorter is played."""

    def __init__(self, spec: SweepSpec, clock: Clock, shrink: float):
        super().__init__(spec, elapsed=lambda: clock.now * shrink, target=False)
        self._shrink = shrink

    def reached(self, trial_seconds: float) -> str | None:
        return super().reached(trial_seconds * self._shrink)


def _cycled(played: Sequence[Played], count: int) -> list[Played]:
    return [played[index % len(played)] for index in range(count)]


def _shrunk(played: Sequence[Played], shrink: float) -> list[Played]:
    """With tokenizers as much cheaper, unless nearly every trial has its own: then there are as many more of them."""
    shared = 2 * len({trial.tokenizer_key for trial in played}) <= len(played)
    if not shared:
        return list(played)
    return [trial._replace(tokenizer_seconds=trial.tokenizer_seconds / shrink) for trial in played]


def _lateness(outcomes: Sequence[Outcome], limit: float) -> float:
    """Share of the time after the limit, in which the epochs under way end: paid once, however long the search is."""
    wall = statistics.mean(outcome.wall_seconds for outcome in outcomes)
    return max(0.0, wall - limit) / wall if wall else 0.0


def _seconds_allowed(spec: SweepSpec, slots: int) -> float:
    """How long the search may take with all slots busy, by the tightest of its limits; infinite without one."""
    budget, an_hour = spec.budget, hours(3600, spec.resources)
    an_hour["cost"] = budget.price_per_hour or 0.0
    limits = [3600 / slots * limit / an_hour[name] for name in an_hour if (limit := getattr(budget, name)) is not None]
    return min([*limits, budget.time or math.inf])


def _phase_time(outcomes: Sequence[Outcome], times: float = 1.0) -> PhaseTime:
    """Of a phase that is so many `times` what was played; chance averages out as it gets longer."""
    seconds = sorted(outcome.wall_seconds for outcome in outcomes)
    cut, mean = round(0.05 * (len(seconds) - 1)), statistics.mean(seconds)
    return PhaseTime(
        runs=round(times * statistics.mean(outcome.started for outcome in outcomes)),
        epochs=times * statistics.mean(outcome.epochs for outcome in outcomes),
        seconds=times * mean,
        low_seconds=times * mean - math.sqrt(times) * (mean - seconds[cut]),
        high_seconds=times * mean + math.sqrt(times) * (seconds[-1 - cut] - mean),
        busy_seconds=times * statistics.mean(outcome.busy_seconds for outcome in outcomes),
    )


def conclusion_seconds(users: int) -> float:
    """Of baselines on so many users of the test split, and of the comparisons with runner-up and base."""
    return users * BASELINES_PER_USER + 2 * COMPARISON


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
