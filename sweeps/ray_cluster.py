"""Join or start Ray, count what it can run at once, and take back what a dead process left reserved.

Everything here needs `ray` alone: no Train, no Tune. Placement groups are looked up in Ray's own table, which works
without the dashboard; Train's own cleaner does not (ray-project/ray#54305).
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import re
import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass

import ray
from ray._private.ray_logging import stdout_deduplicator
from ray.core.generated import gcs_pb2
from ray.util.placement_group import PlacementGroup, remove_placement_group

from genrec.errors import InputError

PROBE_SECONDS = 5.0
START_TRIES = 4
OBJECT_STORE_BYTES = 256 * 2**20  # nothing large travels through Ray's object store
DRIVER_CPUS = 0.01  # what the process that drives a worker group holds; taken off its workers' share


@dataclass(frozen=True, kw_only=True)
class Resources:
    """What one trial gets: `workers` processes with so many CPUs and GPUs each."""

    workers: int = 1
    cpus_per_worker: float = 1
    gpus_per_worker: float = 0

    def __post_init__(self) -> None:
        if self.workers < 1:
            raise ValueError(f"workers must be 1 or more, got {self.workers}")
        if self.cpus_per_worker <= 0:
            raise ValueError(f"cpus_per_worker must be above 0, got {self.cpus_per_worker}")
        if self.gpus_per_worker < 0:
            raise ValueError(f"gpus_per_worker must be 0 or more, got {self.gpus_per_worker}")

    @property
    def threads(self) -> int:
        """torch threads of one worker."""
        return max(1, int(self.cpus_per_worker))

    def __str__(self) -> str:
        gpus = f" and {self.gpus_per_worker:g} GPU" if self.gpus_per_worker else ""
        return f"{self.workers} x ({self.cpus_per_worker:g} CPU{gpus})"


@contextlib.contextmanager
def start_ray(
    address: str | None = None, num_cpus: int | None = None, num_gpus: int | None = None, *, dashboard: bool = False
) -> Iterator[None]:
    """Hold a connection to Ray for the block and shut down only what the block started.

    A Ray that is already initialised is joined. Otherwise `address` (or RAY_ADDRESS) names the cluster, probed first;
    without one a new local Ray starts, telemetry off, silent, its dashboard (if wanted) on loopback only.

    Raises ConnectionError within seconds when nothing listens at the address.
    """
    if ray.is_initialized():
        yield
        return
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    stdout_deduplicator.skip_re = re.compile("A worker died or was killed")  # printed in any case; the trial says it
    address = address or os.environ.get("RAY_ADDRESS") or "local"
    if address == "local":
        _start_local(num_cpus, num_gpus, dashboard)
    else:
        _probe(address)
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
    try:
        yield
    finally:
        ray.shutdown()


def _start_local(num_cpus: int | None, num_gpus: int | None, dashboard: bool) -> None:
    """Try again when Ray gives up on its own helpers, which get 15 s to start: too little on a busy machine."""
    for tries_left in reversed(range(START_TRIES)):
        try:
            ray.init(
                address="local",
                num_cpus=num_cpus,
                num_gpus=num_gpus,
                include_dashboard=dashboard,
                dashboard_host="127.0.0.1",
                object_store_memory=OBJECT_STORE_BYTES,
                log_to_driver=False,
                logging_level=logging.ERROR,
            )
            return
        except Exception as error:
            ray.shutdown()
            if "timed out during startup" not in str(error):
                raise
            if not tries_left:
                raise RuntimeError(f"Ray did not start in {START_TRIES} tries: is this machine overloaded?") from error


def _probe(address: str) -> None:
    """Fail now: `ray.init` with a dead address tries for minutes."""
    if address == "auto":
        return
    if "://" in address:
        raise InputError(f"Ray address {address!r}: give host:port of the cluster's head (6379 is the usual port)")
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit():
        raise InputError(f"Ray address {address!r}: expected host:port, auto or local")
    try:
        socket.create_connection((host, int(port)), timeout=PROBE_SECONDS).close()
    except OSError as error:
        raise ConnectionError(f"no Ray answers at {address}: {error}") from error


def cluster_size() -> dict[str, float]:
    """CPUs and GPUs of all nodes that are there now."""
    return {name: float(ray.cluster_resources().get(name, 0)) for name in ("CPU", "GPU")}


def trials_at_once(resources: Resources) -> int:
    """How many trials the cluster can run side by side, 1 or more.

    Raises InputError, naming have and need, when not even one fits.
    """
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    need = {"CPU": resources.cpus_per_worker, "GPU": resources.gpus_per_worker}
    workers = sum(_fits(node, need) for node in nodes)
    if workers < resources.workers:
        have = ", ".join(f"{node.get('CPU', 0):g} CPU and {node.get('GPU', 0):g} GPU" for node in nodes)
        raise InputError(f"a trial needs {resources}, the cluster has {len(nodes)} node(s): {have}")
    return workers // resources.workers


def _fits(have: dict[str, float], need: dict[str, float]) -> int:
    return min(math.floor(have.get(name, 0) / amount + 1e-6) for name, amount in need.items() if amount > 0)


def reserved_by_actors(creator: str | None = None) -> dict[str, bool]:
    """Placement groups that actors of this job still hold: id -> is the actor that created it dead?

    `creator` (an actor's id) narrows the answer to that actor's. The drivers' own groups are not listed.
    """
    table = ray._private.state.state._connect_and_get_accessor().get_placement_group_table()
    job = ray.get_runtime_context().get_job_id()
    groups = (gcs_pb2.PlacementGroupTableData.FromString(entry) for entry in table)
    return {
        group.placement_group_id.hex(): group.creator_actor_dead
        for group in groups
        if group.state != gcs_pb2.PlacementGroupTableData.REMOVED
        and group.creator_job_id.hex() == job
        and _is_actor(group.creator_actor_id)
        and creator in (None, group.creator_actor_id.hex())
    }


def _is_actor(actor_id: bytes) -> bool:
    return bool(actor_id) and actor_id != ray.ActorID.nil().binary()


def free_reservations(creator: str) -> None:
    """Give back every placement group that the actor with this id made."""
    for group_id in reserved_by_actors(creator):
        _remove(group_id)


def free_reservations_of_the_dead(*, wait_seconds: float = 0.0) -> list[str]:
    """Give back the placement groups whose creator died; with `wait_seconds`, wait until no actor of this job has any.

    Returns the ids still held.
    """
    deadline = time.monotonic() + wait_seconds
    while True:
        held = reserved_by_actors()
        for group_id, creator_dead in held.items():
            if creator_dead:
                _remove(group_id)
        left = [group_id for group_id, creator_dead in held.items() if not creator_dead]
        if not left or time.monotonic() >= deadline:
            return left
        time.sleep(0.2)


def _remove(group_id: str) -> None:
    remove_placement_group(PlacementGroup(ray.PlacementGroupID(bytes.fromhex(group_id))))
