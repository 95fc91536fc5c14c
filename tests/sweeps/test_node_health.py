"""Whose failure it is, and how many trials run at once, on a cluster that is made up: nodes come, go and break."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Any

import pytest

from sweeps import node_health, queue_run
from sweeps.cluster_view import ClusterView, Node
from sweeps.node_health import IN_A_ROW, IN_A_ROW_ON_THE_LAST, NodeHealth, StorageFull, UnfitNode, is_of_the_node
from sweeps.records import ClusterLost, Task
from sweeps.resources import Resources
from sweeps.scheduled_queue import ScheduledQueue
from sweeps.stopping import Asha, Promotion, Rule


class MadeUpCluster(ClusterView):
    """Nodes of two CPUs each, by name; `lost` are those whose raylet does not answer any more."""

    def __init__(self, *names: str, max_concurrent: int | None = None):
        super().__init__(Resources(), max_concurrent)
        self.there = list(names)
        self.lost: set[str] = set()

    def nodes(self) -> list[Node]:
        self._nodes |= {name: Node(name, name, "", 0, True, {"CPU": 2.0}) for name in self.there}
        return [self._nodes[name] for name in self.there]

    def is_lost(self, node_id: str) -> bool:
        return node_id in self.lost

    def name(self, node_id: str) -> str:
        return node_id


class Endless:
    """A queue that always has another task, and keeps the ends it is told of."""

    def __init__(self, last: int = 10**6) -> None:
        self.given, self.last = 0, last
        self.ends: dict[str, tuple[str, dict[str, Any]]] = {}

    def next(self) -> Task | None:
        if self.given == self.last:
            return None
        self.given += 1
        return Task(f"trial-{self.given}", {})

    def report(self, task_id: str, metrics: dict[str, Any]) -> None: ...

    def finish(self, task_id: str, status: str, result: dict[str, Any]) -> None:
        self.ends[task_id] = status, result


class Books:
    """The driver's books over a made-up cluster and queue."""

    def __init__(
        self,
        folder: Path,
        cluster: MadeUpCluster,
        last: int = 10**6,
        max_failures: int = 2,
        rule: Rule | None = None,
        **options: Any,
    ):
        self.events: list[tuple[str, str, dict[str, Any]]] = []
        self.queue, self.cluster = Endless(last), cluster
        self.awaited: list[int] = []
        self.run = queue_run.QueueRun(
            lambda task: frozenset(),
            lambda *event: self.events.append(event),
            lambda: False,
            metric="score",
            max_failures=max_failures,
            cluster=cluster,
            stop_file=folder / "stop",
            demand=lambda trials, avoided: self.awaited.append(trials),
            **options,
        )
        self.run.queue = ScheduledQueue(
            self.queue,
            rule or Rule(),
            history={},
            epochs_of=lambda payload: None,
            budget=None,
            trial_seconds=lambda: 0.0,
        )

    def start(self, node: str) -> str:
        """The next task, which a process on this node takes."""
        task = self.run.next_task()
        assert task is not None
        self.run.started(task.id, node)
        return task.id

    def epoch(self, task_id: str, epoch: int, score: float) -> str:
        """An epoch as Tune tells of it; what becomes of the task."""
        verdict = self.run.judge(task_id, {"epoch": epoch, "score": score})
        self.run.reported(task_id, {"epoch": epoch, "score": score})
        return verdict.action

    def ends_well(self, task_id: str) -> None:
        self.run.ended(task_id, {"status": "completed", "result": {}}, "host")

    def unfit(self, task_id: str, reason: str, certain: bool, worker_node: str | None = None) -> None:
        final = {"status": "unfit", "reason": reason, "certain": certain, "node_id": worker_node}
        self.run.ended(task_id, final, "host")

    def told(self) -> list[str]:
        """What a person heard about waiting."""
        return [data["reason"] for event, _, data in self.events if event == "delayed"]

    def avoided(self) -> list[str]:
        return [node for event, node, _ in self.events if event == "avoided"]


