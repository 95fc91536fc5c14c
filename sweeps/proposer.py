"""Which trial comes next: grid points in their order, sampled values beside them, duplicates of earlier trials.

A proposal depends on the sweep's seed, the trial's number and the trials before it, and on nothing else (and on the
sweeps that it may take results from, if it is told to).
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from optuna.trial import FrozenTrial, TrialState

from sweeps.constraints import Violation
from sweeps.model_key import model_key
from sweeps.reuse import Earlier, EarlierResults
from sweeps.sampling import Sampling, derived_seed, recorded_value
from sweeps.space import Point
from sweeps.spec import SweepSpec
from sweeps.study_record import StudyRecord, changed
from sweeps.widening import completed, grid_points_in_turn, sampled_points_in_turn

RANDOM_AFTER = 10
"duplicates in a row after which TPE, which likes to repeat itself, is asked no more for the next point"
LIST_AFTER = 50
"infeasible points in a row after which it is not either, where the feasible ones can be listed"


def grid_in_order(spec: SweepSpec) -> list[Point]:
    """The grid's points as they are handed out."""
    points = spec.search_space.grid_points()
    return points if spec.sampler.grid == "in_order" else _shuffled(points, derived_seed(spec.seed, 0, "grid"))


def _shuffled(points: Sequence[Point], seed: int) -> list[Point]:
    order = sorted(range(len(points)), key=lambda index: derived_seed(seed, index, "place"))
    return [points[index] for index in order]


_COST_NOTHING: dict[str, Any] = {"duration": 0.0, "runs": []}  # what is copied was not run


