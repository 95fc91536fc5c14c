"""Which trial comes next: grid points in their order, values from Optuna's samplers, duplicates of earlier trials.

A proposal depends on the sweep's seed, the trial's number and the trials before it, and on nothing else.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import FrozenTrial, TrialState

from sweeps.cma_es import Told, next_point
from sweeps.parameters import Float, Int, Parameter
from sweeps.spec import SamplerSpec, SweepSpec
from sweeps.study_record import StudyRecord
from sweeps.study_storage import SEARCH, UNSTORED, Storage

RANDOM_AFTER = 10
"duplicates in a row after which TPE, which likes to repeat itself, is asked no more for the next point"
_POPULATION = 20  # of NSGA-II: sweeps have tens or hundreds of trials, not thousands
_PLACE, _GENERATION = "cma-es:place", "cma-es:generation"


def derived_seed(seed: int, number: int, purpose: str) -> int:
    """31 bits that depend on nothing but the arguments."""
    return int(hashlib.sha256(f"{purpose}:{seed}:{number}".encode()).hexdigest()[:8], 16) & 0x7FFFFFFF


def grid_in_order(spec: SweepSpec) -> list[dict[str, Any]]:
    """The grid's points as they are handed out."""
    points = spec.search_space.grid_points()
    return points if spec.sampler.grid == "in_order" else _shuffled(points, derived_seed(spec.seed, 0, "grid"))


def _shuffled(points: Sequence[dict[str, Any]], seed: int) -> list[dict[str, Any]]:
    order = sorted(range(len(points)), key=lambda index: derived_seed(seed, index, "place"))
    return [points[index] for index in order]


def _num_of_grid_index(history: Sequence[FrozenTrial], grid_index: int) -> int:
    """How many trials of a grid point there are: how far the list of the points beside it is used up."""
    return sum(trial.user_attrs["grid_index"] == grid_index for trial in history)


def _sampler(kind: str, chosen: SamplerSpec, seed: int) -> optuna.samplers.BaseSampler:
    if kind == "gp":
        return optuna.samplers.GPSampler(
            seed=seed, n_startup_trials=chosen.startup_trials, warn_independent_sampling=False
        )
    if kind == "nsga2":
        return optuna.samplers.NSGAIISampler(seed=seed, population_size=chosen.population or _POPULATION)
    if kind == "random":
        return optuna.samplers.RandomSampler(seed=seed)
    return optuna.samplers.TPESampler(
        seed=seed, n_startup_trials=chosen.startup_trials, multivariate=chosen.multivariate, constant_liar=True
    )


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
    return json.dumps(value) if isinstance(value, (list, dict)) else value


class Progress(NamedTuple):
    """What the trials so far mean for the next one."""

    assigned: int  # trials that count towards the budget
    infeasible: int  # sampled and infeasible, since the last that counts
    duplicates: int  # since the last that counts
    all_infeasible: int  # sampled and infeasible, ever
    example: str | None  # reason of the last infeasible one
    grid_index: int | None  # of the next trial; None: the grid is done