@pytest.fixture
def two_nodes(tmp_path: Path) -> Books:
    return Books(tmp_path, MadeUpCluster("a", "b"))


def test_more_run_when_a_node_comes_and_fewer_when_one_goes(tmp_path: Path) -> None:
    cluster = MadeUpCluster("a")
    books = Books(tmp_path, cluster)
    first = [books.start("a") for _ in range(2)]
    assert books.run.next_task() is None
    cluster.there = ["a", "b"]
    assert len([books.start("b") for _ in range(2)]) == 2
    assert books.run.next_task() is None
    cluster.there = ["a"]
    books.ends_well(first[0])
    assert books.run.next_task() is None, "three run where there is room for two"
    sizes = [(size["CPU"], size["nodes"]) for event, _, size in books.events if event == "cluster"]
    assert sizes == [(2, 1), (4, 2), (2, 1)]


def test_no_more_run_at_once_than_was_asked_for(tmp_path: Path) -> None:
    books = Books(tmp_path, MadeUpCluster("a", "b", max_concurrent=3))
    assert [books.run.next_task() is not None for _ in range(4)] == [True, True, True, False]


def test_a_lost_node_is_no_failure_of_its_trials(two_nodes: Books) -> None:
    """With `max_failures` 2 a task outlives many losses, and its record says why it was started again."""
    for _ in range(5):
        task_id = two_nodes.start("a")
        two_nodes.cluster.lost = {"a"}
        two_nodes.run.died(task_id, "the connection was lost", None)
    two_nodes.ends_well(two_nodes.start("b"))
    status, result = two_nodes.queue.ends["trial-1"]
    assert status == "completed"
    assert result["restarts"] == ["lost with node a; started again"] * 5
    assert two_nodes.avoided() == []


@pytest.mark.parametrize("lost", [False, True])
def test_a_trial_whose_process_dies_on_its_way_out_ends_as_the_rule_said(tmp_path: Path, lost: bool) -> None:
    """Started again it would be trained on: its rule knows the epoch and does not judge it again."""
    rule = Asha(grace=1, factor=2, longest=9, mode="max")
    books = Books(tmp_path, MadeUpCluster("a", "b"), rule=rule)
    first, second = books.start("a"), books.start("a")
    assert [books.epoch(first, 1, 0.9), books.epoch(second, 1, 0.1)] == ["go", "stop"]
    books.cluster.lost = {"a"} if lost else set()
    books.run.died(second, "SIGKILL", None)
    status, result = books.queue.ends[second]
    assert (status, result["stopped_by"]) == ("stopped", "asha")
    assert [event for event, task_id, _ in books.events if task_id == second] == [
        *("started", "condemned", "report", "finished")
    ], "a killed driver finds the verdict before it finds the epoch"
    books.run.died(first, "SIGKILL", None)
    assert books.start("b") == first, "nothing was decided about the other one"
    assert books.epoch(first, 1, 0.9) == "go"


def test_a_paused_trial_whose_process_dies_waits_all_the_same(tmp_path: Path) -> None:
    rule = Promotion(grace=1, factor=2, longest=9, mode="max")
    books = Books(tmp_path, MadeUpCluster("a"), last=2, rule=rule)
    worse, better = books.start("a"), books.start("a")
    assert books.epoch(worse, 1, 0.1) == "pause"
    books.run.died(worse, "SIGKILL", None)
    assert [event for event, task_id, _ in books.events if task_id == worse][-1] == "paused"
    assert books.epoch(better, 1, 0.9) == "go"
    assert books.run.next_task() is None


