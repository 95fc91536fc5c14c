"""Run the tasks of a queue as Ray Tune trials: the queue decides and remembers, Ray is the muscle.

Tune asks `_Searcher` for configurations and `_Judge` at every epoch, which ask the queue; `_Reporter` tells the queue
what became of them. A task that the queue pauses has ended for Tune, and comes again as a new trial of Tune's.
Nothing of Tune's own state is ever restored: a run that ends, by a kill, a signal or its budget, leaves unfinished
tasks untold, and the next `run_queue` over the same queue gets them again. The only module that imports ray.tune.
"""

from __future__ import annotations

import contextlib
import json
import logging
import math
import os
import platform
import re
import shutil
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import ray
from ray import tune
from ray.tune.experiment import Trial
from ray.tune.integration.ray_train import TuneReportCallback
from ray.tune.schedulers import FIFOScheduler, TrialScheduler
from ray.tune.search import Searcher
from ray.tune.trainable.function_trainable import FunctionTrainable
from ray.tune.trainable.trainable_fn_utils import get_session

from sweeps.environment import environment
from sweeps.folders import LOGS
from sweeps.mirror import folder_here, trial_files
from sweeps.ray_cluster import DRIVER_CPUS, Resources, free_reservations_of_the_dead, trials_at_once
from sweeps.records import Stopped, Task
from sweeps.scheduled_queue import Budget, Ending, Queue, ScheduledQueue
from sweeps.stopping import GO, Curve, Rule, Verdict
from sweeps.warm_process import fresh_process_state, output_to

Report = Callable[[Mapping[str, Any]], None]
Launch = Callable[[Callable[..., None], dict[str, Any]], None]
TrialFunction = Callable[[dict[str, Any], Report, Launch], dict[str, Any]]
OnEvent = Callable[[str, str, dict[str, Any]], None]
Missing = Callable[[Any], frozenset[str]]

NOTES = "_notes"  # reserved metric: what a trial wants in its result even if it is stopped early
UNWIND_SECONDS = 30.0  # how long a stopped trial may take to release what it holds
RELEASE_SECONDS = 30.0  # how long the processes of worker groups may take to be gone
METRICS, FINAL = "metrics", "final"  # the two keys of our messages from a trial's process to Tune

# Read by Tune in this process; those that a trial's process reads are passed on to it by Tune.
TUNE_ENVIRONMENT = {
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # no CSV, JSON and TensorBoard files: the ledger is the record
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # run_queue has its own
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",  # the queue is told; the traceback is in the trial's log
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",  # not every report carries the metric
    "TUNE_GLOBAL_CHECKPOINT_S": str(10**9),  # state that nobody restores
    "TUNE_RESULT_BUFFER_LENGTH": "1",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",  # relative paths mean the same in every trial
    "RAY_AIR_NEW_OUTPUT": "0",  # the new one prints a header at any verbosity
    "RAY_TRAIN_V2_ENABLED": "1",
}


