"""State of one `run_queue` call: which tasks run, wait or are paused, on which node, and whether a failure counts
against the task or its node.

Ray Tune asks here what to start, and tells what became of it (`sweeps.ray_tune`). The queue decides which task is
trained on and keeps the record; the cluster says how much room there is. No Ray here.
"""

from __future__ import annotations

import contextlib
import math
import signal
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sweeps.interruption import Interrupted
from sweeps.node_health import NodeHealth, StorageFull, fault_of_storage
from sweeps.records import ClusterLost, Task
from sweeps.scheduled_queue import Ending, ScheduledQueue
from sweeps.stopping import BUDGET, GO, TARGET, Verdict
from sweeps.waiting import Waits

if TYPE_CHECKING:
    from sweeps.cluster_view import ClusterView
    from sweeps.stop_mark import StopMark

OnEvent = Callable[[str, str, dict[str, Any]], None]
Demand = Callable[[int, Collection[str]], None]
Missing = Callable[[Any], frozenset[str]]

NOTES = "_notes"  # reserved metric: what a trial wants in its result even if it is stopped early
SIGN = "stage"  # reserved metric: of a task that is not training epochs yet, and says so
ROOM = "_room"  # reserved metric: whether the workers of a group have their places; until then they wait for them
WAIT_SECONDS = 300.0  # for a node, when there is no room for a single trial: a new spot machine takes some minutes
NODE, PLACE = "a node", "a place"  # what a run as a whole may wait for
MOST_AWAITED = 16  # trials for which nodes are asked for where `max_concurrent` does not say
MAX_EXCUSED = 20  # restarts of a task that are not its own fault, so that no task goes round for ever


def nothing_more(trials: int, avoided: Collection[str]) -> None:
    """The demand of a run to whose cluster no nodes come by themselves."""


