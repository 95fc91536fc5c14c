"""Which parameters matter: two of Optuna's evaluators, each with how far its answer can be trusted.

All trials are compared after the same epoch, so that those that were stopped early count as well. Every evaluator is
asked again and again about a random part of the trials; how its answers vary is the uncertainty.
"""

from __future__ import annotations

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
from sweeps.wording import counted

MIN_TRIALS = 10
"fewer trials say nothing about parameters"
REPEATS = 8
PART = 0.8
"share of the trials that one repeat looks at"
MAX_TRIALS = 120
"trials that one repeat looks at, at most: beyond, time grows and the answer doesn't"
_TREES = 16


class Comparable(NamedTuple):
    """Trials as they stood after the same epoch, as a study of Optuna's with the sweep's metric alone."""

    epoch: int
    study: Study

    @property
    def trials(self) -> list[FrozenTrial]:
        return self.study.get_trials(deepcopy=False)


@dataclass(frozen=True)
class Importance:
    """Shares of the parameters in sum 1, by two questions: (mean, lowest, highest) over the repeats."""

    variance: dict[str, tuple[float, float, float]]
    "fANOVA: share of the metric's variance over the whole space"
    top: dict[str, tuple[float, float, float]]
    "PED-ANOVA: what tells the best tenth from the rest"

    @property
    def ranked(self) -> list[str]:
        """Parameters, the most important first."""
        return sorted(self.variance | self.top, key=lambda name: -self.variance.get(name, (-1.0,))[0])


def comparable_trials(ledger: Ledger) -> Comparable | str:
    """The trials after the last epoch that enough of them have reached; or why there are not enough."""
    metric, sign = ledger.spec.metric, 1 if ledger.spec.mode == "max" else -1
    records = {r.number: r for r in ledger.trials() if r.duplicate_of is None and r.value is not None}
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


def measure_importance(comparable: Comparable, repeats: int = REPEATS) -> Importance | str:
    """How much each parameter matters, or why that can't be said."""
    trials = comparable.trials
    if len({trial.value for trial in trials}) < 2:
        return "all trials have the same value"
    if not _varied(trials):
        return "no parameter had more than one value"
    direction = comparable.study.direction
    parts = [_part(trials, seed) for seed in range(repeats)]
    return Importance(
        variance=_spread(parts, direction, lambda seed: FanovaImportanceEvaluator(n_trees=_TREES, seed=seed)),
        top=_spread(parts, direction, lambda _: PedAnovaImportanceEvaluator()),
    )


def _varied(trials: Sequence[FrozenTrial]) -> set[str]:
    values: dict[str, set[str]] = {}
    for trial in trials:
        for name, value in trial.params.items():
            values.setdefault(name, set()).add(repr(value))
    return {name for name, found in values.items() if len(found) > 1}


def _part(trials: Sequence[FrozenTrial], seed: int) -> list[FrozenTrial]:
    size = min(MAX_TRIALS, max(MIN_TRIALS - 2, round(PART * len(trials))))
    return random.Random(seed).sample(list(trials), min(size, len(trials)))


def _spread(
    parts: Sequence[Sequence[FrozenTrial]],
    direction: optuna.study.StudyDirection,
    evaluator: Callable[[int], BaseImportanceEvaluator],
) -> dict[str, tuple[float, float, float]]:
    """Shares in sum 1 of every parameter over the parts; a part that an evaluator cannot use is left out."""
    found: dict[str, list[float]] = {}
    for seed, part in enumerate(parts):
        for name, value in _shares(part, direction, evaluator(seed)).items():
            found.setdefault(name, []).append(float(value))
    return {name: (statistics.fmean(v), min(v), max(v)) for name, v in found.items()}


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