class Proposer:
    """Appends the next trial of a search to its record."""

    def __init__(self, spec: SweepSpec, record: StudyRecord, storage: Storage):
        self.spec = spec
        self.space = spec.search_space
        self._record = record
        self._storage = storage
        self._grid_points = grid_in_order(spec)
        self._listed: dict[int, list[dict[str, Any]] | None] = {}
        self._grid_reasons: dict[int, str | None] = {}
        self._distributions = distributions(self.space.parameters)

    def progress(self, history: Sequence[FrozenTrial]) -> Progress:
        assigned = infeasible = duplicates = all_infeasible = 0
        example = None
        for trial in history:
            attrs = trial.user_attrs
            if attrs.get("status") == "infeasible":
                if not attrs.get("by_grid"):
                    infeasible, all_infeasible, example = infeasible + 1, all_infeasible + 1, attrs["reason"]
            elif "duplicate_of" in attrs:
                duplicates += 1
            else:
                assigned, infeasible, duplicates = assigned + 1, 0, 0
        index = self._next_grid_index(history)
        return Progress(assigned, infeasible, duplicates, all_infeasible, example, index)

    def _next_grid_index(self, history: Sequence[FrozenTrial]) -> int | None:
        """Grid points go round in order. A point stays until a trial of it is handed out, or it is known to be
        infeasible whatever is sampled; such a point is recorded once and then passed over."""
        if not history:
            return 0
        last = history[-1].user_attrs
        index = last["grid_index"]
        stays = "duplicate_of" in last or (last.get("status") == "infeasible" and not last.get("by_grid"))
        if self.space.pure_grid or not stays:
            index += 1
        reached = max(trial.user_attrs["grid_index"] for trial in history)
        if reached < index < len(self._grid_points):
            return int(index)  # the first round records infeasible points as well
        if self.space.pure_grid:
            return None
        count = len(self._grid_points)
        round_from_here = (i % count for i in range(index, index + count))
        return next((i for i in round_from_here if self._has_more(history, i)), None)

    def _has_more(self, history: Sequence[FrozenTrial], grid_index: int) -> bool:
        """Whether another trial of the grid point can be proposed."""
        if self._grid_reason(grid_index) is not None:
            return False
        listed = self._listed_points(grid_index)
        return listed is None or _num_of_grid_index(history, grid_index) < len(listed)

    def _grid_reason(self, index: int) -> str | None:
        """Why the grid point cannot run whatever is sampled beside it, or None."""
        if index not in self._grid_reasons:
            point = self._grid_points[index]
            self._grid_reasons[index] = self.space.grid_infeasible_reason(self.spec.base_values, point)
        return self._grid_reasons[index]

    def propose(self, history: Sequence[FrozenTrial], progress: Progress) -> int:
        """Append the next trial: running, or infeasible, or a duplicate. Returns its number."""
        number = len(history)
        index = progress.grid_index
        assert index is not None
        values = dict(self._grid_points[index])
        by_grid = self._grid_reason(index)
        notes: dict[str, Any] = {}
        if by_grid is None:
            sampled, notes = self._sampled(values, history, progress)
            values |= sampled
        attrs: dict[str, Any] = {"id": f"trial-{number:04d}", "grid_index": index, "values": values}
        attrs["seed"] = derived_seed(self.spec.seed, number, "trial")
        reason = by_grid or self.space.infeasible_reason(self.spec.base_values, values)
        params = {key: recorded_value(values[key]) for key in self.space.parameters if key in values}
        fields: dict[str, Any] = {
            "params": params,
            "distributions": {key: self._distributions[key] for key in params},
        }
        if reason is not None:
            attrs |= {"status": "infeasible", "reason": reason, "by_grid": by_grid is not None or self.space.pure_grid}
            return self._record.create(TrialState.FAIL, attrs | {"config_hash": ""}, **fields)
        config = self.space.build(self.spec.base_values, values)
        attrs["config_hash"] = config.hash
        if "seed" in self.space.paths:
            attrs["seed"] = config.seed
        first = next((t for t in history if t.user_attrs["config_hash"] == attrs["config_hash"]), None)
        if first is not None:
            return self._create_duplicate(first, attrs, fields)
        return self._record.create(TrialState.RUNNING, attrs, system_attrs=notes, **fields)

    def _sampled(
        self, grid_point: Mapping[str, Any], history: Sequence[FrozenTrial], progress: Progress
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Values of the sampled parameters beside a grid point, and what the sampler wants to find in the trial later.

        A sampler made anew for every number is what makes a resumed sweep equal to an undisturbed one."""
        number, index = len(history), progress.grid_index or 0
        kind = self.spec.sampler.type if progress.duplicates < RANDOM_AFTER else "random"
        listed = self._listed_points(index)
        if listed is not None:
            return listed[_num_of_grid_index(history, index)], {}
        self._storage.notes = {}
        seed = derived_seed(self.spec.seed, number, "sampler")
        values: dict[str, Any] = {}
        for when, names in self.space.sampled_groups():
            if not self.space.is_active(names[0], {**grid_point, **values}):
                continue
            if kind == "cma-es" and not when:
                numbers = [name for name in names if isinstance(self.space.parameters[name], (Float, Int))]
                values |= self._evolved(numbers, history, seed)
                names = [name for name in names if name not in values]
            joint_sampler = kind in ("random", "tpe") or (kind in ("gp", "nsga2") and not when)
            values |= self._asked(kind if joint_sampler else "tpe", names, number, seed)
        in_order = {name: values[name] for name in self.space.sampled if name in values}
        return in_order, self._storage.notes

    def _listed_points(self, grid_index: int) -> list[dict[str, Any]] | None:
        """All points of a finite space beside a grid point, in random order: `random` samples without replacement.
        None where they can't be listed, or another sampler chooses."""
        if self.spec.sampler.type != "random":
            return None
        if grid_index not in self._listed:
            points = self.space.sampled_points(self._grid_points[grid_index])
            seed = derived_seed(self.spec.seed, grid_index, "order")
            self._listed[grid_index] = None if points is None else _shuffled(points, seed)
        return self._listed[grid_index]

    def _evolved(self, names: Sequence[str], history: Sequence[FrozenTrial], seed: int) -> dict[str, Any]:
        """CMA-ES over float and int parameters; its whole state is in the trials."""
        sign = -1 if self.spec.mode == "max" else 1
        told = [
            Told(attrs[_PLACE], sign * trial.values[0], attrs[_GENERATION])
            for trial in history
            if (attrs := trial.system_attrs).get(_GENERATION) is not None and trial.values
        ]
        place, generation = next_point(told, len(names), seed=seed, population=self.spec.sampler.population)
        self._storage.notes |= {_PLACE: place, _GENERATION: generation}
        ranges = [parameter for name in names if isinstance(parameter := self.space.parameters[name], (Float, Int))]
        return {name: p.at(x) for name, p, x in zip(names, ranges, place, strict=True)}

    def _asked(self, kind: str, names: Sequence[str], number: int, seed: int) -> dict[str, Any]:
        """Values of `names` from one of Optuna's samplers."""
        sampler = _sampler(kind, self.spec.sampler, seed)
        study = optuna.load_study(study_name=SEARCH, storage=self._storage, sampler=sampler)
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
        joint = {key: d for key in sorted(names) if not (d := self._distributions[key]).single()}
        jointly = kind in ("gp", "nsga2") or self.spec.sampler.multivariate
        recorded = sampler.sample_relative(study, trial, joint) if jointly else {}
        for key in names:
            if key not in recorded:
                recorded[key] = sampler.sample_independent(study, trial, key, self._distributions[key])
        return {key: self._real_value(key, recorded[key]) for key in names}

    def _real_value(self, key: str, recorded: Any) -> Any:
        parameter = self.space.parameters[key]
        if isinstance(parameter, (Float, Int)):
            return recorded
        return next(value for value in parameter.values if recorded_value(value) == recorded)

    # -- duplicates ---------------------------------------------------------------------------------------------------

    def _create_duplicate(self, first: FrozenTrial, attrs: dict[str, Any], fields: dict[str, Any]) -> int:
        """Record a point that was tried before. While the first is running the duplicate waits for it, so that whether
        a point is handed out never depends on how fast trials are."""
        attrs = attrs | {"duplicate_of": first.number}
        if not first.state.is_finished():
            return self._record.create(TrialState.WAITING, attrs, **fields)
        attrs["result"] = _copied_result(first)
        return self._record.create(
            first.state, attrs, values=first.values, intermediate_values=first.intermediate_values, **fields
        )

    def settle_duplicates(self, of: int | None = None) -> None:
        """Give waiting duplicates what their first trials came to."""
        trials = self._record.trials()
        for trial in trials:
            if trial.state != TrialState.WAITING or of not in (None, trial.user_attrs["duplicate_of"]):
                continue
            first = trials[trial.user_attrs["duplicate_of"]]
            if first.state.is_finished():
                trial_id = self._storage.get_trial_id_from_study_id_trial_number(self._record.study_id, trial.number)
                self._storage.set_trial_user_attr(trial_id, "result", _copied_result(first))
                self._storage.set_trial_state_values(trial_id, first.state, first.values)


def _copied_result(first: FrozenTrial) -> dict[str, Any]:
    result: dict[str, Any] = dict(first.user_attrs.get("result", {})) | {"duration": 0.0}
    return result