class QueueRun:
    """For every task: whether it runs, how long it ran, which stages it makes, how often its process died."""

    queue: ScheduledQueue

    def __init__(
        self,
        missing: Missing,
        on_event: OnEvent,
        should_stop: Callable[[], bool],
        *,
        metric: str,
        max_failures: int,
        progress_timeout: float | None = None,
        cluster: ClusterView,
        stop_file: Path | StopMark,
        storage: Path | None = None,
        wait_seconds: float = WAIT_SECONDS,
        workers: int = 1,
        demand: Demand = nothing_more,
        max_concurrent: int | None = None,
        to_do: int | None = None,
    ):
        """`progress_timeout`: seconds without a sign of life after which a process is taken for dead. `storage`: the
        folder that all nodes share, if they share one. `wait_seconds`: for a node, when there is no room for a single
        trial. `workers`: of a trial, at the least. `demand` is told all the time for how many trials nodes should come;
        `to_do`: how many tasks the queue has at the most, None if nobody knows."""
        self.signum: int | None = None
        self.metric = metric
        self._missing = missing
        self._on_event = on_event
        self._should_stop = should_stop
        self._max_failures = max_failures
        self._progress_timeout = progress_timeout
        self._cluster = cluster
        self._size: dict[str, float] = {}
        self._storage = storage
        self._wait_seconds = wait_seconds
        self._waits = Waits(lambda reason, seconds: on_event("delayed", "", {"reason": reason, "seconds": seconds}))
        self._workers = workers
        self._demand = demand
        self._most_awaited = max_concurrent or MOST_AWAITED
        self._to_do = to_do
        self._health = NodeHealth()
        self._stop_file = stop_file
        self._stopping = False
        self._dry = False  # the queue had nothing when it was last asked
        self._error: Exception | None = None
        self._open: dict[str, OpenTask] = {}
        self._held: list[OpenTask] = []  # of the open ones those that no process runs, in the order of their turn
        self._paused: dict[str, OpenTask] = {}
        self._ended_seconds = 0.0
        self._finished = 0

    def __deepcopy__(self, memo: Any) -> QueueRun:
        return self  # Tune copies searchers and callbacks; there is one queue

    def __reduce__(self) -> Any:
        return (object, ())  # and pickles them into a snapshot that nobody reads

    def next_task(self) -> Task | None:
        """A task to start now; None: there is none now, see `is_over`."""
        if self.stopping():
            return None
        with self._kept():
            self._look_at_cluster()
            if sum(task.running for task in self._open.values()) >= self._slots():
                return None
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

    def _first_new_that_can_start(self) -> OpenTask | None:
        """Of the queue's next tasks; those before it are held back."""
        while len(self._held) < self._slots():
            task = self.queue.next()
            self._dry = task is None
            if task is None:
                return None
            new = self._open[task.id] = self._paused.pop(task.id) if task.id in self._paused else OpenTask(task)
            if self._can_start(new):
                return new
            self._held.append(new)
            self._on_event("waiting", task.id, {"for": sorted(new.makes)})
        return None

    def _slots(self) -> int:
        return self._cluster.slots(self._health.avoided)

    def _look_at_cluster(self) -> None:
        """Tell when nodes have come or gone; give up when none is left that could run a trial."""
        size = self._cluster.size()
        if size != self._size:
            self._size = size
            self._on_event("cluster", "", size)
        if self._health.avoided and not self._cluster.usable(self._health.avoided):
            names = [f"{self._cluster.name(node)}: {why}" for node, why in self._health.avoided.items()]
            raise ClusterLost("no node is left that could run a trial; avoided are:\n" + "\n".join(names))
        blocked = self._blocked()
        self._waits.note(self._delays() if blocked is None else {NODE: f"waiting for a node: {blocked}"})
        if blocked is not None and self._waits.seconds(NODE) >= self._wait_seconds:
            raise ClusterLost(f"{blocked}; no node came in {self._waits.seconds(NODE):.0f} s")
        self._demand(self._awaited(), self._health.avoided)

    def _delays(self) -> dict[str, str]:
        """What cannot go on although the cluster is large enough, and why."""
        found = {
            task_id: f"{task_id} waits for room for {self._workers} workers"
            for task_id, task in self._open.items()
            if task.waits_for_room
        }
        placeless = [task_id for task_id, task in self._open.items() if task.running and not task.has_process]
        if placeless:
            found[PLACE] = f"waiting: the cluster is used by others; without a place: {', '.join(placeless[:5])}"
        return found

    def _awaited(self) -> int:
        """For how many trials nodes should come: for those that could run beside what the cluster holds. What has been
        handed out and waits for its place asks for one itself."""
        if any(task.running and (not task.has_process or task.waits_for_room) for task in self._open.values()):
            return 0
        left = math.inf if self._to_do is None else max(self._to_do - self._finished, len(self._open))
        if self._dry:
            left = len(self._open)
        return max(0, int(min(left, self._most_awaited)) - self._slots())

    def _blocked(self) -> str | None:
        """Why something cannot go on before a node comes."""
        if not self._slots() and not any(task.works for task in self._open.values()):
            return self._cluster.too_small()
        for task in self._open.values():
            if not task.running or task.has_process:
                continue
            if task.shunned and not self._cluster.usable(task.shunned):
                return f"{task.task.id} has failed on all nodes that are left"
            if task.home and task.home not in self._cluster.usable(()):
                return f"{task.task.id} was to start on {self._cluster.name(task.home)}, which has gone"
        return None

    def shunned_by(self, task_id: str) -> list[str]:
        """Ids of the nodes on which the task is not to be started, unless there are no others."""
        task = self._open[task_id]
        avoided = {*self._health.avoided, *task.failed_on}
        task.shunned = sorted(avoided if self._cluster.usable(avoided) else self._health.avoided)
        return task.shunned

    def home_of(self, task_id: str) -> str | None:
        """Id of the node on which the task's process and its workers are to be; None: wherever there is room."""
        task = self._open[task_id]
        homes = [other.home for other in self._open.values() if other.running and other.home and other is not task]
        task.home = self._cluster.home(task.shunned, homes)
        return task.home

    def _drop_held(self) -> None:
        """The budget is spent: what no process runs is not started any more."""
        for task in self._held:
            del self._open[task.task.id]
        self._held.clear()

    def _can_start(self, task: OpenTask) -> bool:
        """Whether no running task makes what this one needs. Notes what it will make itself."""
        task.makes = self._missing(task.task)
        return not any(task.makes & other.makes for other in self._open.values() if other.running)

    def is_over(self) -> bool:
        """No task is out, so none can come back, and the queue has no other."""
        return (self._dry and not self._open) or self._stopping

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

    def started(self, task_id: str, node_id: str | None) -> None:
        task = self._open[task_id]
        task.go(node_id)
        with self._kept():
            self._on_event("started", task_id, {"attempt": len(task.restarts) + 1})

    def reported(self, task_id: str, metrics: dict[str, Any]) -> None:
        with self._kept():
            task = self._open[task_id]
            task.heard = time.monotonic()
            if SIGN in metrics:
                return
            task.notes.update(metrics.pop(NOTES, {}))
            if ROOM in metrics:
                task.has_room(metrics.pop(ROOM))
            if "epoch" in metrics:
                task.epoch = metrics["epoch"]
                value = metrics.get(self.metric, 0.0)
                if not math.isfinite(value):
                    task.fault = f"{self.metric} is {value} at epoch {task.epoch}"
                self.queue.report(task_id, metrics)
            if metrics:
                self._on_event("report", task_id, metrics)

    def judge(self, task_id: str, metrics: Mapping[str, Any]) -> Verdict:
        """What becomes of the task after this epoch; asked before `reported`.

        That a rule ends it is told now, before the epoch is: a run that is killed before the task has ended must not
        train it on, and a rule does not judge an epoch again that it knows. A budget is looked at again anyway."""
        task = self._open[task_id]
        with self._kept():
            task.verdict = verdict = self.queue.judge(task_id, metrics, metrics.get(self.metric))
            if verdict.action == "stop" and verdict.by not in (BUDGET, TARGET):
                data = {"epoch": metrics["epoch"], "reason": verdict.reason, "stopped_by": verdict.by}
                self._on_event("condemned", task_id, data)
        return task.verdict

    def judge_sign(self, task_id: str, stage: str) -> Verdict:
        """What becomes of a task that has no epoch yet: a spent budget does not wait for one."""
        task = self._open[task_id]
        with self._kept():
            if limit := self.queue.spent():
                task.verdict = Verdict("stop", f"ended with the budget in its stage {stage}: {limit}", BUDGET)
        return task.verdict

    def is_broken(self, task_id: str, metrics: Mapping[str, Any]) -> bool:
        """Must the trial end because its metric is not a number? Asked before `reported`."""
        return "epoch" in metrics and not math.isfinite(metrics.get(self.metric, 0.0))

    def ended(self, task_id: str, final: Mapping[str, Any] | None, node: str | None) -> None:
        """The trial's process is fine and the trial over; `final` is its last word, None if it was stopped before."""
        task = self._open[task_id]
        self._halt(task, node)
        if final is not None and final["status"] == "unfit":
            task.node_id = final["node_id"] or task.node_id
            if self._storage and final.get("disk") and (fault := fault_of_storage(self._storage, final["disk"])):
                self.fail(StorageFull(fault))
                return
            self._unfit(task, final["reason"], certain=final["certain"])
            return
        self._health.served(task.node_id)
        if task.fault or final is None:
            self._end_as_judged(task)
        elif final["status"] == "completed":
            self._finish(task, "completed", {"reason": None, "node": node, **(final["result"] or {})})
        elif final["status"] == "stopped":
            self._stop(task, Verdict("stop", final["reason"], final.get("by") or ""))
        else:
            self._finish(task, final["status"], {"reason": final["reason"], "node": node})

    def is_silent(self, task_id: str) -> bool:
        """Must the task's process be ended because it hangs? Asked all the time."""
        task = self._open.get(task_id)
        if task is None or self._progress_timeout is None or not task.works:
            return False
        task.is_silent = time.monotonic() - task.heard > self._progress_timeout
        return task.is_silent

    def died(
        self,
        task_id: str,
        reason: str,
        node: str | None,
        node_id: str | None = None,
        *,
        out_of_memory: bool = False,
    ) -> None:
        """The trial's process is gone: the task goes out again, or fails if that happened too often. One that ran out
        of memory would do so on any node of this size: it has one more try, and its node no blame."""
        task = self._open[task_id]
        if task.is_silent:
            reason = f"no sign of life for {self._progress_timeout:g} s (progress_timeout)"
        self._halt(task, node)
        task.node_id = node_id or task.node_id
        if task.fault or task.verdict.action != "go":
            self._end_as_judged(task)  # it died on its way out
            return
        if task.node_id and self._cluster.is_lost(task.node_id):
            self._excuse(task, f"lost with node {self._cluster.name(task.node_id)}")
            return
        if not out_of_memory:
            self._blame(task, reason)
        task.deaths += 1
        if task.deaths <= (min(1, self._max_failures) if out_of_memory else self._max_failures):
            self._again(task, f"the trial's process died: {reason}")
            return
        times = "" if task.deaths == 1 else f" {task.deaths} times"
        self._finish(task, "failed", {"reason": f"the trial's process died{times}: {reason}", "node": node})

    def _halt(self, task: OpenTask, node: str | None) -> None:
        task.node = node
        task.halt(node or (self._cluster.name(task.node_id) if task.node_id else None))

    def _end_as_judged(self, task: OpenTask) -> None:
        """The last epoch has decided."""
        if task.fault:
            self._finish(task, "failed", {"reason": task.fault, "node": task.node})
        elif task.verdict.action == "pause":
            self._pause(task)
        else:
            self._stop(task, task.verdict)

    def _unfit(self, task: OpenTask, reason: str, *, certain: bool) -> None:
        """The node could not run the task. Where that may be the task's own fault, two nodes must say so."""
        node_id = task.node_id or "unknown"
        others = self._cluster.usable({*self._health.avoided, *task.failed_on, node_id})
        if not certain and (task.failed_on or not others):
            self._health.acquit(task.task.id)
            self._finish(task, "failed", {"reason": reason, "node": task.node})
            return
        self._blame(task, reason, certain=certain)
        task.failed_on.add(node_id)
        self._excuse(task, f"node {self._cluster.name(node_id)} could not run it: {reason}")

    def _blame(self, task: OpenTask, reason: str, *, certain: bool = False) -> None:
        """Note that the task's node has failed it; say so when it is avoided from now on."""
        if task.node_id is None:
            return
        others = self._cluster.usable({*self._health.avoided, task.node_id})
        if self._health.failed(task.node_id, task.task.id, reason, others=len(others), certain=certain):
            with self._kept():
                why = self._health.avoided[task.node_id]
                self._on_event("avoided", self._cluster.name(task.node_id), {"reason": why})

    def _excuse(self, task: OpenTask, why: str) -> None:
        """Start the task again without counting it as its failure."""
        task.excused += 1
        if task.excused <= MAX_EXCUSED:
            self._again(task, why)
        else:
            self._finish(task, "failed", {"reason": f"{why}; given up after {MAX_EXCUSED} restarts", "node": task.node})

    def _again(self, task: OpenTask, why: str) -> None:
        task.running = False
        task.restarts.append(f"{why}; started again")
        self._held.insert(0, task)
        with self._kept():
            self._on_event("restarted", task.task.id, {"reason": task.restarts[-1]})

    def fail(self, error: Exception) -> None:
        """End the run with this error. From any thread."""
        self._error = self._error or error
        self._stopping = True

    def settle(self) -> None:
        """After Tune has ended: raise what has to be raised, end what waited for a promotion."""
        with self._kept():
            self.queue.spent()  # notes what was spent
            for task in self._open.values():
                if task.has_process:
                    self._halt(task, task.node)
                    self._on_event("halted", task.task.id, {"runs": task.runs})
        if self._error is not None:
            raise self._error
        if self.signum is not None:
            raise Interrupted(self.signum)
        if self._open and not self._stopping:
            raise Interrupted(signal.SIGUSR1)  # the one signal that Tune keeps to itself
        if not self._stopping:
            for task_id, verdict in self.queue.never_promoted().items():
                self._stop(self._paused.get(task_id) or OpenTask(self.queue.task(task_id)), verdict)
        if self._error is not None:
            raise self._error

    def _pause(self, task: OpenTask) -> None:
        with self._kept():
            self.queue.pause(task.task.id)
            task.running = False
            self._paused[task.task.id] = self._open.pop(task.task.id)
            facts = {"epoch": task.epoch, "reason": task.verdict.reason, "runs": task.runs}
            self._on_event("paused", task.task.id, facts)

    def _stop(self, task: OpenTask, verdict: Verdict) -> None:
        by = {"stopped_by": verdict.by} if verdict.by else {}
        self._finish(task, "stopped", {"reason": verdict.reason, **by, "node": task.node})

    def _finish(self, task: OpenTask, status: Ending, result: dict[str, Any]) -> None:
        restarts = {"restarts": task.restarts} if task.restarts else {}
        result = {**task.notes, **restarts, **result, "duration": task.seconds, "runs": task.runs}
        with self._kept():
            self.queue.finish(task.task.id, status, result)
            self._open.pop(task.task.id, None)
            self._paused.pop(task.task.id, None)
            self._ended_seconds += task.seconds
            self._finished += 1
            self._on_event("finished", task.task.id, {"status": status, **result})

    @contextlib.contextmanager
    def _kept(self) -> Iterator[None]:
        """Tune turns some exceptions into failed trials: keep the first and end the run instead."""
        try:
            yield
        except Exception as error:
            self.fail(error)


