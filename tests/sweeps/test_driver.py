"""The driver's decisions around a search, without Ray: a queue is worked off here by made-up trials."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from test_node_health import MadeUpCluster

from genrec.artifacts import ArtifactStore
from genrec.errors import InputError
from genrec.pipeline import stage_keys
from sweeps.driver import _reevaluate, _search
from sweeps.errors import SweepFailed
from sweeps.ledger import Ledger
from sweeps.queue_run import QueueRun
from sweeps.records import Task
from sweeps.scheduled_queue import ScheduledQueue
from sweeps.spec import SweepSpec
from sweeps.spec_file import load_spec

TINY = Path(__file__).with_name("tiny.yaml")
Values = Callable[[int], "list[float] | str"]
"of the trial with this number: its metric after every epoch, or why it fails"


def spec(**overrides: Any) -> SweepSpec:
    return load_spec(TINY, {key.replace("__", "."): value for key, value in overrides.items()})


def playing(values_of: Values, folder: Path) -> Callable[..., None]:
    """A `run_queue` that plays trials, two at a time and in turn, epoch by epoch, through the books of a real run."""

    def run_queue(queue: Any, **given: Any) -> None:
        run = QueueRun(
            lambda task: frozenset(),
            given["on_event"],
            given.get("should_stop", lambda: False),
            metric=given["metric"],
            max_failures=2,
            cluster=MadeUpCluster("a"),
            stop_file=folder / "stop",
        )
        run.queue = ScheduledQueue(
            queue,
            given["rule"],
            history=given["history"],
            epochs_of=given["epochs_of"],
            budget=given["budget"],
            trial_seconds=run.trial_seconds,
        )
        running: list[Iterator[None]] = []
        while not run.stopping():
            while (task := run.next_task()) is not None:
                run.started(task.id, "a")
                running.append(trained(run, task, values_of(task.payload["number"])))
            if not running:
                break
            with contextlib.suppress(StopIteration):
                turn = running.pop(0)
                next(turn)
                running.append(turn)
        run.settle()

    return run_queue


def trained(run: QueueRun, task: Task, values: list[float] | str) -> Iterator[None]:
    """One epoch a step."""
    if isinstance(values, str):
        run.ended(task.id, {"status": "failed", "reason": values}, "host")
        return
    for epoch, value in enumerate(values, start=1):
        row = {"epoch": epoch, "step": epoch, "ndcg@10": value}
        verdict = run.judge(task.id, row)
        run.reported(task.id, row)
        if verdict.action != "go":
            run.ended(task.id, None, "host")
            return
        yield
    run.ended(task.id, {"status": "completed", "result": {}}, "host")


def every_other_fails(number: int) -> list[float] | str:
    return "out of memory" if number % 2 else [0.1, 0.2, 0.3]


def search(ledger: Ledger, values_of: Values) -> ArtifactStore:
    """The sweep's search, with trials that are played."""
    store = ArtifactStore(ledger.folder.parent / "store")
    _search(ledger, store, lambda event, task_id, data: None, playing(values_of, ledger.folder))
    return store


def test_the_trial_that_reaches_the_target_is_the_first_finalist_and_keeps_its_checkpoints(
    tmp_path: Path,
) -> None:
    """Trials 0 and 1 complete with less; 2 reaches the target at its second of three epochs; 3 ends with the search."""
    curves = [[0.1, 0.1, 0.15], [0.2, 0.2, 0.2], [0.3, 0.35, 0.4], [0.3, 0.3, 0.3]]
    store = ArtifactStore(tmp_path / "store")
    asked = spec(budget__target=0.35, finalists__seeds=1)
    with Ledger.create(tmp_path / "x", asked) as ledger:
        parts = {}
        for number in range(4):  # as if every trial had saved a checkpoint
            task = ledger.next()
            parts[number] = store.part("tiger", stage_keys(ledger.config_of(task.payload["number"]))["tiger"])
            parts[number].mkdir(parents=True)
    with Ledger.open(tmp_path / "x") as ledger:
        search(ledger, lambda number: curves[number])
        assert [(t.status, t.stopped_by, len(t.epochs)) for t in ledger.trials()] == [
            ("completed", None, 3),
            ("completed", None, 3),
            ("stopped", "target", 2),
            ("stopped", "budget", 2),
        ]
        assert [record.number for record in ledger.select(4)] == [2, 1, 0, 3]
        assert str(ledger.fact("stop_reason")).startswith("target: ndcg@10 0.35 has reached 0.35")
    assert parts[2].is_dir(), "with one seed the finalist goes on from it"
    assert not parts[3].exists(), "top_k is 1"


