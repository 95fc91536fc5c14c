"""Joining Ray, counting what fits, giving back what the dead reserved."""

from __future__ import annotations

import http.server
import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import ray

from sweeps import cluster_view
from sweeps import ray_cluster as ray_cluster_module
from sweeps.cluster_view import ClusterView, Node, scales_itself, trials_at_once
from sweeps.ray_cluster import start_ray
from sweeps.reservations import free_reservations_of_the_dead, reserved_by_actors
from sweeps.resources import Resources


def as_if_no_ray_ran(monkeypatch: pytest.MonkeyPatch) -> None:
    """In this process; the one that other tests of this file use goes on."""
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "shutdown", lambda: None)


def test_dead_address_is_named_within_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    as_if_no_ray_ran(monkeypatch)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound and not listening: refuses
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        since = time.monotonic()
        said: list[str] = []
        match = f"no Ray answers at {address}"
        with pytest.raises(ConnectionError, match=match), start_ray(address, say=said.append):
            pass
        assert said == [f"joining the Ray at {address}"]
        assert time.monotonic() - since < 6
        monkeypatch.setenv("RAY_ADDRESS", address)
        with pytest.raises(ConnectionError, match=address), start_ray():
            pass


def test_a_port_where_something_else_answers_is_named_within_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    as_if_no_ray_ran(monkeypatch)
    with http.server.HTTPServer(("127.0.0.1", 0), http.server.BaseHTTPRequestHandler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"127.0.0.1:{server.server_port}"
        with pytest.raises(ConnectionError, match=f"what answers at {address} is no Ray head"), start_ray(address):
            pass
        server.shutdown()


def test_a_port_that_takes_calls_and_says_nothing_is_given_up_within_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    as_if_no_ray_ran(monkeypatch)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        since = time.monotonic()
        with pytest.raises(ConnectionError, match=address), start_ray(address):
            pass
        assert time.monotonic() - since < 25


def test_a_local_ray_asks_for_its_token(ray_cluster: None) -> None:
    """The head's answer to one with another token and to one without any; nobody else can read its folders."""
    address = ray.get_runtime_context().gcs_address
    program = "import sys; from sweeps.ray_cluster import start_ray\nwith start_ray(sys.argv[1]): pass"
    for stranger in ({"RAY_AUTH_TOKEN": "b" * 64}, {"RAY_AUTH_MODE": "disabled"}):
        done = subprocess.run(
            [sys.executable, "-c", program, address], env=os.environ | stranger, capture_output=True, text=True
        )
        assert f"ConnectionError: the Ray at {address} wants another token" in done.stderr
        assert "b" * 64 not in done.stderr
    session = Path(ray._private.worker._global_node.get_session_dir_path())
    assert session.parents[1].stat().st_mode & 0o077 == 0


def test_a_machine_that_is_no_node_of_the_cluster_is_told_what_to_do_instead(ray_cluster: None) -> None:
    address = ray.get_runtime_context().gcs_address
    program = """
import sys
import ray._private.services
from sweeps import ray_cluster
ray._private.services.find_node_ids = set  # by the processes of this machine
ray_cluster.HERE_SECONDS = 2
with ray_cluster.start_ray(sys.argv[1]): pass
"""
    done = subprocess.run([sys.executable, "-c", program, address], capture_output=True, text=True, timeout=60)
    assert f"ConnectionError: this machine is no node of the Ray cluster at {address}" in done.stderr
    assert f"sweeps submit FILE --address http://{address.rpartition(':')[0]}:8265" in done.stderr
    assert ray_cluster_module.HERE_SECONDS + 2 * ray_cluster_module.PROBE_SECONDS <= 30


@pytest.mark.parametrize(
    ("newer", "labels", "status", "scales"),
    [
        (True, [{"ray.io/node-group": "head"}], None, True),  # `ray up`, Kubernetes
        (True, [{}, {}], None, False),
        (False, [{}], None, False),  # before the first word of its monitor
        (False, [{}], {"node_0123abc": 1}, False),  # `ray start`: a type for each node
        (False, [{}], {"ray.head.default": 1}, True),
        (False, [{}], {"head": 1, "gpu_spot": 3}, True),
    ],
)
def test_an_autoscaler_is_recognised(
    monkeypatch: pytest.MonkeyPatch, newer: bool, labels: list[Any], status: dict[str, int] | None, scales: bool
) -> None:
    kept = json.dumps({"autoscaler_report": {"active_nodes": status}}).encode() if status else None
    monkeypatch.setattr(cluster_view, "is_autoscaler_v2", lambda: newer)
    monkeypatch.setattr(cluster_view, "_internal_kv_get", lambda key: kept)
    monkeypatch.setattr(ray, "nodes", lambda: [{"Alive": True, "Labels": found} for found in labels])
    assert scales_itself() is scales


def test_a_node_that_answers_again_counts_again(monkeypatch: pytest.MonkeyPatch) -> None:
    now, answers, alive = [0.0], [False], [True]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    monkeypatch.setattr(cluster_view, "nodes", lambda: [Node("a", "a", "", 0, alive[0], {"CPU": 2.0})])
    monkeypatch.setattr(cluster_view, "answers", lambda address, port, within=0.0: answers[0])
    view = ClusterView(Resources())
    assert view.slots() == 2
    assert view.is_lost("a")
    assert view.slots() == 0
    now[0] += 60
    assert view.slots() == 0, "it does not answer"
    answers[0] = True
    now[0] += 60
    assert view.slots() == 2
    assert not view.is_lost("a")
    alive[0] = False
    now[0] += 60
    assert view.slots() == 0
    assert view.is_lost("a"), "Ray says so"


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("ray://head:10001", "give host:port of the cluster's head"),
        ("head", "expected host:port, auto or local"),
        ("head:port", "expected host:port, auto or local"),
    ],
)
def test_address_of_another_form_is_refused(monkeypatch: pytest.MonkeyPatch, address: str, message: str) -> None:
    as_if_no_ray_ran(monkeypatch)
    with pytest.raises(ValueError, match=message), start_ray(address):
        pass