def test_a_spent_budget_ends_a_trial_that_is_still_training_its_tokenizer(tmp_path: Path) -> None:
    books, spent = Books(tmp_path, MadeUpCluster("a")), False

    class Limit:
        def see(self, value: float) -> None: ...

        def is_target(self, value: float) -> bool:
            return False

        def reached(self, trial_seconds: float) -> str | None:
            return "time: 61 of 60 spent" if spent else None

    books.run.queue._budget = Limit()
    task_id = books.start("a")
    sign = {"stage": "tokenizer", "stage_epoch": 1, "stage_epochs": 90}
    assert books.run.judge_sign(task_id, "tokenizer").action == "go"
    books.run.reported(task_id, dict(sign))
    spent = True
    assert books.run.judge_sign(task_id, "tokenizer").action == "stop"
    books.run.reported(task_id, dict(sign))
    books.run.ended(task_id, None, "host")
    status, result = books.queue.ends[task_id]
    assert (status, result["stopped_by"]) == ("stopped", "budget")
    assert result["reason"] == "ended with the budget in its stage tokenizer: time: 61 of 60 spent"
    assert "report" not in [event for event, *_ in books.events], "nobody is told of a sign of life"


def test_losses_without_end_end(two_nodes: Books) -> None:
    two_nodes.cluster.lost = {"a"}
    for _ in range(queue_run.MAX_EXCUSED + 1):
        two_nodes.run.died(two_nodes.start("a"), "the connection was lost", None)
    status, result = two_nodes.queue.ends["trial-1"]
    assert (status, result["reason"]) == ("failed", "lost with node a; given up after 20 restarts")


def test_a_process_that_dies_on_a_node_that_lives_is_counted(two_nodes: Books) -> None:
    for _ in range(3):
        two_nodes.run.died(two_nodes.start("a"), "SIGKILL", "host")
    status, result = two_nodes.queue.ends["trial-1"]
    assert (status, result["reason"]) == ("failed", "the trial's process died 3 times: SIGKILL")
    assert result["restarts"] == ["the trial's process died: SIGKILL; started again"] * 2
    assert two_nodes.avoided() == [], "one bad trial is no evidence against a node"


def test_a_node_on_which_several_trials_in_a_row_died_is_avoided_and_named(tmp_path: Path) -> None:
    books = Books(tmp_path, MadeUpCluster("a", "b"), max_failures=0)
    for _ in range(IN_A_ROW - 1):
        books.run.died(books.start("a"), "SIGKILL", "host")
    books.ends_well(books.start("a"))  # the row begins anew
    for _ in range(IN_A_ROW - 1):
        books.run.died(books.start("a"), "SIGKILL", "host")
    assert books.avoided() == []
    books.run.died(books.start("a"), "SIGSEGV", "host")
    [event] = [event for event in books.events if event[0] == "avoided"]
    assert event == ("avoided", "a", {"reason": "3 trials in a row failed there; the last: SIGSEGV"})
    started = [books.start("b") for _ in range(2)]
    assert books.run.shunned_by(started[0]) == ["a"]
    assert books.run.next_task() is None, "what is avoided has no slots"


def test_a_fault_that_is_the_nodes_alone_is_enough_at_once(two_nodes: Books) -> None:
    task_id = two_nodes.start("a")
    two_nodes.unfit(task_id, "has torch 2.10.0, the driver 2.9.1", certain=True)
    assert two_nodes.avoided() == ["a"]
    assert two_nodes.start("b") == task_id
    two_nodes.ends_well(task_id)
    [line] = two_nodes.queue.ends[task_id][1]["restarts"]
    assert line == "node a could not run it: has torch 2.10.0, the driver 2.9.1; started again"


def test_the_node_of_a_worker_is_the_one_that_is_avoided(two_nodes: Books) -> None:
    two_nodes.unfit(two_nodes.start("a"), "has torch 2.10.0", certain=True, worker_node="b")
    assert two_nodes.avoided() == ["b"]


def full_disk(error: OSError) -> dict[str, Any]:
    disk = node_health.disk_error(error)
    return {"status": "unfit", "reason": str(error), "certain": True, "node_id": None, "disk": disk}


