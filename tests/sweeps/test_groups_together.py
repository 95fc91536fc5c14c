"""Trials whose workers stay on one node, as with an object store: which node that is, on a cluster that is made up; and
on real nodes that share no folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from test_node_health import Books, MadeUpCluster
from test_node_loss import python

from genrec.errors import InputError
from sweeps import cluster_view, ray_tune, stop_mark
from sweeps.cluster_view import Node
from sweeps.records import ClusterLost
from sweeps.resources import Resources

PAIR = Resources(workers=2, together=True)


def nodes_of(**cpus: float) -> list[Node]:
    return [Node(name, name, "", 0, True, {"CPU": amount}) for name, amount in cpus.items()]


def cluster_of(*names: str) -> MadeUpCluster:
    cluster = MadeUpCluster(*names)
    cluster._resources = PAIR
    return cluster


def start(books: Books) -> tuple[str, str | None]:
    """The next task and its home; no process has it yet."""
    task = books.run.next_task()
    assert task is not None
    books.run.shunned_by(task.id)
    return task.id, books.run.home_of(task.id)


@pytest.mark.parametrize(
    ("cpus", "apart", "together"),
    [({"a": 4, "b": 2}, 3, 3), ({"a": 3, "b": 3}, 3, 2), ({"a": 1, "b": 1}, 1, 0), ({"a": 5}, 2, 2)],
)
def test_room_for_workers_that_stay_together_is_counted_by_node(
    cpus: dict[str, float], apart: int, together: int
) -> None:
    found = nodes_of(**cpus)
    assert cluster_view._room(Resources(workers=2), found) == apart
    assert cluster_view._room(PAIR, found) == together


def test_a_cluster_without_a_node_for_all_workers_is_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster_view, "nodes", lambda: nodes_of(a=1, b=1))
    with pytest.raises(ValueError, match=r"a trial needs 2 x \(1 CPU\) on one node, the cluster has 2 node"):
        cluster_view.trials_at_once(PAIR)


def test_each_trial_gets_a_node_that_has_room_for_it(tmp_path: Path) -> None:
    books = Books(tmp_path, cluster_of("a", "b", "c"))
    homes = dict(start(books) for _ in range(3))
    assert sorted(homes.values()) == ["a", "b", "c"]
    assert books.run.next_task() is None
    for task_id, home in homes.items():
        books.run.started(task_id, home)
    books.ends_well("trial-2")
    assert start(books) == ("trial-4", homes["trial-2"])


def test_a_trial_that_failed_on_its_node_goes_to_another(tmp_path: Path) -> None:
    books = Books(tmp_path, cluster_of("a", "b"))
    task_id, home = start(books)
    books.run.started(task_id, home)
    books.unfit(task_id, "CUDA error", certain=False)
    assert start(books) == (task_id, "b" if home == "a" else "a")


def test_a_node_that_goes_before_its_trial_has_started_ends_the_run_in_time(tmp_path: Path) -> None:
    cluster = cluster_of("a", "b")
    books = Books(tmp_path, cluster, wait_seconds=0.0)
    task_id, home = start(books)
    cluster.there.remove(str(home))
    books.run.next_task()
    with pytest.raises(ClusterLost, match=f"{task_id} was to start on {home}, which has gone"):
        books.run.settle()


def test_workers_stay_together_where_nodes_share_no_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_tune, "is_own_ray", lambda: False)
    assert ray_tune._together(Resources(workers=2), "s3://bucket/runs").together
    assert not ray_tune._together(Resources(workers=2), None).together
    assert not ray_tune._together(Resources(), "s3://bucket/runs").together
    with pytest.raises(
        InputError, match="resources.workers: from 1 to 2 with storage s3://bucket/runs: .*fix: one num"
    ):
        ray_tune._together(Resources(workers=2, min_workers=1), "s3://bucket/runs")


def test_word_that_a_run_is_over_is_heard_through_the_head(monkeypatch: pytest.MonkeyPatch) -> None:
    kept: dict[bytes, bytes] = {}
    monkeypatch.setattr(stop_mark, "_internal_kv_put", kept.__setitem__)
    monkeypatch.setattr(stop_mark, "_internal_kv_get", kept.get)
    monkeypatch.setattr(stop_mark, "_internal_kv_del", kept.pop)
    monkeypatch.setattr(stop_mark, "LOOK_EVERY", 0.0)
    ours, theirs, other = stop_mark.StopMark("run"), stop_mark.StopMark("run"), stop_mark.StopMark("another")
    assert not theirs.exists()
    ours.touch()
    assert theirs.exists()
    assert not other.exists()
    ours.remove()
    assert not stop_mark.StopMark("run").exists()


TWO_NODES = """
import json, sys, time
from pathlib import Path
from clusters import SmallCluster
from sweeps.folders import working_folder
from sweeps.ray_cluster import start_ray
from sweeps.ray_tune import run_queue
from sweeps.records import Task
from sweeps.resources import Resources

folder, storage = Path(sys.argv[1]), sys.argv[2]

def loop(argument, report):
    import os, time
    from pathlib import Path
    from genrec.ranks import rank_and_world, sum_over_ranks
    rank, world = rank_and_world()
    mine = Path(os.environ["GENREC_CACHE"], argument["id"])
    mine.mkdir(parents=True, exist_ok=True)
    (mine / str(rank)).touch()
    sum_over_ranks([1])  # the other has done so, too
    report({"epoch": 1, "score": float(len(list(mine.iterdir())))})
    if argument["stays"]:
        time.sleep(600)

def trial(payload, report, launch):
    import os
    launch(loop, payload)
    return {"cache": os.environ["GENREC_CACHE"]}

class Queue:
    def __init__(self, stays):
        names = ("c", "d") if stays else ("a", "b")
        self.left = [Task(name, {"seed": 0, "id": name, "stays": stays}) for name in names]
        self.ends, self.rows = {}, {}
    def next(self):
        return self.left.pop(0) if self.left else None
    def report(self, task_id, metrics):
        self.rows[task_id] = metrics["score"]
    def finish(self, task_id, status, result):
        self.ends[task_id] = [status, result.get("cache")]

def run(queue, **options):
    run_queue(queue, trial, name="x", folder=working_folder(storage) / "x", storage=storage, metric="score",
              resources=Resources(workers=2), **options)

with SmallCluster(num_cpus=0) as cluster:
    for name in ("one", "two"):
        cluster.add({"GENREC_CACHE": str(folder / name)}, num_cpus=2)
    with start_ray(cluster.address):
        ends, stays = Queue(False), Queue(True)
        run(ends)
        told = []
        def should_stop():
            if len(stays.rows) == 2:
                told.append(time.monotonic())
            return bool(told)
        run(stays, should_stop=should_stop)
        took = time.monotonic() - told[0]
(folder / "found.json").write_text(json.dumps({"ends": ends.ends, "rows": ends.rows | stays.rows, "took": took}))
"""


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_groups_on_two_nodes_without_a_common_folder_keep_to_theirs_and_hear_that_the_run_is_over(
    s3: str, tmp_path: Path
) -> None:
    done = python(TWO_NODES, tmp_path, s3, limit=300)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads((tmp_path / "found.json").read_text())
    assert [status for status, _ in found["ends"].values()] == ["completed"] * 2
    assert {cache for _, cache in found["ends"].values()} == {str(tmp_path / name) for name in ("one", "two")}
    assert found["rows"] == dict.fromkeys("abcd", 2.0), "each worker found what the other of its trial had left"
    assert found["took"] < 60
