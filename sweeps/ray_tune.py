"""Run the tasks of a queue as Ray Tune trials: the queue keeps all state, Ray only runs the tasks.

Tune asks `_Searcher` for configurations and `_Judge` at every epoch, which ask the queue; `_Reporter` tells the queue
what became of them. A task that the queue pauses has ended for Tune, and comes again as a new trial of Tune's.
Nothing of Tune's own state is ever restored: a run that ends, by a kill, a signal or its budget, leaves unfinished
tasks untold, and the next `run_queue` over the same queue gets them again. The only module that imports ray.tune.
"""

from __future__ import annotations

import contextlib
import functools
import json
import logging
import os
import platform
import queue
import re
import secrets
import shutil
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import ray
import torch
from ray import tune
from ray.tune.execution.class_cache import ENV_VARS_TO_PROPAGATE
from ray.tune.experiment import Trial
from ray.tune.integration.ray_train import TuneReportCallback
from ray.tune.schedulers import FIFOScheduler, TrialScheduler
from ray.tune.search import Searcher
from ray.tune.trainable.function_trainable import FunctionTrainable
from ray.tune.trainable.trainable_fn_utils import get_session

from genrec.errors import InputError
from sweeps.cluster_view import ClusterView, elsewhere, node_of_actor, only_on, scales_itself, trials_at_once
from sweeps.demand import PendingGroups
from sweeps.environment import environment
from sweeps.folders import LOGS
from sweeps.interruption import Interrupted, handled_by
from sweeps.mirror import folder_here, trial_files
from sweeps.node_health import disk_error, is_of_the_node
from sweeps.queue_run import ROOM, SIGN, WAIT_SECONDS, Missing, OnEvent, QueueRun, nothing_more
from sweeps.ray_cluster import is_own_ray, own_node_watched
from sweeps.records import Stopped
from sweeps.reservations import free_reservations_of_the_dead
from sweeps.resources import DRIVER_CPUS, Resources
from sweeps.scheduled_queue import Budget, Queue, ScheduledQueue
from sweeps.stop_mark import StopMark
from sweeps.stopping import Curve, Rule
from sweeps.warm_process import fresh_process_state, hide_gpus, output_to

Report = Callable[[Mapping[str, Any]], None]
Launch = Callable[[Callable[..., None], dict[str, Any]], None]
TrialFunction = Callable[[dict[str, Any], Report, Launch], dict[str, Any]]
NodeCheck = Callable[[], Sequence[str]]

OWN_WAIT_SECONDS = 60.0  # for a node, on a Ray of one's own, to which none comes
UNWIND_SECONDS = 30.0  # how long a stopped trial may take to release what it holds
SIGN_SECONDS = 2.0  # between two signs of life that reach the driver
RELEASE_SECONDS = 30.0  # how long the processes of worker groups may take to be gone
CLOUD_KEYS = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SECURITY_TOKEN", "AWS_SESSION_TOKEN")
"what Tune would copy from this process into the environment of trials, where all of the cluster can read it"
METRICS, FINAL = "metrics", "final"  # the two keys of our messages from a trial's process to Tune

# Read by Tune in this process; those that a trial's process reads are passed on to it by Tune.
TUNE_ENVIRONMENT = {
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # no CSV, JSON and TensorBoard files: the ledger is the record
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # run_queue has its own
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",  # the queue is told; the traceback is in the trial's log
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",  # not every report carries the metric
    "TUNE_GLOBAL_CHECKPOINT_S": str(10**9),  # state that nobody restores
    "TUNE_RESULT_BUFFER_LENGTH": "1",
    "TUNE_MAX_PENDING_TRIALS_PG": str(10**6),  # a QueueRun hands out no more than there is room for
    "RAY_CHDIR_TO_TRIAL_DIR": "0",  # relative paths mean the same in every trial
    "RAY_AIR_NEW_OUTPUT": "0",  # the new one prints a header at any verbosity
    "RAY_TRAIN_V2_ENABLED": "1",
}


