"""One training loop, in this process or in a group of workers. Loops are nested functions: they travel by value."""

from __future__ import annotations

import asyncio
import json
import os
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import ray

from sweeps import ray_train
from sweeps.ray_train import ABORT_SECONDS, Loop, WorkerDied, run_loop
from sweeps.resources import DRIVER_CPUS, DRIVERS_OF_A_NODE, Resources, workers_in

ONE: dict[str, Any] = {"resources": Resources(), "run_name": "one"}
TWO: dict[str, Any] = {"resources": Resources(workers=2), "run_name": "two"}


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

    five = Resources(workers=6, min_workers=5)
    with pytest.raises(SystemExit):
        run_loop(loop, {}, unused, resources=five, run_name="waits", storage=str(tmp_path), stopped=stopped)
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


# -------------------------------------------------------------- whose failure

NCCL = "NCCL error in: ProcessGroupNCCL.cpp, unhandled cuda error"


def died(text: str = "The actor died") -> Exception:
    from ray.train.v2._internal.exceptions import WorkerHealthCheckFailedError

    return WorkerHealthCheckFailedError("A worker health check failed.", ray.exceptions.RayActorError(error_msg=text))


def group_error(**failures: Exception) -> Any:
    return ray.train.WorkerGroupError("", {int(rank[1:]): failure for rank, failure in failures.items()})


def policy(max_failures: int = 2) -> Any:
    import ray.train

    return ray_train._RetryDeaths(ray.train.FailureConfig(max_failures=max_failures, controller_failure_limit=3))


def decision(error: Exception, policy: Any) -> str:
    return str(policy.make_decision(error).value)


@pytest.mark.parametrize("text", [NCCL, "bad socket option"])
def test_an_error_that_sounds_like_an_echo_is_the_loops_own_if_nobody_died(text: str) -> None:
    error = group_error(r0=RuntimeError(text), r1=RuntimeError(text))
    assert decision(error, policy()) == "RAISE"
    cause = ray_train._cause(error)
    assert not isinstance(cause, WorkerDied)
    assert str(cause) == text


def test_an_error_beside_a_death_is_its_echo() -> None:
    error = group_error(r0=RuntimeError("Connection closed by peer"), r1=died())
    assert decision(error, policy()) == "RETRY"
    cause = ray_train._cause(error)
    assert isinstance(cause, WorkerDied)
    assert "rank 1" in str(cause)


def test_a_group_without_room_tries_again_for_ever() -> None:
    """How long the run waits for a node is for the run to say (tests/sweeps/test_node_health.py)."""
    from ray.train.v2._internal.exceptions import WorkerGroupStartupTimeoutError

    error, judge = ray.train.ControllerError(WorkerGroupStartupTimeoutError(2)), policy(max_failures=0)
    assert {decision(error, judge) for _ in range(100)} == {"RETRY"}


def test_a_group_whose_workers_do_not_start_tries_a_few_times() -> None:
    from ray.train.v2._internal.exceptions import WorkerGroupStartupFailedError

    error, judge = ray.train.ControllerError(WorkerGroupStartupFailedError("at least one failed")), policy()
    assert [decision(error, judge) for _ in range(4)] == ["RETRY"] * 3 + ["RAISE"]
    lost = WorkerGroupStartupFailedError("at least one failed")
    lost.__cause__ = ray.exceptions.RayActorError(error_msg=ray_train.NODE_LOST)
    judge = policy()
    assert {decision(ray.train.ControllerError(lost), judge) for _ in range(10)} == {"RETRY"}


class MadeUpGroup:
    """A controller's polls, one after another, and whether some rank is silent at each."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *polls: tuple[dict[int, Exception], bool]):
        from ray.train.v2._internal.execution.controller import TrainController
        from ray.train.v2._internal.execution.worker_group import WorkerGroupPollStatus
        from ray.train.v2._internal.execution.worker_group.poll import WorkerStatus

        self.polls = list(polls)
        self.controller = ray_train._Controller.__new__(ray_train._Controller)
        self.controller._worker_group = SimpleNamespace(_world_rank_to_ongoing_poll={})  # type: ignore[assignment]

        async def poll(controller: Any) -> WorkerGroupPollStatus:
            errors, silent = self.polls.pop(0) if len(self.polls) > 1 else self.polls[0]
            controller._worker_group._world_rank_to_ongoing_poll = {1: None} if silent else {}
            return WorkerGroupPollStatus({rank: WorkerStatus(False, error) for rank, error in errors.items()})

        monkeypatch.setattr(TrainController, "_poll_workers", poll)

    def errors(self) -> dict[int, Exception]:
        return asyncio.run(self.controller._poll_workers()).errors


def test_an_echo_waits_for_the_death_that_it_is_of(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray may take half a minute to notice that a node is gone; a rank on another one hears of it at once."""
    echo, dead = RuntimeError("Connection reset by peer"), died()
    group = MadeUpGroup(monkeypatch, *[({0: echo}, True)] * 20, ({0: echo, 1: dead}, False))
    assert group.errors() == {0: echo, 1: dead}


def test_an_error_of_its_own_is_believed_when_all_ranks_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    group = MadeUpGroup(monkeypatch, ({0: RuntimeError(NCCL)}, False))
    assert str(group.errors()[0]) == NCCL


# ------------------------------------------------------------------- slivers


@pytest.mark.parametrize(("cpus", "node"), [(4, 4), (1, 16), (0.5, 1)])
def test_drivers_take_no_worker_its_place(cpus: float, node: int) -> None:
    """All of the cluster's drivers on one node: as many workers fit as without them, and a GPU beside each."""
    bundle = Resources(workers=2, cpus_per_worker=cpus, gpus_per_worker=1).bundle_in_group
    left = {"CPU": node - DRIVERS_OF_A_NODE * DRIVER_CPUS, "GPU": node / cpus}
    assert workers_in(left, bundle) == node / cpus


def test_a_controller_that_waits_for_room_hears_of_a_stop_before_it_is_killed() -> None:
    """It hears nothing within one try for room."""
    assert float(ray_train.GROUP_ENVIRONMENT["RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S"]) < ABORT_SECONDS


class MadeUpController:
    """Answers to `has_room` as given; None: no answer."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *answers: bool | None):
        self.answers, self.has_room = list(answers), self
        monkeypatch.setattr(ray, "wait", lambda refs, timeout: ([], refs) if refs[0] is None else (refs, []))
        monkeypatch.setattr(ray, "get", lambda ref: ref)

    def remote(self) -> bool | None:
        return self.answers.pop(0) if self.answers else None


def test_whether_a_group_has_room_is_told_when_it_changes_and_until_it_is_heard(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now, told, deaf = [0.0], list[bool](), [True]
    monkeypatch.setattr("time.monotonic", lambda: now[0])

    def tell(yes: bool) -> bool:
        told.append(yes)
        return not deaf[0]

    room = ray_train._Room(MadeUpController(monkeypatch, False, True, True), tell)
    room.look()
    deaf[0] = False
    room.look()
    assert told == [False, False], "told again, since nobody heard it"
    for _ in range(20):
        now[0] += ray_train.ASK_ROOM_SECONDS
        room.look()
    assert told == [False, False, True, False], "a controller that does not answer any more waits for room"
