"""The trials of one study: written as a queue of runs wants them, read as plain records."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from copy import copy
from datetime import datetime
from typing import Any

from optuna.exceptions import StorageInternalError
from optuna.storages import BaseStorage
from optuna.trial import FrozenTrial, TrialState

from sweeps.errors import LedgerError
from sweeps.records import Run, Status, TrialRecord, metric_in, plain, readable

MAX_REASON = 4000
UNSTORED = -1
"the storage id of a trial that is not stored yet"

STATUS: dict[TrialState, Status] = {
    TrialState.WAITING: "waiting",
    TrialState.RUNNING: "running",
    TrialState.PRUNED: "stopped",
    TrialState.COMPLETE: "completed",
    TrialState.FAIL: "failed",
}
_PAUSED = "paused"
_RUNS = "runs:"  # followed by the number of the session
_CONDEMNED = "condemned"
_STATE = {"stopped": TrialState.PRUNED, "completed": TrialState.COMPLETE, "failed": TrialState.FAIL}


class StudyRecord:
    """One study: the trials in it, written as a queue wants them.

    Its only writer has all trials in memory and never reads them again, so that a trial costs the same whatever came
    before it; `guard` is asked before every write. Without a guard it is a reader, which sees what is written later.
    A trial that changes is replaced, not altered: who holds one holds a state of it.
    """

    def __init__(
        self,
        storage: BaseStorage,
        name: str,
        objectives: Mapping[str, str],
        guard: Callable[[], None] | None = None,
    ):
        self.storage = storage
        self.study_id = storage.get_study_id_from_name(name)
        self.metric, *self.against = objectives
        self.mode = objectives[self.metric]
        self.stamp: dict[str, Any] = {}
        "attributes that every trial gets"
        self._guard = guard
        self._trials = storage.get_all_trials(self.study_id, deepcopy=False)
        self._attrs = storage.get_study_user_attrs(self.study_id)
        self._system_attrs = storage.get_study_system_attrs(self.study_id)
        self._numbers = {trial.user_attrs["id"]: trial.number for trial in self._trials}

    def trials(self) -> list[FrozenTrial]:
        """All trials by number; not to be changed."""
        return self._trials if self._guard else self.storage.get_all_trials(self.study_id, deepcopy=False)

    def attrs(self) -> dict[str, Any]:
        return self._attrs if self._guard else self.storage.get_study_user_attrs(self.study_id)

    def set_attr(self, key: str, value: Any) -> None:
        value = plain(value)
        self._write("set_study_user_attr", self.study_id, key, value)
        self._attrs = self._attrs | {key: value}

    def system_attrs(self) -> dict[str, Any]:
        return self._system_attrs

    def set_system_attr(self, key: str, value: Any) -> None:
        self._write("set_study_system_attr", self.study_id, key, value)
        self._system_attrs = self._system_attrs | {key: value}

    def _write(self, operation: str, *arguments: Any) -> Any:
        """Call the storage. Its failures are `LedgerError`s; what was written before is intact."""
        if self._guard is None:
            raise LedgerError("this ledger was opened for reading")
        self._guard()
        try:
            return getattr(self.storage, operation)(*arguments)
        except StorageInternalError as error:
            cause = str(error.__cause__ or error).splitlines()[0]
            raise LedgerError(f"the ledger cannot be written: {cause}; what was recorded before is intact") from error

    def create(self, state: TrialState, attrs: dict[str, Any], **fields: Any) -> FrozenTrial:
        """Append one whole trial."""
        number = len(self._trials)
        now = datetime.now()
        trial = FrozenTrial(
            number=number,
            trial_id=UNSTORED,
            state=state,
            value=None,
            values=fields.get("values"),
            datetime_start=None if state == TrialState.WAITING else now,
            datetime_complete=now if state.is_finished() else None,
            params=fields.get("params", {}),
            distributions=fields.get("distributions", {}),
            user_attrs=plain(self.stamp | attrs),
            system_attrs=fields.get("system_attrs", {}),
            intermediate_values=fields.get("intermediate_values", {}),
        )
        trial_id = self._write("create_new_trial", self.study_id, trial)
        self._trials.append(changed(trial, _trial_id=trial_id))
        self._numbers[attrs["id"]] = number
        return self._trials[number]

    def knows(self, task_id: str) -> bool:
        """Whether a trial of the study has this id. For its writer."""
        return task_id in self._numbers

    def number_of(self, task_id: str) -> int:
        if task_id not in self._numbers:
            raise LedgerError(f"{task_id}: no such trial in the ledger")
        return self._numbers[task_id]

    def _open_trial(self, task_id: str) -> FrozenTrial | None:
        """The trial of a task; None when it has finished already (a late message of a lost worker)."""
        trial = self._trials[self.number_of(task_id)]
        return None if trial.state.is_finished() else trial

    def report(self, task_id: str, metrics: Mapping[str, Any]) -> None:
        """Keep one epoch's row; an epoch that is trained again after a restart replaces its row."""
        trial = self._open_trial(task_id)
        if trial is None:
            return
        row = plain(metrics)
        epoch = int(row["epoch"])
        value = metric_in(row, self.metric)
        if value is not None and math.isfinite(value) and trial.intermediate_values.get(epoch) != value:
            self._write("set_trial_intermediate_value", trial._trial_id, epoch, value)
            self._replace(trial.number, intermediate_values=trial.intermediate_values | {epoch: value})
        if trial.user_attrs.get(f"epoch:{epoch}") != row:
            self._set_trial_attr(trial.number, f"epoch:{epoch}", row)

    def _set_trial_attr(self, number: int, key: str, value: Any) -> None:
        trial = self._trials[number]
        self._write("set_trial_user_attr", trial._trial_id, key, value)
        self._replace(number, user_attrs=trial.user_attrs | {key: value})

    def pause(self, task_id: str, epoch: int) -> None:
        """Note that a trial waits at this epoch; with the next epoch's row it is seen to go on."""
        trial = self._open_trial(task_id)
        if trial is not None:
            self._set_trial_attr(trial.number, _PAUSED, epoch)

    def note_runs(self, task_id: str, session: int, runs: Sequence[Sequence[str | None]]) -> None:
        """Keep when and where a trial ran in a session, [start, end, node] each; a later note of the session replaces
        the earlier."""
        trial = self._open_trial(task_id)
        if trial is not None:
            self._set_trial_attr(trial.number, f"{_RUNS}{session}", plain(runs))

    def condemn(self, task_id: str, verdict: Mapping[str, Any]) -> None:
        """Note that a trial ends at the verdict's epoch, which is reported next."""
        trial = self._open_trial(task_id)
        if trial is not None:
            self._set_trial_attr(trial.number, _CONDEMNED, plain(verdict))

    def end(self, number: int, state: TrialState, result: dict[str, Any], values: Sequence[float] | None) -> None:
        """End a trial: its result first, then its state by one append."""
        self._set_trial_attr(number, "result", result)
        self._write("set_trial_state_values", self._trials[number]._trial_id, state, values)
        self._replace(number, state=state, datetime_complete=datetime.now())
        if values is not None:
            self._replace(number, values=list(values))

    def _replace(self, number: int, **fields: Any) -> None:
        self._trials[number] = changed(self._trials[number], **fields)

    def finish(self, task_id: str, status: str, result: Mapping[str, Any], value: float | None = None) -> int | None:
        """End a trial as its epochs and its result say. Returns its number, None if it was ended before."""
        trial = self._open_trial(task_id)
        if trial is None:
            return None
        if value is None:
            value = self.best_value(trial)
        stored = plain(result)
        values = None if value is None else [value, *self._further_values(trial, stored)]
        reason = self._why_failed(trial, values or []) if status != "failed" else None
        if reason is None and status == "completed" and value is None and "test" not in result:
            reason = self._never_reported(trial, self.metric)
        if reason is not None:
            status, stored["reason"] = "failed", reason
        if stored.get("reason"):
            stored["reason"] = str(stored["reason"])[:MAX_REASON]
        self.end(trial.number, _STATE[status], stored, None if status == "failed" else values)
        return trial.number

    def best_value(self, trial: FrozenTrial) -> float | None:
        """Of the metric, over the trial's epochs."""
        values = trial.intermediate_values.values()
        return (max(values) if self.mode == "max" else min(values)) if values else None

    def _further_values(self, trial: FrozenTrial, result: Mapping[str, Any]) -> list[float]:
        """Of the objectives beside the metric, as the result or the best epoch has them; NaN where neither does."""
        if not self.against:
            return []
        best = self.best_value(trial)
        row = next((row for row in rows_of(trial) if metric_in(row, self.metric) == best), {})
        found = [metric_in({**row, **result}, name) for name in self.against]
        return [math.nan if value is None else value for value in found]

    def _why_failed(self, trial: FrozenTrial, values: Sequence[float]) -> str | None:
        """A trial whose metric was not finite, be it once, never wins."""
        for name, value in zip([self.metric, *self.against], values, strict=False):
            if not math.isfinite(value):
                return f"non-finite {name}" if name == self.metric else self._never_reported(trial, name)
        for row in rows_of(trial):
            number = metric_in(row, self.metric)
            if number is not None and not math.isfinite(number):
                return f"non-finite {self.metric} at epoch {row['epoch']}"
        return None

    def _never_reported(self, trial: FrozenTrial, name: str) -> str:
        names = sorted({name for row in rows_of(trial) for name in row} - {"epoch"})
        return f"{name} was never reported; reported: {', '.join(names) or 'nothing'}"


