"""What is handed out and what becomes of it, without Ray: every epoch is driven by hand."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from sweeps.budget import Budget
from sweeps.ledger import Ledger
from sweeps.records import Task
from sweeps.scheduled_queue import Queue, ScheduledQueue
from sweeps.spec import SchedulerSpec, SweepSpec
from sweeps.spec_file import load_spec
from sweeps.stopping import Curve, Promotion, Rule, rule_of

TINY = Path(__file__).with_name("tiny.yaml")


class Numbers:
    """A queue of tasks by number; keeps how they ended."""

    def __init__(self, *numbers: int):
        self.left = list(numbers)
        self.ended: dict[str, str] = {}

    def next(self) -> Task | None:
        number = self.left.pop(0) if self.left else None
        return None if number is None else Task(f"t{number}", {})

    def report(self, task_id: str, metrics: dict[str, Any]) -> None:
        pass

    def finish(self, task_id: str, status: str, result: dict[str, Any]) -> None:
        self.ended[task_id] = status


def scheduled(
    queue: Queue,
    rule: Rule | None = None,
    history: dict[str, Curve] | None = None,
    budget: Budget | None = None,
) -> ScheduledQueue:
    return ScheduledQueue(
        queue,
        rule or Promotion(grace=1, factor=2, longest=4, mode="max"),
        history=history or {},
        epochs_of=lambda payload: 4,
        budget=budget,
        trial_seconds=lambda: 0.0,
    )


def train(queue: ScheduledQueue, task_id: str, epochs: range, value: float) -> str:
    """The action after the last of the epochs, or after the first that does not let the task go on."""
    for epoch in epochs:
        verdict = queue.judge(task_id, {"epoch": epoch}, value)
        if verdict.action != "go":
            break
    if verdict.action == "pause":
        queue.pause(task_id)
    elif epochs[-1] == 4 and verdict.action == "go":
        queue.finish(task_id, "completed", {})
    return verdict.action


def handed_out(queue: ScheduledQueue) -> str | None:
    task = queue.next()
    return task and task.id


def test_promotions_come_before_new_tasks_and_one_task_comes_to_its_end():
    numbers = Numbers(0, 1, 2)
    queue = scheduled(numbers)
    assert [handed_out(queue), handed_out(queue)] == ["t0", "t1"]
    assert train(queue, "t0", range(1, 5), 0.2) == "pause"
    assert train(queue, "t1", range(1, 5), 0.1) == "pause"
    assert handed_out(queue) == "t0", "the better half of two is promoted before t2 is started"
    assert train(queue, "t0", range(1, 5), 0.2) == "pause", "now at epoch 2"
    assert handed_out(queue) == "t2"
    assert handed_out(queue) is None, "nothing may be decided for ever while t2 runs"
    assert train(queue, "t2", range(1, 5), 0.05) == "pause"
    assert handed_out(queue) == "t0", "alone in the upper rung, but nobody else will come"
    assert train(queue, "t0", range(1, 5), 0.2) == "go"
    assert handed_out(queue) is None
    assert queue.never_promoted() == {
        "t1": ("stop", "not promoted at epoch 1: rank 2 of 3", "promote"),
        "t2": ("stop", "not promoted at epoch 1: rank 3 of 3", "promote"),
    }
    assert numbers.ended == {"t0": "completed"}


def test_a_task_that_is_the_next_to_be_promoted_does_not_even_pause():
    queue = scheduled(Numbers(0, 1))
    handed_out(queue)
    handed_out(queue)
    train(queue, "t0", range(1, 5), 0.1)
    assert train(queue, "t1", range(1, 2), 0.2) == "go"


def test_a_task_that_has_trained_its_last_epoch_is_let_go():
    rule = Promotion(grace=4, factor=2, longest=8, mode="max")  # another trial may train longer
    queue = scheduled(Numbers(0), rule)
    handed_out(queue)
    assert train(queue, "t0", range(1, 5), 0.1) == "go"


def test_what_was_paused_waits_again_and_what_was_running_runs_again():
    history = {"t0": [(1, 0.1)], "t1": [(1, 0.3), (2, 0.3)], "t2": [(1, 0.4), (2, 0.4), (3, 0.5)], "t3": [(1, 0.2)]}
    queue = scheduled(Numbers(0, 1, 2, 3, 4), history=history)
    assert handed_out(queue) == "t2", "was beyond its rung"
    assert handed_out(queue) == "t4", "the two best of four were promoted before: only t4 is left to start"
    assert train(queue, "t4", range(1, 2), 0.9) == "go", "best of five"
    assert handed_out(queue) is None
    assert queue.never_promoted()["t0"].reason == "not promoted at epoch 1: rank 5 of 5"


def drive(ledger: Ledger, trained: Counter[tuple[str, int]], epochs_left: int) -> bool:
    """Two slots over a ledger, epoch by epoch in turn; False when it was killed before the end."""
    history = {t.id: [(row["epoch"], row["ndcg@10"]) for row in t.epochs] for t in ledger.trials()}
    queue = scheduled(ledger, history=history)
    running: list[str] = []
    while True:
        while len(running) < 2 and (task := queue.next()) is not None:
            running.append(task.id)
        if not running:
            for task_id, verdict in queue.never_promoted().items():
                ledger.finish(task_id, "stopped", {"reason": verdict.reason})
            return True
        if epochs_left == 0:
            return False
        epochs_left -= 1
        task_id = running.pop(0)
        number = int(task_id[-4:])
        epoch = len(ledger.trials()[number].epochs) + 1
        trained[task_id, epoch] += 1
        row = {"epoch": epoch, "ndcg@10": epoch / 10 + (number * 7 % 11) / 100}
        verdict = queue.judge(task_id, row, row["ndcg@10"])
        ledger.report(task_id, row)
        if verdict.action == "pause":
            queue.pause(task_id)
        elif epoch == 4:
            queue.finish(task_id, "completed", {})
        else:
            running.append(task_id)


@pytest.mark.parametrize("killed_after", range(1, 16, 2))
def test_a_search_that_is_killed_anywhere_promotes_the_best_and_trains_no_epoch_twice(
    tmp_path: Path, killed_after: int
):
    trained: Counter[tuple[str, int]] = Counter()
    with Ledger.create(tmp_path / "x", load_spec(TINY, {"budget.trials": 8})) as ledger:
        assert not drive(ledger, trained, killed_after)
    before = {t.number: t for t in Ledger.read(tmp_path / "x").trials()}
    with Ledger.open(tmp_path / "x") as ledger:
        assert drive(ledger, trained, 10**6)
        trials = ledger.trials()
    assert len(trials) == 8
    assert set(trained.values()) == {1}
    assert all(trials[n].finished == t.finished for n, t in before.items() if t.status == "completed")
    first, second = ({t.number: t.epochs[at]["ndcg@10"] for t in trials if len(t.epochs) > at} for at in (0, 1))
    assert set(sorted(first, key=lambda n: -first[n])[:4]) <= set(second), "the better half of all"
    assert trials[max(second, key=lambda n: second[n])].status == "completed"
    assert {t.status for t in trials} == {"stopped", "completed"}
    assert all(str(t.reason).startswith("not promoted at epoch") for t in trials if t.status == "stopped")


class Killed(Exception):
    """The driver's end, at a moment that the test chooses."""