def no_space(path: Path | None = None) -> OSError:
    return OSError(errno.ENOSPC, "No space left on device", *([] if path is None else [str(path)]))


def test_a_full_storage_ends_the_run_and_no_node_is_avoided(tmp_path: Path) -> None:
    storage = tmp_path / "runs"
    storage.mkdir()
    books = Books(tmp_path, MadeUpCluster("a", "b"), storage=storage)
    books.run.ended(books.start("a"), full_disk(no_space(storage / "sweep" / "checkpoint")), "host")
    assert books.run.is_over()
    assert books.avoided() == []
    with pytest.raises(StorageFull, match=f"storage {storage} cannot be written: No space .*; [0-9,]+ bytes are free"):
        books.run.settle()
    assert books.queue.ends == {}, "the trial goes on when the sweep is resumed"


@pytest.mark.parametrize("path", ["/elsewhere/scratch", None], ids=["named", "not named"])
def test_a_disk_of_a_nodes_own_that_is_full_is_the_nodes_fault(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: str | None
) -> None:
    """The error of a write names no file: the driver sees for itself that the storage can be written."""
    monkeypatch.setattr(node_health, "MIN_FREE_BYTES", 0)
    books = Books(tmp_path, MadeUpCluster("a", "b"), storage=tmp_path)
    books.run.ended(books.start("a"), full_disk(no_space(Path(path) if path else None)), "host")
    assert not books.run.is_over()
    assert books.avoided() == ["a"]


@pytest.mark.parametrize("writable", [True, False])
def test_a_storage_that_is_read_only_on_one_node_is_that_nodes_fault(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, writable: bool
) -> None:
    monkeypatch.setattr(node_health, "_can_be_written", lambda folder: writable)
    books = Books(tmp_path, MadeUpCluster("a", "b"), storage=tmp_path)
    error = OSError(errno.EROFS, "Read-only file system", str(tmp_path / "x"))
    books.run.ended(books.start("a"), full_disk(error), "host")
    assert books.avoided() == (["a"] if writable else [])
    assert books.run.is_over() is not writable


def test_when_all_nodes_are_avoided_the_run_ends_and_names_them(two_nodes: Books) -> None:
    task_id = two_nodes.start("a")
    two_nodes.unfit(task_id, "No space left on device", certain=True)
    two_nodes.unfit(two_nodes.start("b"), "No space left on device", certain=True)
    assert two_nodes.run.next_task() is None
    assert two_nodes.run.is_over()
    with pytest.raises(ClusterLost, match=r"(?s)no node .* avoided are:\na: No space left on device\nb: No space left"):
        two_nodes.run.settle()
    assert two_nodes.queue.ends == {}, "the trial is not told to have failed: it goes on when the sweep is resumed"


def test_a_package_that_is_missing_on_two_nodes_is_the_trials_fault(two_nodes: Books) -> None:
    task_id = two_nodes.start("a")
    two_nodes.unfit(task_id, "ModuleNotFoundError: No module named 'x'", certain=False)
    assert two_nodes.run.shunned_by(task_id) == ["a"]
    assert two_nodes.start("b") == task_id
    two_nodes.unfit(task_id, "ModuleNotFoundError: No module named 'x'", certain=False)
    assert two_nodes.queue.ends[task_id][0] == "failed"
    assert two_nodes.avoided() == []


def test_a_package_that_is_missing_on_the_only_node_fails_the_trial_at_once(tmp_path: Path) -> None:
    books = Books(tmp_path, MadeUpCluster("a"))
    task_id = books.start("a")
    books.unfit(task_id, "ModuleNotFoundError: No module named 'x'", certain=False)
    assert books.queue.ends[task_id][0] == "failed"


def test_a_queue_is_not_over_while_there_is_no_slot_for_its_tasks(tmp_path: Path) -> None:
    cluster = MadeUpCluster()
    books = Books(tmp_path, cluster, last=1)
    assert books.run.next_task() is None
    assert not books.run.is_over()
    cluster.there = ["a"]
    books.ends_well(books.start("a"))
    assert books.run.next_task() is None
    assert books.run.is_over()


