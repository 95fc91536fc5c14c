"""Every node is asked before the first trial, and the one that is different is named."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from genrec.config import RunConfig
from sweeps import driver_lock, preflight
from sweeps.costs import Shape, checkpoint_bytes
from sweeps.disk_need import DiskNeed
from sweeps.planner import planned_configs
from sweeps.spec import ResourcesSpec
from sweeps.spec_file import load_spec

ROOT = Path(__file__).parents[2]


@pytest.fixture
def facts(tmp_path: Path) -> dict[str, Any]:
    """Of this machine, by way of the driver's own preparation."""
    with preflight._probe_folder(tmp_path) as probe:
        return preflight.facts_of_this_node(str(probe), RunConfig().to_dict())


def test_a_node_like_the_driver_has_no_fault_and_nothing_stays_in_the_storage(
    facts: dict[str, Any], tmp_path: Path
) -> None:
    assert list(preflight.faults_of(facts, facts)) == []
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("difference", "fault"),
    [
        ({"versions": {"torch": "2.10.0"}}, "has torch 2.10.0, the driver"),
        ({"versions": {"code": "0"}}, "has code 0, the driver"),
        ({"data": "another"}, "sees other data than the driver (another, not"),
        ({"no_data": "no file x"}, "cannot read the data: no file x"),
        ({"keeps_locks": False}, "does not keep locks"),
        ({"versions": {"numpy": "1.26.0"}}, "has numpy 1.26.0, the driver"),
        ({"versions": {"CUDA": "11.8"}}, "has CUDA 11.8, the driver"),
        ({"free": {"/storage": 5 * 2**20}}, "5 MB free in /storage"),
        ({"scratch": {"/tmp": 5 * 2**20}}, "5 MB free in /tmp"),
        ({"storage": "does not see /storage"}, "does not see /storage"),
    ],
)
def test_every_difference_is_named(facts: dict[str, Any], difference: dict[str, Any], fault: str) -> None:
    there = facts | difference
    there["versions"] = facts["versions"] | difference.get("versions", {})
    [found] = preflight.faults_of(facts, there)
    assert fault in found


def test_room_for_the_checkpoints_is_asked_of_the_storage_alone(facts: dict[str, Any]) -> None:
    there = facts | {"free": {"/storage": 8 * 2**30}, "scratch": {"/tmp": 8 * 2**30}}
    [fault] = preflight.faults_of(facts | {"needed": 9 * 2**30}, there)
    assert fault == "8192 MB free in /storage; at least 10240 MB are needed for the checkpoints of its trials"


def test_the_room_is_that_of_the_largest_model_for_all_trials_at_once() -> None:
    spec = load_spec(ROOT / "search_spaces" / "tiger_optuna.yaml")
    need = DiskNeed.of(spec)
    sizes = [checkpoint_bytes(Shape.of(config.to_dict())) for config in planned_configs(spec)]
    assert need.checkpoint == max(sizes) > min(sizes)
    assert need.bytes_on([]) == 3 * 2 * need.checkpoint


@pytest.mark.parametrize(
    ("resources", "nodes", "trials"),
    [
        ({}, [{"CPU": 4.0}, {"CPU": 2.0}], 6),
        ({"cpus_per_worker": 2}, [{"CPU": 5.0}], 2),
        ({"gpus_per_worker": 1}, [{"CPU": 64.0, "GPU": 4.0}, {"CPU": 8.0}], 4),
        ({"workers": 4}, [{"CPU": 2.0}, {"CPU": 2.0}], 2),
        ({"max_concurrent": 3}, [{"CPU": 64.0}], 3),
        ({}, [{}], 1),
    ],
)
def test_trials_side_by_side_are_counted_by_what_the_nodes_have(
    resources: dict[str, Any], nodes: list[dict[str, float]], trials: int
) -> None:
    need = DiskNeed(10, ResourcesSpec(**resources))
    assert need.bytes_on(nodes) == 3 * (trials + 1) * 10


def test_a_storage_that_is_not_there_is_a_fault(tmp_path: Path) -> None:
    facts = preflight.facts_of_this_node(str(tmp_path / "no" / "probe"), RunConfig().to_dict())
    assert "does not see" in facts["storage"]


def test_a_lock_that_nobody_holds_is_seen_to_be_free(tmp_path: Path) -> None:
    (tmp_path / "lock").touch()
    assert not driver_lock.is_locked(tmp_path / "lock")


def test_the_temporary_folder_of_a_job_is_refused_as_storage(tmp_path: Path) -> None:
    storage = tmp_path / "runtime_resources" / "working_dir_files" / "_ray_pkg_1" / "runs"
    with pytest.raises(ValueError, match="temporary folder"):
        preflight.check_nodes(storage, RunConfig())


CLUSTER = """
import os, sys
from pathlib import Path
from types import SimpleNamespace
from ray.cluster_utils import Cluster
from genrec.config import RunConfig
from sweeps.preflight import check_nodes
from sweeps.ray_cluster import start_ray
from sweeps.ray_token import require_token

require_token()
cluster = Cluster(head_node_args={"num_cpus": 1, "object_store_memory": 2**27, "include_dashboard": False})
os.environ["PYTHONPATH"] = sys.argv[2]
cluster.add_node(num_cpus=1, object_store_memory=2**27)
try:
    with start_ray(cluster.address):
        check_nodes(Path(sys.argv[1]), RunConfig())
finally:
    cluster.shutdown()
"""


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_node_with_other_code_is_named_and_no_other(tmp_path: Path) -> None:
    for name in ("genrec", "sweeps"):
        shutil.copytree(ROOT / name, tmp_path / "code" / name, ignore=shutil.ignore_patterns("__pycache__"))
    with open(tmp_path / "code" / "genrec" / "trie.py", "a") as file:
        file.write("# edited\n")
    words = [sys.executable, "-c", CLUSTER, str(tmp_path / "storage"), str(tmp_path / "code")]
    here = os.environ | {"PYTHONPATH": str(ROOT)}  # Ray's processes look into the working folder first
    done = subprocess.run(words, capture_output=True, text=True, timeout=500, cwd=tmp_path, env=here, check=False)
    raised = done.stderr.partition("sweeps.preflight.ClusterNotReady: ")[2]
    assert "has code" in raised, done.stderr
    assert len(raised.splitlines()) == 1
    assert not list((tmp_path / "storage").iterdir())


@pytest.mark.parametrize(("given", "works", "fault"), [(["0"], False, True), (["0"], True, False), ([], False, False)])
def test_a_gpu_that_torch_cannot_use_is_a_fault_of_its_node(
    monkeypatch: pytest.MonkeyPatch, given: list[str], works: bool, fault: bool
) -> None:
    """Else the trial would train on the CPU, and nobody would know."""
    context = SimpleNamespace(get_accelerator_ids=lambda: {"GPU": given})
    monkeypatch.setattr("ray.get_runtime_context", lambda: context)
    monkeypatch.setattr("torch.cuda.is_available", lambda: works)
    assert bool(preflight.gpu_faults()) is fault
