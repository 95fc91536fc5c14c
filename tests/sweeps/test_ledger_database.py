"""A ledger in a database: as durable, as exclusive and as readable for Optuna as the one in a file."""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from database_servers import Server, free_port, mysql_server, postgresql_server
from made_up_trials import (
    CHOICES,
    MIXED,
    SAMPLED,
    drive,
    essence,
    finished,
    killed_driver,
    run_one,
    sampler_of,
    spec_of,
)
from optuna.exceptions import StorageInternalError
from sqlalchemy.exc import OperationalError

from genrec import lease
from genrec.config import ConfigError
from genrec.errors import InputError
from sweeps import database, driver_lock
from sweeps.database import Database, DriverRow
from sweeps.driver_lock import Claim
from sweeps.ledger import FinalistQueue, Ledger, LedgerError
from sweeps.ledger_url import checked_url, driver_of, on_network_file_system, resolved

SQLITE = "sqlite:///ledgers.db"  # beside the sweeps' folders


@pytest.fixture(scope="module")
def postgres(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    pytest.importorskip("psycopg")
    with postgresql_server(tmp_path_factory.mktemp("postgres")) as server:
        yield server


@pytest.fixture(scope="module")
def mysql(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    pytest.importorskip("pymysql")
    with mysql_server(tmp_path_factory.mktemp("mysql")) as server:
        yield server


@pytest.fixture(params=["sqlite", "postgres", "mysql"])
def url(request: pytest.FixtureRequest) -> str:
    return SQLITE if request.param == "sqlite" else str(request.getfixturevalue(request.param).url)


def name_of(request: pytest.FixtureRequest) -> str:
    """Of a sweep, different for every test: a server keeps what earlier ones left."""
    return "".join(c if c.isalnum() else "-" for c in request.node.name)[:60]


def test_a_database_records_what_a_file_records(tmp_path: Path, url: str, request: pytest.FixtureRequest):
    options: dict[str, Any] = {"budget__trials": 12, **sampler_of("tpe")}
    in_file = finished(tmp_path / "file", spec_of(tmp_path, MIXED, **options), concurrency=2)
    folder = tmp_path / name_of(request)
    with Ledger.create(folder, spec_of(tmp_path, MIXED, ledger=url, **options)) as ledger:
        drive(ledger, concurrency=2)
        assert essence(ledger) == in_file
        assert Ledger.read(folder).state == "searching"
        ledger.set_fact("oracle", {"recall@10": 0.5})
    reader = Ledger.read(folder)
    assert essence(reader) == in_file
    assert reader.fact("oracle") == {"recall@10": 0.5}
    assert reader.state == "interrupted"
    assert not (folder / "ledger.journal").exists()


def test_what_ran_when_the_driver_died_comes_first(tmp_path: Path, url: str, request: pytest.FixtureRequest):
    folder = tmp_path / name_of(request)
    spec = spec_of(tmp_path, CHOICES, budget__trials=4, ledger=url)
    with Ledger.create(folder, spec) as ledger:
        tasks = [ledger.next() for _ in range(4)]
        assert ledger.counts()["waiting"] > 0
        ledger.report(tasks[0].id, {"epoch": 1, "ndcg@10": 0.1})
    with Ledger.open(folder) as ledger:
        assert [ledger.next() for _ in range(4)] == tasks
        ledger.report(tasks[0].id, {"epoch": 1, "ndcg@10": 0.4})
        for task in tasks:
            ledger.finish(task.id, "completed", {"artifacts": {"tiger": "k"}})
        assert ledger.counts()["waiting"] == 0
        queue = FinalistQueue(ledger, [(0, ledger.config_of(0).to_dict(), 0)])
        queue.finish(queue.next().id, "completed", {"test": {"ndcg@10": 0.3}})
    reader = Ledger.read(folder)
    assert reader.trials()[0].epochs == [{"epoch": 1, "ndcg@10": 0.4}]
    assert reader.finalist_runs()[0].result["test"] == {"ndcg@10": 0.3}


@pytest.mark.parametrize("kind", ["postgres", "mysql"])
def test_a_server_that_is_restarted_is_waited_for(tmp_path: Path, kind: str, request: pytest.FixtureRequest):
    server: Server = request.getfixturevalue(kind)
    spec = spec_of(tmp_path, CHOICES, budget__trials=2, ledger=server.url)
    with Ledger.create(tmp_path / name_of(request), spec) as ledger:
        run_one(ledger, ledger.next())
        server.stop()
        back = threading.Timer(2.0, server.start)
        back.start()
        run_one(ledger, ledger.next())
        back.join()
        assert [trial.status for trial in ledger.trials()] == ["completed"] * 2


def test_a_server_that_stays_away_ends_the_driver_and_keeps_what_was_recorded(
    tmp_path: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(database, "AWAY_SECONDS", 0.5)
    server: Server = request.getfixturevalue("postgres")
    folder = tmp_path / name_of(request)
    with Ledger.create(folder, spec_of(tmp_path, CHOICES, budget__trials=2, ledger=server.url)) as ledger:
        run_one(ledger, ledger.next())
        server.stop()
        try:
            with pytest.raises(LedgerError, match=r"cannot be written: .* refused; what was recorded before is intact"):
                run_one(ledger, ledger.next())
        finally:
            server.start()
    assert [trial.status for trial in Ledger.read(folder).trials()] == ["completed"]


DRIVER = """
import os, signal, sys
from pathlib import Path
sys.path.insert(0, sys.argv[3])
import made_up_trials
import sweeps.proposer
from made_up_trials import drive
made_up_trials.model_key = sweeps.proposer.model_key = lambda config: None  # the real one takes seconds to load torch
from sweeps.database import Database
from sweeps.ledger import Ledger
kill_at, calls = int(sys.argv[2]), 0
real = Database._transaction
def transaction(self):
    global calls
    calls += 1
    if calls == kill_at:
        os.kill(os.getpid(), signal.SIGKILL)
    return real(self)
Database._transaction = transaction
with Ledger.open(Path(sys.argv[1])) as ledger:
    drive(ledger)
"""


def test_a_driver_that_is_really_killed_is_taken_over_at_once(tmp_path: Path):
    spec = spec_of(tmp_path, SAMPLED, budget__trials=5, sampler__type="random", ledger=SQLITE)
    whole = finished(tmp_path / "whole", spec)
    Ledger.create(tmp_path / "x", spec).close()
    for kill_at in (3, 5, 8):
        killed_driver(tmp_path / "x", DRIVER, kill_at)
    with Ledger.open(tmp_path / "x") as ledger:
        drive(ledger)
        assert essence(ledger) == whole


def test_sweeps_of_one_database_are_apart_and_a_name_is_taken_once(tmp_path: Path):
    spec = spec_of(tmp_path, SAMPLED, budget__trials=2, ledger=f"sqlite:///{tmp_path}/shared.db")
    for name in ("a/x", "a/y"):
        with Ledger.create(tmp_path / name, spec) as ledger:
            run_one(ledger, ledger.next())
    with pytest.raises(LedgerError, match="x: exists; use sweeps resume x"):
        Ledger.create(tmp_path / "b" / "x", spec)  # another machine's folder
    assert not Ledger.attach(tmp_path / "b" / "z", spec)
    assert Ledger.attach(tmp_path / "b" / "x", spec)
    with Ledger.open(tmp_path / "b" / "x") as ledger:
        run_one(ledger, ledger.next())
    assert len(Ledger.read(tmp_path / "a" / "x").trials()) == 2
    assert len(Ledger.read(tmp_path / "a" / "y").trials()) == 1


def test_optunas_own_tools_read_the_database(tmp_path: Path):
    import optuna

    with Ledger.create(tmp_path / "x", spec_of(tmp_path, SAMPLED, budget__trials=3, ledger=SQLITE)) as ledger:
        drive(ledger)
        best = ledger.best()
    study = optuna.load_study(study_name="x/search", storage=f"sqlite:///{tmp_path}/ledgers.db")
    assert best is not None
    assert study.best_value == best.value
    assert study.trials[0].intermediate_values.keys() == {1, 2}
    assert study.trials[0].user_attrs["result"]["node"] == "n1"


# -- one driver -------------------------------------------------------------------------------------------------------


@pytest.fixture
def quick_hearts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(driver_lock, "BEAT", 0.1)
    monkeypatch.setattr(driver_lock, "EXPIRY", 2.0)


def elsewhere(monkeypatch: pytest.MonkeyPatch, host: str = "another") -> None:
    """From now on this process takes itself for one on another machine."""
    place = {"host": host, "boot_id": host, "pid_namespace": 1}
    monkeypatch.setattr(lease, "_this_place", lambda: place)


def row_of(tmp_path: Path) -> DriverRow:
    storage = Database(f"sqlite:///{tmp_path}/lock.db")
    try:
        study_id = storage.create_new_study([], "x/search")
    except Exception:
        study_id = storage.get_study_id_from_name("x/search")
    return DriverRow(storage, study_id)


def test_a_second_driver_is_refused_by_name_wherever_it_is(
    tmp_path: Path, quick_hearts: None, monkeypatch: pytest.MonkeyPatch
):
    first = Claim(row_of(tmp_path), "x")
    first.acquire()
    try:
        for place in ("here", "there"):
            if place == "there":
                elsewhere(monkeypatch)
            with pytest.raises(LedgerError, match=rf"sweep x is being driven by pid {os.getpid()} on \S+ since 20"):
                Claim(row_of(tmp_path), "x").acquire()
        first.check()
    finally:
        first.release()
    second = Claim(row_of(tmp_path), "x")
    second.acquire()  # at once: the first has said goodbye
    second.release()


def test_a_driver_on_another_machine_that_fell_silent_is_taken_over_and_then_writes_nothing(
    tmp_path: Path, quick_hearts: None, monkeypatch: pytest.MonkeyPatch
):
    silent = Claim(row_of(tmp_path), "x")
    silent.acquire()
    silent._lease._over.set()  # its machine stands still
    elsewhere(monkeypatch)
    heir = Claim(row_of(tmp_path), "x")
    began = time.monotonic()
    heir.acquire()
    assert time.monotonic() - began >= 2.0
    with pytest.raises(LedgerError, match=rf"sweep x was taken over by pid {os.getpid()} on another since"):
        silent.check()
    heir.check()
    heir.release()


def test_a_driver_of_an_earlier_boot_of_this_machine_is_watched_like_one_elsewhere(
    tmp_path: Path, quick_hearts: None, monkeypatch: pytest.MonkeyPatch
):
    first = Claim(row_of(tmp_path), "x")
    elsewhere(monkeypatch, socket.gethostname())
    first.acquire()
    first._lease._over.set()
    monkeypatch.undo()
    monkeypatch.setattr(driver_lock, "EXPIRY", 1.0)
    second = Claim(row_of(tmp_path), "x")
    second.acquire()
    second.release()


def test_of_two_that_claim_in_the_same_instant_one_wins(tmp_path: Path):
    row = row_of(tmp_path)
    assert row.swap(None, "a")
    assert not row_of(tmp_path).swap(None, "b")
    assert not row.swap("b", "c")
    assert row.swap("a", "d")
    assert row.read() == "d"


def test_a_folder_that_two_machines_share_has_one_driver_too(
    tmp_path: Path, quick_hearts: None, monkeypatch: pytest.MonkeyPatch
):
    """Where the kernel's lock of the other machine is not seen, its heartbeat is."""
    spec = spec_of(tmp_path, SAMPLED, budget__trials=2)
    with Ledger.create(tmp_path / "x", spec) as ledger:
        run_one(ledger, ledger.next())
        elsewhere(monkeypatch)
        monkeypatch.setattr("sweeps.driver_lock.LOCK", "seen-here-only.lock")
        with pytest.raises(LedgerError, match="sweep x is being driven by pid"):
            Ledger.open(tmp_path / "x")
        assert Ledger.read(tmp_path / "x").state == "searching"
    assert Ledger.read(tmp_path / "x").state == "interrupted"
    with Ledger.open(tmp_path / "x") as ledger:
        assert drive(ledger) == ["trial-0001"]


# -- the URL ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "good",
    [
        "sqlite:///x.db",
        "postgresql://host/db",
        "postgresql+psycopg://me@host:5432/db",
        "mysql://host/db",
        "${LEDGER}",
        "postgresql://me:${PGPASSWORD}@host/db",
        "postgresql://me@host/db?password=${PGPASSWORD}&sslmode=require&passfile=/etc/pgpass",
    ],
)
def test_urls_without_a_password_are_taken(good: str):
    assert checked_url(good) == good


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ("postgresql://me:secret@host/db", "a file holds no password"),
        ("postgresql://me@host/db?password=secret", "a file holds no password"),
        ("postgresql://me@host/db?sslmode=require&sslpassword=secret", "a file holds no password"),
        ("mysql://me@host/db?passwd=secret", "a file holds no password"),
        ("sqlite://", "a ledger in memory is lost with its process; fix: sqlite:///FILE.db"),
        ("sqlite:///:memory:", "a ledger in memory"),
        ("sqlite:///file::memory:?uri=true", "a ledger in memory"),
        ("redis://host", "expected a URL that begins with sqlite://, postgresql://, mysql://"),
        ("ledger.db", "expected a URL"),
    ],
)
def test_a_sweep_file_with_a_bad_url_is_refused(tmp_path: Path, bad: str, message: str):
    with pytest.raises(ConfigError, match=message) as refused:
        spec_of(tmp_path, SAMPLED, budget__trials=2, ledger=bad)
    assert "ledger" in str(refused.value)
    assert "=secret" not in str(refused.value)
    assert ":secret" not in str(refused.value)