def test_the_finalists_are_as_many_as_asked_for_and_it_is_said_who_was_stopped_early(
    tmp_path: Path,
) -> None:
    asked = spec(budget__trials=4, finalists={"top_k": 3}, scheduler={"type": "promote", "reduction_factor": 2})
    said: list[str] = []
    with Ledger.create(tmp_path / "x", asked) as ledger:
        store = search(ledger, lambda number: [0.9 - number / 10] * 3)
        assert [t.status for t in ledger.trials()] == ["completed", "stopped", "stopped", "stopped"]
        assert {t.stopped_by for t in ledger.trials()[1:]} == {"promote"}
        with pytest.raises(SweepFailed):  # nobody measures them
            _reevaluate(ledger, store, lambda *event: None, said.append, lambda queue, **given: None)
        finalists = {finalist for finalist, _ in ledger.fact("test_readings")[-1]["runs"]}
    assert finalists == {0, 1, 2, "base"}
    assert said == [
        "re-evaluating 3 trials and the base config, 3 seeds each; of the trials 2 had been stopped early: "
        "trial-0001 (2 epochs), trial-0002 (1 epoch)"
    ]


def test_a_search_in_which_nothing_but_failures_happens_is_ended_and_can_be_resumed(
    tmp_path: Path,
) -> None:
    with Ledger.create(tmp_path / "x", spec(budget__trials=100)) as ledger:
        with pytest.raises(SweepFailed, match="first 5 trials failed .* 5 x FileNotFoundError.* sweeps resume .*tiny"):
            search(ledger, lambda number: "FileNotFoundError: no data")
        assert (ledger.state, ledger.counts()["failed"]) == ("failed", 5)
    with Ledger.open(tmp_path / "x") as ledger:
        search(ledger, every_other_fails)
        counts = ledger.counts()
        assert counts["completed"] + counts["failed"] == 100, "where trials succeed, any number of others may fail"


def test_failures_beyond_the_limit_end_the_search(tmp_path: Path) -> None:
    asked = spec(budget__trials=100, max_failed_trials=3)
    with Ledger.create(tmp_path / "x", asked) as ledger:
        with pytest.raises(SweepFailed, match=r"4 trials failed, more than max_failed_trials \(3\): 4 x out of memory"):
            search(ledger, every_other_fails)
        assert ledger.counts()["failed"] == 4
    with Ledger.open(tmp_path / "x") as ledger:
        with pytest.raises(SweepFailed, match="more than max_failed_trials"):
            search(ledger, every_other_fails)
        assert ledger.counts()["failed"] == 4, "nothing is started while the limit stands"
        ledger.revise(asked.model_copy(update={"max_failed_trials": 60, "budget": spec(budget__trials=20).budget}))
        search(ledger, every_other_fails)
        assert ledger.counts()["completed"] == 10


def test_a_space_without_a_feasible_point_is_bad_input(tmp_path: Path) -> None:
    with Ledger.create(tmp_path / "x", spec()) as ledger:
        ledger.stop_reason = "200 points in a row are infeasible"
        ledger._stopping = True
        with pytest.raises(InputError, match="no trial was run: stopped; fix: relax the constraints"):
            search(ledger, lambda number: [0.1])
