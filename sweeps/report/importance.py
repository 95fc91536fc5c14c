"""Which parameters matter: two of Optuna's evaluators, each with how far its answer can be trusted.

All trials are compared after the same epoch, so that those that were stopped early count as well. Every evaluator is
asked again and again about a random part of the trials; from how its answers vary follows how much other trials would
change them (the delete-d jackknife). And it is asked about the same trials with their values shuffled: what it says of
them, where no parameter can matter, is the share that chance alone gives.
"""

from __future__ import annotations

import math
import random
import statistics
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import optuna
from optuna.importance import BaseImportanceEvaluator, FanovaImportanceEvaluator, PedAnovaImportanceEvaluator
from optuna.study import Study
from optuna.trial import FrozenTrial

from sweeps.ledger import Ledger
from sweeps.records import TrialRecord, metric_in
from sweeps.report.standing import standing
from sweeps.wording import counted

MIN_TRIALS = 10
"fewer trials say nothing about parameters"
REPEATS = 8
SHUFFLES = 19
"the largest share of all of them is passed by chance in one search of twenty"
PART = 0.8
"share of the trials that one repeat looks at"
MAX_TRIALS = 120
"trials that one repeat looks at, at most: beyond, time grows and the answer doesn't"
_TREES = 10
_DEVIATIONS = 2.0
_Evaluator = Callable[[int], BaseImportanceEvaluator]


class Comparable(NamedTuple):
    """Trials as they stood after the same epoch, as a study of Optuna's with the sweep's metric alone."""

    epoch: int
    study: Study

    @property
    def trials(self) -> list[FrozenTrial]:
        return self.study.get_trials(deepcopy=False)


class Share(NamedTuple):
    """Of one parameter: mean over the parts, and between what it would be for nineteen in twenty sets of trials."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True)
class Importance:
    """Shares of the parameters in sum 1, by two questions, and what chance alone gives."""

    variance: dict[str, Share]
    "fANOVA: share of the metric's variance over the whole space"
    top: dict[str, Share]
    "PED-ANOVA: what tells the best tenth from the rest"
    variance_floor: float
    "the largest share of any parameter when the values are shuffled; 1: that is not known"
    top_floor: float

    @property
    def ranked(self) -> list[str]:
        """Parameters, the most important first."""
        nothing = Share(-1.0, -1.0, -1.0)
        return sorted(self.variance | self.top, key=lambda name: -self.variance.get(name, nothing).mean)

    @property
    def above_chance(self) -> set[str]:
        """Parameters that at least one of the evaluators finds more important than chance alone would make them."""
        pairs = ((self.variance, self.variance_floor), (self.top, self.top_floor))
        return {name for shares, floor in pairs for name, share in shares.items() if share.mean > floor}


def comparable_trials(ledger: Ledger) -> Comparable | str:
    """The trials after the last epoch that enough of them have reached; or why there are not enough."""
    metric, sign = ledger.spec.metric, 1 if ledger.spec.mode == "max" else -1
    records = {record.number: record for record in standing(ledger)}
    reached = sorted((record.epochs[-1]["epoch"] for record in records.values() if record.epochs), reverse=True)
    if len(reached) < MIN_TRIALS:
        have = counted(len(reached), "trial")
        return f"{have} with a result; below {MIN_TRIALS} nothing can be said about parameters"
    epoch = reached[max(MIN_TRIALS, len(reached) // 2) - 1]
    study = new_study(ledger)
    for trial in ledger.study.get_trials(deepcopy=False):
        record = records.get(trial.number)
        if record is None or not record.epochs or record.epochs[-1]["epoch"] < epoch:
            continue
        value = _best_until(record, epoch, metric, sign)
        if value is not None:
            study.add_trial(optuna.create_trial(value=value, params=trial.params, distributions=trial.distributions))
    return Comparable(epoch, study)


def new_study(ledger: Ledger) -> Study:
    """An empty study of the sweep's metric alone."""
    return optuna.create_study(direction="maximize" if ledger.spec.mode == "max" else "minimize")


def _best_until(record: TrialRecord, epoch: int, metric: str, sign: int) -> float | None:
    values = [metric_in(row, metric) for row in record.epochs if row["epoch"] <= epoch]
    known = [value for value in values if value is not None]
    return sign * max(sign * value for value in known) if known else None