def test_a_variable_is_read_where_the_ledger_is_opened_and_never_recorded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    spec = spec_of(tmp_path, SAMPLED, budget__trials=1, ledger="${SWEEP_LEDGER}")
    with pytest.raises(InputError, match="SWEEP_LEDGER is not set"):
        Ledger.create(tmp_path / "x", spec)
    monkeypatch.setenv("SWEEP_LEDGER", f"sqlite:///{tmp_path}/from-variable.db")
    Ledger.create(tmp_path / "x", spec).close()
    assert (tmp_path / "from-variable.db").exists()
    assert "from-variable" not in (tmp_path / "x" / "ledger.json").read_text()
    (tmp_path / "x").rename(tmp_path / "renamed")
    assert Ledger.read(tmp_path / "renamed").trials() == []
    monkeypatch.delenv("SWEEP_LEDGER")
    with pytest.raises(InputError, match="SWEEP_LEDGER is not set"):
        Ledger.read(tmp_path / "renamed")
    monkeypatch.setenv("SWEEP_LEDGER", "my:secret")
    with pytest.raises(InputError, match="SWEEP_LEDGER} is no URL of a database"):
        Ledger.read(tmp_path / "renamed")
    monkeypatch.setenv("PASSWORD", "a/b@c")
    assert resolved("postgresql://me:${PASSWORD}@host/db") == "postgresql://me:a%2Fb%40c@host/db"


