"""One training loop under Ray Train's TorchTrainer: in this very process, or in a group of worker processes.

One worker: Train's local mode; the loop runs here and reports to the caller directly. Several workers: Train starts
them over torch.distributed, restarts them when one dies (the loop continues from its own checkpoint on disk), and
nothing of the group outlives the call, however it ends. An elastic group also starts anew, larger or smaller, when
nodes come or go. The only module that imports ray.train.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import sys
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import ray
import ray.train
from ray.data._internal.cluster_autoscaler.default_autoscaling_coordinator import get_or_create_autoscaling_coordinator
from ray.exceptions import RayActorError, RayError
from ray.train.torch import TorchConfig, TorchTrainer
from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback
from ray.train.v2._internal.callbacks.working_dir_setup import WorkingDirectorySetupCallback
from ray.train.v2._internal.constants import get_env_vars_to_propagate, is_v2_enabled
from ray.train.v2._internal.exceptions import (
    WorkerGroupStartupTimeoutError,
    WorkerHealthCheckFailedError,
    WorkerHealthCheckTimeoutError,
)
from ray.train.v2._internal.execution import context as train_context
from ray.train.v2._internal.execution.controller import TrainController
from ray.train.v2._internal.execution.controller.state import RunningState
from ray.train.v2._internal.execution.failure_handling import DefaultFailurePolicy, FailureDecision
from ray.train.v2._internal.execution.scaling_policy import ElasticScalingPolicy
from ray.train.v2._internal.execution.worker_group import WorkerGroupPollStatus

from sweeps.cluster_view import only_on
from sweeps.node_health import UnfitNode
from sweeps.reservations import free_reservations
from sweeps.resources import Resources, workers_in
from sweeps.warm_process import fresh_worker_state, hide_gpus, output_to

Report = Callable[[Mapping[str, Any]], None]
Loop = Callable[[dict[str, Any], Report], None]

POLL_SECONDS = 0.2
RESIZE_SECONDS = 30.0  # how often an elastic group looks whether it could be larger
COORDINATOR_SECONDS = 5.0
ABORT_SECONDS = 15.0
ASK_ROOM_SECONDS = 1.0  # how often the controller is asked whether the workers have room
UNANSWERED_SECONDS = 10.0  # after which no answer means no
ECHO_POLLS = 4  # of the workers, half a second apart, until what sounds like an echo is the rank's own error
SILENCE_SECONDS = 40.0  # for word of a rank that does not answer: so long may Ray take to notice the end of a node
CONTROLLER_RETRIES = 3  # of starts in which a worker died; Ray's default is to retry for ever
LOST_NODES = 100  # that a group survives; none of them is its own fault
NODE_LOST = "its node has died"
GROUP_ENVIRONMENT = {
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",  # else print() is logged as well as printed
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",  # how often reports and deaths are noticed
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "10",  # between two tries for room, in which the controller hears nothing
}
PEER_LOST = ("connection closed by peer", "connection reset", "connection refused", "broken pipe", "socket", "nccl")


class WorkerDied(RuntimeError):
    """A process of the worker group died more often than allowed."""


def run_loop(
    loop: Loop,
    argument: dict[str, Any],
    report: Report,
    *,
    resources: Resources,
    nodes: Mapping[str, str] | None = None,
    check_node: Callable[[], Sequence[str]] = tuple,
    run_name: str,
    storage: str,
    max_failures: int = 2,
    seed: int = 0,
    callbacks: Sequence[Any] = (),
    log: Path | None = None,
    tell_room: Callable[[bool], bool] = lambda yes: True,
    stopped: Callable[[], bool] = lambda: False,
) -> None:
    """Run `loop(argument, report)` to its end.

    With one worker the loop gets `argument` and `report` as they are. With more, every worker imports `loop`, gets a
    copy of `argument`, is seeded with `seed`, prints into `log`, and its `report` is Ray Train's: all ranks call it
    with metrics already reduced over ranks, rank 0's reach `callbacks`. `nodes` is Ray's label selector of the nodes
    that may run a worker; each asks `check_node` for the faults of its node. `storage` is a folder all nodes see.
    `stopped` is asked all the time; once true the group is torn down and SystemExit(0) raised. A group waits for room
    as long as it is not stopped; `tell_room` is told whether the workers have it, again until it returns true. Workers
    that stay together (`resources.together`) are on the node of this process, and share its folders.

    With fewer workers at the least than at the most the group is elastic: it has as many as there is room for, and
    starts anew from the loop's checkpoint with more or fewer when nodes have come or gone.

    Raises what the loop raised (of the lowest rank that failed by itself), UnfitNode when a worker's node has a fault,
    WorkerDied when a worker died more than `max_failures` times.
    """
    if not is_v2_enabled():
        raise RuntimeError("Ray Train V2 is switched off: unset RAY_TRAIN_V2_ENABLED")
    if resources.workers == 1:
        trainer = TorchTrainer(
            lambda: loop(argument, report),
            scaling_config=ray.train.ScalingConfig(num_workers=0),
            run_config=ray.train.RunConfig(name=run_name, storage_path=storage),
        )
        trainer.fit()
        return
    is_fixed = resources.fewest == resources.workers
    trainer = _GroupTrainer(
        _work,
        stopped=stopped,
        tell_room=tell_room,
        train_loop_config={
            "loop": loop,
            "argument": argument,
            "seed": seed,
            "threads": resources.threads,
            "has_gpus": resources.gpus_per_worker > 0,
            "log": log,
            "check_node": check_node,
        },
        torch_config=TorchConfig(backend="nccl" if resources.gpus_per_worker else "gloo"),
        scaling_config=ray.train.ScalingConfig(
            num_workers=resources.workers if is_fixed else (resources.fewest, resources.workers),
            elastic_resize_monitor_interval_s=RESIZE_SECONDS,
            use_gpu=resources.gpus_per_worker > 0,
            resources_per_worker=resources.bundle_in_group,
            label_selector=_this_node() if resources.together else dict(nodes) if nodes else None,
        ),
        run_config=ray.train.RunConfig(
            name=run_name,
            storage_path=storage,
            callbacks=list(callbacks),
            logging_config=ray.train.LoggingConfig(log_level="ERROR"),
            failure_config=ray.train.FailureConfig(
                max_failures=max_failures,
                controller_failure_limit=CONTROLLER_RETRIES,
                max_preemption_failures=LOST_NODES,
            ),
        ),
    )
    try:
        trainer.fit()
    except ray.train.WorkerGroupError as error:
        print(error, file=sys.stderr)  # has the workers' tracebacks, which the exceptions themselves have lost
        raise _cause(error) from None
    except ray.train.ControllerError as error:
        print(error, file=sys.stderr)
        raise WorkerDied(f"the worker group broke down: {str(error.controller_failure).strip()}") from None


def _work(given: dict[str, Any]) -> None:
    """What each worker of a group runs."""
    with output_to(given["log"]):
        logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", stream=sys.stdout, force=True)
        logging.getLogger(train_context.__file__).setLevel(logging.WARNING)  # says every report; named by its path
        if faults := given["check_node"]():
            raise UnfitNode("; ".join(faults), ray.get_runtime_context().get_node_id())
        fresh_worker_state(given["seed"], given["threads"])
        if not given["has_gpus"]:
            hide_gpus()
        given["loop"](given["argument"], _report_from_worker)


def _report_from_worker(metrics: Mapping[str, Any]) -> None:
    """Of the signs of life of a tokenizer every tenth, the same on all ranks, for all must report as often; a stop ends
    the group without them."""
    if "stage" in metrics and metrics["stage_epoch"] % max(1, metrics["stage_epochs"] // 10):
        return
    ray.train.report(dict(metrics))


def _cause(error: ray.train.WorkerGroupError) -> Exception:
    """The exception the loop raised, or WorkerDied if all there is are deaths and their echoes in other ranks. Without
    a death there are no echoes."""
    failures = sorted(error.worker_failures.items())
    dead = next(((rank, failure) for rank, failure in failures if _is_death(failure)), None)
    for rank, failure in failures:
        if _is_death(failure) or (dead and _sounds_like_echo(failure)):
            continue
        return failure if isinstance(failure, Exception) else RuntimeError(f"rank {rank} ended with {failure!r}")
    if dead is None:
        return RuntimeError(str(error))
    return WorkerDied(f"the worker of rank {dead[0]} died: {str(dead[1]).strip()}")


def _is_death(failure: BaseException) -> bool:
    return isinstance(failure, (RayError, WorkerHealthCheckFailedError, WorkerHealthCheckTimeoutError))


def _sounds_like_echo(failure: BaseException) -> bool:
    """May this be how a rank notices that another one is gone? It may as well be an error of its own."""
    return isinstance(failure, RuntimeError) and any(sign in str(failure).lower() for sign in PEER_LOST)


class _RetryDeaths(DefaultFailurePolicy):
    """Start the group again when a worker died, not when the loop raised: that would only raise again. Workers that
    were lost with their node are not counted as failures of the trial, and a group that finds no room has not failed:
    how long one may wait is for the run as a whole to say, which knows what else the cluster does."""

    _nodes_lost = 0

    def make_decision(self, training_failed_error: Exception) -> FailureDecision:
        if isinstance(training_failed_error, ray.train.WorkerGroupError):
            failures = training_failed_error.worker_failures.values()
            if not any(_is_death(failure) for failure in failures):
                return FailureDecision.RAISE
            if any(NODE_LOST in str(failure) for failure in failures):
                return self._after_lost_node()
        elif isinstance(training_failed_error, ray.train.ControllerError):
            failure = training_failed_error.controller_failure
            if isinstance(failure, WorkerGroupStartupTimeoutError):
                return FailureDecision.RETRY
            if NODE_LOST in f"{failure} {failure.__cause__}":
                return self._after_lost_node()
        return super().make_decision(training_failed_error)

    def _after_lost_node(self) -> FailureDecision:
        self._nodes_lost += 1
        return FailureDecision.RETRY if self._nodes_lost <= LOST_NODES else FailureDecision.RAISE


def place_coordinator() -> None:
    """Start Ray's actor that shares the cluster out among groups on this node. Otherwise the first group would start it
    on its own, and all would wait for ever once that node is lost."""
    get_or_create_autoscaling_coordinator()


class _ElasticPolicy(ElasticScalingPolicy):
    """Ray's policy with two corrections: fractions of a CPU are counted without losing a worker to rounding, and the
    nodes are asked for anew, where Ray takes a list of up to 20 s ago and may place workers on a dead one."""

    def _count_possible_workers(self, reserved_resources: Mapping[str, Mapping[str, float]]) -> int:
        need = self.scaling_config._resources_per_worker_not_none
        found = sum(workers_in(node, need) for node in reserved_resources.values())
        return min(found, self.scaling_config.max_workers)

    def _get_reserved_resources(self) -> Any:
        since_last = time.monotonic() - self._latest_reserved_resources_query_time
        if since_last >= self.GET_RESERVED_RESOURCES_INTERVAL_S:
            with contextlib.suppress(RayError):  # the question itself, below, is logged if it fails
                ask = self._autoscaling_coordinator.get_reserved_resources
                ray.get(ask.remote(self._requester_id, recompute=True), timeout=COORDINATOR_SECONDS)
        return super()._get_reserved_resources()


class _Controller(TrainController):
    """Ray's controller with two corrections. While it waits for resources Ray's polls without a pause: it uses a whole
    core and does not react to `abort`; this one sleeps in between. And where a rank failed as if another were gone,
    this one waits to hear of that one before the failure is judged."""

    async def has_room(self) -> bool:
        """Whether the workers have their places. No answer while the controller waits for these."""
        return isinstance(self.get_state(), RunningState)

    async def _poll_workers(self) -> WorkerGroupPollStatus:
        status, polls = await super()._poll_workers(), 1
        deadline = time.monotonic() + SILENCE_SECONDS
        while _may_be_echoes(status.errors.values()):
            silent = bool(self._worker_group._world_rank_to_ongoing_poll)  # who lives answers at once
            if polls >= ECHO_POLLS and (not silent or time.monotonic() > deadline):
                break
            status, polls = await super()._poll_workers(), polls + 1
        return status

    async def _run_control_loop_iteration(self) -> None:
        before = self.get_state()
        await super()._run_control_loop_iteration()
        if self.get_state() is before:
            await asyncio.sleep(POLL_SECONDS)


def _may_be_echoes(failures: Collection[BaseException]) -> bool:
    """Is there nothing but what may be the echo of a death that is not known yet?"""
    return bool(failures) and all(_sounds_like_echo(failure) for failure in failures)


class _GroupTrainer(TorchTrainer):
    """TorchTrainer that keeps the handle of its controller, so that it can take the whole group down."""

    def __init__(self, *args: Any, stopped: Callable[[], bool], tell_room: Callable[[bool], bool], **kwargs: Any):
        super().__init__(*args, **kwargs)
        self._stopped, self._tell_room = stopped, tell_room

    def _create_default_callbacks(self) -> list[Any]:
        """Without Train's cleaner (a detached actor that needs the dashboard: `_dismiss` does its work) and without
        the change of directory, which would give relative paths another meaning than in local mode."""
        left_out = (PlacementGroupCleanerCallback, WorkingDirectorySetupCallback)
        return [callback for callback in super()._create_default_callbacks() if not isinstance(callback, left_out)]

    def _initialize_and_run_controller(self, **kwargs: Any) -> Any:
        kwargs["failure_policy"] = _RetryDeaths(self.run_config.failure_config)
        if self.scaling_config.elasticity_enabled:
            kwargs["scaling_policy"] = _ElasticPolicy(self.scaling_config)
        environment = GROUP_ENVIRONMENT | get_env_vars_to_propagate()
        actor = ray.remote(num_cpus=0, label_selector=_this_node(), runtime_env={"env_vars": environment})
        controller = actor(_Controller).remote(**kwargs)
        try:
            running, room = controller.run.remote(), _Room(controller, self._tell_room)
            while not ray.wait([running], timeout=POLL_SECONDS)[0]:
                if self._stopped():
                    raise SystemExit(0)
                room.look()
            ray.get(running)
            return ray.get(controller.get_result.remote())
        finally:
            _dismiss(controller)


def _this_node() -> dict[str, str]:
    return only_on(ray.get_runtime_context().get_node_id())


class _Room:
    """Whether a group's workers have their places, as `tell` was told last. It begins without."""

    def __init__(self, controller: Any, tell: Callable[[bool], bool]):
        self._controller, self._tell = controller, tell
        self._asked, self._since = controller.has_room.remote(), time.monotonic()
        self._told: bool | None = None

    def look(self) -> None:
        """Never blocks. A controller that gives no answer waits for room: a group that works answers within a poll."""
        answered = bool(ray.wait([self._asked], timeout=0)[0])
        if not answered and self._told is not None and time.monotonic() - self._since < UNANSWERED_SECONDS:
            return
        yes = bool(answered and ray.get(self._asked))
        if yes != self._told and self._tell(yes):
            self._told = yes
        if answered and time.monotonic() - self._since >= ASK_ROOM_SECONDS:
            self._asked, self._since = self._controller.has_room.remote(), time.monotonic()


def _dismiss(controller: Any) -> None:
    """End the controller and with it its workers, and give back what it reserved."""
    with contextlib.suppress(RayActorError, ray.exceptions.GetTimeoutError):
        ray.get(controller.abort.remote(), timeout=ABORT_SECONDS)
    ray.kill(controller)
    free_reservations(creator=controller._actor_id.hex())