def drive_judged(ledger: Ledger, scheduler: SchedulerSpec, kill_at: tuple[str, int, str] | None = None) -> None:
    """One slot over a ledger as the driver drives it: verdict, row, end. A trial's value falls with its number, so that
    the scheduler ends all but the first ones. `kill_at`: trial, epoch, and before which of the writes the driver dies.
    """

    def dies_before(what: str) -> None:
        if kill_at == (task.id, epoch, what):
            raise Killed

    rule = rule_of(scheduler, "max", 4)
    history = {t.id: [(row["epoch"], row["ndcg@10"]) for row in t.epochs] for t in ledger.trials()}
    queue = scheduled(ledger, rule, history)
    while (task := queue.next()) is not None:
        for epoch in range(1, 5):  # from its checkpoint a trial reports again what it had reported
            value = 1 / (2 + int(task.id[-4:]))
            verdict = queue.judge(task.id, {"epoch": epoch}, value)
            if verdict.action == "stop":
                dies_before("verdict")
                ledger.condemn(task.id, epoch, verdict.reason, verdict.by)
            dies_before("row")
            ledger.report(task.id, {"epoch": epoch, "ndcg@10": value})
            dies_before("end")
            if verdict.action == "stop":
                queue.finish(task.id, "stopped", {"reason": verdict.reason, "stopped_by": verdict.by})
                break
        else:
            queue.finish(task.id, "completed", {})


