"""Values of sampled parameters from Optuna's samplers and CMA-ES, as a function of seed, number and earlier trials.

A sampler is made anew for every trial and sees the earlier ones through a view: re-expressed in the space of today, if
the sweep was widened since. What it wants to find in the trial later is handed back and stored with the trial.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Container, Mapping, Sequence
from typing import Any

from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.samplers import BaseSampler, GPSampler, NSGAIISampler, RandomSampler, TPESampler
from optuna.storages import InMemoryStorage
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

from sweeps.cma_es import Told, next_point
from sweeps.parameters import Float, Int, Parameter
from sweeps.spec import SamplerSpec, SweepSpec
from sweeps.study_record import UNSTORED, StudyRecord, changed, is_paused
from sweeps.study_storage import SEARCH, directions_of

_POPULATION = 20  # of NSGA-II: sweeps have tens or hundreds of trials, not thousands
_PLACE, _GENERATION = "cma-es:place", "cma-es:generation"


def derived_seed(seed: int, number: int, purpose: str) -> int:
    """31 bits that depend on nothing but the arguments."""
    return int(hashlib.sha256(f"{purpose}:{seed}:{number}".encode()).hexdigest()[:8], 16) & 0x7FFFFFFF


def distributions(parameters: Mapping[str, Parameter]) -> dict[str, BaseDistribution]:
    """The parameters in Optuna's terms; values that are lists stand there as JSON text (`recorded_value`)."""
    return {key: _distribution(parameter) for key, parameter in parameters.items()}


def _distribution(parameter: Parameter) -> BaseDistribution:
    if isinstance(parameter, Float):
        return FloatDistribution(parameter.low, parameter.high, log=parameter.log, step=parameter.step)
    if isinstance(parameter, Int):
        return IntDistribution(parameter.low, parameter.high, log=parameter.log, step=parameter.step)
    return CategoricalDistribution([recorded_value(value) for value in parameter.values])


def recorded_value(value: Any) -> Any:
    """A value as a study has it."""
    return json.dumps(value) if isinstance(value, (list, dict)) else value


def _sampler(kind: str, chosen: SamplerSpec, seed: int) -> BaseSampler:
    if kind == "gp":
        return GPSampler(seed=seed, n_startup_trials=chosen.startup_trials, warn_independent_sampling=False)
    if kind == "nsga2":
        return NSGAIISampler(seed=seed, population_size=chosen.population or _POPULATION)
    if kind == "random":
        return RandomSampler(seed=seed)
    return TPESampler(
        seed=seed, n_startup_trials=chosen.startup_trials, multivariate=chosen.multivariate, constant_liar=True
    )


class _View(InMemoryStorage):
    """The study that a sampler is shown: the trials that it is given, and the study's own notes of generations.

    What the sampler notes about the trial that is asked for, which is not stored yet, is kept in `notes`.
    """

    def __init__(self, record: StudyRecord, spec: SweepSpec):
        super().__init__()
        self.create_new_study(directions_of(spec), SEARCH)
        self._record = record
        self.shown: Sequence[FrozenTrial] = ()
        self.notes: dict[str, Any] = {}

    def get_all_trials(
        self, study_id: int, deepcopy: bool = True, states: Container[TrialState] | None = None
    ) -> list[FrozenTrial]:
        return [trial for trial in self.shown if states is None or trial.state in states]

    def set_trial_system_attr(self, trial_id: int, key: str, value: Any) -> None:
        if "relative_params" not in key:  # the parameters again
            self.notes[key] = value

    def get_study_system_attrs(self, study_id: int) -> dict[str, Any]:
        return self._record.system_attrs()

    def set_study_system_attr(self, study_id: int, key: str, value: Any) -> None:
        self._record.set_system_attr(key, value)