class Interrupted(KeyboardInterrupt):
    """A signal ended `run_queue` before the queue was empty; `signum` says which."""

    def __init__(self, signum: int):
        self.signum = signum
        super().__init__(f"interrupted by {signal.Signals(signum).name}")


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
    rule: Rule | None = None,
    history: Mapping[str, Curve] | None = None,
    epochs_of: Callable[[dict[str, Any]], int | None] = lambda payload: None,
    budget: Budget | None = None,
    missing: Missing = lambda task: frozenset(),
    on_event: OnEvent = lambda event, task_id, data: None,
    should_stop: Callable[[], bool] = lambda: False,
) -> None:
    """Run tasks until the queue has no more, the budget is spent, `should_stop` says so, or a signal arrives. Ray must
    be initialised.

    `function(payload, report, launch)` runs in a process of the cluster, with the task's id in its payload:
    `report(metrics)` once an epoch, with "epoch", `metric` and the rule's unit in it; `launch(loop, argument)` runs
    `loop(argument, report)` under Ray Train with this trial's resources. What it returns is the task's result; the
    result also gets reason, duration (seconds that it ran in this call, in all attempts) and node.
    `report({"_notes": {...}})` puts entries into the result however the trial ends.

    An exception in `function`, or a `metric` that is not finite, fails the task; by `records.Stopped` it ends itself as
    stopped. A process that dies is replaced up to `max_failures` times, on the same task; `function` continues from its
    own files.

    `rule` may stop a task after an epoch, or pause it: its process then takes another task, and `function` is called
    anew when it is promoted. What is never promoted ends as stopped. `history` holds the recorded curves (task id ->
    epochs and values, oldest first) from which the rule goes on; `epochs_of(payload)` tells a task's last epoch, after
    which nothing stops it. Once `budget` is spent no task is started and running ones stop at their next epoch.

    `missing(task)` names what the task would make first and other tasks could use. While a running task makes some of
    it the task is held back, without a slot, and another is handed out that can run; so that a queue that learns from
    results is not emptied ahead of them, no more tasks are held back than can run at once.

    `folder` must be seen by all nodes: logs/<task id>.log is kept, ray/ is scratch and emptied here first. Or else it
    stands for a place in an object store, whose URL is `storage`; every node then has a folder of its own for it.
    `on_event` gets ("waiting" | "started" | "report" | "paused" | "finished", task id, data) after the queue was told.

    When `should_stop` turns true, and on SIGINT, SIGTERM or SIGUSR1 (main thread only), running trials end within about
    10 s and are not told as finished; a signal then raises Interrupted, a second one KeyboardInterrupt at once.

    Raises ValueError if the cluster is too small for one trial, whatever `queue` or `on_event` raised, Interrupted.
    """
    resources = resources or Resources()
    slots = trials_at_once(resources)
    if max_concurrent is not None:
        if max_concurrent < 1:
            raise ValueError(f"max_concurrent must be 1 or more, got {max_concurrent}")
        slots = min(slots, max_concurrent)
    folder = folder.absolute()
    scratch = folder / "ray"
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)
    settings = _Settings(name=name, folder=str(folder), storage=storage, resources=resources, max_failures=max_failures)
    run = _Run(
        missing,
        on_event,
        should_stop,
        metric=metric,
        max_failures=max_failures,
        slots=slots,
        stop_file=settings.stop_file,
    )
    run.queue = ScheduledQueue(
        queue,
        rule or Rule(),
        history=history or {},
        epochs_of=epochs_of,
        budget=budget,
        trial_seconds=run.trial_seconds,
    )
    with _quiet(), _signals(run):
        _tuner(run, function, settings, slots).fit()
    if resources.workers > 1:
        free_reservations_of_the_dead(wait_seconds=RELEASE_SECONDS)
    run.settle()


