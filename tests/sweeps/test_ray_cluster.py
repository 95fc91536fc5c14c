"""Joining Ray, counting what fits, giving back what the dead reserved."""

from __future__ import annotations

import http.server
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

from sweeps.ray_cluster import Resources, free_reservations_of_the_dead, reserved_by_actors, start_ray, trials_at_once


def test_dead_address_is_named_within_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound and not listening: refuses
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        since = time.monotonic()
        with pytest.raises(ConnectionError, match=f"no Ray answers at {address}"), start_ray(address):
            pass
        assert time.monotonic() - since < 6
        monkeypatch.setenv("RAY_ADDRESS", address)
        with pytest.raises(ConnectionError, match=address), start_ray():
            pass


def test_a_port_where_something_else_answers_is_named_within_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    with http.server.HTTPServer(("127.0.0.1", 0), http.server.BaseHTTPRequestHandler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"127.0.0.1:{server.server_port}"
        with pytest.raises(ConnectionError, match=f"what answers at {address} is no Ray head"), start_ray(address):
            pass
        server.shutdown()


def test_a_port_that_takes_calls_and_says_nothing_is_given_up_within_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
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


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("ray://head:10001", "give host:port of the cluster's head"),
        ("head", "expected host:port, auto or local"),
        ("head:port", "expected host:port, auto or local"),
    ],
)
def test_address_of_another_form_is_refused(monkeypatch: pytest.MonkeyPatch, address: str, message: str) -> None:
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
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
