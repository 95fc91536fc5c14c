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
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import grpc
import ray
from ray._private.gcs_utils import create_gcs_channel
from ray._private.ray_logging import stdout_deduplicator
from ray._private.services import canonicalize_bootstrap_address_or_die
from ray.autoscaler.sdk import request_resources
from ray.core.generated import gcs_pb2, gcs_service_pb2, gcs_service_pb2_grpc
from ray.util.placement_group import PlacementGroup, remove_placement_group

from genrec.errors import InputError
from sweeps.ray_token import private_folder, require_token, use_token_if_there_is_one, wrong_token
from sweeps.spec import ResourcesSpec, trials_of

PROBE_SECONDS = 5.0
NODES_ASKED_EVERY = 2.0  # seconds
START_TRIES = 4
OBJECT_STORE_BYTES = 256 * 2**20  # nothing large travels through Ray's object store
DRIVER_CPUS = 0.01  # what the process that drives a worker group holds; taken off its workers' share


@dataclass(frozen=True, kw_only=True)
class Resources:
    """What one trial gets: `workers` processes with so many CPUs and GPUs each; at least `min_workers`, which are all
    when it is None."""

    workers: int = 1
    min_workers: int | None = None
    cpus_per_worker: float = 1
    gpus_per_worker: float = 0

    def __post_init__(self) -> None:
        if self.workers < 1:
            raise ValueError(f"workers must be 1 or more, got {self.workers}")
        if not 1 <= self.fewest <= self.workers:
            raise ValueError(f"min_workers must be from 1 to workers ({self.workers}), got {self.min_workers}")
        if self.cpus_per_worker <= 0:
            raise ValueError(f"cpus_per_worker must be above 0, got {self.cpus_per_worker}")
        if self.gpus_per_worker < 0:
            raise ValueError(f"gpus_per_worker must be 0 or more, got {self.gpus_per_worker}")

    @classmethod
    def of(cls, spec: ResourcesSpec) -> Resources:
        """What a sweep's file asks for."""
        return cls(
            workers=spec.most_workers,
            min_workers=spec.fewest_workers,
            cpus_per_worker=spec.cpus_per_worker,
            gpus_per_worker=spec.gpus_per_worker,
        )

    @property
    def fewest(self) -> int:
        """Workers without which a trial cannot go on."""
        return self.workers if self.min_workers is None else self.min_workers

    @property
    def threads(self) -> int:
        """torch threads of one worker."""
        return max(1, int(self.cpus_per_worker))

    def __str__(self) -> str:
        gpus = f" and {self.gpus_per_worker:g} GPU" if self.gpus_per_worker else ""
        least = "" if self.fewest == self.workers else f"{self.fewest} to "
        return f"{least}{self.workers} x ({self.cpus_per_worker:g} CPU{gpus})"


