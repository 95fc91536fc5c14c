"""The ledger: the only record of a sweep's trials, as two Optuna studies in one journal file.

`search` holds the trials, `finalists` the re-evaluations. A trial enters by one append with all its parameters, so a
kill leaves the whole trial or none; its parameters depend on the sweep's seed, its number and the trials before it, and
on nothing else. One process writes (`sweeps.journal.DriverLock`); any number may read. Not safe for several threads.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import time
import warnings
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, Literal, NamedTuple

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.storages.journal import JournalFileBackend, JournalStorage
from optuna.study import Study, StudyDirection
from optuna.trial import FrozenTrial, TrialState

from genrec.config import ConfigError, RunConfig, content_hash
from genrec.durable import put
from sweeps.cma_es import Told, next_point
from sweeps.journal import JOURNAL, DriverLock, LedgerError, damaged, is_driven, repair_tail
from sweeps.parameters import Float, Int, Parameter
from sweeps.records import (
    STATUSES,
    FinalistRun,
    PlannedRun,
    State,
    Status,
    Task,
    TrialRecord,
    finalist_id,
    metric_in,
    plain,
    readable,
)
from sweeps.spec import SamplerSpec, SweepSpec

__all__ = ["FinalistQueue", "FinalistRun", "Ledger", "LedgerError", "PlannedRun", "Study", "Task", "TrialRecord"]

SEARCH = "search"
FINALISTS = "finalists"
MAX_INFEASIBLE = 200
"sampled points in a row that break a constraint before the sweep gives up"
MAX_DUPLICATES = 50
"sampled points in a row that were tried before: the space is taken as exhausted"
RANDOM_AFTER = 10
"duplicates in a row after which TPE, which likes to repeat itself, is asked no more for the next point"
MAX_REASON = 4000
_POPULATION = 20  # of NSGA-II: sweeps have tens or hundreds of trials, not thousands

_STATUS: dict[TrialState, Status] = {
    TrialState.WAITING: "waiting",
    TrialState.RUNNING: "running",
    TrialState.PRUNED: "stopped",
    TrialState.COMPLETE: "completed",
    TrialState.FAIL: "failed",
}
_STATE = {"stopped": TrialState.PRUNED, "completed": TrialState.COMPLETE, "failed": TrialState.FAIL}
_EPOCH_OPERATIONS = (7, 8)  # intermediate value, user attribute of a trial
_HEARTBEAT = 1.0  # seconds between two notes of a session's length


class _JournalFile(JournalFileBackend):
    """Optuna's journal file for a single writer: no lock file of its own that a kill could leave behind, an append
    that fails half-way (a full disk) is taken back, and the disk is waited for only where a trial begins or ends (an
    epoch's row outlives its process anyway; after a power cut the epoch is trained again)."""

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        lines = "".join(json.dumps(log, separators=(",", ":")) + "\n" for log in logs).encode()
        try:
            with open(self._file_path, "r+b", buffering=0) as file:
                end = file.seek(0, os.SEEK_END)
                try:
                    if file.write(lines) != len(lines):
                        raise OSError("the disk took only a part")
                    if any(log["op_code"] not in _EPOCH_OPERATIONS for log in logs):
                        os.fsync(file.fileno())
                except OSError:
                    file.truncate(end)
                    raise
        except OSError as error:
            message = f"{self._file_path}: cannot be written: {error}; what was recorded before is intact"
            raise LedgerError(message) from error


class _ReadOnlyFile(JournalFileBackend):
    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        raise LedgerError("this ledger was opened for reading")


class _Storage(JournalStorage):
    """A sampler is asked about a trial that is not stored yet: what it notes about it is kept until the trial is."""

    def __init__(self, backend: JournalFileBackend):
        super().__init__(backend)
        self.notes: dict[str, Any] = {}

    def set_trial_system_attr(self, trial_id: int, key: str, value: Any) -> None:
        if trial_id != _UNSTORED:
            super().set_trial_system_attr(trial_id, key, value)
        elif "relative_params" not in key:  # the parameters again
            self.notes[key] = value


_UNSTORED = -1
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
    """The parameters in Optuna's terms; values that are lists stand there as JSON text (`_recorded`)."""
    return {key: _distribution(parameter) for key, parameter in parameters.items()}


def _distribution(parameter: Parameter) -> BaseDistribution:
    if isinstance(parameter, Float):
        return FloatDistribution(parameter.low, parameter.high, log=parameter.log, step=parameter.step)
    if isinstance(parameter, Int):
        return IntDistribution(parameter.low, parameter.high, log=parameter.log, step=parameter.step)
    return CategoricalDistribution([_recorded(value) for value in parameter.values])


def _recorded(value: Any) -> Any:
    return json.dumps(value) if isinstance(value, (list, dict)) else value


def _rows(trial: FrozenTrial) -> list[dict[str, Any]]:
    rows = [row for key, row in trial.user_attrs.items() if key.startswith("epoch:")]
    return sorted(rows, key=lambda row: row["epoch"])


class _Record:
    """One study in the journal: the trials in it, written as a Queue wants them."""

    def __init__(self, storage: JournalStorage, name: str, objectives: Mapping[str, str]):
        self.storage = storage
        self.study_id = storage.get_study_id_from_name(name)
        self.metric, *self.against = objectives
        self.mode = objectives[self.metric]
        self._numbers = {trial.user_attrs["id"]: trial.number for trial in self.trials()}

    def trials(self) -> list[FrozenTrial]:
        return self.storage.get_all_trials(self.study_id, deepcopy=False)

    def attrs(self) -> dict[str, Any]:
        return self.storage.get_study_user_attrs(self.study_id)

    def set_attr(self, key: str, value: Any) -> None:
        self.storage.set_study_user_attr(self.study_id, key, plain(value))

    def create(self, state: TrialState, attrs: dict[str, Any], **fields: Any) -> int:
        """Append one whole trial; returns its number."""
        number = len(self.trials())
        now = datetime.now()
        template = FrozenTrial(
            number=number,
            trial_id=_UNSTORED,
            state=state,
            value=None,
            values=fields.get("values"),
            datetime_start=None if state == TrialState.WAITING else now,
            datetime_complete=now if state.is_finished() else None,
            params=fields.get("params", {}),
            distributions=fields.get("distributions", {}),
            user_attrs=attrs,
            system_attrs=fields.get("system_attrs", {}),
            intermediate_values=fields.get("intermediate_values", {}),
        )
        self.storage.create_new_trial(self.study_id, template)
        self._numbers[attrs["id"]] = number
        return number

    def _open_trial(self, task_id: str) -> tuple[int, FrozenTrial] | None:
        """Storage id and trial of a task; None when it has finished already (a late message of a lost worker)."""
        if task_id not in self._numbers:
            raise LedgerError(f"{task_id}: no such trial in the ledger")
        trial_id = self.storage.get_trial_id_from_study_id_trial_number(self.study_id, self._numbers[task_id])
        trial = self.storage.get_trial(trial_id)
        return None if trial.state.is_finished() else (trial_id, trial)

    def report(self, task_id: str, metrics: Mapping[str, Any]) -> None:
        """Keep one epoch's row; an epoch that is trained again after a restart replaces its row."""
        found = self._open_trial(task_id)
        if found is None:
            return
        trial_id, trial = found
        row = plain(metrics)
        epoch = int(row["epoch"])
        value = metric_in(row, self.metric)
        if value is not None and math.isfinite(value) and trial.intermediate_values.get(epoch) != value:
            self.storage.set_trial_intermediate_value(trial_id, epoch, value)
        if trial.user_attrs.get(f"epoch:{epoch}") != row:
            self.storage.set_trial_user_attr(trial_id, f"epoch:{epoch}", row)

    def finish(self, task_id: str, status: str, result: Mapping[str, Any], value: float | None = None) -> int | None:
        """End a trial: what is known of it first, then its state by one append. Returns its number, None if it was
        ended before."""
        found = self._open_trial(task_id)
        if found is None:
            return None
        trial_id, trial = found
        if value is None:
            value = self._best_value(trial)
        stored = plain(result)
        values = None if value is None else [value, *self._further_values(trial, stored)]
        reason = self._why_failed(trial, values or []) if status != "failed" else None
        if reason is None and status == "completed" and value is None and "test" not in result:
            reason = self._never_reported(trial, self.metric)
        if reason is not None:
            status, stored["reason"] = "failed", reason
        if stored.get("reason"):
            stored["reason"] = str(stored["reason"])[:MAX_REASON]
        self.storage.set_trial_user_attr(trial_id, "result", stored)
        if status == "failed":
            values = None
        self.storage.set_trial_state_values(trial_id, _STATE[status], values)
        return trial.number

    def _best_value(self, trial: FrozenTrial) -> float | None:
        values = trial.intermediate_values.values()
        return (max(values) if self.mode == "max" else min(values)) if values else None

    def _further_values(self, trial: FrozenTrial, result: Mapping[str, Any]) -> list[float]:
        """Of the objectives beside the metric, as the result or the best epoch has them; NaN where neither does."""
        if not self.against:
            return []
        best = self._best_value(trial)
        row = next((row for row in _rows(trial) if metric_in(row, self.metric) == best), {})
        found = [metric_in({**row, **result}, name) for name in self.against]
        return [math.nan if value is None else value for value in found]

    def _why_failed(self, trial: FrozenTrial, values: Sequence[float]) -> str | None:
        """A trial whose metric was not finite, be it once, never wins."""
        for name, value in zip([self.metric, *self.against], values, strict=False):
            if not math.isfinite(value):
                return f"non-finite {name}" if name == self.metric else self._never_reported(trial, name)
        for row in _rows(trial):
            number = metric_in(row, self.metric)
            if number is not None and not math.isfinite(number):
                return f"non-finite {self.metric} at epoch {row['epoch']}"
        return None

    def _never_reported(self, trial: FrozenTrial, name: str) -> str:
        names = sorted({name for row in _rows(trial) for name in row} - {"epoch"})
        return f"{name} was never reported; reported: {', '.join(names) or 'nothing'}"


class _Progress(NamedTuple):
    """What the trials so far mean for the next one."""

    assigned: int  # trials that count towards the budget
    infeasible: int  # sampled and infeasible, since the last that counts
    duplicates: int  # since the last that counts
    all_infeasible: int  # sampled and infeasible, ever
    example: str | None  # reason of the last infeasible one
    grid_index: int | None  # of the next trial; None: the grid is done


class Ledger:
    """The record of one sweep, and the queue of its search. Open it by `create`, `open` or `read`."""

    def __init__(self, folder: Path, storage: _Storage, lock: DriverLock | None):
        self.folder = folder
        self.stop_reason: str | None = None
        "why `next` handed out nothing: budget, time, grid done, space exhausted or stopped"
        self._storage = storage
        self._lock = lock
        self._search_id = storage.get_study_id_from_name(SEARCH)
        self.spec = _stored_spec(folder, storage.get_study_user_attrs(self._search_id)["spec"])
        self.space = self.spec.search_space
        self._record = _Record(storage, SEARCH, self.spec.objectives)
        self._finalists = _Record(storage, FINALISTS, {self.spec.metric: self.spec.mode})
        self._grid_points = grid_in_order(self.spec)
        self._listed: dict[int, list[dict[str, Any]] | None] = {}
        self._grid_reasons: dict[int, str | None] = {}
        self._distributions = distributions(self.space.parameters)
        self._reissue = [t.number for t in self._record.trials() if t.state == TrialState.RUNNING]
        self._stopping = False
        sessions = [value for key, value in self._record.attrs().items() if key.startswith("session:")]
        self._session = f"session:{len(sessions)}"
        self._earlier_sessions = float(sum(sessions))
        self._since = self._noted = time.monotonic()
        if lock is not None:
            self._settle_duplicates()

    # -- opening and closing ------------------------------------------------------------------------------------------

    @classmethod
    def create(cls, folder: str | Path, spec: SweepSpec) -> Ledger:
        """Start the record of a new sweep in `folder` and become its driver."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        lock = DriverLock(folder)
        lock.acquire()
        try:
            if (folder / JOURNAL).exists():
                raise LedgerError(f"{folder}: exists; use sweeps resume {folder.name}")
            _write_new_journal(folder, spec)
            return cls._opened(folder, _JournalFile, lock)
        except BaseException:
            lock.release()
            raise

    @classmethod
    def open(cls, folder: str | Path) -> Ledger:
        """Become the driver of an existing sweep. What was running when its last driver died is handed out again."""
        folder = Path(folder)
        _must_exist(folder)
        lock = DriverLock(folder)
        lock.acquire()
        try:
            _replayed(folder, _ReadOnlyFile)  # refuse a damaged journal before its tail is touched
            repair_tail(folder / JOURNAL)
            ledger = cls._opened(folder, _JournalFile, lock)
            if ledger.fact("phase") == "failed":
                ledger.mark("searching")
            return ledger
        except BaseException:
            lock.release()
            raise

    @classmethod
    def read(cls, folder: str | Path) -> Ledger:
        """Look at a sweep, driven or not. Waits for nobody and writes nothing; sees what is appended later."""
        folder = Path(folder)
        _must_exist(folder)
        return cls._opened(folder, _ReadOnlyFile, None)

    @classmethod
    def _opened(cls, folder: Path, backend: type[JournalFileBackend], lock: DriverLock | None) -> Ledger:
        storage = _replayed(folder, backend)
        try:
            return cls(folder, storage, lock)
        except LedgerError:
            raise
        except Exception as error:
            raise damaged(folder / JOURNAL, f"{type(error).__name__}: {error}") from error

    def close(self) -> None:
        """Note how long this session took and let the next driver in."""
        if self._lock is not None:
            try:
                self._heartbeat()
            finally:
                self._lock.release()
                self._lock = None

    def __enter__(self) -> Ledger:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # -- the queue of the search --------------------------------------------------------------------------------------

    def next(self) -> Task | None:
        """The next trial to run, or None (`stop_reason` says why).

        First what was running when a driver died, with the same number, parameters and seed; then new trials.
        Raises `LedgerError` when the constraints leave (almost) nothing of the space.
        """
        if self._stopping:
            self.stop_reason = "stopped"
            return None
        if self._reissue:
            return self._task(self._record.trials()[self._reissue.pop(0)])
        while True:
            history = self._record.trials()
            progress = self._progress(history)
            self.stop_reason = self._why_stop(progress)
            if self.stop_reason is not None:
                return None
            number = self._propose(history, progress)
            trial = self._record.trials()[number]
            if trial.state == TrialState.RUNNING:
                return self._task(trial)

    def report(self, task_id: str, metrics: Mapping[str, Any]) -> None:
        """Record one epoch; `metrics` has `epoch`. Late reports of finished trials are ignored."""
        self._record.report(task_id, metrics)

    def finish(self, task_id: str, status: str, result: Mapping[str, Any]) -> None:
        """Record the end of a trial as `stopped`, `completed` or `failed`. Its value is the best of its epochs; a
        metric that was not finite, or never reported, makes it failed. A second end is ignored."""
        number = self._record.finish(task_id, status, result)
        if number is not None:
            self._settle_duplicates(number)
            self._heartbeat(_HEARTBEAT)

    def stop_asking(self) -> None:
        """Hand out nothing any more in this session."""
        self._stopping = True

    @property
    def elapsed(self) -> float:
        """Seconds that drivers have spent on this sweep, this session included."""
        if self._lock is not None:
            return self._earlier_sessions + time.monotonic() - self._since
        return float(sum(value for key, value in self._record.attrs().items() if key.startswith("session:")))

    def _heartbeat(self, at_least: float = 0.0) -> None:
        """Note the length of this session, unless it was noted less than `at_least` seconds ago."""
        now = time.monotonic()
        if now - self._noted >= at_least:
            self._noted = now
            self._record.set_attr(self._session, round(now - self._since, 3))

    def _task(self, trial: FrozenTrial) -> Task:
        config = self._config(trial).to_dict()
        payload = {"config": config, "seed": config["seed"], "number": trial.number, "kind": "trial"}
        return Task(trial.user_attrs["id"], payload)

    # -- proposing ----------------------------------------------------------------------------------------------------

    def _progress(self, history: Sequence[FrozenTrial]) -> _Progress:
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
        return _Progress(assigned, infeasible, duplicates, all_infeasible, example, index)

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

    def _why_stop(self, progress: _Progress) -> str | None:
        budget = self.spec.budget
        if budget.trials is not None and progress.assigned >= budget.trials:
            return "budget"
        if budget.time is not None and self.elapsed >= budget.time:
            return "time"
        if progress.grid_index is None:
            return "grid done" if self.space.pure_grid else "space exhausted"
        if progress.duplicates >= MAX_DUPLICATES:
            return "space exhausted"
        if progress.infeasible >= MAX_INFEASIBLE:
            if progress.duplicates:
                return "space exhausted"
            tried = progress.assigned + progress.all_infeasible
            raise LedgerError(
                f"{progress.infeasible} points in a row are infeasible, {progress.all_infeasible} of {tried} in all; "
                f"the last: {progress.example}; fix: relax the constraints or narrow the ranges"
            )
        return None

    def _propose(self, history: Sequence[FrozenTrial], progress: _Progress) -> int:
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
        params = {key: _recorded(values[key]) for key in self.space.parameters if key in values}
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
        self, grid_point: Mapping[str, Any], history: Sequence[FrozenTrial], progress: _Progress
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
            trial_id=_UNSTORED,
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
        return next(value for value in parameter.values if _recorded(value) == recorded)

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

    def _settle_duplicates(self, of: int | None = None) -> None:
        """Give waiting duplicates what their first trials came to."""
        trials = self._record.trials()
        for trial in trials:
            if trial.state != TrialState.WAITING or of not in (None, trial.user_attrs["duplicate_of"]):
                continue
            first = trials[trial.user_attrs["duplicate_of"]]
            if first.state.is_finished():
                trial_id = self._storage.get_trial_id_from_study_id_trial_number(self._search_id, trial.number)
                self._storage.set_trial_user_attr(trial_id, "result", _copied_result(first))
                self._storage.set_trial_state_values(trial_id, first.state, first.values)

    # -- reading ------------------------------------------------------------------------------------------------------

    def trials(self) -> list[TrialRecord]:
        """All trials, by number."""
        return [_trial_record(trial, list(self.spec.objectives)) for trial in self._record.trials()]

    def counts(self) -> dict[Status, int]:
        """How many trials have each status."""
        statuses = [record.status for record in self.trials()]
        return {status: statuses.count(status) for status in STATUSES}

    def config_of(self, number: int) -> RunConfig:
        """The config that trial `number` ran with, its own seed in it."""
        trials = self._record.trials()
        if not 0 <= number < len(trials):
            raise LedgerError(f"trial {number}: no such trial; the ledger has {len(trials)}")
        return self._config(trials[number])

    def _config(self, trial: FrozenTrial) -> RunConfig:
        base = {**self.spec.base_values, "seed": trial.user_attrs["seed"]}
        return self.space.build(base, trial.user_attrs["values"])

    def leaderboard(self) -> list[TrialRecord]:
        """Trials with a value, best first: completed ones before stopped ones; a config stands once."""
        ranked = [r for r in self.trials() if r.value is not None and r.duplicate_of is None]
        sign = -1 if self.spec.mode == "max" else 1
        return sorted(ranked, key=lambda r: (r.status != "completed", sign * (r.value or 0.0), r.number))

    def select(self, count: int) -> list[TrialRecord]:
        """The best `count` trials to re-evaluate: completed ones, or stopped ones when none is completed. With several
        objectives they are spread over the Pareto front, the best of the metric first."""
        ranked = self.pareto_front() if self.spec.against else self.leaderboard()
        ranked = [r for r in ranked if r.status == ranked[0].status]
        if not self.spec.against or count >= len(ranked):
            return ranked[:count]
        places = [round(i * (len(ranked) - 1) / max(1, count - 1)) for i in range(count)]
        return [ranked[place] for place in places]

    def pareto_front(self) -> list[TrialRecord]:
        """Trials that no other beats in one objective without losing in another, by the metric; one of equals."""
        signs = [-1 if mode == "max" else 1 for mode in self.spec.objectives.values()]
        ranked = self.leaderboard()
        losses = {r.number: [sign * x for sign, x in zip(signs, r.objectives.values(), strict=True)] for r in ranked}
        front: list[TrialRecord] = []
        for record in ranked:
            mine = losses[record.number]
            others = [losses[other.number] for other in ranked if other.status == record.status]
            beaten = any(all(a <= b for a, b in zip(other, mine, strict=True)) and other != mine for other in others)
            if not beaten and all(losses[kept.number] != mine for kept in front):
                front.append(record)
        return front

    def best(self) -> TrialRecord | None:
        """The first of the leaderboard."""
        return next(iter(self.leaderboard()), None)

    @property
    def study(self) -> Study:
        """The search in Optuna's own terms, for its plots and importances."""
        return optuna.load_study(study_name=SEARCH, storage=self._storage)

    # -- facts and state ----------------------------------------------------------------------------------------------

    def set_fact(self, key: str, value: Any) -> None:
        """Keep something about the whole sweep (baselines, oracle, verdict): plain JSON."""
        self._record.set_attr(f"fact:{key}", value)

    def fact(self, key: str) -> Any:
        """What `set_fact` kept, or None."""
        return self._record.attrs().get(f"fact:{key}")

    def mark(self, phase: Literal["searching", "finalists", "finished", "failed"]) -> None:
        """Where the sweep has got to."""
        self.set_fact("phase", phase)

    @property
    def state(self) -> State:
        """Where the sweep is; `interrupted` when it is neither at its end nor driven by a living process."""
        phase: State = self.fact("phase") or "searching"
        if phase in ("finished", "failed"):
            return phase
        driven = self._lock is not None or is_driven(self.folder)
        return phase if driven else "interrupted"

    def finalist_runs(self) -> list[FinalistRun]:
        """The re-evaluations; of one that was tried again, the last."""
        latest: dict[tuple[int | str, int], FinalistRun] = {}
        for trial in self._finalists.trials():
            attrs = trial.user_attrs
            run = FinalistRun(attrs["finalist"], attrs["seed"], _STATUS[trial.state], attrs.get("result", {}))
            latest[(run.finalist, run.seed)] = run
        return list(latest.values())


class FinalistQueue:
    """The queue of the re-evaluations. Handed out: what was running when a driver died, then what has no result yet
    (on a resume that includes what failed before)."""

    def __init__(self, ledger: Ledger, runs: Iterable[PlannedRun | tuple[int | str, dict[str, Any], int]]):
        self._record = ledger._finalists
        self._ledger = ledger
        self._stopping = False
        latest = {(t.user_attrs["finalist"], t.user_attrs["seed"]): t.state for t in self._record.trials()}
        plans = [PlannedRun(*run) for run in runs]
        done = (TrialState.COMPLETE, TrialState.PRUNED)
        open_plans = [plan for plan in plans if latest.get((plan.finalist, plan.seed)) not in done]
        self._todo = sorted(open_plans, key=lambda plan: latest.get((plan.finalist, plan.seed)) != TrialState.RUNNING)
        self._running = {key for key, state in latest.items() if state == TrialState.RUNNING}
        if ledger.fact("phase") != "finalists":
            ledger.mark("finalists")

    def next(self) -> Task | None:
        """The next run, or None."""
        if self._stopping or not self._todo:
            return None
        plan = self._todo.pop(0)
        task_id = finalist_id(plan.finalist, plan.seed)
        config = plain(plan.config) | {"seed": plan.seed}
        if (plan.finalist, plan.seed) not in self._running:
            attrs = {"id": task_id, "finalist": plan.finalist, "seed": plan.seed, "config_hash": content_hash(config)}
            self._record.create(TrialState.RUNNING, attrs)
        payload = {"config": config, "seed": plan.seed, "finalist": plan.finalist, "kind": "finalist"}
        return Task(task_id, payload)

    def report(self, task_id: str, metrics: Mapping[str, Any]) -> None:
        self._record.report(task_id, metrics)

    def finish(self, task_id: str, status: str, result: Mapping[str, Any]) -> None:
        """Record the end of a run; the value of a completed one is the sweep's metric on the test split."""
        value = metric_in(plain(result.get("test") or {}), self._record.metric)
        if self._record.finish(task_id, status, result, value) is not None:
            self._ledger._heartbeat(_HEARTBEAT)

    def stop_asking(self) -> None:
        """Hand out nothing any more in this session."""
        self._stopping = True


def _copied_result(first: FrozenTrial) -> dict[str, Any]:
    result: dict[str, Any] = dict(first.user_attrs.get("result", {})) | {"duration": 0.0}
    return result


def _trial_record(trial: FrozenTrial, objectives: Sequence[str]) -> TrialRecord:
    attrs = trial.user_attrs
    result = attrs.get("result", {})
    status = "infeasible" if attrs.get("status") == "infeasible" else _STATUS[trial.state]
    return TrialRecord(
        number=trial.number,
        id=attrs["id"],
        status=status,
        params=attrs["values"],
        value=trial.values[0] if trial.values else None,
        objectives=dict(zip(objectives, trial.values or [], strict=False)),
        epochs=[readable(row) for row in _rows(trial)],
        seed=attrs["seed"],
        config_hash=attrs["config_hash"],
        duration=result.get("duration"),
        node=result.get("node"),
        reason=attrs.get("reason") or result.get("reason"),
        artifacts=result.get("artifacts") or {},
        reused=result.get("reused") or [],
        health=result.get("health") or {},
        trained=result.get("trained") or [],
        started=trial.datetime_start.astimezone() if trial.datetime_start else None,
        finished=trial.datetime_complete.astimezone() if trial.datetime_complete else None,
        duplicate_of=attrs.get("duplicate_of"),
        grid_index=attrs["grid_index"],
    )


def _must_exist(folder: Path) -> None:
    if not (folder / JOURNAL).is_file():
        raise LedgerError(f"{folder}: no sweep here ({JOURNAL} is missing); fix: start one with sweeps run FILE")


def _stored_spec(folder: Path, data: Mapping[str, Any]) -> SweepSpec:
    try:
        return SweepSpec.from_dict(data)
    except ConfigError as error:
        raise LedgerError(f"{folder}: this version does not understand the sweep's spec:\n{error}") from None


def _replayed(folder: Path, backend: type[JournalFileBackend]) -> _Storage:
    """The storage with everything the journal says. Raises `LedgerError` where it says nonsense."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
    path = folder / JOURNAL
    try:
        return _Storage(backend(str(path)))
    except Exception as error:
        raise damaged(path, f"{type(error).__name__}: {error}") from error


def _write_new_journal(folder: Path, spec: SweepSpec) -> None:
    """Both studies and the spec, complete or not at all."""
    temporary = folder / f"{JOURNAL}.new"
    temporary.unlink(missing_ok=True)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    storage = JournalStorage(_JournalFile(str(temporary)))
    directions = [
        StudyDirection.MAXIMIZE if mode == "max" else StudyDirection.MINIMIZE for mode in spec.objectives.values()
    ]
    search = storage.create_new_study(directions, SEARCH)
    storage.create_new_study(directions[:1], FINALISTS)
    storage.set_study_user_attr(search, "spec", spec.to_dict())
    put(temporary, folder / JOURNAL)
