"""What trials ask for and where they run, on real nodes that differ in GPUs, memory and code."""

from __future__ import annotations

import json
import shutil
from typing import Any

import pytest
from test_node_loss import ROOT, python

PLACEMENT = """
import json, sys, threading, time
from pathlib import Path
from clusters import SmallCluster
from genrec.config import RunConfig
from genrec.errors import InputError
from sweeps.preflight import late_check
from sweeps.cluster_view import ClusterView
from sweeps.ray_cluster import start_ray
from sweeps.resources import Resources
from sweeps.ray_tune import run_queue
from sweeps.records import Task

folder, code = Path(sys.argv[1]), sys.argv[2]
found = {"events": []}

class Queue:
    def __init__(self, count):
        self.left, self.ends = [f"trial-{n}" for n in range(count)], {}
    def next(self):
        return Task(self.left.pop(0), {"folder": str(folder)}) if self.left else None
    def report(self, task_id, metrics): pass
    def finish(self, task_id, status, result):
        self.ends[task_id] = [status, result]

def run(name, count, trial, **options):
    queue = Queue(count)
    def on_event(event, *about):
        found["events"].append([name, event, *about])
        if event == "avoided":
            (folder / "avoided").touch()
    run_queue(queue, trial, name=name, folder=folder / name, metric="score", on_event=on_event, **options)
    found[name] = queue.ends

def says_where(payload, report, launch):
    import ray
    context = ray.get_runtime_context()
    time.sleep(0.3)
    return {"on": context.get_node_id(), "held": context.get_assigned_resources()}

def once_a_node_is_avoided(payload, report, launch):
    deadline = time.monotonic() + 120
    while not Path(payload["folder"], "avoided").exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    return says_where(payload, report, launch)

def launches(payload, report, launch):
    launch(lambda argument, report: report({"epoch": 1, "score": 0.5}), {})
    return {}

def fault_of_a_worker():
    import torch.distributed
    return ["has other code"] if torch.distributed.is_initialized() else []

def refused(call):
    try:
        call()
    except (InputError, ConnectionError) as error:
        return f"{type(error).__name__}: {error}"

with SmallCluster(num_cpus=1, memory=2**30) as cluster, start_ray(cluster.address):
    a100 = Resources(gpus_per_worker=0.5, accelerator_type="A100", memory_per_worker=2)
    found["nobody_came"] = refused(lambda: run("nobody", 1, says_where, resources=a100, wait_seconds=1))
    timer = threading.Timer(3, lambda: found.update(gpus=cluster.add(
        num_cpus=2, num_gpus=1, memory=6 * 2**30, resources={"accelerator_type:A100": 1})))
    timer.start()
    run("with_gpus", 3, says_where, resources=a100, wait_seconds=120)
    timer.join()
    found["slots"] = ClusterView(a100).slots()
    h100 = Resources(gpus_per_worker=1, accelerator_type="H100")
    found["no_h100"] = refused(lambda: run("h100", 1, says_where, resources=h100))
    found["no_memory"] = refused(lambda: run("memory", 1, says_where, resources=Resources(memory_per_worker=64)))

    check = late_check(folder / "storage", RunConfig())
    found["other_code"] = cluster.add({"PYTHONPATH": code}, num_cpus=2, memory=2**30)
    run("mixed", 6, once_a_node_is_avoided, check_node=check)
    found["group"] = refused(lambda: run("group", 1, launches, check_node=fault_of_a_worker,
                                         resources=Resources(workers=2, memory_per_worker=2.5)))
    bad = lambda: ["has no data"]
    found["all_bad"] = refused(lambda: run("bad", 2, says_where, check_node=bad))
(folder / "found.json").write_text(json.dumps(found))
"""


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("placement")
    for name in ("genrec", "sweeps"):
        shutil.copytree(ROOT / name, folder / "code" / name, ignore=shutil.ignore_patterns("__pycache__"))
    with open(folder / "code" / "genrec" / "trie.py", "a") as file:
        file.write("# edited\n")
    (folder / "storage").mkdir()
    done = python(PLACEMENT, folder, str(folder / "code"))
    assert done.returncode == 0, done.stderr
    facts: dict[str, Any] = json.loads((folder / "found.json").read_text())
    return facts


pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


def test_trials_run_where_their_type_of_gpu_is(found: dict[str, Any]) -> None:
    assert found["slots"] == 2
    ends = found["with_gpus"].values()
    assert [status for status, _ in ends] == ["completed"] * 3
    assert {result["on"] for _, result in ends} == {found["gpus"]}
    held = next(iter(ends))[1]["held"]
    assert (held["CPU"], held["GPU"], held["memory"]) == (1, 0.5, 2 * 2**30)


def test_what_no_node_has_is_refused_with_what_the_nodes_have(found: dict[str, Any]) -> None:
    assert found["no_h100"].startswith("InputError: a trial needs 1 x (1 CPU and 1 GPU of type H100)")
    assert "2 CPU and 1 GPU (A100)" in found["no_h100"]
    assert "needs 1 x (1 CPU, 64 GiB)" in found["no_memory"]
    assert "2 CPU and 1 GPU, 6 GiB" in found["no_memory"]


def test_waiting_for_nodes_that_do_not_come_ends_and_says_so(found: dict[str, Any]) -> None:
    """Those that come: `test_trials_run_where_their_type_of_gpu_is`."""
    assert found["nobody_came"].startswith("ClusterLost: a trial needs 1 x (1 CPU and 0.5 GPU of type A100, 2 GiB)")
    assert "no node came in" in found["nobody_came"]


def test_a_late_node_with_other_code_is_refused_avoided_and_named_and_costs_no_trial(found: dict[str, Any]) -> None:
    ends = found["mixed"].values()
    assert [status for status, _ in ends] == ["completed"] * 6
    assert found["other_code"] not in {result["on"] for _, result in ends}
    avoided = [[node, data] for name, event, node, data in found["events"] if (name, event) == ("mixed", "avoided")]
    [[node, data]] = avoided
    assert found["other_code"][:8] in node
    assert "has code" in data["reason"]
    assert any("has code" in line for _, result in ends for line in result.get("restarts", []))


def test_the_workers_of_a_group_check_their_nodes_too(found: dict[str, Any]) -> None:
    """Only the node with GPUs has the memory for them, so it is the one that is avoided, and none is left."""
    assert found["gpus"][:8] in found["group"]
    assert found["group"].endswith("UnfitNode: has other code")


def test_a_cluster_of_which_every_node_is_avoided_ends_the_run(found: dict[str, Any]) -> None:
    assert found["all_bad"].startswith("ClusterLost: no node is left that could run a trial; avoided are:")
    assert found["all_bad"].count("has no data") == 3
