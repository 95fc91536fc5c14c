"""What a report says of time: when trials ran, also those that paused or were resumed, what was idle, what it cost."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from test_node_health import MadeUpCluster

from sweeps import queue_run
from sweeps.cluster_use import SIZES
from sweeps.ledger import Ledger
from sweeps.report.document import Picture, Table
from sweeps.report.timeline import busy_seconds, lanes_of, plan, spans_of, timeline, workers
from sweeps.scheduled_queue import ScheduledQueue
from sweeps.spec_file import load_spec
from sweeps.stopping import Promotion

TINY = Path(__file__).with_name("tiny.yaml")
BEGIN = datetime(2026, 1, 1, 12, tzinfo=UTC)
MINUTE = 60


class Clock:
    """The time of `queue_run`, in seconds after `BEGIN`."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch):
        self.seconds = 0.0
        monkeypatch.setattr(queue_run, "time", SimpleNamespace(monotonic=lambda: self.seconds))
        monkeypatch.setattr(queue_run, "_now", lambda: (BEGIN + timedelta(seconds=self.seconds)).isoformat())


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


def drive(ledger: Ledger, clock: Clock, folder: Path, epochs: int = 10**6) -> None:
    """One slot on node `n-2`, a minute an epoch, three epochs a trial; every trial pauses after its first, the best
    third go on. After so many epochs in all a signal ends the session."""

    def tell(event: str, task_id: str, data: dict[str, Any]) -> None:
        if event == "paused":
            ledger.pause(task_id, data["epoch"])
        if event in ("paused", "halted"):
            ledger.note_runs(task_id, data["runs"])

    cluster = MadeUpCluster("n-2", max_concurrent=1)
    books = queue_run.QueueRun(
        lambda task: frozenset(),
        tell,
        lambda: False,
        metric="ndcg@10",
        max_failures=0,
        cluster=cluster,
        stop_file=folder / "stop",
    )
    books.queue = ScheduledQueue(
        ledger,
        Promotion(grace=1, factor=3, longest=3, mode="max"),
        history={r.id: [(row["epoch"], row["ndcg@10"]) for row in r.epochs] for r in ledger.trials()},
        epochs_of=lambda payload: 3,
        budget=None,
        trial_seconds=books.trial_seconds,
    )
    while (task := books.next_task()) is not None:
        books.started(task.id, "n-2")
        number, verdict = task.payload["number"], None
        for epoch in range(len(ledger.trials()[number].epochs) + 1, 4):
            if not epochs:
                break
            epochs -= 1
            clock.seconds += MINUTE
            row = {"epoch": epoch, "ndcg@10": number * 7 % 12 / 100 + epoch}
            verdict = books.judge(task.id, row)
            books.reported(task.id, row)
            if verdict.action != "go":
                break
        if not epochs:
            books.signum = 15
            break
        books.ended(task.id, {"status": "completed", "result": {}} if verdict == queue_run.GO else None, "n-2")
    books.settle()


def promoted(folder: Path, clock: Clock, epochs: int = 10**6) -> Ledger:
    spec = load_spec(TINY, {"name": "prom", "budget.trials": 12, "scheduler.type": "promote"})
    with Ledger.create(folder / "prom", spec) as ledger:
        drive(ledger, clock, folder, epochs)
    return Ledger.read(folder / "prom")


def trained_minutes(ledger: Ledger) -> int:
    return sum(len(record.epochs) for record in ledger.trials())


def test_one_slot_is_one_lane_however_often_its_trials_pause(tmp_path: Path, clock: Clock) -> None:
    ledger = promoted(tmp_path, clock)
    spans = spans_of(ledger, ledger.trials())
    assert len(spans) > len({span.name for span in spans}) == 12, "some were promoted after a pause"
    [lane] = lanes_of(spans)
    assert [span.name for span in lane][:3] == ["trial-0000", "trial-0001", "trial-0002"]
    assert sum(span.seconds for span in lane) == clock.seconds == MINUTE * trained_minutes(ledger)
    [table] = workers(ledger, spans)
    assert isinstance(table, Table)
    assert [list(row) for row in table.rows] == [["n-2 1", len(lane), clock.seconds, 0.0, "0%"]]


