"""Queues of toy tasks on a real Ray. Trial functions are nested functions: they travel to the processes by value."""

from __future__ import annotations

import functools
import os
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from genrec.artifacts import ArtifactStore
from genrec.pipeline import run_pipeline
from sweeps import ray_tune
from sweeps.interruption import Interrupted
from sweeps.ray_tune import TrialFunction, run_queue
from sweeps.records import Task
from sweeps.resources import Resources
from sweeps.spec_file import load_spec
from sweeps.stopping import Asha, Promotion
from sweeps.trial import run_trial


@dataclass
class Records:
    """A queue in memory that keeps all it was told."""

    payloads: list[dict[str, Any]]
    reports: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    finished: dict[str, tuple[str, dict[str, Any]]] = field(default_factory=dict)
    events: list[tuple[str, str, dict[str, Any]]] = field(default_factory=list)
    given: int = 0

    def next(self) -> Task | None:
        if self.given == len(self.payloads):
            return None
        self.given += 1
        return Task(f"trial-{self.given}", self.payloads[self.given - 1])

    def report(self, task_id: str, metrics: dict[str, Any]) -> None:
        self.reports.append((task_id, metrics))

    def finish(self, task_id: str, status: str, result: dict[str, Any]) -> None:
        assert task_id not in self.finished
        self.finished[task_id] = status, result

    def on_event(self, event: str, task_id: str, data: dict[str, Any]) -> None:
        self.events.append((event, task_id, data))

    def epochs(self, task_id: str) -> list[int]:
        return [metrics["epoch"] for name, metrics in self.reports if name == task_id]


def run(records: Records, function: TrialFunction, folder: Path, **options: Any) -> Records:
    given = {"name": "toy", "metric": "score", "epochs_of": lambda payload: 3, "max_concurrent": 1}
    run_queue(records, function, folder=folder, **(given | {"on_event": records.on_event} | options))
    return records


def asha(grace: int = 1, longest: int = 3) -> Asha:
    return Asha(grace=grace, factor=3, longest=longest, mode="max")


def counts(epochs: int = 3, seconds: float = 0.0) -> TrialFunction:
    """Reports payload["score"] in every epoch, from a loop under Ray Train."""

    def trial(payload: dict[str, Any], report: Callable[..., None], launch: Callable[..., None]) -> dict[str, Any]:
        import os
        import time

        def loop(argument: dict[str, Any], report: Callable[..., None]) -> None:
            for epoch in range(1, epochs + 1):
                time.sleep(seconds)
                report({"epoch": epoch, "score": argument["score"]})

        report({"_notes": {"trained": ["tokenizer"]}})
        print("counting")
        launch(loop, {"score": payload["score"]})
        return {"pid": os.getpid()}

    return trial


