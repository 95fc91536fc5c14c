"""Trackers copy the curves, and neither their absence nor their failure reaches training."""

from __future__ import annotations

import logging
import socket
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import torch

from genrec import tracking
from genrec.errors import InputError
from genrec.progress import TrainingStep
from genrec.settings import TrackingConfig
from genrec.tracking import (
    TrackedRun,
    Tracker,
    TrainingCurve,
    _Threaded,
    has_key,
    open_tracker,
    require_trackers,
    server_address,
    wandb_mode,
)


@pytest.fixture(autouse=True)
def no_account(monkeypatch, tmp_path):
    """No key, no netrc, no mode from whoever runs the tests."""
    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "home").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delenv("NETRC", raising=False)


class Kept:
    """A destination that keeps what it gets."""

    def __init__(self) -> None:
        self.written: list[tuple[dict[str, float], int, str]] = []
        self.summary: dict[str, Any] = {}
        self.kept: list[tuple[Path, str]] = []
        self.closed = False

    def open(self) -> None:
        pass

    def write(self, values: dict[str, float], step: int, axis: str) -> None:
        self.written.append((values, step, axis))

    def summarise(self, values: dict[str, Any]) -> None:
        self.summary |= values

    def keep(self, folder: Path, name: str) -> None:
        self.kept.append((folder, name))

    def close(self) -> None:
        self.closed = True


def step(number: int, loss: float) -> TrainingStep:
    return TrainingStep(1, 1, number, 100, 1e-3, 10, torch.tensor(10 * loss, dtype=torch.float64))


def test_figures_of_the_run_and_its_files_reach_every_tracker(tmp_path):
    kept = Kept()
    with Tracker([_Threaded("kept", kept)]) as tracker:
        tracker.summarise({"health/collision_rate": 0.25})
        tracker.keep(tmp_path, "bundle")
    assert (kept.summary, kept.kept) == ({"health/collision_rate": 0.25}, [(tmp_path, "bundle")])


def test_a_sweep_that_is_made_anew_under_its_old_name_does_not_go_on_with_the_old_runs():
    first, second = (TrackedRun("trial-0001", "x", group="s", identity=identity) for identity in ("a", "b"))
    assert first.id_in("p") != second.id_in("p")


def test_a_run_is_named_by_project_group_and_name_alone(tmp_path):
    run = TrackedRun("trial-0001", str(tmp_path), group="s")
    assert run.id_in("p") == TrackedRun("trial-0001", "/elsewhere", group="s", job_type="trial").id_in("p")
    others = [TrackedRun("trial-0002", "x", group="s"), TrackedRun("trial-0001", "x", group="t")]
    assert len({run.id_in("p"), run.id_in("q"), *(other.id_in("p") for other in others)}) == 4


def test_the_curve_has_a_point_every_so_many_steps_with_the_mean_since_the_last():
    kept = Kept()
    with Tracker([_Threaded("kept", kept)]) as tracker:
        curve = TrainingCurve(tracker, interval=2)
        for number, loss in enumerate([1.0, 2.0, 3.0, 5.0, 9.0], 1):
            curve.log_step(step(number, loss))
        curve.log_epoch({"epoch": 1, "loss": 4.0, "ndcg@10": 0.25})
    assert kept.written == [
        ({"loss": 1.5, "learning_rate": 1e-3}, 2, "step"),
        ({"loss": 4.0, "learning_rate": 1e-3}, 4, "step"),
        ({"loss": 4.0, "ndcg@10": 0.25}, 1, "epoch"),
    ]
    assert kept.closed


def test_nothing_asked_for_is_nothing_tracked(tmp_path):
    tracker = open_tracker(TrackingConfig(), TrackedRun("t", str(tmp_path)), {})
    assert not tracker
    tracker.log({"loss": 1.0}, 1)
    tracker.finish()
    assert not (tmp_path / "t").exists()


class Broken(Kept):
    def write(self, values: dict[str, float], step: int, axis: str) -> None:
        raise ConnectionError("https://me:secret@host is gone")