def changed(trial: FrozenTrial, **fields: Any) -> FrozenTrial:
    """A copy with other fields; the fields of the original stay what they are."""
    changed = copy(trial)
    for name, value in fields.items():
        setattr(changed, name, value)
    return changed


def is_paused(trial: FrozenTrial) -> bool:
    """Whether a trial that has not ended waits at an epoch to be promoted."""
    epoch = trial.user_attrs.get(_PAUSED)
    return epoch is not None and not trial.state.is_finished() and epoch >= max(trial.intermediate_values, default=0)


def condemned(trial: FrozenTrial) -> dict[str, Any] | None:
    """Reason and cause of a stop that was decided, and that the trial, which has not ended, has yet to carry out."""
    verdict = trial.user_attrs.get(_CONDEMNED)
    if verdict is None or trial.state.is_finished() or f"epoch:{verdict['epoch']}" not in trial.user_attrs:
        return None
    return {"reason": verdict["reason"], "stopped_by": verdict["stopped_by"]}


def rows_of(trial: FrozenTrial) -> list[dict[str, Any]]:
    rows = [row for key, row in trial.user_attrs.items() if key.startswith("epoch:")]
    return sorted(rows, key=lambda row: row["epoch"])


def epochs_of(trial: FrozenTrial) -> list[dict[str, Any]]:
    """What every epoch reported, in order, with NaN and infinities as numbers."""
    return [readable(row) for row in rows_of(trial)]


