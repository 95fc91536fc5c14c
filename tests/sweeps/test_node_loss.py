"""Nodes that come and go during a search: real raylets on this machine, one of them killed."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from clusters import SmallCluster, by_hand, notes, outcome

from sweeps.cluster_use import SIZES
from sweeps.ledger import Ledger
from sweeps.spec_file import load_spec

ROOT = Path(__file__).parents[2]
TINY = ROOT / "tests" / "sweeps" / "tiny.yaml"
TRIALS = 10
WORDS = ("starts", "ends")

SEARCH = """
import sys
from pathlib import Path
from clusters import SmallCluster, noting, notes
from sweeps.driver import _cluster_noted
from sweeps.ledger import Ledger
from sweeps.ray_cluster import start_ray
from sweeps.ray_tune import run_queue
from sweeps.spec_file import load_spec

folder, trials = Path(sys.argv[1]), int(sys.argv[3])
history = folder / "history"
second = []

def on_event(event, task_id, data):
    if event == "finished" and not second:
        second.append(cluster.add(num_cpus=2))  # room for two more
    there = [(word, task) for word, task, node in notes(history) if second and node == second[0]]
    at_work = event == "report" and data["epoch"] == 1 and there and there[-1] == ("starts", task_id)
    if at_work and "ends" in dict(there) and len(second) == 1:
        second.append("killed")
        cluster.kill(second[0])

with SmallCluster(num_cpus=1) as cluster:
    spec = load_spec(sys.argv[2], {"budget.trials": trials})
    with start_ray(cluster.address), Ledger.create(folder / "tiny", spec) as ledger:
        with _cluster_noted(ledger, on_event) as tell:
            run_queue(ledger, noting(history, 1.0), name="tiny", folder=folder / "tiny", metric="ndcg@10",
                      max_failures=0, on_event=tell)
    (folder / "second").write_text(second[0])
"""


def python(program: str, folder: Path, *words: str, limit: float = 500) -> subprocess.CompletedProcess[str]:
    """Run a program that makes a cluster of its own, in `folder`: Ray's processes look there first for code."""
    path = os.pathsep.join([str(ROOT), str(Path(__file__).parent)])
    command = [sys.executable, "-c", program, str(folder), *words]
    environment = os.environ | {"PYTHONPATH": path}
    return subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=limit, check=False
    )


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_with_a_node_that_comes_and_is_killed_the_trials_are_those_of_an_undisturbed_search(tmp_path: Path) -> None:
    """With no failure allowed: every trial ends, none that had ended runs again, and the lost ones say so."""
    done = python(SEARCH, tmp_path, str(TINY), str(TRIALS))
    assert done.returncode == 0, done.stderr
    with Ledger.create(tmp_path / "undisturbed", load_spec(TINY, {"budget.trials": TRIALS})) as undisturbed:
        by_hand(undisturbed)
    ledger = Ledger.read(tmp_path / "tiny")
    assert outcome(ledger) == outcome(undisturbed)

    history, second = notes(tmp_path / "history"), (tmp_path / "second").read_text()
    began, ended = (Counter(task for w, task, _ in history if w == word) for word in WORDS)
    assert sorted(ended) == sorted(trial.id for trial in ledger.trials())
    started, finished = ({task for w, task, node in history if (w, node) == (word, second)} for word in WORDS)
    told = {trial.id: trial.restarts for trial in ledger.trials() if trial.restarts}
    lost = set(told)
    assert finished - lost, "the node that was killed had worked"
    assert lost, "it was killed at work"
    assert started - finished <= lost <= started
    assert {task for task, times in began.items() if times > 1} == lost, (
        "what it was running, and nothing else, ran again"
    )
    assert {task for task, times in ended.items() if times > 1} <= lost, "its last word may have been lost with it"
    assert all("lost with node" in line and second[:8] in line for lines in told.values() for line in lines)
    cpus = [size[1] for size in ledger.fact(SIZES)]
    assert cpus[:2] == [1, 3], "what came is noted"
    assert cpus[-1] == 0, "and the end"


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("lost", ["its own node", "the head"])
def test_a_driver_that_loses_what_ray_needs_ends_with_a_message_and_can_be_resumed(tmp_path: Path, lost: str) -> None:
    """Not with exit code 0, and not by waiting for ever, as Ray alone would have it."""
    runs = tmp_path / "runs"
    words = [sys.executable, "-m", "sweeps.cli", "run", str(TINY), "--trials", "30", "--storage", str(runs)]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    with (
        SmallCluster(num_cpus=2) as cluster,
        subprocess.Popen(
            [*words, "--address", cluster.address], cwd=tmp_path, env=environment, text=True, stderr=subprocess.PIPE
        ) as driver,
    ):
        assert driver.stderr is not None
        said = []
        for line in driver.stderr:
            said.append(line)
            if "epoch 1" in line and sum("epoch 1" in earlier for earlier in said) == 1:
                cluster.kill(cluster.head) if lost == "its own node" else cluster.kill_head()
        assert driver.wait(timeout=300) == 4, "".join(said)
    assert any(f"the driver has lost {lost}" in line for line in said), "".join(said)
    assert said[-1].endswith("resumed\n") or "continue with: sweeps resume tiny --address" in said[-1]
    with Ledger.open(runs / "tiny") as ledger:
        open_trials = [trial.id for trial in ledger.trials() if trial.status == "running"]
        task = ledger.next()
        assert task is not None
        assert task.id == open_trials[0], "what had not ended is handed out again"
