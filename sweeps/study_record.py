"""The trials of one study: written as a queue of runs wants them, read as plain records."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from optuna.storages.journal import JournalStorage
from optuna.trial import FrozenTrial, TrialState

from sweeps.journal import LedgerError
from sweeps.records import Status, TrialRecord, metric_in, plain, readable
from sweeps.study_storage import UNSTORED

MAX_REASON = 4000

STATUS: dict[TrialState, Status] = {
    TrialState.WAITING: "waiting",
    TrialState.RUNNING: "running",
    TrialState.PRUNED: "stopped",
    TrialState.COMPLETE: "completed",
    TrialState.FAIL: "failed",
}
_STATE = {"stopped": TrialState.PRUNED, "completed": TrialState.COMPLETE, "failed": TrialState.FAIL}


class StudyRecord:
    """One study in the journal: the trials in it, written as a queue wants them."""

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
            trial_id=UNSTORED,
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


def rows_of(trial: FrozenTrial) -> list[dict[str, Any]]:
    rows = [row for key, row in trial.user_attrs.items() if key.startswith("epoch:")]
    return sorted(rows, key=lambda row: row["epoch"])


def trial_record(trial: FrozenTrial, objectives: Sequence[str]) -> TrialRecord:
    attrs = trial.user_attrs
    result = attrs.get("result", {})
    status = "infeasible" if attrs.get("status") == "infeasible" else STATUS[trial.state]
    return TrialRecord(
        number=trial.number,
        id=attrs["id"],
        status=status,
        params=attrs["values"],
        value=trial.values[0] if trial.values else None,
        objectives=dict(zip(objectives, trial.values or [], strict=False)),
        epochs=[readable(row) for row in rows_of(trial)],
        seed=attrs["seed"],
        config_hash=attrs["config_hash"],
        duration=result.get("duration"),
        node=result.get("node"),
        reason=attrs.get("reason") or result.get("reason"),
        artifacts=result.get("artifacts") or {},
        reused=result.get("reused") or [],
        trained=result.get("trained") or [],
        started=trial.datetime_start.astimezone() if trial.datetime_start else None,
        finished=trial.datetime_complete.astimezone() if trial.datetime_complete else None,
        duplicate_of=attrs.get("duplicate_of"),
        grid_index=attrs["grid_index"],
    )