class Stuck(Kept):
    def open(self) -> None:
        threading.Event().wait()


def test_a_tracker_that_fails_says_so_once_and_disturbs_no_other(caplog):
    kept = Kept()
    with (
        caplog.at_level(logging.WARNING),
        Tracker([_Threaded("broken", Broken()), _Threaded("kept", kept)]) as tracker,
    ):
        for number in range(5):
            tracker.log({"loss": 1.0}, number)
    assert caplog.messages == ["broken is off for this run: ConnectionError: https://***@host is gone"]
    assert len(kept.written) == 5


def test_a_tracker_that_never_answers_is_waited_for_once_and_not_opened_again(monkeypatch, caplog, tmp_path):
    monkeypatch.setattr(tracking, "FINISH_SECONDS", 0.1)
    monkeypatch.setattr(tracking, "_stuck", set())
    monkeypatch.setattr(tracking, "TensorBoardRun", lambda folder: Stuck())
    pytest.importorskip("tensorboard")
    run = TrackedRun("run", str(tmp_path))
    with caplog.at_level(logging.WARNING), open_tracker(TrackingConfig(tensorboard=True), run, {}) as tracker:
        for number in range(1000):
            tracker.log({"loss": 1.0}, number)
    assert caplog.messages == ["TensorBoard does not answer; this process goes on without it"]
    assert not open_tracker(TrackingConfig(tensorboard=True), run, {})


def test_trials_of_a_sweep_wait_for_a_tracker_no_longer_than_ten_seconds(tmp_path):
    pytest.importorskip("tensorboard")
    config = TrackingConfig(tensorboard=True)
    for offline, seconds in ((True, 10.0), (False, 60.0)):
        with open_tracker(config, TrackedRun("run", str(tmp_path), offline=offline), {}) as tracker:
            assert [one._finish_seconds for one in tracker._trackers] == [seconds]


def test_tensorboard_gets_steps_and_epochs(tmp_path):
    reader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    with open_tracker(TrackingConfig(tensorboard=True), TrackedRun("run", str(tmp_path)), {}) as tracker:
        tracker.log({"loss": 2.5}, 100)
        tracker.log({"loss": 2.0}, 200)
        tracker.log({"ndcg@10": 0.25}, 1, "epoch")
    events = reader.EventAccumulator(str(tmp_path / "run" / "tensorboard"))
    events.Reload()
    assert [(e.step, e.value) for e in events.Scalars("train/loss")] == [(100, 2.5), (200, 2.0)]
    assert [(e.step, e.value) for e in events.Scalars("epoch/ndcg@10")] == [(1, 0.25)]


@pytest.mark.slow
def test_wandb_writes_offline_without_a_key_and_keeps_secrets_to_itself(tmp_path):
    pytest.importorskip("wandb")
    config = {"dataset": {"dataset_folder": "s3://me:hunter2@bucket/x"}, "api_key": "hunter3", "epochs": 3}
    code = (
        "import sys; from genrec.settings import TrackingConfig\n"
        "from genrec.tracking import TrackedRun, open_tracker\n"
        "run = TrackedRun('run', sys.argv[1])\n"
        f"with open_tracker(TrackingConfig(wandb_logging=True), run, {config!r}) as tracker:\n"
        "    tracker.log({'loss': 2.5}, 100)\n"
        "    tracker.log({'ndcg@10': 0.25}, 1, 'epoch')\n"
    )
    ended = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, timeout=250)
    assert ended.returncode == 0, ended.stderr
    (record,) = tmp_path.glob("run/wandb/offline-run-*/run-*.wandb")
    content = record.read_bytes()
    assert b"train/loss" in content
    assert b"epoch/ndcg@10" in content
    assert b"s3://***@bucket/x" in content
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and b"hunter" in path.read_bytes()]