def runs_of(trial: FrozenTrial) -> list[Run]:
    """When and where a trial was run, over all sessions, by time; empty where nobody noted it."""
    noted = [runs for key, runs in trial.user_attrs.items() if key.startswith(_RUNS)]
    noted.append(trial.user_attrs.get("result", {}).get("runs") or [])
    return sorted({run for runs in noted for run in _runs(runs)}, key=lambda run: run.start)  # one may stand in both


def _runs(noted: Sequence[Sequence[Any]]) -> list[Run]:
    return [Run(datetime.fromisoformat(start), datetime.fromisoformat(end), node) for start, end, node in noted]


def duration_of(trial: FrozenTrial) -> float | None:
    """Seconds that a trial was run: what its last session tells, and what its runs in earlier ones took."""
    result, runs = trial.user_attrs.get("result", {}), runs_of(trial)
    last = set(_runs(result.get("runs") or []))
    earlier = [(run.end - run.start).total_seconds() for run in runs if run not in last]
    if result.get("duration") is None and not earlier:
        return None
    return float((result.get("duration") or 0.0) + sum(earlier))


def trial_record(trial: FrozenTrial, objectives: Sequence[str]) -> TrialRecord:
    attrs = trial.user_attrs
    result = attrs.get("result", {})
    status = "infeasible" if attrs.get("status") == "infeasible" else STATUS[trial.state]
    if is_paused(trial):
        status = "waiting"
    return TrialRecord(
        number=trial.number,
        id=attrs["id"],
        status=status,
        params=attrs["values"],
        value=trial.values[0] if trial.values else None,
        objectives=dict(zip(objectives, trial.values or [], strict=False)),
        epochs=epochs_of(trial),
        seed=attrs["seed"],
        config_hash=attrs["config_hash"],
        duration=duration_of(trial),
        node=result.get("node"),
        reason=attrs.get("reason") or result.get("reason"),
        stopped_by=result.get("stopped_by"),
        broken=attrs.get("broken"),
        artifacts=result.get("artifacts") or {},
        reused=result.get("reused") or [],
        health=result.get("health") or {},
        changes=result.get("changes") or [],
        trained=result.get("trained") or [],
        restarts=result.get("restarts") or [],
        runs=runs_of(trial),
        started=trial.datetime_start.astimezone() if trial.datetime_start else None,
        finished=trial.datetime_complete.astimezone() if trial.datetime_complete else None,
        duplicate_of=attrs.get("duplicate_of"),
        source=attrs.get("from"),
        code=attrs.get("code"),
        grid_index=attrs["grid_index"],
    )