class Sampling:
    """The sampler of a sweep.

    Args:
        retold: an earlier trial in terms of the present space.
        since: number of the first trial whose ranges are the present ones: a place in the unit cube, which is what
            CMA-ES learns from, means something else before.
    """

    def __init__(
        self, spec: SweepSpec, record: StudyRecord, retold: Callable[[FrozenTrial], FrozenTrial], since: int = 0
    ):
        self.spec = spec
        self.space = spec.search_space
        self.distributions = distributions(self.space.parameters)
        self._record = record
        self._view = _View(record, spec)
        self._retold = retold
        self._since = since

    def sample(
        self, kind: str, grid_point: Mapping[str, Any], history: Sequence[FrozenTrial]
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Values of the sampled parameters beside a grid point, in the order of the file, and what to note with them.

        `kind` is the sweep's sampler, or `random`."""
        history = [self._as_known(trial) for trial in history]
        self._view.notes = {}
        self._view.shown = [self._retold(trial) for trial in history]
        values: dict[str, Any] = {}
        for when, names in self.space.sampled_groups():
            if not self.space.is_active(names[0], {**grid_point, **values}):
                continue
            seed = self._seed(len(history), names if when else ())
            if kind == "cma-es" and not when:
                numbers = [name for name in names if isinstance(self.space.parameters[name], (Float, Int))]
                values |= self._evolved(numbers, history, self._seed(len(history), ("cma-es",)))
                names = [name for name in names if name not in values]
            joint_sampler = kind in ("random", "tpe") or (kind in ("gp", "nsga2") and not when)
            values |= self._asked(kind if joint_sampler else "tpe", names, len(history), seed)
        in_order = {name: values[name] for name in self.space.sampled if name in values}
        return in_order, self._view.notes

    def _seed(self, number: int, of: Sequence[str] = ()) -> int:
        """Of one sampler of trial `number`. Every group of parameters has its own: samplers with the same seed draw the
        same numbers, so that the parameters of one group would follow those of another."""
        return derived_seed(self.spec.seed, number, ":".join(["sampler", *sorted(of)]))

    def _as_known(self, trial: FrozenTrial) -> FrozenTrial:
        """A paused trial has shown what it is worth: nothing more may ever come of it, so it counts as stopped."""
        if not is_paused(trial):
            return trial
        return changed(trial, state=TrialState.PRUNED, values=[self._record.best_value(trial)])

    def _evolved(self, names: Sequence[str], history: Sequence[FrozenTrial], seed: int) -> dict[str, Any]:
        """CMA-ES over float and int parameters; its whole state is in the trials."""
        sign = -1 if self.spec.mode == "max" else 1
        told = [
            Told(attrs[_PLACE], sign * trial.values[0], attrs[_GENERATION])
            for trial in history[self._since :]
            if (attrs := trial.system_attrs).get(_GENERATION) is not None and trial.values
        ]
        place, generation = next_point(told, len(names), seed=seed, population=self.spec.sampler.population)
        self._view.notes |= {_PLACE: place, _GENERATION: generation}
        ranges = [parameter for name in names if isinstance(parameter := self.space.parameters[name], (Float, Int))]
        return {name: p.at(x) for name, p, x in zip(names, ranges, place, strict=True)}

    def _asked(self, kind: str, names: Sequence[str], number: int, seed: int) -> dict[str, Any]:
        """Values of `names` from one of Optuna's samplers."""
        sampler = _sampler(kind, self.spec.sampler, seed)
        study = Study(SEARCH, self._view, sampler)
        trial = FrozenTrial(
            number=number,
            trial_id=UNSTORED,
            state=TrialState.RUNNING,
            value=None,
            datetime_start=None,
            datetime_complete=None,
            params={},
            distributions={},
            user_attrs={},
            system_attrs={},
            intermediate_values={},
        )
        joint = {key: d for key in sorted(names) if not (d := self.distributions[key]).single()}
        jointly = kind in ("gp", "nsga2") or self.spec.sampler.multivariate
        recorded = sampler.sample_relative(study, trial, joint) if jointly else {}
        for key in names:
            if key not in recorded:
                recorded[key] = sampler.sample_independent(study, trial, key, self.distributions[key])
        return {key: self._real_value(key, recorded[key]) for key in names}

    def _real_value(self, key: str, recorded: Any) -> Any:
        parameter = self.space.parameters[key]
        if isinstance(parameter, Float):
            return parameter.nearest(recorded)
        if isinstance(parameter, Int):
            return recorded
        return next(value for value in parameter.values if recorded_value(value) == recorded)
