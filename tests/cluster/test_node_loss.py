"""A node that is killed half-way through a search: every trial ends, and none that had ended runs again."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from sweeps.ledger import Ledger
from sweeps.spec import load_spec

ROOT = Path(__file__).parents[2]
TINY = ROOT / "tests" / "sweeps" / "tiny.yaml"

SEARCH = """
import os, sys, threading, time
from pathlib import Path
import ray
from ray.cluster_utils import Cluster
from sweeps.ledger import Ledger
from sweeps.ray_cluster import Resources, start_ray
from sweeps.ray_token import require_token
from sweeps.ray_tune import run_queue
from sweeps.spec import load_spec

folder = Path(sys.argv[1])
history = folder / "history"

def trial(payload, report, launch):
    def note(word):
        with open(history, "a") as file:
            file.write(f"{word} {payload['id']} {ray.get_runtime_context().get_node_id()}\\n")
    note("starts")
    value = payload["config"]["train"]["learning_rate"]
    for epoch in (1, 2, 3):
        time.sleep(1)
        report({"epoch": epoch, "ndcg@10": value * epoch})
    note("ends")
    return {}

require_token()
cluster = Cluster(head_node_args={"num_cpus": 2, "object_store_memory": 2**27, "include_dashboard": False})
second = cluster.add_node(num_cpus=2, object_store_memory=2**27)

def kill_when_half_way(event, task_id, data):
    if event == "finished" and history.read_text().count("ends ") == 6:
        threading.Timer(0.5, cluster.remove_node, [second], {"allow_graceful": False}).start()

try:
    spec = load_spec(sys.argv[2], {"budget.trials": 12})
    with start_ray(cluster.address), Ledger.create(folder / "tiny", spec) as ledger:
        (folder / "second").write_text(second.node_id)
        run_queue(ledger, trial, name="tiny", folder=folder / "tiny", resources=Resources(), metric="ndcg@10",
                  on_event=kill_when_half_way)
finally:
    cluster.shutdown()
"""


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_trials_are_those_of_an_undisturbed_search_and_nothing_that_had_ended_ran_again(tmp_path: Path) -> None:
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    words = [sys.executable, "-c", SEARCH, str(tmp_path), str(TINY)]
    done = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=800, check=False)
    assert done.returncode == 0, done.stderr

    trials = Ledger.read(tmp_path / "tiny").trials()
    assert [trial.status for trial in trials] == ["completed"] * 12
    found = [(trial.number, json.dumps(trial.params), trial.seed, trial.value) for trial in trials]
    assert found == undisturbed(tmp_path / "undisturbed")

    lines = [line.split() for line in (tmp_path / "history").read_text().splitlines()]
    ended = [task for word, task, node in lines if word == "ends"]
    assert sorted(ended) == sorted(trial.id for trial in trials), "each ended once"
    second = (tmp_path / "second").read_text()
    assert any(node == second for word, task, node in lines), "the node that was killed had worked"
    again = {task for task in ended if [t for w, t, n in lines if w == "starts"].count(task) > 1}
    lost = {task for word, task, node in lines if word == "starts" and node == second} - {
        task for word, task, node in lines if word == "ends" and node == second
    }
    assert again == lost, "what the killed node was running, and nothing else, ran again"


def undisturbed(folder: Path) -> list[tuple[int, str, int, float | None]]:
    """The same search by hand, one trial after another."""
    with Ledger.create(folder / "tiny", load_spec(TINY, {"budget.trials": 12})) as ledger:
        while (task := ledger.next()) is not None:
            value = task.payload["config"]["train"]["learning_rate"]
            for epoch in (1, 2, 3):
                ledger.report(task.id, {"epoch": epoch, "ndcg@10": value * epoch})
            ledger.finish(task.id, "completed", {})
        return [(t.number, json.dumps(t.params), t.seed, t.value) for t in ledger.trials()]