def measure_importance(comparable: Comparable, repeats: int = REPEATS, shuffles: int = SHUFFLES) -> Importance | str:
    """How much each parameter matters, or why that can't be said."""
    trials = comparable.trials
    if len({trial.value for trial in trials}) < 2:
        return "all trials have the same value"
    if not _varied(trials):
        return "no parameter had more than one value"
    direction = comparable.study.direction
    parts = [_part(trials, seed) for seed in range(repeats)]
    shuffled = [_shuffled(trials, seed) for seed in range(shuffles)]
    widening = _widening(len(trials), len(parts[0]))
    return Importance(
        variance=_spread(parts, direction, _fanova, widening),
        top=_spread(parts, direction, _ped_anova, widening),
        variance_floor=_floor(shuffled, direction, _fanova),
        top_floor=_floor(shuffled, direction, _ped_anova),
    )


def _fanova(seed: int) -> BaseImportanceEvaluator:
    return FanovaImportanceEvaluator(n_trees=_TREES, seed=seed)


def _ped_anova(_: int) -> BaseImportanceEvaluator:
    return PedAnovaImportanceEvaluator()


def _widening(trials: int, part: int) -> float:
    """By what the deviation over parts of the trials is too small for that over sets of trials: parts share trials."""
    left_out = trials - part
    return max(1.0, math.sqrt(part / left_out)) if left_out else math.inf


def _varied(trials: Sequence[FrozenTrial]) -> set[str]:
    values: dict[str, set[str]] = {}
    for trial in trials:
        for name, value in trial.params.items():
            values.setdefault(name, set()).add(repr(value))
    return {name for name, found in values.items() if len(found) > 1}


def _part(trials: Sequence[FrozenTrial], seed: int) -> list[FrozenTrial]:
    size = min(MAX_TRIALS, max(MIN_TRIALS - 2, round(PART * len(trials))))
    return random.Random(seed).sample(list(trials), min(size, len(trials)))


def _shuffled(trials: Sequence[FrozenTrial], seed: int) -> list[FrozenTrial]:
    """As many trials as are looked at, each with the value of another."""
    rng = random.Random(seed)
    chosen = rng.sample(list(trials), min(MAX_TRIALS, len(trials)))
    values = [trial.values[0] for trial in chosen]
    rng.shuffle(values)
    return [
        optuna.create_trial(value=value, params=trial.params, distributions=trial.distributions)
        for value, trial in zip(values, chosen, strict=True)
    ]


def _spread(
    parts: Sequence[Sequence[FrozenTrial]],
    direction: optuna.study.StudyDirection,
    evaluator: _Evaluator,
    widening: float,
) -> dict[str, Share]:
    """Shares in sum 1 of every parameter over the parts; a part that an evaluator cannot use is left out."""
    found: dict[str, list[float]] = {}
    for seed, part in enumerate(parts):
        for name, value in _shares(part, direction, evaluator(seed)).items():
            found.setdefault(name, []).append(float(value))
    return {name: _share(values, widening) for name, values in found.items()}


def _share(values: Sequence[float], widening: float) -> Share:
    mean = statistics.fmean(values)
    if len(values) < 2:
        return Share(mean, 0.0, 1.0)
    reach = _DEVIATIONS * widening * statistics.stdev(values)
    return Share(mean, max(0.0, mean - reach), min(1.0, mean + reach))


def _floor(
    shuffled: Sequence[Sequence[FrozenTrial]], direction: optuna.study.StudyDirection, evaluator: _Evaluator
) -> float:
    shares = [_shares(trials, direction, evaluator(seed)) for seed, trials in enumerate(shuffled)]
    return max((float(value) for found in shares for value in found.values()), default=1.0)


def _shares(
    part: Sequence[FrozenTrial], direction: optuna.study.StudyDirection, evaluator: BaseImportanceEvaluator
) -> dict[str, float]:
    study = optuna.create_study(direction=direction)
    study.add_trials(part)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return optuna.importance.get_param_importances(study, evaluator=evaluator)
        except (ValueError, RuntimeError):  # no variance in this part, or too few trials for it
            return {}
