"""A sweep's folder and its copy in an object store: one driver of all machines, nothing lost, nothing overwritten."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner

from genrec import lease, object_backend
from genrec.config import RunConfig
from genrec.errors import InputError
from genrec.object_store import ObjectStore, StorageError
from sweeps import api, driver_lock, experiment, mirror, preflight
from sweeps.cli import main
from sweeps.folders import artifact_store, folder_to_drive, has_sweep, storage_of, sweep_folder, working_folder
from sweeps.journal import JOURNAL
from sweeps.ledger import Ledger, LedgerError
from sweeps.spec import SweepSpec
from sweeps.spec_file import load_spec

TINY = Path(__file__).with_name("tiny.yaml")


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(object_backend, "FIRST_WAIT", 0.01)
    monkeypatch.setattr(mirror, "PUSH_SECONDS", 0.2)
    monkeypatch.setattr(driver_lock, "BEAT", 0.2)
    monkeypatch.setattr(driver_lock, "EXPIRY", 3.0)


@pytest.fixture
def spec() -> SweepSpec:
    return load_spec(TINY)


def other_machine(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """From now on this process takes itself for one on another machine, with a cache folder of its own."""
    place = {"host": name, "boot_id": name, "pid_namespace": 1}
    monkeypatch.setattr(lease, "_this_place", lambda: place)
    monkeypatch.setenv("GENREC_CACHE", str(Path(os.environ["GENREC_CACHE"]).with_name(name)))


def create(s3: str, spec: SweepSpec) -> Ledger:
    return Ledger.create(working_folder(s3) / spec.name, spec)


def resumed(s3: str) -> Ledger:
    return Ledger.open(folder_to_drive("tiny", s3))


def run_one(ledger: Ledger) -> str:
    task = ledger.next()
    assert task is not None
    ledger.report(task.id, {"epoch": 1, "ndcg@10": 0.5})
    ledger.finish(task.id, "completed", {"node": "n"})
    return task.id


def arrived(place: str) -> bool:
    """Whether another machine, too, would find the sweep."""
    return ObjectStore(f"{place}/tiny").has(JOURNAL)


def completed(s3: str) -> list[str]:
    trials = Ledger.read(sweep_folder("tiny", s3)).trials()
    return [record.id for record in trials if record.status == "completed"]


def wait_until(holds: Any) -> None:
    deadline = time.monotonic() + 200
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_what_a_driver_records_is_in_the_store_seconds_later_and_goes_on_on_another_machine(
    place: str, spec: SweepSpec, monkeypatch: pytest.MonkeyPatch
):
    with create(place, spec) as ledger:
        first = run_one(ledger)
        wait_until(lambda: arrived(place) and completed(place) == [first])
        assert Ledger.read(sweep_folder("tiny", place)).state == "searching"
        (ledger.folder / "bundle").mkdir()
        (ledger.folder / "bundle" / "items").write_text("1")
        (ledger.folder / "ray").mkdir()
        (ledger.folder / "ray" / "scratch").write_text("1")
        second = run_one(ledger)
    assert completed(place) == [first, second]
    other_machine("b", monkeypatch)
    with resumed(place) as ledger:
        assert (ledger.folder / "bundle" / "items").read_text() == "1"
        assert not (ledger.folder / "ray").exists()
        assert [record.id for record in ledger.trials()] == [first, second]
        third = run_one(ledger)
        (ledger.folder / "bundle" / "items").unlink()
    other_machine("a third", monkeypatch)
    assert completed(place) == [first, second, third]
    assert Ledger.read(sweep_folder("tiny", place)).state == "interrupted"
    assert not (sweep_folder("tiny", place) / "bundle").exists()
    assert storage_of(sweep_folder("tiny", place).parent) == place
    assert artifact_store(sweep_folder("tiny", place).parent).address == f"{place}/.artifacts"


def test_a_sweep_that_is_taken_back_is_gone_from_the_store_and_can_be_begun_again(
    s3: str, spec: SweepSpec, monkeypatch: pytest.MonkeyPatch
):
    ledger = create(s3, spec)
    wait_until(lambda: arrived(s3))
    ledger.discard()
    ledger.close()
    assert not has_sweep("tiny", s3)
    other_machine("b", monkeypatch)
    assert not has_sweep("tiny", s3)
    with create(s3, spec) as ledger:
        first = run_one(ledger)
    assert completed(s3) == [first]


def test_a_sweep_is_begun_once_and_driven_by_one_machine(s3: str, spec: SweepSpec, monkeypatch: pytest.MonkeyPatch):
    with create(s3, spec) as ledger:
        run_one(ledger)
        wait_until(lambda: arrived(s3))
        other_machine("b", monkeypatch)
        with pytest.raises(LedgerError, match=f"sweep tiny is being driven by pid {os.getpid()} on "):
            resumed(s3)
    with pytest.raises(LedgerError, match="exists; use sweeps resume tiny"):
        create(s3, spec)
    with pytest.raises(LedgerError, match="a copy of a sweep, only to be looked at"):
        Ledger.open(sweep_folder("tiny", s3))
    with pytest.raises(InputError, match=f"no sweep 'tinny' in {s3}; did you mean 'tiny'"):
        sweep_folder("tinny", s3)


def test_a_sweep_of_which_another_machine_has_only_taken_the_lease_is_said_to_be_begun_just_now(s3: str):
    ObjectStore(f"{s3}/tiny").create(driver_lock.DRIVER, b"{}")
    with pytest.raises(InputError, match=f"sweep 'tiny' has no ledger in {s3}: it was begun just now"):
        sweep_folder("tiny", s3)


def test_a_driver_that_lost_its_lease_writes_nothing_more_here_or_there(
    s3: str, spec: SweepSpec, monkeypatch: pytest.MonkeyPatch
):
    silent = create(s3, spec)
    run_one(silent)
    wait_until(lambda: arrived(s3) and len(completed(s3)) == 1)
    claim = silent._lock._claims[1]._lease  # type: ignore[union-attr]
    claim._over.set()  # its machine stands still
    monkeypatch.setattr(mirror.MirrorLock, "_keep_pushing", lambda self: None)
    silent._lock._over.set()  # type: ignore[union-attr]
    other_machine("b", monkeypatch)
    with resumed(s3) as heir:
        second = run_one(heir)
    monkeypatch.setattr(claim, "_beaten", time.monotonic() - 100)
    with pytest.raises(LedgerError, match="sweep tiny was taken over by"):
        run_one(silent)
    with pytest.raises(LedgerError, match="sweep tiny was taken over by"):
        silent.close()
    assert completed(s3) == ["trial-0000", second]


def test_of_a_sweep_whose_ledger_is_in_a_database_only_the_rest_is_copied(
    s3: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    spec = load_spec(TINY, {"ledger": f"sqlite:///{tmp_path}/ledgers.db"})
    with create(s3, spec) as ledger:
        first = run_one(ledger)
        (ledger.folder / "best.yaml").write_text("1")
    assert sorted(ObjectStore(f"{s3}/tiny").names()) == ["best.yaml", "driver.json", "ledger.json"]
    other_machine("b", monkeypatch)
    with resumed(s3) as ledger:
        assert (ledger.folder / "best.yaml").read_text() == "1"
        assert [record.id for record in ledger.trials()] == [first]
    with pytest.raises(InputError, match=f"a relative path counts from the storage's folder, and {s3} is none"):
        create(s3, load_spec(TINY, {"ledger": "sqlite:///ledgers.db", "name": "other"}))


def test_a_journal_that_another_has_written_is_not_overwritten(s3: str, spec: SweepSpec):
    """The last guard: where a driver is wrong about its lease."""
    ledger = create(s3, spec)
    wait_until(lambda: arrived(s3))
    ObjectStore(f"{s3}/tiny").write("ledger.journal", b"another's\n")
    run_one(ledger)
    wait_until(lambda: ledger._lock._fault is not None)  # type: ignore[union-attr]
    for write in (lambda: run_one(ledger), ledger.close):
        with pytest.raises(LedgerError, match="another driver has written the ledger of sweep tiny; this one stops"):
            write()
    found = ObjectStore(f"{s3}/tiny").read("ledger.journal")
    assert found is not None
    assert found.data == b"another's\n"


def test_a_store_that_is_away_at_the_end_is_an_error_and_the_record_is_copied_by_the_next_driver(
    s3: str, spec: SweepSpec, s3_server: Any, monkeypatch: pytest.MonkeyPatch
):
    ledger = create(s3, spec)
    wait_until(lambda: arrived(s3))
    monkeypatch.setattr(object_backend, "ATTEMPTS", 1)
    s3_server.fail(*[{"kind": "503", "method": "PUT", "name": "ledger.journal"}] * 1000)
    first = run_one(ledger)
    with pytest.raises(StorageError, match="what is not in the store yet is in .*driven/tiny"):
        ledger.close()
    s3_server.fail()
    assert completed(s3) == []
    with resumed(s3):
        pass
    assert completed(s3) == [first]


def test_copying_that_fails_is_told_at_once_and_ends_the_driver_when_it_lasts(
    s3: str, spec: SweepSpec, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    monkeypatch.setattr(mirror, "UNCOPIED_SECONDS", 1.0)
    ledger = create(s3, spec)
    wait_until(lambda: arrived(s3))
    push = mirror.Mirror.push

    def full(self: mirror.Mirror) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(mirror.Mirror, "push", full)
    wait_until(lambda: ledger._lock._fault is not None)  # type: ignore[union-attr]
    told = [record.getMessage() for record in caplog.records if "No space left" in record.getMessage()]
    assert len(told) == 1, "the first failure of a row is told, and no other"
    assert told[0].startswith(f"cannot copy {ledger.folder} to {s3}/tiny (OSError: ")
    with pytest.raises(StorageError, match=f"nothing of sweep tiny could be copied to {s3}/tiny for .* this driver"):
        run_one(ledger)
    (ledger.folder / "best.yaml").write_text("1")
    monkeypatch.setattr(mirror.Mirror, "push", push)
    with pytest.raises(StorageError, match="nothing of sweep tiny could be copied"):
        ledger.close()
    assert ObjectStore(f"{s3}/tiny").has("best.yaml"), "a last time it is tried"


def test_a_fault_of_our_own_in_the_copying_thread_reaches_the_driver(
    s3: str, spec: SweepSpec, monkeypatch: pytest.MonkeyPatch
):
    ledger = create(s3, spec)

    def broken(self: mirror.Mirror) -> None:
        raise ValueError("a bug")

    monkeypatch.setattr(mirror.Mirror, "push", broken)
    wait_until(lambda: ledger._lock._fault is not None)  # type: ignore[union-attr]
    for write in (lambda: run_one(ledger), ledger.close):
        with pytest.raises(ValueError, match="a bug"):
            write()


def test_a_disk_on_which_the_index_has_no_room_makes_no_stranger_of_ones_own_journal(
    s3: str, spec: SweepSpec, monkeypatch: pytest.MonkeyPatch
):
    write = mirror.write_json
    with create(s3, spec) as ledger:
        wait_until(lambda: arrived(s3))

        def full(path: Path, value: Any) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(mirror, "write_json", full)
        before = ObjectStore(f"{s3}/tiny").tags()[JOURNAL]
        run_one(ledger)
        wait_until(lambda: ObjectStore(f"{s3}/tiny").tags()[JOURNAL] != before)
        monkeypatch.setattr(mirror, "write_json", write)
        last = run_one(ledger)
    assert last in completed(s3)


DRIVER = """
import sys, time
from pathlib import Path
from sweeps import mirror
from sweeps.folders import working_folder
from sweeps.ledger import Ledger
from sweeps.spec_file import load_spec