@pytest.mark.parametrize("kind", ["asha", "median"])
@pytest.mark.parametrize("before", ["verdict", "row", "end"])
def test_a_trial_that_a_rule_has_ended_is_not_trained_on_after_a_kill(tmp_path: Path, kind: str, before: str):
    spec = load_spec(TINY, {"budget.trials": 5})
    scheduler = SchedulerSpec(type=kind, reduction_factor=2, min_trials=1)
    with Ledger.create(tmp_path / "undisturbed", spec) as ledger:
        drive_judged(ledger, scheduler)
        expected = [(t.status, t.value, t.reason, t.stopped_by, len(t.epochs)) for t in ledger.trials()]
    assert [status for status, *_ in expected] == ["completed"] + 4 * ["stopped"]
    assert {(by, epochs) for _, _, _, by, epochs in expected[1:]} == {(kind, 1)}
    with Ledger.create(tmp_path / "killed", spec) as ledger, pytest.raises(Killed):
        drive_judged(ledger, scheduler, ("trial-0002", 1, before))
    with Ledger.open(tmp_path / "killed") as ledger:
        if before == "end":
            assert ledger.trials()[2].status == "stopped", "what was decided is carried out without running it"
        drive_judged(ledger, scheduler)
        assert [(t.status, t.value, t.reason, t.stopped_by, len(t.epochs)) for t in ledger.trials()] == expected


def test_a_failed_task_makes_room_for_the_next_best():
    queue = scheduled(Numbers(0, 1))
    handed_out(queue)
    handed_out(queue)
    train(queue, "t0", range(1, 5), 0.1)
    train(queue, "t1", range(1, 3), 0.2)
    queue.finish("t1", "failed", {})
    assert handed_out(queue) == "t0"


def spec(**budget: Any) -> SweepSpec:
    overrides = {f"budget.{name}": value for name, value in budget.items()}
    return load_spec(TINY, {"resources.cpus_per_worker": 2, "resources.workers": 3, **overrides})


@pytest.mark.parametrize(
    ("budget", "said"),
    [
        ({"time": "2h"}, "time: 7200 of 7200 spent"),
        ({"cpu_hours": 3}, "cpu_hours: 3 of 3 spent"),
        ({"cost": 2, "price_per_hour": 4}, "cost: 2 of 2 spent"),
        ({"cpu_hours": 4, "cost": 1.9, "price_per_hour": 4}, "cost: 2 of 1.9 spent"),
    ],
)
def test_a_spent_budget_ends_running_tasks_at_their_next_epoch(budget: dict[str, Any], said: str):
    """Trials of 3 x 2 CPUs have run for half an hour, an earlier session of 20 minutes included."""
    seconds = [0.0]
    queue = ScheduledQueue(
        Numbers(0, 1),
        Rule(),
        history={},
        epochs_of=lambda payload: 4,
        budget=Budget(spec(**budget), elapsed=lambda: 12 * seconds[0], spent=1200),
        trial_seconds=lambda: seconds[0],
    )
    assert handed_out(queue) == "t0"
    assert queue.judge("t0", {"epoch": 1}, 0.1).action == "go"
    seconds[0] = 600.0
    assert queue.judge("t0", {"epoch": 2}, 0.1) == ("stop", f"ended with the budget at epoch 2: {said}", "budget")
    assert queue.judge("t0", {"epoch": 4}, 0.1).action == "go", "it is at its end anyway"
    assert handed_out(queue) is None


@pytest.mark.parametrize(("mode", "values"), [("max", [0.1, 0.3]), ("min", [0.3, 0.1])])
def test_a_target_ends_the_search(mode: str, values: list[float]):
    target = load_spec(TINY, {"budget.target": 0.2, "mode": mode})
    queue = scheduled(Numbers(0, 1), Rule(), budget=Budget(target, elapsed=lambda: 0.0))
    assert [handed_out(queue), handed_out(queue)] == ["t0", "t1"]
    assert queue.judge("t0", {"epoch": 1}, values[0]).action == "go"
    because = f"target: ndcg@10 {values[1]} has reached 0.2"
    assert queue.judge("t0", {"epoch": 2}, values[1]) == (
        "stop",
        f"ended with the budget at epoch 2: {because}",
        "target",
    )
    assert queue.judge("t1", {"epoch": 1}, values[0]).by == "budget", "it has not reached it, and ends with the search"
    assert handed_out(queue) is None
    assert Budget(target, elapsed=lambda: 0.0, best=values[1]).reached(0.0), "also after a restart"