def run_queue(
    queue: Queue,
    function: TrialFunction,
    *,
    name: str,
    folder: Path,
    storage: str | None = None,
    resources: Resources | None = None,
    max_concurrent: int | None = None,
    metric: str,
    max_failures: int = 2,
    progress_timeout: float | None = None,
    rule: Rule | None = None,
    history: Mapping[str, Curve] | None = None,
    epochs_of: Callable[[dict[str, Any]], int | None] = lambda payload: None,
    budget: Budget | None = None,
    missing: Missing = lambda task: frozenset(),
    check_node: NodeCheck = lambda: (),
    wait_seconds: float | None = None,
    to_do: int | None = None,
    on_event: OnEvent = lambda event, task_id, data: None,
    should_stop: Callable[[], bool] = lambda: False,
) -> None:
    """Run tasks until the queue has no more, the budget is spent, `should_stop` says so, or a signal arrives. Ray must
    be initialised.

    `function(payload, report, launch)` runs in a process of the cluster, with the task's id in its payload:
    `report(metrics)` once an epoch, with "epoch", `metric` and the rule's unit in it; `launch(loop, argument)` runs
    `loop(argument, report)` under Ray Train with this trial's resources. What it returns is the task's result; the
    result also gets reason, node, duration (seconds that it ran in this call, in all attempts) and runs ([start, end,
    node] of every attempt, in UTC).
    `report({"_notes": {...}})` puts entries into the result however the trial ends. `report({"stage": ...})`, as often
    as one likes while there is no epoch to report, lets a stop or a spent budget end the trial there.

    An exception in `function`, or a `metric` that is not finite, fails the task; by `records.Stopped` it ends itself as
    stopped. A process that dies is replaced up to `max_failures` times, on the same task; `function` continues from its
    own files; so is one that shows no sign of life, by any report, for `progress_timeout` seconds. What a node is to
    blame for is not counted so: its loss, or a fault that `check_node` finds in it (called
    once in every process, before its first task). A node that fails several tasks is avoided from then on. The result's
    "restarts" says why a task was started again.

    As many tasks run at once as the nodes that are there hold, `max_concurrent` at the most: more when nodes come,
    fewer when they go. When there is no room for a single one, nodes are waited for: on a cluster that was joined and
    that scales by itself, or if `wait_seconds` is given, from the start, else once the run has begun; `wait_seconds`
    long (by default 5 min on a cluster that was joined). Where nodes come by themselves they are asked for: for as many
    trials as there are to do (`to_do` at the most, if that is known) and may run at once.

    `rule` may stop a task after an epoch, or pause it: its process then takes another task, and `function` is called
    anew when it is promoted. What is never promoted ends as stopped. `history` holds the recorded curves (task id ->
    epochs and values, oldest first) from which the rule goes on; `epochs_of(payload)` tells a task's last epoch, after
    which nothing stops it. Once `budget` is spent no task is started and running ones stop at their next epoch.

    `missing(task)` names what the task would make first and other tasks could use. While a running task makes some of
    it the task is held back, without a slot, and another is handed out that can run; so that a queue that learns from
    results is not emptied ahead of them, no more tasks are held back than can run at once.

    `folder` must be seen by all nodes: logs/<task id>.log is kept, ray/ is scratch and emptied here first. Or else it
    stands for a place in an object store, whose URL is `storage`; every node then has a folder of its own for it.
    `on_event` gets ("waiting" | "started" | "report" | "paused" | "restarted" | "finished", task id, data) after the
    queue was told; ("condemned", task id, data) when the rule ends a task, before the queue is told of that epoch;
    ("halted", task id, its runs) at the end for what did not end; ("cluster", "", size) at the start and when nodes
    come or go; ("avoided", a node's name, reason); ("delayed", "", reason) when a minute was waited for a node, or for
    room that others use, and every minute then.

    When `should_stop` turns true, and on a signal of `interruption.SIGNALS` (main thread only), running trials end
    within about 10 s and are not told as finished; a signal then raises Interrupted, a second one does so at once.

    Raises ValueError if the cluster is too small for one trial, ClusterLost if it became so, if all its nodes are
    avoided or if this process has lost its own node, StorageFull if nothing can be written to the storage of `folder`,
    whatever `queue` or `on_event` raised, Interrupted.
    """
    resources = _together(resources or Resources(), storage)
    joined = not is_own_ray()
    nodes_may_come = joined and (wait_seconds is not None or scales_itself())
    if not nodes_may_come:
        trials_at_once(resources)  # or there is nothing to wait for
    if max_concurrent is not None and max_concurrent < 1:
        raise ValueError(f"max_concurrent must be 1 or more, got {max_concurrent}")
    folder = folder.absolute()
    scratch = folder / "ray"
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)
    settings = _Settings(
        name=name,
        folder=str(folder),
        storage=storage,
        resources=resources,
        max_failures=max_failures,
        check_node=check_node,
        token=secrets.token_hex(8),
    )
    stop = settings.stop_file
    demand = PendingGroups(resources)
    run = QueueRun(
        missing,
        on_event,
        should_stop,
        metric=metric,
        max_failures=max_failures,
        progress_timeout=progress_timeout,
        cluster=ClusterView(resources, max_concurrent),
        stop_file=stop,
        storage=folder.parent if storage is None else None,
        wait_seconds=(WAIT_SECONDS if joined else OWN_WAIT_SECONDS) if wait_seconds is None else wait_seconds,
        workers=resources.fewest,
        demand=demand if nodes_may_come else nothing_more,
        max_concurrent=max_concurrent,
        to_do=to_do,
    )
    run.queue = ScheduledQueue(
        queue,
        rule or Rule(),
        history=history or {},
        epochs_of=epochs_of,
        budget=budget,
        trial_seconds=run.trial_seconds,
    )
    if resources.workers > 1:
        from sweeps.ray_train import place_coordinator  # imports that a sweep without groups need not pay

        place_coordinator()
    with _quiet(), _signals(run), own_node_watched(run.fail):
        try:
            _tuner(run, function, settings).fit()
        finally:
            demand.close()
            if isinstance(stop, StopMark):
                stop.remove()
    if resources.workers > 1:
        free_reservations_of_the_dead(wait_seconds=RELEASE_SECONDS)
    run.settle()


