"""The stage store in an object store: built once of all nodes, copied once to each; builders that die or fall silent.

Another node is another process, or another store object, with a cache folder and a place of its own.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from genrec import lease, object_backend, remote_artifacts
from genrec.artifacts import CHECKPOINTS, DONE, open_store
from genrec.object_store import ObjectStore, StorageError
from genrec.remote_artifacts import CLAIM, RemoteArtifactStore


def save(folder: Path, epoch: int) -> None:
    """As a training does, without its imports: written under another name."""
    partial = folder / CHECKPOINTS / f"{epoch:08d}.partial"
    partial.mkdir(parents=True)
    (partial / "tensors").write_text("7")
    (partial / "manifest").write_text(str(epoch))
    partial.rename(partial.with_suffix(""))


def latest(folder: Path) -> int:
    return max(int(path.read_text()) for path in (folder / CHECKPOINTS).glob("*/manifest"))


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(object_backend, "FIRST_WAIT", 0.01)
    monkeypatch.setattr(remote_artifacts, "POLL_SECONDS", 0.05)
    monkeypatch.setattr(remote_artifacts, "BEAT", 0.2)
    monkeypatch.setattr(remote_artifacts, "EXPIRY", 3.0)


def other_node(place: str, name: str, monkeypatch: pytest.MonkeyPatch) -> RemoteArtifactStore:
    """The store as another node sees it; from now on this process takes itself for one there."""
    monkeypatch.setenv("GENREC_CACHE", os.environ["GENREC_CACHE"] + name)
    machine = {"host": name, "boot_id": name, "pid_namespace": 1}
    monkeypatch.setattr(lease, "_this_place", lambda: machine)
    return RemoteArtifactStore(place)


def build_number(folder: Path) -> dict[str, int]:
    (folder / "deep").mkdir()
    (folder / "deep" / "number").write_text("7")
    return {"items": 7}


def never(folder: Path) -> dict[str, int]:
    raise AssertionError("it is built already")


def fetched(folder: Path) -> str:
    return (folder / "deep" / "number").read_text()


def test_an_artifact_is_built_once_of_all_nodes_and_copied_once_to_each(place: str, monkeypatch, object_server: Any):
    store = open_store(place)
    assert store.address == place
    assert not store.has("tokenizer", "k1")
    folder, built = store.ensure("tokenizer", "k1", build_number, pytest.fail)
    assert built
    assert folder == store.path("tokenizer", "k1")
    other = other_node(place, "b", monkeypatch)
    assert other.has("tokenizer", "k1")
    copy, built = other.ensure("tokenizer", "k1", never, pytest.fail)
    assert (fetched(copy), built) == ("7", False)
    assert copy != folder
    object_server.fail({"kind": "403"})  # nobody is asked for what is here
    assert other.ensure("tokenizer", "k1", never, pytest.fail) == (copy, False)
    assert object_server.faults_left() != []
    object_server.fail()
    third = other_node(place, "c", monkeypatch)
    assert fetched(third.path("tokenizer", "k1")) == "7"  # opened without asking whether it is there
    assert not third.path("tokenizer", "k2").exists()
    assert '"items": 7' in (third.path("tokenizer", "k1") / DONE).read_text()
    assert sorted(ObjectStore(place).folders()) == ["tokenizer-k1"]
    assert len(ObjectStore(place).names()) == 2, "DONE and the one file: no claim is left"


def test_a_torn_upload_is_never_seen_as_finished(place: str, monkeypatch, object_server: Any):
    monkeypatch.setattr(object_backend, "ATTEMPTS", 1)
    for name in ("number", DONE):
        object_server.fail({"kind": "503", "method": "PUT", "name": name})
        with pytest.raises(StorageError, match="503|SlowDown"):
            RemoteArtifactStore(place).ensure("tokenizer", name, build_number, pytest.fail)
        other = other_node(place, name, monkeypatch)
        assert not other.has("tokenizer", name)
        assert not other.path("tokenizer", name).exists()
        folder, built = other.ensure("tokenizer", name, build_number, pytest.fail)
        assert (fetched(folder), built) == ("7", True)


def test_a_copy_that_was_damaged_on_its_way_is_fetched_again_and_otherwise_refused(place: str, monkeypatch):
    store = RemoteArtifactStore(place)
    store.ensure("tokenizer", "k", build_number, pytest.fail)
    [name] = [name for name in store.objects.names() if name.endswith("number")]
    store.objects.write(name, b"8")
    other = other_node(place, "b", monkeypatch)
    with pytest.raises(StorageError, match=rf"{place}/{name}: damaged"):
        other.path("tokenizer", "k")
    assert not other.has("tokenizer", "k") or not (other._final("tokenizer", "k") / DONE).exists()
    store.objects.write(name, b"7")
    assert fetched(other.path("tokenizer", "k")) == "7"


@pytest.mark.parametrize("kind", ["500", "409", "412", "closed", "lost", "slow"])
def test_faults_of_the_store_for_moments_leave_one_whole_artifact(
    place: str, object_server: Any, monkeypatch, kind: str
):
    monkeypatch.setattr(object_backend, "READ_SECONDS", 1.0)
    object_server.fail(*[{"kind": kind, "method": "PUT", "name": name} for name in (CLAIM, "number", DONE)])
    store = RemoteArtifactStore(place)
    if kind == "412":  # a file's upload has no condition, so this is no answer that a store gives
        object_server.fail({"kind": kind, "method": "PUT", "name": CLAIM})
    folder, built = store.ensure("tokenizer", "k", build_number, lambda text: None)
    assert (fetched(folder), built) == ("7", True)
    assert fetched(other_node(place, "b", monkeypatch).path("tokenizer", "k")) == "7"
    assert object_server.faults_left() == []


def test_a_build_that_is_stopped_is_continued_on_another_node_from_its_last_checkpoint(place: str, monkeypatch):
    def stop(folder: Path) -> dict[str, int]:
        save(folder, 1)
        raise SystemExit(0)  # as a trial that is paused

    store = RemoteArtifactStore(place)
    with pytest.raises(SystemExit):
        store.ensure("tiger", "k", stop, pytest.fail)
    assert not store.has("tiger", "k")

    def go_on(folder: Path) -> dict[str, int]:
        save(folder, latest(folder) + 1)
        raise SystemExit(0)

    other = other_node(place, "b", monkeypatch)
    with pytest.raises(SystemExit):
        other.ensure("tiger", "k", go_on, pytest.fail)

    def finish(folder: Path) -> dict[str, int]:
        return {"epochs": latest(folder)} | build_number(folder)

    folder, built = store.ensure("tiger", "k", finish, pytest.fail)  # whose own checkpoint is the older
    assert built
    assert '"epochs": 2' in (folder / DONE).read_text()
    assert {Path(name).name for name in store.objects.names()} == {DONE, "1-number"}


def test_checkpoints_that_did_not_reach_the_store_are_told_of_and_continued_on_their_own_node(
    place: str, object_server: Any, monkeypatch, caplog: pytest.LogCaptureFixture
):
    def fail(folder: Path) -> dict[str, int]:
        save(folder, 1)
        wait_until(lambda: any("manifest" in name for name in ObjectStore(place).names()))
        object_server.fail(*[{"kind": "403", "method": "PUT", "name": "tensors"}] * 100)
        save(folder, 2)
        wait_until(lambda: "cannot copy checkpoints of tiger-" in caplog.text)
        raise OSError("killed")

    def look(folder: Path) -> dict[str, int]:
        return {"epochs": latest(folder)}

    for key, expected in (("a", 2), ("b", 1)):
        caplog.clear()
        with pytest.raises(OSError, match="killed"):
            RemoteArtifactStore(place).ensure("tiger", key, fail, pytest.fail)
        object_server.fail()
        store = RemoteArtifactStore(place) if key == "a" else other_node(place, "b", monkeypatch)
        folder, _ = store.ensure("tiger", key, look, pytest.fail)
        assert f'"epochs": {expected}' in (folder / DONE).read_text()


def test_an_abandoned_build_is_discarded_with_its_checkpoints(place: str):
    def fail(folder: Path) -> dict[str, int]:
        save(folder, 1)
        raise OSError("disk full")

    store = RemoteArtifactStore(place)
    with pytest.raises(OSError, match="disk full"):
        store.ensure("tiger", "k", fail, pytest.fail)
    assert len(store.objects.names()) == 3  # the claim, tensors and manifest
    store.discard("tiger", "k")
    assert store.objects.names() == []
    assert not store.part("tiger", "k").exists()
    store.discard("tiger", "never")
    store.ensure("tiger", "k", build_number, pytest.fail)
    store.discard("tiger", "k")
    assert RemoteArtifactStore(place).has("tiger", "k")


def test_what_is_being_built_here_or_on_another_node_is_not_discarded(place: str, monkeypatch):
    store = RemoteArtifactStore(place)

    def build(folder: Path) -> dict[str, int]:
        save(folder, 1)
        wait_until(lambda: any("manifest" in name for name in store.objects.names()))
        before = store.objects.names()
        assert not RemoteArtifactStore(place).discard("tiger", "k")
        with monkeypatch.context() as elsewhere:
            assert not other_node(place, "b", elsewhere).discard("tiger", "k")
        assert store.objects.names() == before
        return {"epochs": latest(folder)} | build_number(folder)

    _, built = store.ensure("tiger", "k", build, pytest.fail)
    assert built


def test_a_checkpoint_is_uploaded_while_the_build_goes_on_and_never_half_of_one(place: str):
    from genrec.checkpoint import save_generation

    objects, seen = ObjectStore(place), []

    def build(folder: Path) -> dict[str, int]:
        half = folder / CHECKPOINTS / "00000001.partial"
        half.mkdir(parents=True)
        (half / "tensors.safetensors").write_text("half")
        time.sleep(0.6)
        seen.append([name for name in objects.names() if "tensors" in name])
        save_generation(folder / CHECKPOINTS, 1, {}, {})
        wait_until(lambda: any("manifest" in name for name in objects.names()))
        save_generation(folder / CHECKPOINTS, 2, {}, {})
        save_generation(folder / CHECKPOINTS, 3, {}, {})
        wait_until(lambda: sum("manifest" in name for name in objects.names()) == 2)
        return {}

    RemoteArtifactStore(place).ensure("tiger", "k", build, pytest.fail)
    assert seen == [[]]


# -- two processes ----------------------------------------------------------------------------------------------------


def start(role: str, s3: str, root: Path, name: str) -> subprocess.Popen[str]:
    environment = os.environ | {"GENREC_CACHE": str(root / f"cache-{name}")}
    command = [sys.executable, __file__, role, s3, str(root), name]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)


def wait_until(holds: Any) -> None:
    deadline = time.monotonic() + 200
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_of_two_nodes_at_the_same_time_one_builds_and_one_waits_and_copies(s3: str, tmp_path: Path):
    workers = [start("pair", s3, tmp_path, name) for name in ("a", "b")]
    output = sorted(worker.communicate(timeout=250)[0].strip() for worker in workers)
    assert output == ["built False 7", "built True 7"]
    assert (tmp_path / "builds").read_text() == "x"


def test_a_builder_on_another_node_that_is_killed_is_replaced_and_its_checkpoint_continued(
    s3: str, tmp_path: Path, monkeypatch
):
    monkeypatch.setattr("genrec.artifacts.NOTICE_SECONDS", 0.5)
    worker = start("killed", s3, tmp_path, "a")
    objects, notices = ObjectStore(s3), []
    wait_until(lambda: any("manifest" in name for name in objects.names()))

    def notice(text: str) -> None:
        notices.append(text)
        worker.send_signal(signal.SIGKILL)

    def go_on(folder: Path) -> dict[str, int]:
        assert worker.wait(timeout=60) == -signal.SIGKILL
        return {"continued": latest(folder)}

    store = RemoteArtifactStore(s3)
    folder, built = store.ensure("tiger", "k", go_on, notice)
    worker.communicate()
    assert built
    assert '"continued": 3' in (folder / DONE).read_text()
    assert notices[0] == f"waiting for tiger-k, which process {worker.pid} on node-a is making"


def test_whoever_waits_for_another_node_can_be_told_to_stop(s3: str, tmp_path: Path):
    worker = start("killed", s3, tmp_path, "a")
    store = RemoteArtifactStore(s3)
    wait_until(lambda: any("manifest" in name for name in store.objects.names()))

    def waiting() -> None:
        raise SystemExit(0)

    with pytest.raises(SystemExit):
        store.ensure("tiger", "k", never, pytest.fail, waiting)
    worker.kill()
    worker.communicate()
    assert store.ensure("tiger", "k", lambda folder: {}, lambda text: None)[1], "it holds nothing on this node"


def test_a_builder_that_stood_still_and_lost_its_claim_takes_the_others_artifact(s3: str, tmp_path: Path):
    """Stopped for longer than its lease, and woken when another has finished: it may not publish its own."""
    worker = start("frozen", s3, tmp_path, "a")
    wait_until((tmp_path / "building").exists)
    worker.send_signal(signal.SIGSTOP)
    store = RemoteArtifactStore(s3)
    _, built = store.ensure("tiger", "k", build_number, lambda text: None)
    assert built
    done = store.objects.read(f"tiger-k/{DONE}")
    names = sorted(store.objects.names())
    worker.send_signal(signal.SIGCONT)
    assert worker.communicate(timeout=250)[0].strip() == "built False 7"
    assert store.objects.read(f"tiger-k/{DONE}") == done
    assert sorted(store.objects.names()) == names


def test_of_two_that_have_both_built_the_first_to_publish_wins(s3: str, monkeypatch):
    """Even where the loser still believes in its claim."""
    store = RemoteArtifactStore(s3)

    def build(folder: Path) -> dict[str, int]:
        assert store.objects.create(f"tiger-k/{DONE}", b'{"by": "another", "facts": {"items": 1}, "files": {}}')
        return build_number(folder)

    folder, built = store.ensure("tiger", "k", build, lambda text: None)
    assert not built
    assert '"items": 1' in (folder / DONE).read_text()
    assert not (folder / "deep").exists()
    assert store.objects.names() == [f"tiger-k/{DONE}"]


def pair(store: RemoteArtifactStore, root: Path, name: str) -> None:
    """Builds, but not before both processes are there."""
    (root / f"ready-{name}").touch()

    def build(folder: Path) -> dict[str, int]:
        wait_until(lambda: all((root / f"ready-{other}").exists() for other in ("a", "b")))
        time.sleep(0.3)
        with open(root / "builds", "a") as file:
            file.write("x")
        return build_number(folder)

    folder, built = store.ensure("tiger", "k", build, lambda text: None)
    print("built", built, fetched(folder))


def killed(store: RemoteArtifactStore) -> None:
    def build(folder: Path) -> dict[str, int]:
        save(folder, 3)
        time.sleep(200)
        return {}

    store.ensure("tiger", "k", build, lambda text: None)


def frozen(store: RemoteArtifactStore, root: Path) -> None:
    def build(folder: Path) -> dict[str, int]:
        (root / "building").touch()
        wait_until(lambda: store.objects.has(f"tiger-k/{DONE}"))
        (folder / "deep").mkdir()
        (folder / "deep" / "number").write_text("8")
        return {}

    folder, built = store.ensure("tiger", "k", build, lambda text: None)
    print("built", built, fetched(folder))


def main(role: str, s3: str, root: Path, name: str) -> None:
    place = {"host": f"node-{name}", "boot_id": name, "pid_namespace": 1}
    lease._this_place = lambda: place
    remote_artifacts.POLL_SECONDS, remote_artifacts.BEAT, remote_artifacts.EXPIRY = 0.05, 0.2, 3.0
    store = RemoteArtifactStore(s3)
    if role == "pair":
        pair(store, root, name)
    elif role == "killed":
        killed(store)
    else:
        frozen(store, root)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], Path(sys.argv[3]), sys.argv[4])
