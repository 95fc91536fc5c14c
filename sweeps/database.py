"""The studies of a sweep in a database: PostgreSQL, MySQL, or SQLite on one machine.

Optuna's own tables, so that its tools read them. Whole trials come by one transaction; that one process writes is seen
to by a row which is only ever exchanged against what was read (`sweeps.driver_lock`). The sweep's folder names the
database in `ledger.json`.
"""

from __future__ import annotations

import importlib.util
import json
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

import optuna
import sqlalchemy
from optuna.distributions import distribution_to_json
from optuna.exceptions import StorageInternalError
from optuna.storages import BaseStorage, RDBStorage
from optuna.storages import get_storage as with_cache
from optuna.storages._rdb import models
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy.engine import URL, Connection, make_url
from sqlalchemy.exc import ArgumentError, IntegrityError, SQLAlchemyError

from genrec.durable import write_text
from genrec.errors import InputError
from genrec.masking import MASK
from sweeps.driver_lock import DriverLock, seems_alive
from sweeps.errors import LedgerError
from sweeps.folders import url_of
from sweeps.ledger_url import POINTER, SCHEMES, driver_of, has_file, is_secret, on_network_file_system, resolved
from sweeps.mirror import lock_of
from sweeps.spec import SweepSpec
from sweeps.study_storage import FINALISTS, SEARCH, SPEC, directions_of

AWAY_SECONDS = 60.0
"for which a database server that does not answer any more is waited for"
RECONNECT_EVERY = 1.0  # seconds
_DRIVER = "driver"
_TRIALS: Any = models.TrialModel.__table__
_NOTES: Any = models.StudySystemAttributeModel.__table__


class Database(RDBStorage):
    """Optuna's tables for a single writer, which knows the next trial's number and that nobody else changes a row.

    What a queue of runs writes goes by a few plain statements, one transaction for what belongs together: Optuna's own
    way takes some twenty queries a trial, and refuses a parameter whose range has grown since the first trial.
    """

    def create_new_trial(self, study_id: int, template_trial: FrozenTrial | None = None) -> int:
        """Append the whole trial, number included."""
        assert template_trial is not None
        trial = template_trial
        row = {
            "number": trial.number,
            "study_id": study_id,
            "state": trial.state,
            "datetime_start": trial.datetime_start,
            "datetime_complete": trial.datetime_complete,
        }
        with self._transaction() as connection:
            added: Any = connection.execute(sqlalchemy.insert(_TRIALS).values(row))
            trial_id = int(added.inserted_primary_key[0])
            rows: dict[Any, list[dict[str, Any]]] = {
                models.TrialParamModel: [
                    {
                        "param_name": name,
                        "param_value": distribution.to_internal_repr(trial.params[name]),
                        "distribution_json": distribution_to_json(distribution),
                    }
                    for name, distribution in trial.distributions.items()
                ],
                models.TrialUserAttributeModel: _attributes(trial.user_attrs),
                models.TrialSystemAttributeModel: _attributes(trial.system_attrs),
                models.TrialValueModel: _values(trial.values or []),
                models.TrialIntermediateValueModel: [
                    {"step": step, **_intermediate(value)} for step, value in trial.intermediate_values.items()
                ],
            }
            for model, found in rows.items():
                if found:
                    statement = sqlalchemy.insert(model.__table__)
                    connection.execute(statement, [{"trial_id": trial_id, **columns} for columns in found])
        return trial_id

    def set_trial_intermediate_value(self, trial_id: int, step: int, intermediate_value: float) -> None:
        with self._transaction() as connection:
            where = {"trial_id": trial_id, "step": step}
            _put(connection, models.TrialIntermediateValueModel, where, _intermediate(intermediate_value))

    def set_trial_user_attr(self, trial_id: int, key: str, value: Any) -> None:
        with self._transaction() as connection:
            where = {"trial_id": trial_id, "key": key}
            _put(connection, models.TrialUserAttributeModel, where, {"value_json": json.dumps(value)})

    def set_trial_state_values(self, trial_id: int, state: TrialState, values: Sequence[float] | None = None) -> bool:
        """End the trial: its values and its state at once."""
        change = sqlalchemy.update(_TRIALS).where(_TRIALS.c.trial_id == trial_id)
        with self._transaction() as connection:
            if values:
                rows = [{"trial_id": trial_id, **row} for row in _values(values)]
                connection.execute(sqlalchemy.insert(models.TrialValueModel.__table__), rows)
            connection.execute(change.values(state=state, datetime_complete=datetime.now()))
        return True

    @contextmanager
    def _transaction(self) -> Iterator[Connection]:
        try:
            with self.engine.begin() as connection:
                yield connection
        except SQLAlchemyError as error:
            raise StorageInternalError(str(error)) from error