def _together(resources: Resources, storage: str | None) -> Resources:
    """Workers of a group share the folder of the stage that they train. With an object store each node has one of its
    own, so they stay on one node. Raises `InputError` for a group that would grow over several."""
    if storage is None or resources.workers == 1 or is_own_ray():
        return resources
    if resources.fewest != resources.workers:
        raise InputError(
            f"resources.workers: from {resources.fewest} to {resources.workers} with storage {storage}: the workers of "
            "a trial then have to stay on one node, where they cannot become more; fix: one number, or --storage "
            "FOLDER that all nodes share"
        )
    return replace(resources, together=True)


def _tuner(run: QueueRun, function: TrialFunction, settings: _Settings) -> tune.Tuner:
    ENV_VARS_TO_PROPAGATE.difference_update(CLOUD_KEYS)  # nodes have keys of their own, or inherit those of a local Ray
    process = type("TrialProcess", (_TrialProcess,), {"function": staticmethod(function), "settings": settings})
    in_group = settings.resources.workers > 1
    bundle = {"CPU": DRIVER_CPUS} if in_group else settings.resources.bundle

    def place_of(config: dict[str, Any]) -> tune.PlacementGroupFactory:
        task = json.loads(config["task"])
        there = only_on(task["home"]) if task["home"] else elsewhere(task["avoid"])
        return tune.PlacementGroupFactory([bundle], **({"bundle_label_selector": [there]} if there else {}))

    return tune.Tuner(
        tune.with_resources(process, place_of),
        tune_config=tune.TuneConfig(
            search_alg=_Searcher(run),
            scheduler=_Judge(run),
            num_samples=-1,  # until the searcher has finished
            reuse_actors=True,
            trial_name_creator=lambda trial: _task_of(trial)["id"],
            trial_dirname_creator=lambda trial: f"{_task_of(trial)['id']}-{trial.trial_id}",
        ),
        run_config=tune.RunConfig(
            name=settings.name,
            storage_path=settings.scratch,
            verbose=0,
            stop=_Stopper(run),
            callbacks=[_Reporter(run, frees_groups=in_group)],
            failure_config=tune.FailureConfig(max_failures=0),  # QueueRun hands a task out again by itself
        ),
    )


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Tune's settings in the environment and its loggers silent, for the block."""
    loggers = [(logger, logger.level) for logger in map(logging.getLogger, ("ray.tune", "ray.train", "ray.air"))]
    for logger, _ in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        with environment(TUNE_ENVIRONMENT):
            yield
    finally:
        for logger, level in loggers:
            logger.setLevel(level)