def test_ray_that_runs_already_is_joined_and_left_running(ray_cluster: None) -> None:
    with start_ray("local", num_cpus=1):
        assert ray.cluster_resources()["CPU"] == 4
    assert ray.is_initialized()


@pytest.mark.parametrize(
    ("resources", "slots"),
    [
        (Resources(), 4),
        (Resources(cpus_per_worker=0.5), 8),
        (Resources(cpus_per_worker=3), 1),
        (Resources(workers=2), 2),
        (Resources(workers=4), 1),
        (Resources(workers=4, min_workers=1), 1),
        (Resources(workers=3, min_workers=1), 2),
        (Resources(workers=3, min_workers=2), 1),
        (Resources(workers=8, min_workers=4), 1),
    ],
)
def test_slots_are_what_the_nodes_can_hold(ray_cluster: None, resources: Resources, slots: int) -> None:
    assert trials_at_once(resources) == slots


def test_what_does_not_fit_is_refused_with_have_and_need(ray_cluster: None) -> None:
    with pytest.raises(
        ValueError, match=r"needs 1 x \(1 CPU and 1 GPU\), the cluster has 1 node\(s\): 4 CPU and 0 GPU"
    ):
        trials_at_once(Resources(gpus_per_worker=1))


@pytest.mark.parametrize("wrong", [{"workers": 0}, {"cpus_per_worker": 0}, {"gpus_per_worker": -1}, {"min_workers": 2}])
def test_resources_are_checked(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(wrong))} must be"):
        Resources(**wrong)


@pytest.mark.slow
def test_placement_group_of_a_dead_actor_is_given_back(nothing_left: Callable[[], None]) -> None:
    @ray.remote(num_cpus=0)
    class Owner:
        def reserve(self) -> None:
            from ray.util import placement_group

            placement_group([{"CPU": 1}]).wait(30)

    living, dead = Owner.remote(), Owner.remote()
    ray.get([living.reserve.remote(), dead.reserve.remote()])
    ray.kill(dead)
    deadline = time.monotonic() + 20
    while sorted(reserved_by_actors().values()) != [False, True]:
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert len(free_reservations_of_the_dead()) == 1  # the living one's
    assert list(reserved_by_actors().values()) == [False]
    ray.kill(living)
    assert free_reservations_of_the_dead(wait_seconds=20) == []
    nothing_left()
