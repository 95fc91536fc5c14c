"""A trial whose workers come and go with the nodes, on a Ray cluster whose raylets are started and killed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from genrec.artifacts import ArtifactStore
from genrec.config import RunConfig, validate_config, with_values
from genrec.pipeline import run_pipeline
from sweeps.ray_train import _ElasticPolicy
from sweeps.spec_file import load_spec

ROOT = Path(__file__).parents[2]
SETTINGS = {"tokenizer.kind": "rkmeans", "tiger.dropout": 0.0}

SEARCH = """
import json, os, signal, sys
from pathlib import Path
from ray.cluster_utils import Cluster
import sweeps.ray_train
from sweeps.ray_cluster import start_ray
from sweeps.resources import Resources
from sweeps.ray_token import require_token
from sweeps.ray_tune import run_queue
from sweeps.records import Task

folder, config = Path(sys.argv[1]), json.loads(sys.argv[2])
STORE = 2**27

def trial(payload, report, launch):
    import sweeps.ray_train
    from sweeps.trial import run_trial
    sweeps.ray_train.RESIZE_SECONDS = 2.0

    def waits_for_the_nodes(argument, report):
        # One worker trains an epoch, three the next, one the last: each waits in the next epoch for the change.
        import time
        from pathlib import Path
        from genrec.checkpoint import generations
        from genrec.pipeline import train_stage
        from genrec.ranks import rank_and_world
        from genrec.trainers.stepping import Stepper
        take, checkpoints = Stepper.take, Path(argument["folder"]) / "checkpoints"

        def take_or_wait(self, step, rate):
            rank, world = rank_and_world()
            found = generations(checkpoints)
            done = int(found[-1].name) if found else 0
            if (done, world) in ((1, 1), (2, 3)):
                Path(payload["folder"], f"waits-{done}").touch()
                time.sleep(600)
            return take(self, step, rate)

        Stepper.take = take_or_wait
        train_stage(argument, report)

    return run_trial(payload, report, lambda loop, argument: launch(waits_for_the_nodes, argument),
                     store=payload["folder"] + "/store")

class Queue:
    def __init__(self):
        payload = {"config": config, "seed": 0, "kind": "trial", "folder": str(folder)}
        self.left, self.rows = [Task("trial-1", payload)], {}
    def next(self):
        return self.left.pop() if self.left else None
    def report(self, task_id, metrics):
        self.rows[metrics["epoch"]] = metrics
    def finish(self, task_id, status, result):
        rows = [self.rows[epoch] for epoch in sorted(self.rows)]
        (folder / "result.json").write_text(json.dumps({"status": status, "result": result, "rows": rows}))

second = None
def move_nodes():
    # Asked all the time by run_queue.
    global second
    if second is None and (folder / "waits-1").exists():
        second = cluster.add_node(num_cpus=2, object_store_memory=STORE)
    if (folder / "waits-2").exists() and second is not False:
        [raylet] = [info.process for info in second.all_processes["raylet"]]
        os.kill(raylet.pid, signal.SIGKILL)
        raylet.wait()
        second = False
    return False

require_token()
quick = {"health_check_period_ms": 500, "health_check_timeout_ms": 2000, "health_check_failure_threshold": 3}
cluster = Cluster(
    initialize_head=True,
    head_node_args={"num_cpus": 1, "object_store_memory": STORE, "include_dashboard": False, "_system_config": quick},
)
try:
    with start_ray(cluster.address):
        run_queue(Queue(), trial, name="elastic", folder=folder / "sweep", metric="ndcg@10",
                  resources=Resources(workers=3, min_workers=1), max_failures=0, should_stop=move_nodes)
finally:
    cluster.shutdown()
"""


def config_of() -> RunConfig:
    """Without dropout, whose masks differ with the number of workers."""
    base = load_spec(Path(__file__).with_name("tiny.yaml")).base_config()
    return validate_config(with_values(base.to_dict(), SETTINGS))


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_trial_grows_and_shrinks_with_its_nodes_and_keeps_its_curve(tmp_path: Path) -> None:
    config = config_of()
    words = [sys.executable, "-c", SEARCH, str(tmp_path), json.dumps(config.to_dict())]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=800, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "result.json").read_text())
    assert found["status"] == "completed", found["result"]
    assert found["result"]["changes"] == ["after epoch 1: world 1 -> 3", "after epoch 2: world 3 -> 1"]
    alone: list[dict[str, Any]] = []
    run_pipeline(config, ArtifactStore(tmp_path / "alone"), report=alone.append)
    assert [row["loss"] for row in found["rows"]] == pytest.approx([row["loss"] for row in alone], rel=1e-5)


@pytest.mark.parametrize(
    ("cpus", "reserved", "workers"),
    [
        (0.99, [0.99 * 3], 3),  # 2.97 // 0.99 is 2 in floating point
        (0.1 + 0.2, [0.9], 3),
        (0.99, [0.5, 0.99], 1),
        (0.99, [99.0], 4),
        (0.99, [], 0),
    ],
)
def test_workers_with_fractions_of_a_cpu_are_all_counted(cpus: float, reserved: list[float], workers: int) -> None:
    import ray.train

    policy = _ElasticPolicy(ray.train.ScalingConfig(num_workers=(1, 4), resources_per_worker={"CPU": cpus}))
    assert policy._count_possible_workers({str(n): {"CPU": have} for n, have in enumerate(reserved)}) == workers