class Progress:
    """What the trials so far mean for the next one. Every trial is counted once, when it is there.

    What is counted in a row begins anew with trial number `since`, where the space was widened.
    """

    def __init__(self, since: int = 0) -> None:
        self._since = since
        self.trials = 0
        self.assigned = 0
        "trials that count towards the budget"
        self.infeasible = 0
        "sampled and infeasible, since the last that counts"
        self.duplicates = 0
        "since the last that counts"
        self.all_infeasible = 0
        "sampled and infeasible, ever"
        self.example: str | None = None
        "reason of the last infeasible one"
        self.reached = -1
        "the furthest grid point that was tried"
        self.by_grid_point: dict[int, int] = {}
        "trials of every grid point: how far the list of the points beside it is used up"
        self.numbers: dict[str, int] = {}
        "the first trial of every config, by its hash"
        self.models: dict[str, int] = {}
        "the first trial of every model, by its key"
        self.all_duplicates = 0
        "since the space was widened"
        self.waiting: dict[int, int] = {}
        "duplicates that were waiting when they came, and what they are of"
        self.grid_index: int | None = 0
        "of the next trial; None: the grid is done"

    def count(self, history: Sequence[FrozenTrial]) -> None:
        """Take in the trials that are new."""
        for trial in history[self.trials :]:
            self._begin_anew_at(trial.number)
            self._add(trial)
        self._begin_anew_at(self.trials)

    def _begin_anew_at(self, number: int) -> None:
        if number == self._since:
            self.infeasible = self.duplicates = self.all_duplicates = 0

    @property
    def patience(self) -> int:
        """Duplicates in a row after which a point that was not tried is looked for in a list: fewer and fewer, because
        a sampler that repeats itself does so again, and one at last."""
        return max(1, RANDOM_AFTER >> self.all_duplicates // RANDOM_AFTER)

    def _add(self, trial: FrozenTrial) -> None:
        attrs = trial.user_attrs
        self.trials += 1
        index = attrs["grid_index"]
        self.reached = max(self.reached, index)
        self.by_grid_point[index] = self.by_grid_point.get(index, 0) + 1
        if attrs.get("status") == "infeasible":
            if not attrs.get("by_grid"):
                self.infeasible, self.all_infeasible = self.infeasible + 1, self.all_infeasible + 1
                self.example = attrs["reason"]
            return
        self.numbers.setdefault(attrs["config_hash"], trial.number)
        if "model" in attrs:
            self.models.setdefault(attrs["model"], trial.number)
        if "duplicate_of" in attrs:
            self.duplicates, self.all_duplicates = self.duplicates + 1, self.all_duplicates + 1
            if trial.state == TrialState.WAITING:
                self.waiting[trial.number] = attrs["duplicate_of"]
        else:
            self.assigned, self.infeasible, self.duplicates = self.assigned + 1, 0, 0


class Proposer:
    """Appends the next trial of a search to its record.

    `specs`: what the sweep was started with, and what it was widened to since; `since`: the number of trials when the
    last widening of the space took place; `earlier`: results that need not be computed again.
    """

    def __init__(
        self,
        specs: Sequence[SweepSpec],
        record: StudyRecord,
        since: int = 0,
        earlier: EarlierResults | None = None,
    ):
        self.spec = specs[-1]
        self.space = self.spec.search_space
        self.progress = Progress(since)
        self._specs = specs
        self._record = record
        self._earlier = earlier
        self._grid_points = grid_points_in_turn(specs, grid_in_order)
        self._listed: dict[int, list[Point] | None] = {}
        self._passed: dict[int, int] = {}
        self._tried: set[str] = set()
        self._noted = 0
        self._grid_reasons: dict[int, str | None] = {}
        self._retold_trials: dict[int, FrozenTrial] = {}
        self._sampling = Sampling(self.spec, record, self._retold, since)

    def _retold(self, trial: FrozenTrial) -> FrozenTrial:
        """The trial in terms of the present space; its record stays as it was."""
        if len(self._specs) == 1:
            return trial
        known = self._retold_trials.get(trial.number)
        if known is not None and known.state == trial.state and known.values == trial.values:
            return known
        point = completed(self.space, self.spec.base_values, trial.user_attrs["values"])
        fields = self._fields(point)
        self._retold_trials[trial.number] = changed(
            trial, params=fields["params"], distributions=fields["distributions"]
        )
        return self._retold_trials[trial.number]

    def _fields(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """A point as Optuna's trials have it."""
        params = {key: recorded_value(values[key]) for key in self.space.parameters if key in values}
        return {"params": params, "distributions": {key: self._sampling.distributions[key] for key in params}}

    def look(self) -> Progress:
        """Where the search stands now."""
        history = self._record.trials()
        self.progress.count(history)
        self.progress.grid_index = self._next_grid_index(history)
        return self.progress

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
        if self.progress.reached < index < len(self._grid_points):
            return int(index)  # the first round records infeasible points as well
        if self.space.pure_grid:
            return None
        count = len(self._grid_points)
        round_from_here = (i % count for i in range(index, index + count))
        return next((i for i in round_from_here if self._has_more(i)), None)

    def _has_more(self, grid_index: int) -> bool:
        """Whether another trial of the grid point can be proposed."""
        if self._grid_reason(grid_index) is not None:
            return False
        if self.spec.sampler.type == "random":
            listed = self._points_beside(grid_index)
            return listed is None or self.progress.by_grid_point.get(grid_index, 0) < len(listed)
        was_stuck = self.progress.patience < RANDOM_AFTER and self.space.is_listable
        return not (was_stuck or self._must_list()) or self._untried(grid_index) is not None

    def _grid_reason(self, index: int) -> str | None:
        """Why the grid point cannot run whatever is sampled beside it, or None."""
        if index not in self._grid_reasons:
            point = self._grid_points[index]
            self._grid_reasons[index] = self.space.grid_infeasible_reason(self.spec.base_values, point)
        return self._grid_reasons[index]

    def propose(self) -> FrozenTrial:
        """Append the next trial: running, or infeasible, or a duplicate. `look` must have found a grid point for it."""
        history = self._record.trials()
        number, index = len(history), self.progress.grid_index
        assert index is not None
        values = dict(self._grid_points[index])
        by_grid = self._grid_reason(index)
        notes: dict[str, Any] = {}
        if by_grid is None:
            sampled, notes = self._sampled(index, history)
            values |= sampled
        attrs: dict[str, Any] = {"id": f"trial-{number:04d}", "grid_index": index, "values": values}
        attrs["seed"] = derived_seed(self.spec.seed, number, "trial")
        fields = self._fields(values)
        reason = by_grid or self.space.infeasible_reason(self.spec.base_values, values)
        if reason is not None:
            attrs |= {"status": "infeasible", "reason": reason, "by_grid": by_grid is not None or self.space.pure_grid}
            attrs["broken"] = reason.rule if isinstance(reason, Violation) else reason
            return self._record.create(TrialState.FAIL, attrs | {"config_hash": ""}, **fields)
        config = self.space.build(self.spec.base_values, values)
        attrs["config_hash"] = config.hash
        if "seed" in self.space.paths:
            attrs["seed"] = config.seed
        if (model := model_key(config)) is not None:
            attrs["model"] = model
        if (first := self._first_with(config.hash, model)) is not None:
            return self._create_duplicate(history[first], attrs, fields)
        if self._earlier is not None and (earlier := self._earlier.of(config)) is not None:
            return self._take_over(earlier, attrs, system_attrs=notes, **fields)
        return self._record.create(TrialState.RUNNING, attrs, system_attrs=notes, **fields)

    def _first_with(self, config_hash: str, model: str | None) -> int | None:
        """The first trial with the config, or with one that trains the same model: they differ in settings that no
        stage reads, such as the RQ-VAE's where the tokenizer is another."""
        first = self.progress.numbers.get(config_hash)
        return first if first is not None or model is None else self.progress.models.get(model)

    def _sampled(self, grid_index: int, history: Sequence[FrozenTrial]) -> tuple[Point, dict[str, Any]]:
        """Values of the sampled parameters beside a grid point, and what to note with them."""
        if self.spec.sampler.type == "random" and (listed := self._points_beside(grid_index)) is not None:
            return listed[self.progress.by_grid_point.get(grid_index, 0)], {}
        if self._must_list() and (untried := self._untried(grid_index)) is not None:
            return untried, {}
        kind = self.spec.sampler.type if self.progress.duplicates < RANDOM_AFTER else "random"
        return self._sampling.sample(kind, self._grid_points[grid_index], history)

    def _points_beside(self, grid_index: int) -> list[Point] | None:
        """All points of a finite space beside a grid point, in random order, in which `random` samples without
        replacement. None where they can't be listed."""
        if grid_index not in self._listed:
            seed = derived_seed(self.spec.seed, grid_index, "order")
            self._listed[grid_index] = sampled_points_in_turn(
                self._specs, self._grid_points[grid_index], lambda points, place: _shuffled(points, seed + place)
            )
        return self._listed[grid_index]

    def _must_list(self) -> bool:
        """Whether the sampler has brought nothing new for so long that the next point is one that was not tried."""
        stuck = self.progress.duplicates >= self.progress.patience or self.progress.infeasible >= LIST_AFTER
        return stuck and self.space.is_listable

    def _untried(self, grid_index: int) -> Point | None:
        """The first feasible point beside a grid point that no trial has had; None where there is none left."""
        history = self._record.trials()
        for trial in history[self._noted :]:
            if trial.user_attrs.get("status") != "infeasible":  # which it may not be any more
                point = completed(self.space, self.spec.base_values, trial.user_attrs["values"])
                self._tried.add(json.dumps(point, sort_keys=True))
        self._noted = len(history)
        listed = self._points_beside(grid_index) or []
        place = self._passed.get(grid_index, 0)
        while place < len(listed) and not self._is_new(self._grid_points[grid_index] | listed[place]):
            place += 1  # it never will be
        self._passed[grid_index] = place
        return listed[place] if place < len(listed) else None

    def _is_new(self, point: Point) -> bool:
        known = json.dumps(point, sort_keys=True) in self._tried
        return not known and self.space.infeasible_reason(self.spec.base_values, point) is None

    def _create_duplicate(self, first: FrozenTrial, attrs: dict[str, Any], fields: dict[str, Any]) -> FrozenTrial:
        """Record a point that was tried before. While the first is running the duplicate waits for it, so that whether
        a point is handed out never depends on how fast trials are."""
        attrs = attrs | {"duplicate_of": first.number}
        if not first.state.is_finished():
            return self._record.create(TrialState.WAITING, attrs, **fields)
        attrs["result"] = _copied_result(first)
        return self._record.create(
            first.state, attrs, values=first.values, intermediate_values=first.intermediate_values, **fields
        )

    def _take_over(self, earlier: Earlier, attrs: dict[str, Any], **fields: Any) -> FrozenTrial:
        """Record an earlier sweep's result as this trial's: a trial like others, which cost nothing."""
        record, metric = earlier.record, self.spec.metric
        source = record.source or {"sweep": earlier.sweep, "trial": record.id, "duration": record.duration}
        rows = {f"epoch:{row['epoch']}": row for row in record.epochs}
        curve = {row["epoch"]: row[metric] for row in record.epochs if math.isfinite(row.get(metric, math.nan))}
        attrs = attrs | rows | {"seed": record.seed, "result": earlier.result | _COST_NOTHING, "from": source}
        values = [record.objectives[name] for name in self.spec.objectives]
        return self._record.create(TrialState.COMPLETE, attrs, values=values, intermediate_values=curve, **fields)

    def settle_duplicates(self) -> None:
        """Give waiting duplicates what their first trials came to."""
        trials = self._record.trials()
        self.progress.count(trials)
        for number, of in list(self.progress.waiting.items()):
            first = trials[of]
            if first.state.is_finished():
                self._record.end(number, first.state, _copied_result(first), first.values)
                del self.progress.waiting[number]


def _copied_result(first: FrozenTrial) -> dict[str, Any]:
    result: dict[str, Any] = dict(first.user_attrs.get("result", {})) | _COST_NOTHING
    return result