class Clock:
    """Time that goes by when it is told to."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch):
        self.now = 1000.0
        monkeypatch.setattr("time.monotonic", lambda: self.now)

    def minutes(self, books: Books, count: int) -> None:
        """So many go by, in each of which the run is asked for a task."""
        for _ in range(count):
            self.now += 60.0
            assert books.run.next_task() is None


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


def test_a_node_that_comes_within_the_wait_saves_the_run(tmp_path: Path, clock: Clock) -> None:
    """A new spot machine takes some minutes; a person hears of the wait after one, and every minute."""
    cluster = MadeUpCluster()
    books = Books(tmp_path, cluster, wait_seconds=300.0)
    assert books.run.next_task() is None
    clock.minutes(books, 4)
    assert books.told() == ["waiting for a node: a trial needs 1 x (1 CPU), the cluster has 0 node(s): "] * 4
    cluster.there = ["a"]
    books.ends_well(books.start("a"))
    cluster.there = []
    assert books.run.next_task() is None
    clock.minutes(books, 4)  # another wait, counted anew
    assert not books.run.is_over()


@pytest.mark.parametrize("minutes", [2, 10])
def test_how_long_a_node_is_waited_for_is_a_setting(tmp_path: Path, clock: Clock, minutes: int) -> None:
    books = Books(tmp_path, MadeUpCluster(), wait_seconds=60.0 * minutes)
    assert books.run.next_task() is None
    clock.minutes(books, minutes - 1)
    assert not books.run.is_over()
    clock.minutes(books, 1)
    assert books.run.is_over()
    with pytest.raises(ClusterLost, match=f"no node came in {60 * minutes} s"):
        books.run.settle()


def test_a_trial_that_others_leave_no_place_is_told_of(tmp_path: Path, clock: Clock) -> None:
    """However long: the cluster is large enough, so the run goes on."""
    books = Books(tmp_path, MadeUpCluster("a"), last=1)
    task = books.run.next_task()
    assert task is not None
    assert books.run.next_task() is None
    clock.minutes(books, 10)
    assert books.told() == ["waiting: the cluster is used by others; without a place: trial-1"] * 10
    assert not books.run.is_over()
    books.run.started(task.id, "a")
    clock.minutes(books, 3)
    assert len(books.told()) == 10


def test_a_group_without_room_for_its_workers_is_told_of_and_its_time_does_not_count(
    two_nodes: Books, clock: Clock
) -> None:
    two_nodes.run._workers = 2
    task_id = two_nodes.start("a")
    two_nodes.run.reported(task_id, {queue_run.ROOM: False})
    for _ in range(4):
        clock.now += 60.0
        two_nodes.run.next_task()
    assert two_nodes.told()[:2] == [f"{task_id} waits for room for 2 workers"] * 2
    assert two_nodes.run._open[task_id].seconds == 0.0
    two_nodes.run.reported(task_id, {queue_run.ROOM: True})
    clock.now += 10.0
    two_nodes.ends_well(task_id)
    assert two_nodes.queue.ends[task_id][1]["duration"] == 10.0
    assert [event for event, *_ in two_nodes.events].count("report") == 0


def test_groups_that_wait_on_a_cluster_that_became_too_small_do_not_wait_for_ever(tmp_path: Path, clock: Clock) -> None:
    """Their drivers live, but nothing works."""
    books = Books(tmp_path, MadeUpCluster("a"), wait_seconds=300.0)
    task_id = books.start("a")
    books.run.reported(task_id, {queue_run.ROOM: False})
    books.cluster.there = []
    assert books.run.next_task() is None
    clock.minutes(books, 5)
    with pytest.raises(ClusterLost, match="no node came in 300 s"):
        books.run.settle()
    assert books.queue.ends == {}, "it is not told to have failed: it goes on when the sweep is resumed"


def test_nodes_are_asked_for_as_long_as_there_is_more_to_do_than_room(tmp_path: Path) -> None:
    """Six trials, four at once at the most: with no node four are asked for, with two places two more, in the end
    none."""
    books = Books(tmp_path, MadeUpCluster(max_concurrent=4), last=6, max_concurrent=4, to_do=6)
    assert books.run.next_task() is None
    assert books.awaited[-1] == 4
    books.cluster.there = ["a"]
    out = [books.start("a"), books.start("a")]
    assert books.run.next_task() is None
    assert books.awaited[-1] == 2
    for left in (2, 2, 1, 0):
        books.ends_well(out.pop(0))
        out.append(books.start("a"))
        assert books.run.next_task() is None
        assert books.awaited[-1] == left
    books.ends_well(out.pop(0))


def test_what_waits_for_its_place_asks_for_it_itself(tmp_path: Path) -> None:
    books = Books(tmp_path, MadeUpCluster("a"), max_concurrent=8)
    assert books.run.next_task() is not None
    assert books.run.next_task() is not None
    assert books.run.next_task() is None
    assert books.awaited[-1] == 0


def test_a_limit_is_kept_where_the_sweep_names_none(tmp_path: Path) -> None:
    books = Books(tmp_path, MadeUpCluster())
    assert books.run.next_task() is None
    assert books.awaited == [queue_run.MOST_AWAITED]


def test_a_cluster_that_stays_too_small_is_given_up(tmp_path: Path) -> None:
    cluster = MadeUpCluster("a")
    books = Books(tmp_path, cluster, wait_seconds=0.0)
    task_id = books.start("a")
    cluster.there = []
    assert books.run.next_task() is None
    assert not books.run.is_over(), "a process still works"
    cluster.lost = {"a"}
    books.run.died(task_id, "gone", None)
    assert books.run.next_task() is None
    with pytest.raises(ClusterLost, match=r"a trial needs 1 x \(1 CPU\), the cluster has 0 node\(s\)"):
        books.run.settle()


def test_a_task_that_is_kept_from_all_nodes_that_are_left_does_not_wait_for_ever(tmp_path: Path) -> None:
    two_nodes = Books(tmp_path, MadeUpCluster("a", "b"), wait_seconds=0.0)
    task_id = two_nodes.start("a")
    two_nodes.unfit(task_id, "ModuleNotFoundError: No module named 'x'", certain=False)
    assert two_nodes.run.next_task() is not None
    assert two_nodes.run.shunned_by(task_id) == ["a"]
    two_nodes.cluster.there = ["a"]
    assert two_nodes.run.next_task() is None
    with pytest.raises(ClusterLost, match="trial-1 has failed on all nodes that are left"):
        two_nodes.run.settle()


def test_nothing_ends_as_done_while_tasks_are_open(two_nodes: Books) -> None:
    two_nodes.start("a")
    with pytest.raises(KeyboardInterrupt):
        two_nodes.run.settle()


def test_the_last_node_needs_more_evidence() -> None:
    health = NodeHealth()
    told = [health.failed("a", f"trial-{n}", "SIGKILL", others=0) for n in range(IN_A_ROW_ON_THE_LAST)]
    assert told == [False] * (IN_A_ROW_ON_THE_LAST - 1) + [True]


@pytest.mark.parametrize(
    ("error", "of_the_node"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), True),
        (OSError(errno.EROFS, "Read-only file system"), True),
        (UnfitNode("has torch 2.10.0", "b"), True),
        (ModuleNotFoundError("No module named 'x'"), None),
        (FileNotFoundError(errno.ENOENT, "no such file"), False),
        (ValueError("a bad width"), False),
    ],
)
def test_what_a_trial_raises_is_its_own_fault_unless_it_speaks_of_the_node(
    error: Exception, of_the_node: bool | None
) -> None:
    assert is_of_the_node(error) is of_the_node