def test_hours_and_cost_are_those_of_the_runs_without_pauses(tmp_path: Path, clock: Clock) -> None:
    ledger = promoted(tmp_path, clock)
    planned = {"version": 1, "cpu_hours": 1.0, "price_per_hour": 6.0, "cost": 3.0, "spec_hash": ledger.spec.hash}
    (ledger.folder / "plan.json").write_text(json.dumps(planned))
    [table] = plan(ledger, spans_of(ledger, ledger.trials()))
    assert isinstance(table, Table)
    rows = {row[0]: list(row[1:]) for row in table.rows}
    hours = trained_minutes(ledger) / 60
    assert rows["CPU-hours"] == [1.0, pytest.approx(hours), f"{hours:.0%}"]
    assert rows["cost"] == [3.0, pytest.approx(6 * hours), f"{2 * hours:.0%}"]
    assert "6 for every hour" in table.note


def test_downtime_is_neither_drawn_nor_idle_nor_paid(tmp_path: Path, clock: Clock) -> None:
    with pytest.raises(queue_run.Interrupted):
        promoted(tmp_path, clock, epochs=14)
    down = clock.seconds
    with Ledger.open(tmp_path / "prom") as writer:
        clock.seconds += 3600
        drive(writer, clock, tmp_path)
        at = BEGIN.timestamp()
        session = [[at, 1, 0, 1], [at + down, 0, 0, 0], [at + down + 3600, 1, 0, 1], [at + clock.seconds, 0, 0, 0]]
        writer.set_fact(SIZES, session)
    ledger = Ledger.read(tmp_path / "prom")
    spans = spans_of(ledger, ledger.trials())
    assert {record.status for record in ledger.trials()} == {"completed", "stopped"}
    gap = [BEGIN + timedelta(seconds=seconds) for seconds in (down, down + 3600)]
    assert all(span.end <= gap[0] or span.start >= gap[1] for span in spans)
    assert sum(span.seconds for span in spans) == busy_seconds(ledger, spans) == MINUTE * trained_minutes(ledger)
    [table] = workers(ledger, spans)
    assert isinstance(table, Table)
    assert [row[3] for row in table.rows] == [0.0]


def test_the_runs_of_a_trial_that_is_paused_now_are_drawn(tmp_path: Path, clock: Clock) -> None:
    with pytest.raises(queue_run.Interrupted):
        promoted(tmp_path, clock, epochs=6)
    ledger = Ledger.read(tmp_path / "prom")
    picture = timeline(spans_of(ledger, ledger.trials()))
    assert isinstance(picture, Picture)
    assert picture.figure is not None
    drawn = {trace["name"]: trace["text"] for trace in picture.figure["data"]}
    paused = [record.id for record in ledger.trials() if record.status == "waiting"]
    assert set(drawn["waiting"]) == set(paused) != set()
    bases = [base for trace in picture.figure["data"] for base in trace["base"]]
    assert min(bases) == "2026-01-01T12:00:00.000", "in UTC"


def test_without_noted_runs_a_trial_is_drawn_as_long_as_it_took(tmp_path: Path) -> None:
    with Ledger.create(tmp_path / "old", load_spec(TINY, {"name": "old", "budget.trials": 3})) as writer:
        tasks = [writer.next() for _ in range(3)]
        for task, (status, reason) in zip(
            tasks, [("completed", None), ("stopped", "not promoted at epoch 1: rank 3 of 3")], strict=False
        ):
            assert task is not None
            writer.report(task.id, {"epoch": 1, "ndcg@10": 0.5})
            writer.finish(task.id, status, {"duration": 0.001, "node": "n", "reason": reason})
    ledger = Ledger.read(tmp_path / "old")
    spans = {span.name: span for span in spans_of(ledger, ledger.trials())}
    first, second, third = ledger.trials()
    assert spans[first.id].seconds == spans[second.id].seconds == pytest.approx(0.001)
    assert spans[first.id].end == first.finished
    assert spans[second.id].start == second.started, "it never went on"
    assert spans[third.id].start == third.started, "it is running"


def test_lanes_of_many_nodes_are_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    with Ledger.create(tmp_path / "wide", load_spec(TINY, {"name": "wide", "budget.trials": 11})) as writer:
        tasks = [writer.next() for _ in range(11)]
        for number, task in enumerate(tasks):
            assert task is not None
            writer.report(task.id, {"epoch": 1, "ndcg@10": 0.5})
            writer.finish(task.id, "completed", {"node": f"node-{number}"})
    ledger = Ledger.read(tmp_path / "wide")
    figure = timeline(spans_of(ledger, ledger.trials())).figure
    assert figure is not None
    assert figure["layout"]["yaxis"]["categoryarray"] == [f"node-{number} 1" for number in range(10, -1, -1)]