def test_a_database_that_cannot_be_reached_is_named_without_its_password(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    pytest.importorskip("psycopg")
    monkeypatch.setenv("SWEEP_LEDGER", f"postgresql://me:hidden@127.0.0.1:{free_port()}/db")
    with pytest.raises(LedgerError, match="cannot be reached") as refused:
        Ledger.create(tmp_path / "x", spec_of(tmp_path, SAMPLED, budget__trials=1, ledger="${SWEEP_LEDGER}"))
    assert "hidden" not in str(refused.value)


def test_a_password_among_the_options_of_a_url_is_not_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    pytest.importorskip("psycopg")
    monkeypatch.setenv("PASSWORD", "hidden")
    url = f"postgresql://me@127.0.0.1:{free_port()}/db?password=${{PASSWORD}}&connect_timeout=3"
    with pytest.raises(LedgerError, match="connect_timeout=3.*cannot be reached") as refused:
        Ledger.create(tmp_path / "x", spec_of(tmp_path, SAMPLED, budget__trials=1, ledger=url))
    assert "hidden" not in str(refused.value)


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("oracle://host/db", "the kind oracle; expected one of sqlite, postgresql, mysql"),
        ("sqlite://", "a ledger in memory"),
    ],
)
def test_a_variable_with_a_url_that_no_file_may_have_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, url: str, message: str
):
    monkeypatch.setenv("SWEEP_LEDGER", url)
    with pytest.raises(InputError, match=message):
        Ledger.create(tmp_path / "x", spec_of(tmp_path, SAMPLED, budget__trials=1, ledger="${SWEEP_LEDGER}"))


