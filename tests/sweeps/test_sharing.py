"""A task whose shared stage is being made is held back without a slot: the books alone, then trials on a real Ray."""

from __future__ import annotations

import functools
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from test_node_health import MadeUpCluster

from genrec.artifacts import ArtifactStore
from genrec.config import validate_config, with_values
from genrec.pipeline import stage_keys
from sweeps.ledger import Ledger
from sweeps.queue_run import QueueRun
from sweeps.ray_tune import run_queue
from sweeps.records import Task
from sweeps.scheduled_queue import ScheduledQueue
from sweeps.sharing import SHARED, SharedStages
from sweeps.spec_file import load_spec
from sweeps.stopping import Rule
from sweeps.trial import run_trial

TINY = Path(__file__).with_name("tiny.yaml")


@dataclass
class Books:
    """A queue of tasks named `<what they need><number>` beside the set of what is made."""

    names: list[str]
    made: set[str] = field(default_factory=set)
    finished: list[str] = field(default_factory=list)
    events: list[tuple[str, str]] = field(default_factory=list)
    given: int = 0

    def next(self) -> Task | None:
        self.given += 1
        return Task(self.names[self.given - 1], {}) if self.given <= len(self.names) else None

    def report(self, task_id: str, metrics: dict[str, Any]) -> None:
        """Nobody asks for epochs here."""

    def finish(self, task_id: str, status: str, result: dict[str, Any]) -> None:
        self.finished.append(task_id)

    def missing(self, task: Task) -> frozenset[str]:
        return frozenset(task.id[0]) - self.made

    def on_event(self, event: str, task_id: str, data: dict[str, Any]) -> None:
        self.events.append((event, task_id))

    def run(self, slots: int, tmp_path: Path) -> QueueRun:
        cluster = MadeUpCluster("a", "b", max_concurrent=slots)
        given = {"metric": "score", "max_failures": 1, "cluster": cluster, "stop_file": tmp_path / "stop"}
        run = QueueRun(self.missing, self.on_event, lambda: False, **given)
        run.queue = ScheduledQueue(
            self, Rule(), history={}, epochs_of=lambda payload: None, budget=None, trial_seconds=run.trial_seconds
        )
        return run


def names(run: QueueRun, count: int) -> list[str | None]:
    """What is handed out when Tune asks so often."""
    tasks = [run.next_task() for _ in range(count)]
    return [task.id if task else None for task in tasks]


def test_the_second_waits_and_another_that_can_run_goes_ahead_of_it(tmp_path: Path) -> None:
    books = Books(["a0", "a1", "b2", "a3"])
    run = books.run(4, tmp_path)
    assert names(run, 3) == ["a0", "b2", None]
    assert [task_id for event, task_id in books.events if event == "waiting"] == ["a1", "a3"]
    books.made.add("a")
    assert names(run, 2) == ["a1", "a3"]
    assert not run.is_over()


def test_what_is_there_is_waited_for_by_nobody(tmp_path: Path) -> None:
    assert names(Books(["a0", "a1", "a2"], made={"a"}).run(3, tmp_path), 3) == ["a0", "a1", "a2"]


def test_one_at_a_time_never_waits_and_keeps_the_order(tmp_path: Path) -> None:
    books = Books(["a0", "a1", "b2"])
    run = books.run(1, tmp_path)
    for name in books.names:
        assert names(run, 1) == [name]
        run.ended(name, {"status": "completed", "result": {}}, None)
    assert names(run, 1) == [None]
    assert run.is_over()
    assert not [event for event, _ in books.events if event == "waiting"]


def test_the_queue_is_not_emptied_while_tasks_wait(tmp_path: Path) -> None:
    """Proposals that come later have more results to learn from."""
    books = Books([f"a{i}" for i in range(50)])
    assert names(books.run(2, tmp_path), 20) == ["a0"] + [None] * 19
    assert books.given == 3


def test_a_maker_that_died_goes_out_again_first_and_the_other_still_waits(tmp_path: Path) -> None:
    run = Books(["a0", "a1"]).run(2, tmp_path)
    assert names(run, 2) == ["a0", None]
    run.died("a0", "SIGKILL", None)
    assert names(run, 2) == ["a0", None]


