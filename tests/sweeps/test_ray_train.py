"""One training loop, in this process or in a group of workers. Loops are nested functions: they travel by value."""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import ray

from sweeps.ray_train import ABORT_SECONDS, Loop, WorkerDied, run_loop

ONE = {"workers": 1, "cpus_per_worker": 1, "run_name": "one"}
TWO = {"workers": 2, "cpus_per_worker": 1, "run_name": "two"}


def unused(metrics: Mapping[str, Any]) -> None:
    raise AssertionError("a group reports through Ray Train")


def test_single_worker_runs_in_this_process_and_reports_directly(ray_cluster: None, tmp_path: Path) -> None:
    seen: list[dict[str, Any]] = []

    def loop(argument: dict[str, Any], report: Callable[..., None]) -> None:
        report({"epoch": 1, "pid": os.getpid(), "given": argument["given"]})

    run_loop(loop, {"given": 5}, seen.append, storage=str(tmp_path), **ONE)
    assert seen == [{"epoch": 1, "pid": os.getpid(), "given": 5}]


def test_exception_of_a_single_worker_is_the_very_same(ray_cluster: None, tmp_path: Path) -> None:
    error = KeyError("no such item")

    def loop(argument: dict[str, Any], report: Callable[..., None]) -> None:
        raise error

    with pytest.raises(KeyError) as caught:
        run_loop(loop, {}, unused, storage=str(tmp_path), **ONE)
    assert caught.value is error


def all_reduce_ones() -> Loop:
    def loop(argument: dict[str, Any], report: Callable[..., None]) -> None:
        import torch

        ones = torch.ones(())
        torch.distributed.all_reduce(ones)
        print("rank", torch.distributed.get_rank(), torch.distributed.get_backend(), torch.get_num_threads())
        report({"epoch": 1, "sum": ones.item(), "drawn": torch.rand(()).item()})

    return loop


def writes_reports(path: Path) -> Any:
    """A callback of Ray Train that notes what rank 0 reported."""
    from ray.train import UserCallback

    class Writer(UserCallback):
        def after_report(self, run_context: Any, metrics: list[dict[str, Any]], checkpoint: Any) -> None:
            with open(path, "a") as lines:
                lines.write(json.dumps(metrics[0]) + "\n")

    return Writer()


def lines_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.slow
def test_two_workers_add_up_and_leave_nothing(nothing_left: Callable[[], None], tmp_path: Path) -> None:
    import torch

    reports, log = tmp_path / "reports", tmp_path / "trial.log"
    callbacks = [writes_reports(reports)]
    run_loop(all_reduce_ones(), {}, unused, storage=str(tmp_path), callbacks=callbacks, log=log, seed=3, **TWO)
    drawn = torch.rand((), generator=torch.Generator().manual_seed(3)).item()
    assert lines_of(reports) == [{"epoch": 1, "sum": 2.0, "drawn": drawn}]
    assert sorted(log.read_text().splitlines()) == ["rank 0 gloo 1", "rank 1 gloo 1"]
    nothing_left()


@pytest.mark.slow
def test_exception_of_a_group_arrives_at_once_and_is_not_retried(
    nothing_left: Callable[[], None], tmp_path: Path
) -> None:
    def loop(argument: dict[str, Any], report: Callable[..., None]) -> None:
        import torch

        if torch.distributed.get_rank() == 1:
            with open(argument["tries"], "a") as tries:
                tries.write("x")
            raise ValueError("rank one had enough")
        torch.distributed.barrier()

    tries = tmp_path / "tries"
    with pytest.raises(ValueError, match="rank one had enough"):
        run_loop(loop, {"tries": str(tries)}, unused, storage=str(tmp_path), max_failures=3, **TWO)
    assert tries.read_text() == "x"
    nothing_left()


def dies() -> Loop:
    """Rank 1 kills itself in epoch 2."""

    def loop(argument: dict[str, Any], report: Callable[..., None]) -> None:
        import os
        import signal

        import torch

        for epoch in (1, 2, 3):
            if torch.distributed.get_rank() == 1 and epoch == 2:
                os.kill(os.getpid(), signal.SIGKILL)
            torch.distributed.all_reduce(torch.ones(()))
            report({"epoch": epoch})

    return loop


@pytest.mark.slow
def test_worker_that_dies_too_often_is_named(nothing_left: Callable[[], None], tmp_path: Path) -> None:
    """One that is replaced: test_worker_groups.py."""
    with pytest.raises(WorkerDied, match="rank 1"):
        run_loop(dies(), {}, unused, storage=str(tmp_path), max_failures=0, **TWO)
    nothing_left()


@pytest.mark.slow
@pytest.mark.parametrize("when", ["running", "starting"])
def test_stopped_group_leaves_nothing(nothing_left: Callable[[], None], tmp_path: Path, when: str) -> None:
    def loop(argument: dict[str, Any], report: Callable[..., None]) -> None:
        import time
        from pathlib import Path

        for epoch in range(1000):
            report({"epoch": epoch})
            Path(argument["running"]).touch()
            time.sleep(0.1)

    running, since = tmp_path / "running", time.monotonic()

    def stopped() -> bool:
        return running.exists() if when == "running" else time.monotonic() > since + 1.5

    with pytest.raises(SystemExit):
        run_loop(loop, {"running": str(running)}, unused, storage=str(tmp_path), stopped=stopped, **TWO)
    nothing_left()


@pytest.mark.slow
def test_elastic_group_that_waits_for_room_listens_to_a_stop(nothing_left: Callable[[], None], tmp_path: Path) -> None:
    """Five workers at least, on four CPUs."""

    def loop(argument: dict[str, Any], report: Callable[..., None]) -> None:
        raise AssertionError("there is no room")

    stopped_at: list[float] = []

    def stopped() -> bool:
        actors = ray._private.state.actors().values()
        if not stopped_at and any(a["ActorClassName"] == "_Controller" and a["State"] == "ALIVE" for a in actors):
            time.sleep(2)  # it has asked for room a few times
            stopped_at.append(time.monotonic())
        return bool(stopped_at)

    group = {"workers": 6, "min_workers": 5, "cpus_per_worker": 1, "run_name": "waits"}
    with pytest.raises(SystemExit):
        run_loop(loop, {}, unused, storage=str(tmp_path), stopped=stopped, **group)
    assert time.monotonic() - stopped_at[0] < ABORT_SECONDS, "it was killed without an answer"
    nothing_left()


def test_loop_may_run_outside_the_main_thread(ray_cluster: None, tmp_path: Path) -> None:
    seen: list[Any] = []

    def loop(argument: dict[str, Any], report: Callable[..., None]) -> None:
        report({"epoch": 1})

    thread = threading.Thread(target=lambda: run_loop(loop, {}, seen.append, storage=str(tmp_path), **ONE))
    thread.start()
    thread.join()
    assert seen == [{"epoch": 1}]