def _tuner(run: _Run, function: TrialFunction, settings: _Settings, slots: int) -> tune.Tuner:
    process = type("TrialProcess", (_TrialProcess,), {"function": staticmethod(function), "settings": settings})
    in_group = settings.resources.workers > 1
    each = {"cpu": settings.resources.cpus_per_worker, "gpu": settings.resources.gpus_per_worker}
    return tune.Tuner(
        tune.with_resources(process, {"cpu": DRIVER_CPUS} if in_group else each),
        tune_config=tune.TuneConfig(
            search_alg=_Searcher(run),
            scheduler=_Judge(run),
            num_samples=-1,  # until the searcher has finished
            max_concurrent_trials=slots,
            reuse_actors=not in_group,  # a group takes tens of seconds anyway, and its driver must end with it
            trial_name_creator=lambda trial: _task_of(trial)["id"],
            trial_dirname_creator=lambda trial: f"{_task_of(trial)['id']}-{trial.trial_id}",
        ),
        run_config=tune.RunConfig(
            name=settings.name,
            storage_path=settings.scratch,
            verbose=0,
            stop=_Stopper(run),
            callbacks=[_Reporter(run, frees_groups=in_group)],
            failure_config=tune.FailureConfig(max_failures=0),  # _Run hands a task out again by itself
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


@contextlib.contextmanager
def _signals(run: _Run) -> Iterator[None]:
    """Let signals end the run; the handlers before are put back."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def on_signal(signum: int, frame: Any) -> None:
        if run.signum is not None:
            raise KeyboardInterrupt
        run.signum = signum

    caught = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)  # Tune takes SIGUSR1 for itself: settle() notices that
    before = {signum: signal.getsignal(signum) for signum in caught}
    for signum in caught:
        signal.signal(signum, on_signal)
    try:
        yield
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler if handler is not None else signal.SIG_DFL)


# ---- in the driver -------------------------------------------------------------------------------------------------


class _Run:
    """The books of one `run_queue`: which task is out, how long it ran, what it makes, how often its process died."""

    queue: ScheduledQueue

    def __init__(
        self,
        missing: Missing,
        on_event: OnEvent,
        should_stop: Callable[[], bool],
        *,
        metric: str,
        max_failures: int,
        slots: int,
        stop_file: Path,
    ):
        self.signum: int | None = None
        self.metric = metric
        self._missing = missing
        self._on_event = on_event
        self._should_stop = should_stop
        self._max_failures = max_failures
        self._slots = slots
        self._stop_file = stop_file
        self._stopping = False
        self._error: Exception | None = None
        self._open: dict[str, _Open] = {}
        self._held: list[_Open] = []  # of the open ones those that no process runs, in the order of their turn
        self._paused: dict[str, _Open] = {}
        self._ended_seconds = 0.0

    def __deepcopy__(self, memo: Any) -> _Run:
        return self  # Tune copies searchers and callbacks; there is one queue

    def __reduce__(self) -> Any:
        return (object, ())  # and pickles them into a snapshot that nobody reads

    def next_task(self) -> Task | None:
        """A task to start now; None: there is none now, see `is_over`."""
        if self.stopping():
            return None
        with self._kept():
            if self._held and self.queue.spent():
                self._drop_held()
            ready = next((task for task in self._held if self._can_start(task)), None)
            if ready is not None:
                self._held.remove(ready)
            else:
                ready = self._first_new_that_can_start()
            if ready is not None:
                ready.running = True
                return ready.task
        return None

    def _first_new_that_can_start(self) -> _Open | None:
        """Of the queue's next tasks; those before it are held back."""
        while len(self._held) < self._slots:
            task = self.queue.next()
            if task is None:
                return None
            new = self._open[task.id] = self._paused.pop(task.id) if task.id in self._paused else _Open(task)
            if self._can_start(new):
                return new
            self._held.append(new)
            self._on_event("waiting", task.id, {"for": sorted(new.makes)})
        return None

    def _drop_held(self) -> None:
        """The budget is spent: what no process runs is not started any more."""
        for task in self._held:
            del self._open[task.task.id]
        self._held.clear()

    def _can_start(self, task: _Open) -> bool:
        """Whether no running task makes what this one needs. Notes what it will make itself."""
        task.makes = self._missing(task.task)
        return not any(task.makes & other.makes for other in self._open.values() if other.running)

    def is_over(self) -> bool:
        """No task is out, so none can come back."""
        return not self._open or self._stopping

    def stopping(self) -> bool:
        """Asked by Tune at every step."""
        if not self._stopping:
            with self._kept():
                self._stopping = self.signum is not None or self._should_stop()
        if self._stopping and not self._stop_file.exists():
            self._stop_file.touch()  # the drivers of worker groups look for it
        return self._stopping

    def trial_seconds(self) -> float:
        """What all tasks together ran so far."""
        return self._ended_seconds + sum(task.seconds for task in (*self._open.values(), *self._paused.values()))

    def started(self, task_id: str) -> None:
        self._open[task_id].go()
        with self._kept():
            self._on_event("started", task_id, {"attempt": self._open[task_id].deaths + 1})

    def reported(self, task_id: str, metrics: dict[str, Any]) -> None:
        with self._kept():
            task = self._open[task_id]
            task.notes.update(metrics.pop(NOTES, {}))
            if "epoch" in metrics:
                task.epoch = metrics["epoch"]
                value = metrics.get(self.metric, 0.0)
                if not math.isfinite(value):
                    task.fault = f"{self.metric} is {value} at epoch {task.epoch}"
                self.queue.report(task_id, metrics)
            if metrics:
                self._on_event("report", task_id, metrics)

    def judge(self, task_id: str, metrics: Mapping[str, Any]) -> Verdict:
        """What becomes of the task after this epoch; asked before `reported`."""
        task = self._open[task_id]
        with self._kept():
            task.verdict = self.queue.judge(task_id, metrics, metrics.get(self.metric))
        return task.verdict

    def is_broken(self, task_id: str, metrics: Mapping[str, Any]) -> bool:
        """Must the trial end because its metric is not a number? Asked before `reported`."""
        return "epoch" in metrics and not math.isfinite(metrics.get(self.metric, 0.0))

    def ended(self, task_id: str, final: Mapping[str, Any] | None, node: str | None) -> None:
        """The trial's process is fine and the trial over; `final` is its last word, None if it was stopped before."""
        task = self._open[task_id]
        task.halt()
        task.node = node
        if task.fault:
            self._finish(task, "failed", {"reason": task.fault, "node": node})
        elif final is None and task.verdict.action == "pause":
            self._pause(task)
        elif final is None:
            self._finish(task, "stopped", {"reason": task.verdict.reason, "node": node})
        elif final["status"] == "completed":
            self._finish(task, "completed", {"reason": None, "node": node, **(final["result"] or {})})
        else:
            self._finish(task, final["status"], {"reason": final["reason"], "node": node})

    def died(self, task_id: str, reason: str, node: str | None) -> None:
        """The trial's process is gone: the task goes out again, or fails if that happened too often."""
        task = self._open[task_id]
        task.halt()
        task.deaths += 1
        if task.deaths <= self._max_failures:
            task.running = False
            self._held.insert(0, task)
            return
        times = "" if task.deaths == 1 else f" {task.deaths} times"
        self._finish(task, "failed", {"reason": f"the trial's process died{times}: {reason}", "node": node})

    def settle(self) -> None:
        """After Tune has ended: raise what has to be raised, end what waited for a promotion."""
        with self._kept():
            self.queue.spent()  # notes what was spent
        if self._error is not None:
            raise self._error
        if self.signum is not None:
            raise Interrupted(self.signum)
        if self._open and not self._stopping:
            raise Interrupted(signal.SIGUSR1)  # the one signal that Tune keeps to itself
        if not self._stopping:
            for task_id, reason in self.queue.never_promoted().items():
                task = self._paused.get(task_id) or _Open(self.queue.task(task_id))
                self._finish(task, "stopped", {"reason": reason, "node": task.node})
        if self._error is not None:
            raise self._error

    def _pause(self, task: _Open) -> None:
        with self._kept():
            self.queue.pause(task.task.id)
            task.running = False
            self._paused[task.task.id] = self._open.pop(task.task.id)
            self._on_event("paused", task.task.id, {"epoch": task.epoch, "reason": task.verdict.reason})

    def _finish(self, task: _Open, status: Ending, result: dict[str, Any]) -> None:
        result = {**task.notes, **result, "duration": task.seconds}
        with self._kept():
            self.queue.finish(task.task.id, status, result)
            self._open.pop(task.task.id, None)
            self._paused.pop(task.task.id, None)
            self._ended_seconds += task.seconds
            self._on_event("finished", task.task.id, {"status": status, **result})

    @contextlib.contextmanager
    def _kept(self) -> Iterator[None]:
        """Tune turns some exceptions into failed trials: keep the first and end the run instead."""
        try:
            yield
        except Exception as error:
            self._error = self._error or error
            self._stopping = True


class _Open:
    """A task that is out, or paused."""

    def __init__(self, task: Task):
        self.task = task
        self.running = False
        self.makes: frozenset[str] = frozenset()
        self.deaths = 0
        self.epoch: int | None = None
        self.verdict = GO
        self.node: str | None = None
        self.fault: str | None = None
        self.notes: dict[str, Any] = {}
        self._seconds = 0.0
        self._since: float | None = None

    def go(self) -> None:
        """Its process has it now."""
        self._since = time.monotonic()

    def halt(self) -> None:
        self._seconds, self._since = self.seconds, None

    @property
    def seconds(self) -> float:
        """How long it held a process."""
        return self._seconds + (0.0 if self._since is None else time.monotonic() - self._since)


class _Searcher(Searcher):
    """Tune's view of the queue. A task travels as one string, in which Tune finds nothing to resolve."""

    def __init__(self, run: _Run):
        super().__init__()
        self._run = run

    def suggest(self, trial_id: str) -> dict[str, str] | str | None:
        task = self._run.next_task()
        if task is not None:
            return {"task": json.dumps({"id": task.id, "payload": task.payload})}
        return Searcher.FINISHED if self._run.is_over() else None

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """`_Reporter` does it: it gets the trial itself."""

    def save(self, checkpoint_path: str) -> None:
        """There is nothing to save."""


class _Stopper(tune.Stopper):
    def __init__(self, run: _Run):
        self._run = run

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        return METRICS in result and self._run.is_broken(trial_id, result[METRICS])

    def stop_all(self) -> bool:
        return self._run.stopping()


class _Reporter(tune.Callback):
    """Tells the run what Tune tells its callbacks."""

    def __init__(self, run: _Run, frees_groups: bool):
        self._run = run
        self._frees_groups = frees_groups

    def on_trial_start(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        self._run.started(_task_of(trial)["id"])

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
        self._free_groups()
        reason = _why(trial.get_pickled_error() or trial.get_error())
        self._run.died(_task_of(trial)["id"], reason, (trial.last_result or {}).get("hostname"))

    def _free_groups(self) -> None:
        if self._frees_groups:
            free_reservations_of_the_dead()


def _task_of(trial: Trial) -> dict[str, Any]:
    return json.loads(trial.config["task"])


def _why(error: BaseException | None) -> str:
    """One line for a person; Ray says how a process ended in the middle of a paragraph."""
    text = " ".join(str(error).split())
    if isinstance(error, ray.exceptions.OutOfMemoryError):
        return "the node ran out of memory"
    found = re.search(r"Worker exit type: (\S+) Worker exit detail: (.*?)(?: Some common causes|$)", text)
    detail = f"{found[1]}: {found[2]}" if found else text
    by_signal = re.search(r"SIG[A-Z]+", found[2]) if found else None
    return f"{by_signal[0]}, {detail}" if by_signal else detail[:500]


class _Judge(FIFOScheduler):
    """Tune's view of the rule and the budget. To Tune a paused trial has ended, so that it holds nothing."""

    def __init__(self, run: _Run):
        super().__init__()
        self._run = run

    def choose_trial_to_run(self, tune_controller: Any) -> None:
        """None in particular: Tune then starts what is pending in turn. Were the first one named, it would be given the
        next process that becomes free and the one that is coming up for it dropped, so that a slot that a death took
        would stay lost for as long as trials are shorter than the start of a process."""

    def on_trial_result(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> str:
        prefix = f"{METRICS}/"
        metrics = {key.removeprefix(prefix): value for key, value in result.items() if key.startswith(prefix)}
        if "epoch" not in metrics:
            return TrialScheduler.CONTINUE
        verdict = self._run.judge(_task_of(trial)["id"], metrics)
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

    @property
    def scratch(self) -> str:
        return str(Path(self.folder) / "ray")

    @property
    def stop_file(self) -> Path:
        return Path(self.folder) / "ray" / "stop"

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
        _say(log, task["id"], f"starts on {platform.node()}, process {os.getpid()}")
        try:
            result = function({**payload, "id": task["id"]}, _report(stopped), _launch(settings, task, stopped))
        except Stopped as stop:
            _say(log, task["id"], f"stopped: {stop}")
            return {"status": "stopped", "reason": str(stop)}
        except Exception as error:
            traceback.print_exc()
            _say(log, task["id"], "failed")
            return {"status": "failed", "reason": f"{type(error).__name__}: {error}"}
        except SystemExit:
            _say(log, task["id"], "stopped")
            raise
        _say(log, task["id"], "completed")
        return {"status": "completed", "result": result}


def _say(log: Any, task_id: str, text: str) -> None:
    print(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {task_id} {text}", file=log)


def _report(stopped: Callable[[], bool]) -> Report:
    def report(metrics: Mapping[str, Any]) -> None:
        if stopped():
            sys.exit(0)
        tune.report({METRICS: {name: _plain(value) for name, value in metrics.items()}})

    return report


def _plain(value: Any) -> Any:
    """NumPy's and torch's numbers as Python's."""
    return value.item() if hasattr(value, "item") else value


def _launch(settings: _Settings, task: dict[str, Any], stopped: Callable[[], bool]) -> Launch:
    """`run_loop` with this trial's resources."""
    resources, launches = settings.resources, iter(range(10**6))

    def launch(loop: Callable[..., None], argument: dict[str, Any]) -> None:
        from sweeps.ray_train import run_loop  # seconds of imports that the driver of the sweep need not pay

        run_loop(
            loop,
            argument,
            _report(stopped),
            workers=resources.workers,
            cpus_per_worker=resources.cpus_per_worker,
            gpus_per_worker=resources.gpus_per_worker,
            run_name=f"{task['id']}-{os.getpid()}-{next(launches)}",
            storage=str(settings.folder_here / "ray" / "groups"),
            max_failures=settings.max_failures,
            seed=int(task["payload"].get("seed", 0)),
            callbacks=[_GroupReport()] if resources.workers > 1 else (),
            log=settings.log(task["id"]),
            stopped=lambda: stopped() or settings.stop_file.exists(),
        )

    return launch


class _GroupReport(TuneReportCallback):
    """Rank 0's metrics, in our message, to Tune."""

    def after_report(self, run_context: Any, metrics: list[dict[str, Any]], checkpoint: Any) -> None:
        plain = {name: _plain(value) for name, value in metrics[0].items()}
        super().after_report(run_context, [{METRICS: plain}], checkpoint)