class OpenTask:
    """A task that is out, or paused."""

    def __init__(self, task: Task):
        self.task = task
        self.running = False
        self.makes: frozenset[str] = frozenset()
        self.deaths = 0
        self.excused = 0  # restarts that are not its own fault
        self.restarts: list[str] = []  # why it was started again, every time
        self.node_id: str | None = None
        self.failed_on: set[str] = set()  # ids of nodes that could not run it
        self.shunned: list[str] = []  # ids of nodes that its next process is kept from
        self.home: str | None = None  # id of the one node that it has to be on
        self.epoch: int | None = None
        self.verdict = GO
        self.node: str | None = None
        self.fault: str | None = None
        self.notes: dict[str, Any] = {}
        self.runs: list[list[str | None]] = []
        "[start, end, node] of every stretch for which it held what it needs; times in UTC as ISO 8601 has them"
        self._stretches: list[tuple[str, str]] = []  # those of the process that it has now
        self.has_process = False
        self.waits_for_room = False  # its process does: for that of its workers
        self._seconds = 0.0
        self._since: float | None = None
        self._started = ""
        self.heard = 0.0  # monotonic seconds of its last sign of life
        self.is_silent = False

    def go(self, node_id: str | None) -> None:
        """A process on this node has it now."""
        self.node_id = node_id
        self.verdict = GO
        self.has_process = True
        self.heard, self.is_silent = time.monotonic(), False
        self._since, self._started = time.monotonic(), _now()

    def has_room(self, yes: bool) -> None:
        """Whether the workers of its group have their places. Time without them does not count."""
        if self.has_process and yes == self.waits_for_room:
            self._end_stretch()
            self._since, self._started = (time.monotonic(), _now()) if yes else (None, "")
            self.heard = time.monotonic()
            self.waits_for_room = not yes

    @property
    def works(self) -> bool:
        """It holds what it needs."""
        return self.has_process and not self.waits_for_room

    def halt(self, node: str | None) -> None:
        """The process, which ran on this node, has it no more."""
        self._end_stretch()
        self.runs += [[start, end, node] for start, end in self._stretches]
        self._stretches.clear()
        self.has_process = self.waits_for_room = False

    def _end_stretch(self) -> None:
        if self._since is not None:
            self._stretches.append((self._started, _now()))
        self._seconds, self._since = self.seconds, None

    @property
    def seconds(self) -> float:
        """How long it held what it needs."""
        return self._seconds + (0.0 if self._since is None else time.monotonic() - self._since)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")
