"""Where the two studies of a sweep are kept: a journal file in its folder, or a database (`sweeps.database`).

A ledger has a single writer. The journal is Optuna's own file, written with more care for kills and full disks.
"""

from __future__ import annotations

import json
import os
import warnings
from pathlib import Path
from typing import Any, Protocol

import optuna
from optuna.storages import BaseStorage
from optuna.storages.journal import JournalFileBackend, JournalStorage
from optuna.study import StudyDirection

from genrec.durable import put
from sweeps.driver_lock import DriverLock, is_driven
from sweeps.errors import LedgerError
from sweeps.journal import JOURNAL, damaged, repair_tail
from sweeps.ledger_url import POINTER
from sweeps.mirror import lock_of
from sweeps.spec import SweepSpec

SEARCH = "search"
FINALISTS = "finalists"
SPEC = "spec"
"name of the study attribute with the spec; a sweep exists once it is set"
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


class Place(Protocol):
    """Where the studies of one sweep are."""

    search: str
    finalists: str

    def exists(self) -> bool:
        """Whether a sweep was begun here whole."""

    def must_exist(self) -> None:
        """Raises `LedgerError` where there is none."""

    def prepare(self, spec: SweepSpec) -> None:
        """Before the lock is taken for a new sweep."""

    def write(self, spec: SweepSpec) -> None:
        """Begin the sweep."""

    def remove(self, lock: DriverLock) -> None:
        """Take back what `write` has begun, and all that was recorded since; `lock` is this sweep's, and held."""

    def attach(self) -> None:
        """Make the sweep's folder know where its studies are."""

    def lock(self) -> DriverLock: ...

    def is_driven(self) -> bool:
        """Whether a living process has the lock."""

    def repair(self) -> None:
        """What the lock's new owner must mend before it writes. Raises `LedgerError` for what cannot be mended."""

    def writing(self) -> BaseStorage: ...

    def reading(self) -> BaseStorage:
        """Sees what is written later; writes nothing."""

    def damaged(self, error: Exception) -> LedgerError:
        """The error for contents that make no sense."""


class JournalPlace:
    """`ledger.journal` in the sweep's folder."""

    search, finalists = SEARCH, FINALISTS

    def __init__(self, folder: Path):
        self._folder = folder
        self._path = folder / JOURNAL

    def exists(self) -> bool:
        return self._path.exists()

    def must_exist(self) -> None:
        if not self._path.is_file():
            message = f"{self._folder}: no sweep here ({JOURNAL} is missing); fix: start one with sweeps run FILE"
            raise LedgerError(message)

    def prepare(self, spec: SweepSpec) -> None:
        """Nothing: the file comes by one rename."""

    def write(self, spec: SweepSpec) -> None:
        """Both studies and the spec, complete or not at all."""
        temporary = self._folder / f"{JOURNAL}.new"
        temporary.unlink(missing_ok=True)
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        storage = JournalStorage(JournalFile(str(temporary)))
        directions = directions_of(spec)
        search = storage.create_new_study(directions, SEARCH)
        storage.create_new_study(directions[:1], FINALISTS)
        storage.set_study_user_attr(search, SPEC, spec.to_dict())
        put(temporary, self._path)

    def remove(self, lock: DriverLock) -> None:
        """The file: the one thing that makes the folder a sweep's."""
        lock.delete(JOURNAL)

    def attach(self) -> None:
        """Nothing: they are in it."""

    def lock(self) -> DriverLock:
        return lock_of(self._folder)

    def is_driven(self) -> bool:
        return is_driven(self._folder)

    def repair(self) -> None:
        self.reading()  # refuse a damaged journal before its tail is touched
        repair_tail(self._path)

    def writing(self) -> BaseStorage:
        return self._replayed(JournalFile)

    def reading(self) -> BaseStorage:
        return self._replayed(ReadOnlyFile)

    def damaged(self, error: Exception) -> LedgerError:
        return damaged(self._path, f"{type(error).__name__}: {error}")

    def _replayed(self, backend: type[JournalFileBackend]) -> JournalStorage:
        """The storage with everything the journal says. Raises `LedgerError` where it says nonsense."""
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
        try:
            return JournalStorage(backend(str(self._path)))
        except Exception as error:
            raise self.damaged(error) from error


def place_of(folder: Path, url: str | None = None) -> Place:
    """Where the sweep in `folder` keeps its studies; `url`: of one that is begun in a database now."""
    if url is None and not (folder / POINTER).is_file():
        return JournalPlace(folder)
    from sweeps.database import DatabasePlace

    return DatabasePlace.noted(folder) if url is None else DatabasePlace(folder, url)


def directions_of(spec: SweepSpec) -> list[StudyDirection]:
    """Which way the objectives are better, in Optuna's terms."""
    return [StudyDirection.MAXIMIZE if mode == "max" else StudyDirection.MINIMIZE for mode in spec.objectives.values()]