mirror.PUSH_SECONDS = 0.1
s3, spec = sys.argv[1], load_spec(sys.argv[2])
with Ledger.create(working_folder(s3) / spec.name, spec) as ledger:
    while (task := ledger.next()) is not None:
        ledger.report(task.id, {"epoch": 1, "ndcg@10": 0.5})
        ledger.finish(task.id, "completed", {"node": "n"})
        print(task.id, flush=True)
        time.sleep(0.3)
"""


def test_a_driver_that_is_killed_is_resumed_from_the_store_where_nobody_has_its_folder(
    s3: str, monkeypatch: pytest.MonkeyPatch
):
    words = [sys.executable, "-c", DRIVER, s3, str(TINY)]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as driver:
        assert driver.stdout is not None
        wait_until(lambda: arrived(s3) and len(completed(s3)) >= 2)
        driver.send_signal(signal.SIGKILL)
    before = completed(s3)
    monkeypatch.setenv("GENREC_CACHE", os.environ["GENREC_CACHE"] + "-of-another")
    with resumed(s3) as ledger:  # at once: the kernel says that the other is dead
        assert [record.id for record in ledger.trials()][: len(before)] == before


# -- where a trial runs -----------------------------------------------------------------------------------------------


def test_a_trials_log_and_its_trackers_files_are_copied_from_the_node_and_continued_on_the_next(
    place: str, object_server: Any, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
):
    def attempt(text: str) -> None:
        with mirror.trial_files(place, "tiny", "trial-0001"):
            folder = mirror.folder_here(place, "tiny")
            for name in ("logs/trial-0001.log", "tracking/trial-0001/run"):
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                with open(folder / name, "a") as file:
                    file.write(text)

    attempt("first\n")
    other_machine("b", monkeypatch)
    attempt("second\n")
    store = ObjectStore(f"{place}/tiny")
    log, run = store.read("logs/trial-0001.log"), store.read("tracking/trial-0001/run")
    assert log is not None
    assert log.data == b"first\nsecond\n"
    assert run is not None
    object_server.fail({"kind": "403"}, {"kind": "403"})
    attempt("third\n")  # a trial is not worse for it
    assert "cannot bring logs/trial-0001.log" in capfd.readouterr().err


# -- before a sweep starts --------------------------------------------------------------------------------------------


def test_a_store_that_breaks_its_own_conditions_is_refused_before_anything(
    place: str, spec: SweepSpec, monkeypatch: pytest.MonkeyPatch
):
    write = ObjectStore._conditional
    monkeypatch.setattr(ObjectStore, "_conditional", lambda self, name, data, **condition: write(self, name, data))
    with pytest.raises(StorageError, match=f"{place}/tiny: the store does not keep the conditions of writes"):
        create(place, spec)
    assert ObjectStore(place).names() == []


@pytest.fixture
def facts(place: str) -> Iterator[tuple[str, dict[str, Any]]]:
    with preflight._probe_object(place) as probe:
        yield probe, preflight.facts_of_this_node(probe, RunConfig().to_dict())


def test_a_node_that_can_use_the_store_has_no_fault_and_nothing_stays_in_it(
    facts: tuple[str, dict[str, Any]], place: str
):
    assert list(preflight.faults_of(facts[1], facts[1])) == []
    assert any(folder.endswith("driven") for folder in facts[1]["free"])
    assert ObjectStore(place).names() == [facts[0].rpartition("/")[2]]


@pytest.mark.parametrize(
    ("fault", "sentence"),
    [
        ({"kind": "403", "method": "PUT"}, "cannot use the storage: (s3|gs)://.* may not write"),
        ({"kind": "403", "method": "POST"}, "may not delete"),
        ({"kind": "403", "method": "GET", "name": "probe"}, "may not read"),
        ({"kind": "403", "method": "GET", "skip": 3}, "may not list"),
        ({"kind": "501", "method": "PUT"}, "knows no conditional writes|cannot write: HTTP 501"),
    ],
)
def test_a_node_that_cannot_is_named_with_what_it_may_not(
    facts: tuple[str, dict[str, Any]], object_server: Any, fault: dict[str, Any], sentence: str
):
    object_server.fail(fault)
    there = preflight.facts_of_this_node(facts[0], RunConfig().to_dict())
    object_server.fail()
    [line] = preflight.faults_of(facts[1], there)
    assert re.search(sentence, line)


def test_a_node_that_sees_another_store_is_told_so(place: str, facts: tuple[str, dict[str, Any]]):
    there = preflight.facts_of_this_node(f"{place}/.preflight-of-another", RunConfig().to_dict())
    [line] = preflight.faults_of(facts[1], there)
    assert f"sees another {place} than the driver" in line


# -- the setting ------------------------------------------------------------------------------------------------------


def test_the_storage_of_the_file_counts_where_the_command_line_names_none(s3: str, tmp_path: Path):
    spec = tmp_path / "tiny.yaml"
    spec.write_text(f"{TINY.read_text()}storage: {s3}\nreuse: [never]\n")
    result = CliRunner().invoke(main, ["validate", str(spec)])
    assert result.exit_code == 2
    assert f"no sweep 'never' in {s3}" in result.output
    result = CliRunner().invoke(main, ["validate", str(spec), "--storage", str(tmp_path)])
    assert f"no sweep 'never' in {tmp_path}" in result.output


@pytest.mark.parametrize("url", ["s3://key:hunter2@bucket/x", "gs://key:hunter2@bucket/x", "ftp://bucket/x"])
def test_urls_that_cannot_be_used_are_refused_with_code_2_and_without_the_key(tmp_path: Path, url: str):
    spec = tmp_path / "tiny.yaml"
    spec.write_text(f"{TINY.read_text()}storage: {url}\n")
    for words in (["validate", str(spec)], ["run", str(TINY), "--storage", url], ["status", "x", "--storage", url]):
        result = CliRunner().invoke(main, words)
        assert result.exit_code == 2, result.output
        assert "hunter2" not in result.output


def test_a_comparison_in_an_object_store_is_kept_there_with_its_logs(
    s3: str, spec: SweepSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    for name, rate in (("slow", 1e-3), ("fast", 1e-2)):
        values = spec.base_config().to_dict()
        values["train"] |= {"learning_rate": rate}
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump(values))

    @dataclasses.dataclass
    class MadeUp:
        test_read: Any = None

        def to_dict(self) -> dict[str, str]:
            return {"verdict": "equal"}

    def train(tasks: Any, function: Any, *, storage: str, folder: Path, **_: Any) -> None:
        task = tasks.next()
        assert function.keywords["store"] == f"{s3}/.artifacts"
        with mirror.trial_files(storage, folder.name, task.id):
            log = mirror.folder_here(storage, folder.name) / "logs" / f"{task.id}.log"
            log.parent.mkdir(parents=True)
            log.write_text("trained")

    monkeypatch.setattr(experiment, "start_ray", lambda address, say: contextlib.nullcontext())
    monkeypatch.setattr(experiment, "run_queue", train)
    monkeypatch.setattr(experiment, "finish", lambda *_: MadeUp())
    api.compare(str(tmp_path / "slow.yaml"), str(tmp_path / "fast.yaml"), 1, storage=s3, quiet=True)
    objects = ObjectStore(f"{s3}/.comparisons")
    [name] = objects.folders()
    kept, log = (
        objects.read(f"{name}/comparison.json"),
        objects.read(f"{name}/logs/slow-s{spec.base_config().seed}.log"),
    )
    assert kept is not None
    assert json.loads(kept.data) == {"verdict": "equal"}
    assert log is not None
    assert not has_sweep(".comparisons", s3)