@contextlib.contextmanager
def start_ray(
    address: str | None = None, num_cpus: int | None = None, num_gpus: int | None = None, *, dashboard: bool = False
) -> Iterator[None]:
    """Hold a connection to Ray for the block and shut down only what the block started.

    A Ray that is already initialised is joined. Otherwise `address` (or RAY_ADDRESS) names the cluster, probed first;
    without one a new local Ray starts, telemetry off, silent, with a token, its dashboard (if wanted) on loopback only.

    Raises ConnectionError within seconds, naming the address, when no Ray of this version answers there, or one that
    wants another token.
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
        _join(address)
    try:
        yield
    finally:
        ray.shutdown()


def _start_local(num_cpus: int | None, num_gpus: int | None, dashboard: bool) -> None:
    """Try again when Ray gives up on its own helpers, which get 15 s to start: too little on a busy machine."""
    require_token()
    sessions = private_folder() / "ray"
    for tries_left in reversed(range(START_TRIES)):
        try:
            ray.init(
                address="local",
                num_cpus=num_cpus,
                num_gpus=num_gpus,
                include_dashboard=dashboard,
                dashboard_host="127.0.0.1",
                object_store_memory=OBJECT_STORE_BYTES,
                _temp_dir=str(sessions),
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


def _join(address: str) -> None:
    use_token_if_there_is_one()
    if address == "auto":
        found = canonicalize_bootstrap_address_or_die("auto")  # a ConnectionError that says what to give
    else:
        _check_form(address)
        found = address
    _probe(found)
    ray.init(address=found, log_to_driver=False, logging_level=logging.ERROR)


def _check_form(address: str) -> None:
    if "://" in address:
        raise InputError(f"Ray address {address!r}: give host:port of the cluster's head (6379 is the usual port)")
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit():
        raise InputError(f"Ray address {address!r}: expected host:port, auto or local")


def _probe(address: str) -> None:
    """Ask the head whether it lives, which Ray it is and whether our token is its: `ray.init` would try for minutes."""
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=PROBE_SECONDS).close()
    except OSError as error:
        raise ConnectionError(f"no Ray answers at {address}: {error}") from error
    with create_gcs_channel(address) as channel:
        try:
            head = gcs_service_pb2_grpc.NodeInfoGcsServiceStub(channel)
            answer = head.CheckAlive(gcs_service_pb2.CheckAliveRequest(), timeout=PROBE_SECONDS)
        except grpc.RpcError as error:
            if error.code() == grpc.StatusCode.UNAUTHENTICATED:
                raise wrong_token(address) from None
            raise ConnectionError(f"what answers at {address} is no Ray head: {error.details()}") from None
    if answer.ray_version != ray.__version__:
        raise ConnectionError(
            f"the Ray at {address} is version {answer.ray_version}, here {ray.__version__} is installed: "
            "one sweep needs one version on all nodes"
        )


def is_own_ray() -> bool:
    """Whether this process has started the Ray that it is connected to."""
    node = ray._private.worker._global_node
    return node is not None and node.is_head()


@contextlib.contextmanager
def room_for(resources: Resources, trials: int, wait_seconds: float) -> Iterator[None]:
    """Ask an autoscaler for room for so many trials at once, for the block, and wait until it is there.

    After `wait_seconds` the block starts with what has come. Where nothing scales by itself this waits for nodes that
    are still starting. Ray must be initialised. Raises ConnectionError when there is no room for a single trial.
    """
    each = {"CPU": resources.cpus_per_worker} | (
        {"GPU": resources.gpus_per_worker} if resources.gpus_per_worker else {}
    )
    request_resources(bundles=[each] * (resources.workers * trials))
    try:
        deadline = time.monotonic() + wait_seconds
        while (room := _room(resources)) < trials and time.monotonic() < deadline:
            time.sleep(NODES_ASKED_EVERY)
        if not room:
            raise ConnectionError(f"{_too_small(resources)}; no node came in {wait_seconds:g} s")
        yield
    finally:
        request_resources(bundles=[])


def cluster_size() -> dict[str, float]:
    """CPUs and GPUs of all nodes that are there now."""
    return {name: float(ray.cluster_resources().get(name, 0)) for name in ("CPU", "GPU")}


def trials_at_once(resources: Resources) -> int:
    """How many trials the cluster can run side by side, 1 or more.

    Raises InputError, naming have and need, when not even one fits.
    """
    room = _room(resources)
    if not room:
        raise InputError(_too_small(resources))
    return room


def _nodes() -> list[dict[str, float]]:
    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def _room(resources: Resources) -> int:
    """Trials that the nodes hold side by side; the workers of one may be on several nodes."""
    workers = sum(workers_in(node, _need(resources)) for node in _nodes())
    return trials_of(workers, resources.fewest, resources.workers)


def _need(resources: Resources) -> dict[str, float]:
    """Of one worker."""
    return {"CPU": resources.cpus_per_worker, "GPU": resources.gpus_per_worker}


def _too_small(resources: Resources) -> str:
    have = ", ".join(f"{node.get('CPU', 0):g} CPU and {node.get('GPU', 0):g} GPU" for node in _nodes())
    return f"a trial needs {resources}, the cluster has {len(_nodes())} node(s): {have}"


def workers_in(have: Mapping[str, float], need: Mapping[str, float]) -> int:
    """How many workers that need so much fit into what a node has."""
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
