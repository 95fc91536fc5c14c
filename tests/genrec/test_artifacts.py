"""The stage store: one process builds, the others wait; a builder that dies is replaced."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from filelock import FileLock

from genrec import artifacts
from genrec.artifacts import DONE, ArtifactStore


def build_number(folder: Path) -> dict[str, int]:
    (folder / "number").write_text("7")
    return {"items": 7}


def test_an_artifact_is_built_once(tmp_path):
    store = ArtifactStore(tmp_path / "store")
    assert not store.has("tokenizer", "k1")
    folder, built = store.ensure("tokenizer", "k1", build_number, pytest.fail)
    assert built
    assert folder == store.path("tokenizer", "k1")
    assert (folder / "number").read_text() == "7"
    assert '"items": 7' in (folder / DONE).read_text()
    assert not store.part("tokenizer", "k1").exists()

    def never(folder: Path) -> dict[str, int]:
        raise AssertionError

    assert store.ensure("tokenizer", "k1", never, pytest.fail) == (folder, False)
    assert ArtifactStore(tmp_path / "store").has("tokenizer", "k1")
    assert not store.has("tokenizer", "k2")


def test_a_build_that_fails_leaves_no_artifact_and_can_be_tried_again(tmp_path):
    store = ArtifactStore(tmp_path)

    def fail(folder: Path) -> dict[str, int]:
        (folder / "half").write_text("1")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        store.ensure("tiger", "k", fail, pytest.fail)
    assert not store.has("tiger", "k")
    assert not store.path("tiger", "k").exists()
    assert list(tmp_path.rglob(DONE)) == []
    folder, built = store.ensure("tiger", "k", build_number, pytest.fail)
    assert built
    assert (folder / "half").exists()  # what the first left is there to be continued


def test_what_an_abandoned_build_left_can_be_discarded(tmp_path):
    store = ArtifactStore(tmp_path)
    store.part("tiger", "k").mkdir(parents=True)
    store.discard("tiger", "k")
    assert not store.part("tiger", "k").exists()
    store.discard("tiger", "never")
    folder, _ = store.ensure("tiger", "k", build_number, pytest.fail)
    store.discard("tiger", "k")
    assert (folder / DONE).exists()


def test_what_another_process_is_building_is_not_discarded(tmp_path):
    """The driver of one sweep discards its stopped trial's TIGER while a trial of another sweep builds the same key."""
    store, worker = ArtifactStore(tmp_path / "store"), start("killed", tmp_path, "a")
    half = store.part("tiger", "k") / "half"
    wait_for(half)
    assert not store.discard("tiger", "k")
    assert half.exists()
    (tmp_path / "die").touch()
    worker.communicate(timeout=60)
    lock = store.root / ".tiger-k.lock"
    before = lock.stat().st_ino
    assert store.discard("tiger", "k")
    assert not store.part("tiger", "k").exists()
    assert lock.stat().st_ino == before, "who waits for the lock and who comes later must meet at one file"


def start(role: str, root: Path, name: str) -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, __file__, role, str(root), name], stdout=subprocess.PIPE, text=True)


def wait_for(path: Path) -> None:
    deadline = time.monotonic() + 200
    while not path.exists():
        assert time.monotonic() < deadline, f"{path.name} did not come"
        time.sleep(0.02)


def test_of_two_processes_at_the_same_time_one_builds_and_one_waits(tmp_path):
    workers = [start("pair", tmp_path, name) for name in ("a", "b")]
    output = sorted(worker.communicate(timeout=250)[0].strip() for worker in workers)
    assert output == ["built False", "built True"]
    assert (tmp_path / "builds").read_text() == "x"


def test_a_builder_that_is_killed_is_replaced_by_the_one_that_waits(tmp_path, monkeypatch):
    """The waiter goes on in the folder that the dead one left."""
    monkeypatch.setattr(artifacts, "NOTICE_SECONDS", 0.0)
    store, notices = ArtifactStore(tmp_path / "store"), []
    worker = start("killed", tmp_path, "a")
    wait_for(store.part("tiger", "k") / "half")

    def go_on(folder: Path) -> dict[str, int]:
        assert worker.wait(timeout=60) == -signal.SIGKILL
        return {"continued": int((folder / "half").read_text())}

    def notice(text: str) -> None:
        notices.append(text)
        (tmp_path / "die").touch()

    folder, built = store.ensure("tiger", "k", go_on, notice)
    worker.communicate()
    assert built
    assert '"continued": 3' in (folder / DONE).read_text()
    assert notices[0] == "waiting for tiger k, which another process is making"


def test_whoever_waits_for_another_process_can_be_told_to_stop(tmp_path):
    store, looks = ArtifactStore(tmp_path / "store"), []

    def waiting() -> None:
        looks.append(1)
        if len(looks) == 3:
            raise SystemExit(0)

    store.root.mkdir()
    with FileLock(store.root / ".tiger-k.lock"), pytest.raises(SystemExit):
        store.ensure("tiger", "k", build_number, pytest.fail, waiting)
    assert len(looks) == 3
    assert store.ensure("tiger", "k", build_number, pytest.fail, waiting)[1], "it holds nothing"


def pair(root: Path, name: str) -> None:
    """Builds, but not before both processes are there."""
    (root / f"ready-{name}").touch()

    def build(folder: Path) -> dict[str, int]:
        for other in ("a", "b"):
            wait_for(root / f"ready-{other}")
        time.sleep(0.3)
        with open(root / "builds", "a") as file:
            file.write("x")
        return {}

    _, built = ArtifactStore(root / "store").ensure("tiger", "k", build, lambda text: None)
    print("built", built)


def killed(root: Path) -> None:
    def build(folder: Path) -> dict[str, int]:
        (folder / "half").write_text("3")
        wait_for(root / "die")
        os.kill(os.getpid(), signal.SIGKILL)
        return {}

    ArtifactStore(root / "store").ensure("tiger", "k", build, lambda text: None)


if __name__ == "__main__":
    pair(Path(sys.argv[2]), sys.argv[3]) if sys.argv[1] == "pair" else killed(Path(sys.argv[2]))
