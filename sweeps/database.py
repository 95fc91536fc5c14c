"""The studies of a sweep in a database: PostgreSQL, MySQL, or SQLite on one machine.

Optuna's own tables, so that its tools read them. Whole trials come by one transaction; that one process writes is seen
to by a row which is only ever exchanged against what was read (`sweeps.driver_lock`). The sweep's folder names the
database in `ledger.json`.
"""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import optuna
import sqlalchemy
from optuna.storages import BaseStorage, RDBStorage
from optuna.storages import get_storage as with_cache
from sqlalchemy import column, table
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import IntegrityError, SQLAlchemyError

from genrec.durable import write_text
from sweeps.driver_lock import DriverLock, is_alive_here
from sweeps.journal import LedgerError
from sweeps.ledger_url import POINTER, driver_of, on_network_file_system, resolved
from sweeps.spec import SweepSpec
from sweeps.study_storage import FINALISTS, SEARCH, SPEC, directions_of

_DRIVER = "driver"
_NOTES = table("study_system_attributes", column("study_id"), column("key"), column("value_json"))


class Database(RDBStorage):
    """Optuna's tables for a ledger that may be widened: a range that has grown since the first trial is no error, which
    is what Optuna asks when a parameter is written."""

    def _set_trial_param_without_commit(
        self, session: Any, trial_id: int, name: str, value: float, distribution: Any, previous: Any = None
    ) -> None:
        super()._set_trial_param_without_commit(session, trial_id, name, value, distribution, distribution)


class DriverRow:
    """The note of the driver (`sweeps.driver_lock.Note`) among the system attributes of the search's study."""

    def __init__(self, storage: RDBStorage, study_id: int):
        self._engine = storage.engine
        self._key = {"study_id": study_id, "key": _DRIVER}

    def read(self) -> str | None:
        query = sqlalchemy.select(_NOTES.c.value_json).where(*self._here())
        with self._engine.connect() as connection:
            return connection.execute(query).scalar_one_or_none()

    def swap(self, old: str | None, new: str) -> bool:
        with self._engine.begin() as connection:
            if old is not None:
                update = sqlalchemy.update(_NOTES).where(*self._here(), _NOTES.c.value_json == old)
                return connection.execute(update.values(value_json=new)).rowcount == 1
            try:
                connection.execute(sqlalchemy.insert(_NOTES).values(**self._key, value_json=new))
            except IntegrityError:  # another process was first
                return False
        return True

    def _here(self) -> list[Any]:
        return [_NOTES.c[name] == value for name, value in self._key.items()]


class DatabasePlace:
    """Where the ledger of the sweep in `folder` is, by the URL of its file."""

    def __init__(self, folder: Path, url: str):
        self.folder = folder
        self.search, self.finalists = f"{folder.name}/{SEARCH}", f"{folder.name}/{FINALISTS}"
        self._written = url
        self._url = _usable(url, folder)
        self._open: Database | None = None

    @classmethod
    def noted(cls, folder: Path) -> DatabasePlace:
        """The place that `ledger.json` in `folder` names."""
        try:
            note = json.loads((folder / POINTER).read_text())
            return cls(folder, note["url"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise LedgerError(f"{folder / POINTER}: cannot be read: {type(error).__name__}: {error}") from None

    @property
    def where(self) -> str:
        return self._url.render_as_string(hide_password=True)

    def exists(self) -> bool:
        """Whether the database has a sweep of this name that was begun whole."""
        storage = self._connected()
        try:
            return SPEC in storage.get_study_user_attrs(storage.get_study_id_from_name(self.search))
        except KeyError:
            return False

    def must_exist(self) -> None:
        if not self.exists():
            raise LedgerError(f"{self.where}: no sweep {self.folder.name} here; fix: start it with sweeps run FILE")

    def prepare(self, spec: SweepSpec) -> None:
        """Make the two studies, still without a spec, so that a driver has something to lock."""
        storage, directions = self._connected(), directions_of(spec)
        for name, wanted in ((self.search, directions), (self.finalists, directions[:1])):
            try:
                study_id = storage.get_study_id_from_name(name)
            except KeyError:
                self._create(storage, name, wanted)
                continue
            empty = not self.exists() and not storage.get_all_trials(study_id, deepcopy=False)
            if empty and storage.get_study_directions(study_id) != wanted:  # what a start that was cut short has left
                storage.delete_study(study_id)
                self._create(storage, name, wanted)

    def _create(self, storage: Database, name: str, directions: list[Any]) -> None:
        try:
            storage.create_new_study(directions, name)
        except optuna.exceptions.DuplicatedStudyError:
            return  # by another process in this instant; the lock decides between the two

    def write(self, spec: SweepSpec) -> None:
        """Begin the record. The folder's note comes first: a sweep that has begun can be found."""
        self.attach()
        storage = self._connected()
        storage.set_study_user_attr(storage.get_study_id_from_name(self.search), SPEC, spec.to_dict())

    def attach(self) -> None:
        """Note in the sweep's folder where its ledger is."""
        self.folder.mkdir(parents=True, exist_ok=True)
        note = {"url": self._written, "search": self.search, "finalists": self.finalists}
        write_text(self.folder / POINTER, json.dumps(note, indent=1) + "\n")

    def lock(self) -> DriverLock:
        return DriverLock(self.folder, self._row())

    def is_driven(self) -> bool:
        """Whether the driver lives; of one on another machine, whether it has not said goodbye."""
        text = self._row().read()
        driver = json.loads(text) if text else {"released": True}
        return is_alive_here(driver) is not False

    def _row(self) -> DriverRow:
        storage = self._connected()
        return DriverRow(storage, storage.get_study_id_from_name(self.search))

    def repair(self) -> None:
        """A database is whole or says itself that it is not."""

    def writing(self) -> BaseStorage:
        return self._connected()

    def reading(self) -> BaseStorage:
        return with_cache(self._connected())

    def damaged(self, error: Exception) -> LedgerError:
        return LedgerError(
            f"{self.where}: the ledger is damaged ({type(error).__name__}: {error}); nothing was changed"
        )

    def _connected(self) -> Database:
        if self._open is None:
            optuna.logging.set_verbosity(optuna.logging.WARNING)
            sqlite = self._url.get_backend_name() == "sqlite"
            options: dict[str, Any] = {"connect_args": {"timeout": 30}} if sqlite else {"pool_pre_ping": True}
            try:
                url = self._url.render_as_string(hide_password=False).replace("{", "{{").replace("}", "}}")
                self._open = Database(url, options)
            except (SQLAlchemyError, ImportError, optuna.exceptions.OptunaError) as error:
                reason = str(error).splitlines()[0]
                message = f"{self.where}: cannot be reached: {reason}; nothing recorded is lost"
                raise LedgerError(message) from None
        return self._open


def _usable(written: str, folder: Path) -> URL:
    """The URL with environment variables in it, its driver, and SQLite's path made absolute and checked."""
    url = make_url(resolved(written))
    url = url.set(drivername=driver_of(url.drivername, lambda name: importlib.util.find_spec(name) is not None))
    if url.get_backend_name() == "sqlite" and url.database:
        path = Path(url.database)
        path = path if path.is_absolute() else folder.absolute().parent / path
        if (kind := on_network_file_system(path)) is not None:
            raise LedgerError(
                f"{path}: SQLite is not safe on a network file system ({kind}); "
                "fix: a path on this machine's disk, or ledger: postgresql://HOST/DATABASE"
            )
        path.parent.mkdir(parents=True, exist_ok=True)
        url = url.set(database=str(path))
    return url