def test_a_sign_of_life_finds_a_stop_at_once_and_reaches_the_driver_now_and_then(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    stopped, sent, clock = [False], [], [0.0]
    monkeypatch.setattr(ray_tune.tune, "report", sent.append)
    monkeypatch.setattr(ray_tune, "time", SimpleNamespace(monotonic=lambda: clock[0]))
    report = ray_tune._report(lambda: stopped[0])
    for _ in range(50):
        clock[0] += ray_tune.SIGN_SECONDS / 10
        report({"stage": "tokenizer"})
    assert len(sent) in (4, 5)
    report({"epoch": 1})
    assert sent[-1] == {"metrics": {"epoch": 1}}
    stopped[0] = True
    with pytest.raises(SystemExit):
        report({"stage": "tokenizer"})


def test_every_task_is_reported_and_completed(
    ray_cluster: None, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    payloads = [{"score": 0.5}, {"score": 0.25}, {"score": 0.125}]
    records = run(Records(payloads), counts(), tmp_path, max_concurrent=2)
    assert set(records.finished) == {"trial-1", "trial-2", "trial-3"}
    status, result = records.finished["trial-2"]
    assert status == "completed"
    assert result["reason"] is None
    assert result["trained"] == ["tokenizer"]
    assert result["duration"] > 0
    assert result["node"]
    assert [m for name, m in records.reports if name == "trial-2"] == [{"epoch": e, "score": 0.25} for e in (1, 2, 3)]
    mine = [(event, data) for event, task_id, data in records.events if task_id == "trial-2"]
    assert [event for event, _ in mine] == ["started", "report", "report", "report", "finished"]
    assert mine[0][1] == {"attempt": 1}
    assert "counting" in (tmp_path / "logs" / "trial-2.log").read_text()
    assert capfd.readouterr().out == ""


def test_exception_fails_the_task_and_its_traceback_is_in_the_log(ray_cluster: None, tmp_path: Path) -> None:
    def trial(payload: dict[str, Any], report: Callable[..., None], launch: Callable[..., None]) -> dict[str, Any]:
        if payload["bad"]:
            raise LookupError("no codes for item 7")
        return {}

    records = run(Records([{"bad": True}, {"bad": False}]), trial, tmp_path)
    status, result = records.finished["trial-1"]
    assert (status, result["reason"]) == ("failed", "LookupError: no codes for item 7")
    assert records.finished["trial-2"][0] == "completed"
    assert "Traceback" in (tmp_path / "logs" / "trial-1.log").read_text()


def test_metric_that_is_not_a_number_fails_the_task(ray_cluster: None, tmp_path: Path) -> None:
    records = run(Records([{"score": float("nan")}]), counts(), tmp_path, rule=asha())
    status, result = records.finished["trial-1"]
    assert (status, result["reason"]) == ("failed", "score is nan at epoch 1")
    assert records.epochs("trial-1") == [1]


def test_task_that_never_fits_into_memory_fails_and_the_next_one_runs(ray_cluster: None, tmp_path: Path) -> None:
    def trial(payload: dict[str, Any], report: Callable[..., None], launch: Callable[..., None]) -> dict[str, Any]:
        import torch

        torch.empty(payload["numbers"])
        return {}

    records = run(Records([{"numbers": 2**55}, {"numbers": 2}]), trial, tmp_path)
    status, result = records.finished["trial-1"]
    assert status == "failed"
    assert result["reason"].startswith("out of memory: ")
    assert "restarts" not in result, "it would not fit the second time either"
    assert records.finished["trial-2"][0] == "completed"


def test_a_trial_that_hangs_is_ended_and_its_slot_is_free_again(ray_cluster: None, tmp_path: Path) -> None:
    def trial(payload: dict[str, Any], report: Callable[..., None], launch: Callable[..., None]) -> dict[str, Any]:
        if payload["hangs"]:
            os.kill(os.getpid(), signal.SIGSTOP)
        return {}

    tasks = Records([{"hangs": True}, {"hangs": False}])
    records = run(tasks, trial, tmp_path, max_concurrent=1, max_failures=0, progress_timeout=10.0)
    status, result = records.finished["trial-1"]
    assert (status, result["reason"]) == (
        "failed",
        "the trial's process died: no sign of life for 10 s (progress_timeout)",
    )
    assert records.finished["trial-2"][0] == "completed"


@pytest.mark.slow
def test_killed_training_ends_with_the_bits_of_an_undisturbed_one(ray_cluster: None, tmp_path: Path) -> None:
    """The real trial, killed after its first epoch, against the pipeline in this process."""
    config = load_spec(Path(__file__).with_name("tiny.yaml")).base_config()
    killed: list[int] = []

    def on_event(event: str, task_id: str, data: dict[str, Any]) -> None:
        if data.get("epoch") == 1 and not killed:
            killed.append(int((tmp_path / "logs" / f"{task_id}.log").read_text().split("process ")[1].split()[0]))
            os.kill(killed[0], signal.SIGKILL)

    payload = {"config": config.to_dict(), "seed": config.seed, "kind": "trial"}
    trial = functools.partial(run_trial, store=str(tmp_path / "killed"))
    records = run(Records([payload]), trial, tmp_path, metric="ndcg@10", on_event=on_event)
    assert records.finished["trial-1"][0] == "completed"
    assert killed
    undisturbed = ArtifactStore(tmp_path / "undisturbed")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        key = run_pipeline(config, undisturbed).keys["tiger"]
    finally:
        torch.set_num_threads(threads)
    model = "model/tensors.safetensors"
    found = [store.path("tiger", key) for store in (undisturbed, ArtifactStore(tmp_path / "killed"))]
    assert (found[0] / model).read_bytes() == (found[1] / model).read_bytes()


@pytest.mark.slow
def test_stopped_task_releases_what_it_holds_and_its_process_goes_on(ray_cluster: None, tmp_path: Path) -> None:
    released = tmp_path / "released"

    def trial(payload: dict[str, Any], report: Callable[..., None], launch: Callable[..., None]) -> dict[str, Any]:
        import os
        import time
        from pathlib import Path

        report({"_notes": {"pid": os.getpid()}})
        try:
            for epoch in (1, 2, 3):
                report({"epoch": epoch, "score": payload["score"]})
        finally:
            time.sleep(3)  # longer than Tune itself would wait
            Path(payload["released"]).touch()
        return {}

    history = {f"old-{i}": [(1, 0.5), (2, 0.5), (3, 0.5)] for i in range(3)}
    payloads = [{"score": 0.1, "released": str(released)}, {"score": 0.9, "released": str(released)}]
    records = run(Records(payloads), trial, tmp_path, rule=asha(grace=2), history=history)
    (status, first), (second_status, second) = records.finished["trial-1"], records.finished["trial-2"]
    assert (status, first["reason"]) == ("stopped", "stopped at epoch 2: rank 4 of 4, the best 1/3 go on")
    assert second_status == "completed"
    assert records.epochs("trial-1") == [1, 2]
    assert released.exists()
    assert first["pid"] == second["pid"]


def killed_in_epoch_two() -> TrialFunction:
    def trial(payload: dict[str, Any], report: Callable[..., None], launch: Callable[..., None]) -> dict[str, Any]:
        import os
        import signal
        from pathlib import Path

        done = Path(payload["done"])
        for epoch in range(1 + (int(done.read_text()) if done.exists() else 0), 4):
            if epoch == 2 and (payload["always"] or not Path(payload["done"] + ".killed").exists()):
                Path(payload["done"] + ".killed").touch()
                os.kill(os.getpid(), signal.SIGKILL)
            report({"epoch": epoch, "score": 0.5})
            done.write_text(str(epoch))
        return {}

    return trial


@pytest.mark.slow
def test_killed_process_is_replaced_and_the_same_task_continues(ray_cluster: None, tmp_path: Path) -> None:
    payload = {"done": str(tmp_path / "done"), "always": False}
    records = run(Records([payload]), killed_in_epoch_two(), tmp_path, rule=asha(), max_failures=1)
    assert records.finished["trial-1"][0] == "completed"
    assert records.epochs("trial-1") == [1, 2, 3]
    assert [data["attempt"] for event, _, data in records.events if event == "started"] == [1, 2]


@pytest.mark.slow
def test_process_that_dies_too_often_fails_the_task(
    ray_cluster: None, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    payload = {"done": str(tmp_path / "done"), "always": True}
    records = run(Records([payload]), killed_in_epoch_two(), tmp_path, max_failures=1)
    status, result = records.finished["trial-1"]
    assert status == "failed"
    assert result["reason"].startswith("the trial's process died 2 times: ")
    assert len(result["reason"]) < 300
    printed = capfd.readouterr()
    assert printed.out + printed.err == ""


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_slot_that_a_death_took_comes_back_although_trials_are_short(ray_cluster: None, tmp_path: Path) -> None:
    """Much shorter than the start of a process, which must not lose its place to them while it comes up."""
    marker = tmp_path / "killed"

    def trial(payload: dict[str, Any], report: Callable[..., None], launch: Callable[..., None]) -> dict[str, Any]:
        import os
        import signal
        import time
        from pathlib import Path

        marker, other = Path(payload["marker"]), Path(payload["marker"] + ".other")
        if payload["dies"] and not marker.exists():
            while not other.exists():  # until the other process runs trials as well
                time.sleep(0.1)
            marker.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        other.touch()
        time.sleep(0.1)
        report({"epoch": 1, "score": 0.5})
        return {"pid": os.getpid()}

    payloads = [{"dies": number == 0, "marker": str(marker)} for number in range(20_000)]
    records, deadline = Records(payloads), time.monotonic() + 400

    def both_are_back() -> bool:
        recent = list(records.finished.values())[-10:]
        return time.monotonic() > deadline or (marker.exists() and len({done["pid"] for _, done in recent}) == 2)

    run(records, trial, tmp_path, should_stop=both_are_back, max_concurrent=2)
    assert time.monotonic() < deadline, "one process ran all trials since the other died"


def tiny_training() -> TrialFunction:
    """Trains a little network and tells how much memory its process holds."""

    def trial(payload: dict[str, Any], report: Callable[..., None], launch: Callable[..., None]) -> dict[str, Any]:
        import os
        from pathlib import Path

        import torch

        def loop(argument: dict[str, Any], report: Callable[..., None]) -> None:
            model = torch.nn.Sequential(torch.nn.Linear(256, 512), torch.nn.ReLU(), torch.nn.Linear(512, 256))
            optimizer = torch.optim.Adam(model.parameters())
            for epoch in (1, 2):
                loss = model(torch.randn(64, 256)).square().mean()
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                report({"epoch": epoch, "score": loss.item()})

        launch(loop, {})
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        return {"pid": os.getpid(), "bytes": pages * os.sysconf("SC_PAGE_SIZE")}

    return trial


@pytest.mark.slow
def test_memory_after_200_trials_is_that_after_20(ray_cluster: None, tmp_path: Path) -> None:
    """Of the trials' processes and of the driver's, within a tenth."""
    driver: list[int] = []

    def on_event(event: str, task_id: str, data: dict[str, Any]) -> None:
        if event == "finished":
            pages = int(Path("/proc/self/statm").read_text().split()[1])
            driver.append(pages * os.sysconf("SC_PAGE_SIZE"))

    records = Records([{"seed": number} for number in range(200)])
    run(records, tiny_training(), tmp_path, max_concurrent=2, on_event=on_event)
    held = [result["bytes"] for _, result in records.finished.values()]
    assert len({result["pid"] for _, result in records.finished.values()}) == 2
    assert max(held[-10:]) < 1.1 * max(held[10:20])
    assert driver[-1] < 1.1 * driver[19]


def untidy_training() -> TrialFunction:
    """Trains a little network, then leaves everything in disorder. Returns a digest of the trained bytes."""

    def trial(payload: dict[str, Any], report: Callable[..., None], launch: Callable[..., None]) -> dict[str, Any]:
        import hashlib
        import os
        import random

        import numpy as np
        import torch

        digest = hashlib.sha256()

        def loop(argument: dict[str, Any], report: Callable[..., None]) -> None:
            model = torch.nn.Sequential(torch.nn.Linear(16, 32), torch.nn.Dropout(0.5), torch.nn.Linear(32, 1))
            optimizer = torch.optim.Adam(model.parameters())
            for epoch in (1, 2, 3):
                x_BD = torch.randn(64, 16) * random.random() + float(np.random.rand())
                loss = model(x_BD).square().mean()
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                report({"epoch": epoch, "score": loss.item()})
            for parameter in model.parameters():
                digest.update(parameter.detach().numpy().tobytes())

        launch(loop, {})
        facts = {"threads": torch.get_num_threads(), "cwd": os.getcwd(), "env": os.environ.get("LEFT")}
        torch.set_default_dtype(torch.float64)
        torch.set_num_threads(3)
        torch.set_grad_enabled(False)
        os.environ["LEFT"] = "behind"
        os.chdir("/")
        return {"digest": digest.hexdigest(), "pid": os.getpid(), **facts}

    return trial


@pytest.mark.slow
def test_second_trial_in_a_warm_process_equals_the_first_in_a_new_one(ray_cluster: None, tmp_path: Path) -> None:
    first, second = {"seed": 1}, {"seed": 2}
    warm = run(Records([first, second]), untidy_training(), tmp_path / "a")
    fresh = run(Records([second]), untidy_training(), tmp_path / "b")
    in_warm, in_fresh = dict(warm.finished["trial-2"][1]), dict(fresh.finished["trial-1"][1])
    assert in_warm["pid"] == warm.finished["trial-1"][1]["pid"] != in_fresh["pid"]
    for result in (in_warm, in_fresh):
        del result["duration"], result["runs"], result["pid"]
    assert in_warm == in_fresh
    assert in_warm["digest"] != warm.finished["trial-1"][1]["digest"]
    assert in_warm["cwd"] == os.getcwd()
    curve = [m for name, m in warm.reports if name == "trial-2"]
    assert curve == [m for _, m in fresh.reports]


def test_should_stop_ends_running_trials_untold(nothing_left: Callable[[], None], tmp_path: Path) -> None:
    records = Records([{"score": 0.5}] * 100)
    run(records, counts(seconds=0.3), tmp_path, should_stop=lambda: len(records.reports) > 7, max_concurrent=2)
    assert 1 <= len(records.finished) < records.given < 10
    assert {status for status, _ in records.finished.values()} == {"completed"}
    nothing_left()


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1])
def test_signal_ends_the_queue_within_seconds(ray_cluster: None, tmp_path: Path, signum: int) -> None:
    records, sent = Records([{"score": 0.5}] * 100), []

    def on_event(event: str, task_id: str, data: dict[str, Any]) -> None:
        if event == "report" and not sent:
            sent.append(time.monotonic())
            os.kill(os.getpid(), signum)

    before = signal.getsignal(signum)
    with pytest.raises(Interrupted) as caught:
        run(records, counts(seconds=0.2), tmp_path, on_event=on_event)
    assert caught.value.signum == signum
    assert time.monotonic() - sent[0] < 12
    assert not records.finished
    assert signal.getsignal(signum) is before


def test_task_larger_than_the_cluster_is_refused_before_anything_starts(ray_cluster: None, tmp_path: Path) -> None:
    records = Records([{"score": 0.5}])
    with pytest.raises(ValueError, match=r"a trial needs 3 x \(2 CPU\), the cluster has 1 node\(s\): 4 CPU and 0 GPU"):
        run(records, counts(), tmp_path, resources=Resources(workers=3, cpus_per_worker=2))
    assert records.given == 0


def test_fault_of_the_queue_ends_the_run_and_is_raised(ray_cluster: None, tmp_path: Path) -> None:
    class Broken(Records):
        def finish(self, task_id: str, status: str, result: dict[str, Any]) -> None:
            raise OSError("No space left on device")

    with pytest.raises(OSError, match="No space left"):
        run(Broken([{"score": 0.5}] * 5), counts(), tmp_path)


def test_run_queue_works_outside_the_main_thread(ray_cluster: None, tmp_path: Path) -> None:
    records = Records([{"score": 0.5}])
    thread = threading.Thread(target=run, args=(records, counts(), tmp_path))
    thread.start()
    thread.join()
    assert records.finished["trial-1"][0] == "completed"


def continues() -> TrialFunction:
    """Trains 4 epochs, each saved; what was trained before is reported again, as `genrec` does."""

    def trial(payload: dict[str, Any], report: Callable[..., None], launch: Callable[..., None]) -> dict[str, Any]:
        from pathlib import Path

        trained = Path(payload["trained"])
        done = len(trained.read_text().splitlines()) if trained.exists() else 0
        for epoch in range(1, 5):
            if epoch > done:
                with trained.open("a") as file:
                    file.write(f"{epoch}\n")
            report({"epoch": epoch, "score": payload["score"]})
        return {}

    return trial


@pytest.mark.slow
def test_paused_tasks_let_others_run_and_continue_where_they_were(
    nothing_left: Callable[[], None], tmp_path: Path
) -> None:
    scores = [0.1, 0.4, 0.2, 0.3]
    payloads = [{"score": score, "trained": str(tmp_path / f"{score}")} for score in scores]
    rule = Promotion(grace=1, factor=2, longest=4, mode="max")
    records = run(Records(payloads), continues(), tmp_path, rule=rule, epochs_of=lambda payload: 4, max_concurrent=1)
    statuses = [records.finished[f"trial-{number}"][0] for number in (1, 2, 3, 4)]
    assert statuses == ["stopped", "completed", "stopped", "stopped"]
    reasons = [records.finished[f"trial-{number}"][1]["reason"] for number in (1, 2, 3, 4)]
    assert reasons[0] == "not promoted at epoch 1: rank 4 of 4"
    assert reasons[3] == "not promoted at epoch 2: rank 2 of 2"
    trained = [(tmp_path / f"{score}").read_text().split() for score in scores]
    assert trained == [["1"], ["1", "2", "3", "4"], ["1"], ["1", "2"]], "no epoch twice, none too many"
    assert "paused" in {event for event, _, _ in records.events}
    nothing_left()


# ---- worker groups that are ended; those that come to their end: test_worker_groups.py -----------------------------

GROUP = Resources(workers=2, cpus_per_worker=1)


def in_a_group(epochs: int) -> TrialFunction:
    def trial(payload: dict[str, Any], report: Callable[..., None], launch: Callable[..., None]) -> dict[str, Any]:
        import os
        import signal
        import threading
        import time
        from pathlib import Path

        def loop(argument: dict[str, Any], report: Callable[..., None]) -> None:
            import torch

            for epoch in range(1, epochs + 1):
                ones = torch.ones(())
                torch.distributed.all_reduce(ones)
                report({"epoch": epoch, "score": argument["score"], "ranks": ones.item()})
                if "running" in argument:
                    Path(argument["running"]).touch()
                time.sleep(0.2)

        report({"_notes": {"trained": ["tokenizer"]}})
        running = Path(payload["running"]) if "running" in payload else None
        if running and not running.exists():

            def kill_this_process() -> None:
                while not running.exists():
                    time.sleep(0.1)
                os.kill(os.getpid(), signal.SIGKILL)

            threading.Thread(target=kill_this_process, daemon=True).start()
        launch(loop, payload)
        return {"done": True}

    return trial


@pytest.mark.slow
def test_group_that_the_scheduler_stops_leaves_nothing(nothing_left: Callable[[], None], tmp_path: Path) -> None:
    history = {f"old-{i}": [(1, 0.5)] for i in range(3)}
    records = run(
        Records([{"score": 0.1}]), in_a_group(200), tmp_path, resources=GROUP, rule=asha(longest=200), history=history
    )
    status, result = records.finished["trial-1"]
    assert (status, result["trained"]) == ("stopped", ["tokenizer"])
    assert records.epochs("trial-1") == [1]
    nothing_left()


@pytest.mark.slow
def test_group_that_is_interrupted_leaves_nothing(nothing_left: Callable[[], None], tmp_path: Path) -> None:
    records, stopped_at = Records([{"score": 0.5}] * 3), []

    def should_stop() -> bool:
        if len(records.reports) > 2 and not stopped_at:
            stopped_at.append(time.monotonic())
        return bool(stopped_at)

    run(records, in_a_group(1000), tmp_path, resources=GROUP, should_stop=should_stop)
    assert time.monotonic() - stopped_at[0] < 15
    assert not records.finished
    nothing_left()


@pytest.mark.slow
def test_group_whose_driver_is_killed_is_freed_and_started_again(
    nothing_left: Callable[[], None], tmp_path: Path
) -> None:
    payload, whole_cluster = (
        {"score": 0.5, "running": str(tmp_path / "running")},
        Resources(workers=2, cpus_per_worker=2),
    )
    records = run(Records([payload]), in_a_group(8), tmp_path, resources=whole_cluster)
    assert records.finished["trial-1"][0] == "completed"
    assert [data["attempt"] for event, _, data in records.events if event == "started"] == [1, 2]
    nothing_left()