def _signals(run: QueueRun) -> contextlib.AbstractContextManager[None]:
    """Let signals end the run, for the block."""

    def on_signal(signum: int, frame: Any) -> None:
        if run.signum is not None:
            raise Interrupted(signum)
        run.signum = signum

    return handled_by(on_signal)  # Tune takes SIGUSR1 for itself: settle() notices that


class _Searcher(Searcher):
    """Tune's view of the queue. A task travels as one string, in which Tune finds nothing to resolve."""

    def __init__(self, run: QueueRun):
        super().__init__()
        self._run = run

    def suggest(self, trial_id: str) -> dict[str, str] | str | None:
        task = self._run.next_task()
        if task is not None:
            avoid, home = self._run.shunned_by(task.id), self._run.home_of(task.id)
            return {"task": json.dumps({"id": task.id, "payload": task.payload, "avoid": avoid, "home": home})}
        return Searcher.FINISHED if self._run.is_over() else None

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """`_Reporter` does it: it gets the trial itself."""

    def save(self, checkpoint_path: str) -> None:
        """There is nothing to save."""


class _Stopper(tune.Stopper):
    def __init__(self, run: QueueRun):
        self._run = run

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        return METRICS in result and self._run.is_broken(trial_id, result[METRICS])

    def stop_all(self) -> bool:
        return self._run.stopping()