def _put(connection: Connection, model: Any, where: dict[str, Any], columns: dict[str, Any]) -> None:
    """Change the row, or insert it where there is none."""
    found = model.__table__
    update = sqlalchemy.update(found).where(*(found.c[name] == value for name, value in where.items()))
    if connection.execute(update.values(columns)).rowcount == 0:
        connection.execute(sqlalchemy.insert(found).values(where | columns))


def _attributes(attributes: dict[str, Any]) -> list[dict[str, Any]]:
    return [{"key": key, "value_json": json.dumps(value)} for key, value in attributes.items()]


def _values(values: Sequence[float]) -> list[dict[str, Any]]:
    stored = [models.TrialValueModel.value_to_stored_repr(value) for value in values]
    return [{"objective": i, "value": value, "value_type": kind} for i, (value, kind) in enumerate(stored)]


def _intermediate(value: float) -> dict[str, Any]:
    stored, kind = models.TrialIntermediateValueModel.intermediate_value_to_stored_repr(value)
    return {"intermediate_value": stored, "intermediate_value_type": kind}


class DriverRow:
    """The note of the driver (`genrec.lease.Note`) among the system attributes of the search's study."""

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

    def __init__(self, folder: Path, url: str, sweep: str | None = None):
        """`sweep`: its name where that is not the folder's, as in one that was renamed since."""
        sweep = sweep or folder.name
        self.folder = folder
        self.search, self.finalists = f"{sweep}/{SEARCH}", f"{sweep}/{FINALISTS}"
        self._sweep = sweep
        self._written = url
        self._url = _usable(url, folder)
        self._open: Database | None = None

    @classmethod
    def noted(cls, folder: Path) -> DatabasePlace:
        """The place that `ledger.json` in `folder` names."""
        try:
            note = json.loads((folder / POINTER).read_text())
            url, sweep = str(note["url"]), str(note["sweep"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise LedgerError(f"{folder / POINTER}: cannot be read: {type(error).__name__}: {error}") from None
        return cls(folder, url, sweep)

    @property
    def where(self) -> str:
        """The URL as it may be shown."""
        shown = {name: MASK if is_secret(name) else value for name, value in self._url.query.items()}
        return self._url.set(query=shown).render_as_string(hide_password=True)

    @contextmanager
    def _used(self) -> Iterator[Database]:
        """The connected storage; what goes wrong with it is a `LedgerError`."""
        storage = self._connected()
        try:
            yield storage
        except (StorageInternalError, SQLAlchemyError) as error:
            reason = str(error.__cause__ or error).splitlines()[0]
            raise LedgerError(f"{self.where}: cannot be used: {reason}; what was recorded before is intact") from error

    def exists(self) -> bool:
        """Whether the database has a sweep of this name that was begun whole."""
        with self._used() as storage:
            try:
                return SPEC in storage.get_study_user_attrs(storage.get_study_id_from_name(self.search))
            except KeyError:
                return False

    def must_exist(self) -> None:
        if not self.exists():
            raise LedgerError(f"{self.where}: no sweep {self._sweep} here; fix: start it with sweeps run FILE")

    def prepare(self, spec: SweepSpec) -> None:
        """Make the two studies, still without a spec, so that a driver has something to lock."""
        directions = directions_of(spec)
        with self._used() as storage:
            for name, wanted in ((self.search, directions), (self.finalists, directions[:1])):
                self._prepare(storage, name, wanted)

    def _prepare(self, storage: Database, name: str, wanted: list[Any]) -> None:
        try:
            study_id = storage.get_study_id_from_name(name)
        except KeyError:
            self._create(storage, name, wanted)
            return
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
        with self._used() as storage:
            storage.set_study_user_attr(storage.get_study_id_from_name(self.search), SPEC, spec.to_dict())

    def remove(self, lock: DriverLock) -> None:
        """All attributes of both studies, the spec among them, and the folder's note. The studies stay, empty: the
        lock's row is the search's."""
        storage, table = self._connected(), models.StudyUserAttributeModel.__table__
        ids = [storage.get_study_id_from_name(name) for name in (self.search, self.finalists)]
        with storage.engine.begin() as connection:
            connection.execute(sqlalchemy.delete(table).where(table.c.study_id.in_(ids)))
        lock.delete(POINTER)

    def attach(self) -> None:
        """Note in the sweep's folder where its ledger is."""
        self.folder.mkdir(parents=True, exist_ok=True)
        note = {"url": self._written, "sweep": self._sweep}
        write_text(self.folder / POINTER, json.dumps(note, indent=1) + "\n")

    def lock(self) -> DriverLock:
        return lock_of(self.folder, self._row())

    def is_driven(self) -> bool:
        """Whether a driver lives, or seems to on another machine."""
        text = self._row().read()
        return seems_alive(json.loads(text) if text else {})

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
                (_without_waiting if sqlite else _wait_for_server)(self._open)
            except ImportError:
                kind = self._url.get_backend_name()
                fix = f"pip install 'genrec-sweeps[{kind}]'"
                raise LedgerError(f"{self.where}: the package for {kind} is not installed; fix: {fix}") from None
            except (SQLAlchemyError, optuna.exceptions.OptunaError) as error:
                reason = str(error).splitlines()[0]
                message = f"{self.where}: cannot be reached: {reason}; nothing recorded is lost"
                raise LedgerError(message) from None
        return self._open


def _without_waiting(storage: Database) -> None:
    """SQLite that readers don't block and that waits for the disk now and then only: a killed process loses nothing, a
    power cut the last moments, whose trials are then run again."""

    @sqlalchemy.event.listens_for(storage.engine, "connect")
    def configure(connection: Any, _: Any) -> None:
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=NORMAL")

    storage.engine.dispose()  # connections made before


def _wait_for_server(storage: Database) -> None:
    """Outlast a restart of the server: connections that it dropped are made anew, for a while."""

    @sqlalchemy.event.listens_for(storage.engine, "do_connect")
    def connect(dialect: Any, _: Any, arguments: Any, options: Any) -> Any:
        deadline = time.monotonic() + AWAY_SECONDS
        while True:
            try:
                return dialect.connect(*arguments, **options)
            except dialect.loaded_dbapi.OperationalError:
                if time.monotonic() >= deadline:
                    raise
                time.sleep(RECONNECT_EVERY)


def _usable(written: str, folder: Path) -> URL:
    """The URL with environment variables in it, its driver, and SQLite's path made absolute and checked."""
    try:
        url = make_url(resolved(written))
    except ArgumentError:  # whose message would show it
        raise InputError(f"ledger: {written} is no URL of a database") from None
    if url.get_backend_name() not in SCHEMES:
        raise InputError(
            f"ledger: {written}: is a database of the kind {url.get_backend_name()}; "
            f"expected one of {', '.join(SCHEMES)}"
        )
    if url.get_backend_name() == "sqlite" and not has_file(url.database):
        raise InputError(f"ledger: {written}: a ledger in memory is lost with its process; fix: sqlite:///FILE.db")
    url = url.set(drivername=driver_of(url.drivername, lambda name: importlib.util.find_spec(name) is not None))
    if url.get_backend_name() == "sqlite":
        path = Path(str(url.database))
        if not path.is_absolute() and (store := url_of(folder.parent)) is not None:
            raise InputError(
                f"ledger: {written}: a relative path counts from the storage's folder, and {store} is none; "
                "fix: an absolute path, or ledger: postgresql://HOST/DATABASE"
            )
        path = path if path.is_absolute() else folder.absolute().parent / path
        if (kind := on_network_file_system(path)) is not None:
            raise LedgerError(
                f"{path}: SQLite is not safe on a network file system ({kind}); "
                "fix: a path on this machine's disk, or ledger: postgresql://HOST/DATABASE"
            )
        path.parent.mkdir(parents=True, exist_ok=True)
        url = url.set(database=str(path))
    return url