def test_a_database_that_refuses_to_be_written_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def refuse(self, directions, study_name):
        raise StorageInternalError("a bare message") from OperationalError("INSERT", {}, Exception("it is read-only"))

    monkeypatch.setattr("sweeps.database.Database.create_new_study", refuse)
    with pytest.raises(LedgerError, match="ledgers.db: cannot be used: .*it is read-only"):
        Ledger.create(tmp_path / "x", spec_of(tmp_path, SAMPLED, budget__trials=1, ledger="sqlite:///ledgers.db"))


def test_the_installed_driver_is_taken():
    assert driver_of("postgresql", lambda name: name == "psycopg") == "postgresql+psycopg"
    assert driver_of("postgresql", lambda name: name == "psycopg2") == "postgresql+psycopg2"
    assert driver_of("mysql+pymysql", lambda name: False) == "mysql+pymysql"
    assert driver_of("sqlite", lambda name: True) == "sqlite"


def test_a_network_file_system_is_found_by_the_longest_mount(tmp_path: Path):
    mounts = tmp_path / "mounts"
    mounts.write_text("/dev/a / ext4 rw 0 0\nserver:/x /srv nfs4 rw 0 0\n/dev/b /srv/local ext4 rw 0 0\n")
    assert on_network_file_system(Path("/srv/x/ledger.db"), mounts) == "nfs4"
    assert on_network_file_system(Path("/srv/local/ledger.db"), mounts) is None
    assert on_network_file_system(Path("/srvother/ledger.db"), mounts) is None


def test_sqlite_on_a_network_file_system_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("sweeps.database.on_network_file_system", lambda path: "nfs4")
    with pytest.raises(LedgerError, match="SQLite is not safe on a network file system \\(nfs4\\); fix: a path on"):
        Ledger.create(tmp_path / "x", spec_of(tmp_path, SAMPLED, budget__trials=1, ledger=SQLITE))
