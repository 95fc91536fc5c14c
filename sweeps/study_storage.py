"""Where the studies of a sweep are kept: Optuna's storages, as a ledger with a single writer needs them."""

from __future__ import annotations

import json
import os
import warnings
from pathlib import Path
from typing import Any

import optuna
from optuna.storages.journal import JournalFileBackend, JournalStorage
from optuna.study import StudyDirection

from genrec.durable import put
from sweeps.journal import JOURNAL, LedgerError, damaged
from sweeps.spec import SweepSpec

SEARCH = "search"
FINALISTS = "finalists"
UNSTORED = -1
"the storage id of a trial that is not stored yet"
_EPOCH_OPERATIONS = (7, 8)  # intermediate value, user attribute of a trial


class JournalFile(JournalFileBackend):
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


class ReadOnlyFile(JournalFileBackend):
    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        raise LedgerError("this ledger was opened for reading")


class Storage(JournalStorage):
    """A sampler is asked about a trial that is not stored yet: what it notes about it is kept until the trial is."""

    def __init__(self, backend: JournalFileBackend):
        super().__init__(backend)
        self.notes: dict[str, Any] = {}

    def set_trial_system_attr(self, trial_id: int, key: str, value: Any) -> None:
        if trial_id != UNSTORED:
            super().set_trial_system_attr(trial_id, key, value)
        elif "relative_params" not in key:  # the parameters again
            self.notes[key] = value


def replayed(folder: Path, backend: type[JournalFileBackend]) -> Storage:
    """The storage with everything the journal says. Raises `LedgerError` where it says nonsense."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
    path = folder / JOURNAL
    try:
        return Storage(backend(str(path)))
    except Exception as error:
        raise damaged(path, f"{type(error).__name__}: {error}") from error


def write_new_journal(folder: Path, spec: SweepSpec) -> None:
    """Both studies and the spec, complete or not at all."""
    temporary = folder / f"{JOURNAL}.new"
    temporary.unlink(missing_ok=True)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    storage = JournalStorage(JournalFile(str(temporary)))
    directions = [
        StudyDirection.MAXIMIZE if mode == "max" else StudyDirection.MINIMIZE for mode in spec.objectives.values()
    ]
    search = storage.create_new_study(directions, SEARCH)
    storage.create_new_study(directions[:1], FINALISTS)
    storage.set_study_user_attr(search, "spec", spec.to_dict())
    put(temporary, folder / JOURNAL)