class _Reporter(tune.Callback):
    """Tells the run what Tune tells its callbacks."""

    def __init__(self, run: QueueRun, frees_groups: bool):
        self._run = run
        self._frees_groups = frees_groups
        self._places: dict[str, str | None] = {}  # actor -> node

    def on_step_end(self, iteration: int, trials: list[Trial], **info: Any) -> None:
        for trial in trials:
            actor = trial.temporary_state.ray_actor
            if actor is not None and trial.status == Trial.RUNNING and self._run.is_silent(_task_of(trial)["id"]):
                ray.kill(actor)  # Tune then tells that it died

    def on_trial_start(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        actor = trial.temporary_state.ray_actor._actor_id.hex()
        if actor not in self._places:
            self._places[actor] = node_of_actor(actor)
        self._run.started(_task_of(trial)["id"], self._places[actor])

    def on_trial_result(
        self, iteration: int, trials: list[Trial], trial: Trial, result: dict[str, Any], **info: Any
    ) -> None:
        if METRICS in result:
            self._run.reported(_task_of(trial)["id"], dict(result[METRICS]))

    def on_trial_complete(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        self._free_groups()
        last = trial.last_result or {}
        final = json.loads(last[FINAL]) if FINAL in last else None
        self._run.ended(_task_of(trial)["id"], final, last.get("hostname"))

    def on_trial_error(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        if FINAL in (trial.last_result or {}):  # the process was lost between its last word and Tune's taking leave
            self.on_trial_complete(iteration, trials, trial, **info)
            return
        self._free_groups()
        error = trial.get_pickled_error() or trial.get_error()
        actor = getattr(error, "actor_id", None)
        node_id = node_of_actor(actor) if actor else None
        node = (trial.last_result or {}).get("hostname")
        out_of_memory = isinstance(error, ray.exceptions.OutOfMemoryError)
        self._run.died(_task_of(trial)["id"], _why(error), node, node_id, out_of_memory=out_of_memory)

    def _free_groups(self) -> None:
        if self._frees_groups:
            free_reservations_of_the_dead()


def _task_of(trial: Trial) -> dict[str, Any]:
    return json.loads(trial.config["task"])


def _why(error: BaseException | None) -> str:
    """One line for a person; Ray says how a process ended in the middle of a paragraph."""
    if error is None:
        return "Ray gave no reason"
    text = " ".join(str(error).split())
    if isinstance(error, ray.exceptions.OutOfMemoryError):
        return "the node ran out of memory"
    found = re.search(r"Worker exit type: (\S+) Worker exit detail: (.*?)(?: Some common causes|$)", text)
    detail = f"{found[1]}: {found[2]}" if found else text
    by_signal = re.search(r"SIG[A-Z]+", found[2]) if found else None
    return f"{by_signal[0]}, {detail}" if by_signal else detail[:500]


class _Judge(FIFOScheduler):
    """Tune's view of the rule and the budget. To Tune a paused trial has ended, so that it holds nothing."""

    def __init__(self, run: QueueRun):
        super().__init__()
        self._run = run

    def choose_trial_to_run(self, tune_controller: Any) -> None:
        """None in particular: Tune then starts what is pending in turn. Were the first one named, it would be given the
        next process that becomes free and the one that is coming up for it dropped, so that a slot that a death took
        would stay lost for as long as trials are shorter than the start of a process."""

    def on_trial_result(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> str:
        prefix = f"{METRICS}/"
        metrics = {key.removeprefix(prefix): value for key, value in result.items() if key.startswith(prefix)}
        if SIGN in metrics:
            verdict = self._run.judge_sign(_task_of(trial)["id"], metrics[SIGN])
        elif "epoch" in metrics:
            verdict = self._run.judge(_task_of(trial)["id"], metrics)
        else:
            return TrialScheduler.CONTINUE
        return TrialScheduler.CONTINUE if verdict.action == "go" else TrialScheduler.STOP


# ---- in the process of a trial -------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class _Settings:
    """What every trial's process knows of the run."""

    name: str
    folder: str
    storage: str | None
    resources: Resources
    max_failures: int
    check_node: NodeCheck
    token: str
    "tells this run from all others"

    @property
    def scratch(self) -> str:
        return str(Path(self.folder) / "ray")

    @property
    def stop_file(self) -> Path | StopMark:
        """What tells the drivers of worker groups, wherever they are, that the run is over."""
        return Path(self.folder) / "ray" / "stop" if self.storage is None else StopMark(self.token)

    def log(self, task_id: str) -> Path:
        return self.folder_here / LOGS / f"{task_id}.log"

    @property
    def folder_here(self) -> Path:
        """The sweep's folder as this node has it."""
        return Path(self.folder) if self.storage is None else folder_here(self.storage, Path(self.folder).name)


class _TrialProcess(FunctionTrainable):
    """The warm actor: runs one task after another, each in a thread of its own.

    Tune stops a task by a SystemExit in its next report. Unlike Tune's own class this one waits until the task has
    unwound, so that it can release what it holds.
    """

    function: ClassVar[Any]  # a TrialFunction; as such mypy would bind it to self
    settings: ClassVar[_Settings]

    def _trainable_func(self, config: dict[str, Any]) -> None:
        task = json.loads(config["task"])
        session = get_session()
        function = type(self).function
        final = _run_task(function, self.settings, task, session.stop_event.is_set)
        session.report({FINAL: json.dumps(final, default=_plain)})
        session.report({tune.result.RESULT_DUPLICATE: True})  # how Tune learns that a function has returned

    def cleanup(self) -> None:
        self._end_task()
        super().cleanup()

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        if not self._end_task():
            os._exit(1)  # a new process takes over; Tune would lose the next task for good
        return super().reset_config(new_config)

    def _end_task(self) -> bool:
        session = get_session()
        if not session.training_started:
            return True
        session.stop_event.set()
        session.continue_lock.release()
        session.training_thread.join(timeout=UNWIND_SECONDS)
        return not session.training_thread.is_alive()


def _run_task(
    function: TrialFunction, settings: _Settings, task: dict[str, Any], stopped: Callable[[], bool]
) -> dict[str, Any]:
    """The task's last word: {"status": "completed", "result"} or {"status": "failed" or "stopped", "reason"}."""
    payload = task["payload"]
    sweep = Path(settings.folder).name
    with trial_files(settings.storage, sweep, task["id"]), output_to(settings.log(task["id"])) as log:
        os.chdir(os.environ.get("TUNE_ORIG_WORKING_DIR", "."))  # where the driver was, if that is here as well
        fresh_process_state(int(payload.get("seed", 0)), settings.resources.threads)
        if not settings.resources.gpus_per_worker:
            hide_gpus()
        _say(log, task["id"], f"starts on {platform.node()}, process {os.getpid()}")
        if faults := _faults_of_this_node(settings.check_node):
            _say(log, task["id"], f"refused: {faults}")
            return {"status": "unfit", "certain": True, "reason": faults, "node_id": None}
        try:
            result = function({**payload, "id": task["id"]}, _report(stopped), _launch(settings, task, stopped))
        except Stopped as stop:
            _say(log, task["id"], f"stopped: {stop}")
            return {"status": "stopped", "reason": str(stop), "by": stop.by}
        except Exception as error:
            traceback.print_exc()
            _say(log, task["id"], "failed")
            of_the_node, reason = is_of_the_node(error), _reason(error)
            if of_the_node is False:
                return {"status": "failed", "reason": reason}
            where = getattr(error, "node_id", None)  # of a worker, which may be on another node
            certain, disk = of_the_node is True, disk_error(error)
            return {"status": "unfit", "certain": certain, "reason": reason, "node_id": where, "disk": disk}
        except SystemExit:
            _say(log, task["id"], "stopped")
            raise
        _say(log, task["id"], "completed")
        return {"status": "completed", "result": result}


def _reason(error: Exception) -> str:
    """In one line; that memory was not enough is said first, for torch says it in many ways."""
    text = f"{type(error).__name__}: {error}"
    is_short = isinstance(error, (MemoryError, torch.OutOfMemoryError)) or "DefaultCPUAllocator" in text
    return f"out of memory: {text}" if is_short else text


@functools.cache
def _faults_of_this_node(check_node: NodeCheck) -> str:
    """Why no task may run in this process; asked once."""
    return "; ".join(check_node())


def _say(log: Any, task_id: str, text: str) -> None:
    print(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {task_id} {text}", file=log)


def _report(stopped: Callable[[], bool]) -> Report:
    told = time.monotonic()

    def report(metrics: Mapping[str, Any]) -> None:
        nonlocal told
        if stopped():
            sys.exit(0)
        if SIGN in metrics:  # as often as a loop turns: looked at here, and now and then by the driver
            if time.monotonic() - told < SIGN_SECONDS:
                return
            told = time.monotonic()
        tune.report({METRICS: {name: _plain(value) for name, value in metrics.items()}})

    return report


def _plain(value: Any) -> Any:
    """NumPy's and torch's numbers as Python's."""
    return value.item() if hasattr(value, "item") else value


def _launch(settings: _Settings, task: dict[str, Any], stopped: Callable[[], bool]) -> Launch:
    """`run_loop` with this trial's resources."""
    resources, launches, stop = settings.resources, iter(range(10**6)), settings.stop_file

    def launch(loop: Callable[..., None], argument: dict[str, Any]) -> None:
        from sweeps.ray_train import run_loop  # seconds of imports that the driver of the sweep need not pay

        to_tune = _GroupReport() if resources.workers > 1 else None
        run_loop(
            loop,
            argument,
            _report(stopped),
            resources=resources,
            nodes=elsewhere(task["avoid"]),
            check_node=settings.check_node,
            run_name=f"{task['id']}-{os.getpid()}-{next(launches)}",
            storage=str(settings.folder_here / "ray" / "groups"),
            max_failures=settings.max_failures,
            seed=int(task["payload"].get("seed", 0)),
            callbacks=[to_tune] if to_tune else (),
            tell_room=to_tune.tell_room if to_tune else lambda yes: True,
            log=settings.log(task["id"]),
            stopped=lambda: stopped() or stop.exists(),
        )

    return launch


class _GroupReport(TuneReportCallback):
    """Rank 0's metrics, in our message, to Tune; and whether the group's workers have their places."""

    def tell_room(self, yes: bool) -> bool:
        """By the same way: a `tune.report` beside it could block both for ever. Whether it was taken."""
        try:
            self._training_actor_item_queue.put_nowait({METRICS: {ROOM: yes}})
        except queue.Full:
            return False
        return True

    def after_report(self, run_context: Any, metrics: list[dict[str, Any]], checkpoint: Any) -> None:
        plain = {name: _plain(value) for name, value in metrics[0].items()}
        super().after_report(run_context, [{METRICS: plain}], checkpoint)