def test_a_maker_that_ended_without_making_it_is_replaced_by_who_waited(tmp_path: Path) -> None:
    books = Books(["a0", "a1", "a2"])
    run = books.run(3, tmp_path)
    assert names(run, 2) == ["a0", None]
    run.ended("a0", {"status": "failed", "reason": "no such file"}, None)
    assert names(run, 2) == ["a1", None]
    run.died("a1", "SIGKILL", None)
    assert names(run, 2) == ["a1", None]
    run.died("a1", "SIGKILL", None)
    assert books.finished == ["a0", "a1"]
    assert names(run, 1) == ["a2"]


def test_shared_are_all_stages_but_tiger_and_what_is_seen_once_is_not_asked_for_again(tmp_path: Path) -> None:
    store, config = ArtifactStore(tmp_path), load_spec(TINY).base_config()
    missing, keys = SharedStages(store), stage_keys(config)
    task = Task("trial-0000", {"config": config.to_dict()})
    assert missing(task) == {f"{stage}-{keys[stage]}" for stage in SHARED}
    store.ensure("dataset", keys["dataset"], lambda folder: {}, print)
    assert missing(task) == {f"{stage}-{keys[stage]}" for stage in SHARED[1:]}
    (store.path("dataset", keys["dataset"]) / "DONE").unlink()
    assert missing(task) == {f"{stage}-{keys[stage]}" for stage in SHARED[1:]}


def test_a_config_without_data_shares_nothing_and_is_left_to_its_trial(tmp_path: Path) -> None:
    values = {"dataset.source": "sequential", "dataset.dataset_folder": str(tmp_path / "nowhere")}
    config = validate_config(with_values(load_spec(TINY).base_config().to_dict(), values))
    assert SharedStages(ArtifactStore(tmp_path))(Task("t", {"config": config.to_dict()})) == frozenset()


def test_on_ray_no_slot_is_held_by_a_trial_that_waits_and_each_tokenizer_is_made_once(
    ray_cluster: None, tmp_path: Path
) -> None:
    settings = yaml.safe_load(TINY.read_text()) | {"name": "shared", "budget": {"trials": 6}}
    settings["space"] = {
        "tokenizer.kind": {"type": "grid", "values": ["rqvae", "rkmeans"]},
        "train.learning_rate": {"type": "grid", "values": [0.001, 0.002, 0.003]},
    }
    settings["set"]["tokenizer.rqvae.epochs"] = 200
    (tmp_path / "s.yaml").write_text(yaml.safe_dump(settings))
    store, running, seen = ArtifactStore(tmp_path / "store"), set[str](), []

    with Ledger.create(tmp_path / "shared", load_spec(tmp_path / "s.yaml")) as ledger:

        def on_event(event: str, task_id: str, data: dict[str, Any]) -> None:
            seen.append((event, task_id))
            if event == "started":
                key = tokenizer_of(task_id)
                beside = [other for other in running if tokenizer_of(other) == key]
                assert not beside or store.has("tokenizer", key), f"{task_id} started to wait for {beside}"
                running.add(task_id)
            if event == "finished":
                running.discard(task_id)

        @functools.cache
        def tokenizer_of(task_id: str) -> str:
            return stage_keys(ledger.config_of(int(task_id[-4:])))["tokenizer"]

        run_queue(
            ledger,
            functools.partial(run_trial, store=str(store.root)),
            name="shared",
            folder=ledger.folder,
            metric="ndcg@10",
            max_concurrent=3,
            missing=SharedStages(store),
            on_event=on_event,
        )
        records = ledger.trials()
    assert [record.status for record in records] == ["completed"] * 6
    assert [record.id for record in records] == [f"trial-{number:04d}" for number in range(6)]
    assert Counter(record.artifacts["tokenizer"] for record in records if "tokenizer" in record.trained) == Counter(
        {record.artifacts["tokenizer"] for record in records}
    )
    assert ("waiting", "trial-0001") in seen