def test_wandb_is_not_imported_when_it_is_off(tmp_path):
    code = (
        "import sys; from genrec.settings import TrackingConfig\n"
        "from genrec.tracking import TrackedRun, open_tracker\n"
        "open_tracker(TrackingConfig(), TrackedRun('run', 'x'), {}).finish()\n"
        "print([m for m in ('wandb', 'tensorboard') if m in sys.modules])\n"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=250, cwd=tmp_path)
    assert ended.stdout.strip() == "[]"


def test_a_tracker_that_is_not_installed_is_refused_before_training(monkeypatch, tmp_path):
    monkeypatch.setattr(tracking.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"tracking.wandb_logging is on, but wandb is not installed; fix: pip install"):
        require_trackers(TrackingConfig(wandb_logging=True))
    tracker = open_tracker(TrackingConfig(wandb_logging=True), TrackedRun("run", str(tmp_path)), {})
    assert not tracker, "a node without it trains all the same"


# ----------------------------------------------------------------------- mode


def silent_server() -> tuple[socket.socket, str]:
    """A server that takes connections and says nothing."""
    server = socket.create_server(("127.0.0.1", 0))
    return server, f"http://127.0.0.1:{server.getsockname()[1]}"


def answering_server(answer: bytes) -> tuple[socket.socket, str]:
    server, address = silent_server()

    def serve() -> None:
        connection, _ = server.accept()
        with connection:
            connection.recv(4096)
            connection.sendall(answer)

    threading.Thread(target=serve, daemon=True).start()
    return server, address


def test_without_a_key_wandb_is_offline_and_nobody_is_asked(monkeypatch):
    monkeypatch.setattr(tracking, "server_answers", lambda: pytest.fail("asked"))
    assert wandb_mode() == "offline"


def test_a_key_and_a_server_that_does_not_answer_is_offline(monkeypatch):
    monkeypatch.setattr(tracking, "NETWORK_SECONDS", 0.2)
    monkeypatch.setenv("WANDB_API_KEY", "k" * 40)
    server, address = silent_server()
    with server:
        monkeypatch.setenv("WANDB_BASE_URL", address)
        assert wandb_mode() == "offline"
    assert wandb_mode() == "offline"  # the server is gone altogether
    monkeypatch.setenv("WANDB_BASE_URL", "file:///etc/hostname")
    assert wandb_mode() == "offline"


@pytest.mark.parametrize("status", [b"200 OK", b"404 Not Found"])
@pytest.mark.parametrize("place", ["environment", "netrc"])
def test_a_key_and_a_server_that_answers_is_online(monkeypatch, status, place, tmp_path):
    server, address = answering_server(b"HTTP/1.1 " + status + b"\r\nContent-Length: 0\r\n\r\n")
    with server:
        monkeypatch.setenv("WANDB_BASE_URL", address)
        if place == "environment":
            monkeypatch.setenv("WANDB_API_KEY", "k" * 40)
        else:
            netrc = Path(tmp_path / "home" / ".netrc")
            netrc.write_text(f"machine {urlsplit(address).netloc} login user password {'k' * 40}\n")
            netrc.chmod(0o600)
        assert wandb_mode() == "online"


@pytest.mark.parametrize("machine", tracking.SERVERS)
def test_the_key_of_the_public_server_is_found_under_both_its_names(monkeypatch, machine, tmp_path):
    assert not has_key()
    netrc = tmp_path / "elsewhere"
    netrc.write_text(f"machine {machine} login user password {'k' * 40}\n")
    monkeypatch.setenv("NETRC", str(netrc))
    assert has_key()
    monkeypatch.setenv("WANDB_BASE_URL", "https://wandb.example")
    assert not has_key(), "another server has another key"


def test_the_public_server_is_the_one_that_wandb_itself_would_ask():
    wandb = pytest.importorskip("wandb")
    assert server_address() == wandb.Settings().base_url


@pytest.mark.parametrize("mode", ["online", "offline", "disabled"])
def test_the_environment_decides_if_it_says_so(monkeypatch, mode):
    monkeypatch.setenv("WANDB_MODE", mode)
    assert wandb_mode() == mode
