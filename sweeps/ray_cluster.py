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
import sys
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import grpc
import ray
from ray._private.gcs_utils import create_gcs_channel
from ray._private.ray_logging import stdout_deduplicator
from ray._private.services import canonicalize_bootstrap_address_or_die
from ray.autoscaler.sdk import request_resources
from ray.core.generated import gcs_pb2, gcs_service_pb2, gcs_service_pb2_grpc
from ray.util.placement_group import PlacementGroup, remove_placement_group

from genrec.errors import ExitCode, InputError
from sweeps.interruption import own_handlers_kept
from sweeps.ray_token import private_folder, require_token, use_token_if_there_is_one, wrong_token
from sweeps.spec import ResourcesSpec, trials_of

PROBE_SECONDS = 5.0
NODES_ASKED_EVERY = 2.0  # seconds
START_TRIES = 4
RAYS_OWN_WORDS = "A worker died or was killed|has been marked dead|Raylet is terminated"
"messages that Ray prints in any case; the trial says it in one line"
OWN_NODE_ASKED_EVERY = 2.0  # seconds
OWN_NODE_TRIES = 8  # in a row, without an answer, until it counts as lost
LEAVE_SECONDS = 40.0  # for a driver without a node to end by itself
OBJECT_STORE_BYTES = 256 * 2**20  # nothing large travels through Ray's object store
DRIVER_CPUS = 0.01  # what the process that drives a worker group holds; taken off its workers' share
MARK = 0.001  # of the resource by which Ray marks nodes with a type of accelerator; each node has 1


class ClusterLost(ConnectionError):
    """The cluster cannot run a single trial any more, or the driver has lost its own node. The sweep is resumable."""


@dataclass(frozen=True, kw_only=True)
class Resources:
    """What one trial gets: `workers` processes with so many CPUs, GPUs (of a type) and GiB of memory each; at least
    `min_workers`, which are all when it is None."""

    workers: int = 1
    min_workers: int | None = None
    cpus_per_worker: float = 1
    gpus_per_worker: float = 0
    memory_per_worker: float = 0
    accelerator_type: str | None = None

    def __post_init__(self) -> None:
        if self.workers < 1:
            raise ValueError(f"workers must be 1 or more, got {self.workers}")
        if not 1 <= self.fewest <= self.workers:
            raise ValueError(f"min_workers must be from 1 to workers ({self.workers}), got {self.min_workers}")
        if self.cpus_per_worker <= 0:
            raise ValueError(f"cpus_per_worker must be above 0, got {self.cpus_per_worker}")
        if self.gpus_per_worker < 0:
            raise ValueError(f"gpus_per_worker must be 0 or more, got {self.gpus_per_worker}")
        if self.memory_per_worker < 0:
            raise ValueError(f"memory_per_worker must be 0 or more, got {self.memory_per_worker}")

    @classmethod
    def of(cls, spec: ResourcesSpec) -> Resources:
        """What a sweep's file asks for."""
        return cls(
            workers=spec.most_workers,
            min_workers=spec.fewest_workers,
            cpus_per_worker=spec.cpus_per_worker,
            gpus_per_worker=spec.gpus_per_worker,
            memory_per_worker=spec.memory_per_worker,
            accelerator_type=spec.accelerator_type,
        )

    @property
    def fewest(self) -> int:
        """Workers without which a trial cannot go on."""
        return self.workers if self.min_workers is None else self.min_workers

    @property
    def further(self) -> dict[str, float]:
        """Of one worker, in Ray's terms, what is neither CPU nor GPU."""
        memory = {"memory": self.memory_per_worker * 2**30} if self.memory_per_worker else {}
        return memory | ({_marked(self.accelerator_type): MARK} if self.accelerator_type else {})

    @property
    def bundle(self) -> dict[str, float]:
        """What one worker asks Ray for."""
        gpus = {"GPU": self.gpus_per_worker} if self.gpus_per_worker else {}
        return {"CPU": self.cpus_per_worker} | gpus | self.further

    @property
    def threads(self) -> int:
        """torch threads of one worker."""
        return max(1, int(self.cpus_per_worker))

    def __str__(self) -> str:
        gpus = f" and {self.gpus_per_worker:g} GPU" if self.gpus_per_worker else ""
        kind = f" of type {self.accelerator_type}" if self.accelerator_type else ""
        memory = f", {self.memory_per_worker:g} GiB" if self.memory_per_worker else ""
        least = "" if self.fewest == self.workers else f"{self.fewest} to "
        return f"{least}{self.workers} x ({self.cpus_per_worker:g} CPU{gpus}{kind}{memory})"


def _marked(accelerator_type: str) -> str:
    return f"accelerator_type:{accelerator_type}"


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
    stdout_deduplicator.skip_re = re.compile(RAYS_OWN_WORDS)
    address = address or os.environ.get("RAY_ADDRESS") or "local"
    try:
        with own_handlers_kept():
            if address == "local":
                _start_local(num_cpus, num_gpus, dashboard)
            else:
                _join(address)
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
    request_resources(bundles=[resources.bundle] * (resources.workers * trials))
    try:
        deadline = time.monotonic() + wait_seconds
        view = ClusterView(resources, trials)
        while (room := view.slots()) < trials and time.monotonic() < deadline:
            time.sleep(NODES_ASKED_EVERY)
        if not room:
            raise ConnectionError(f"{view.too_small()}; no node came in {wait_seconds:g} s")
        yield
    finally:
        request_resources(bundles=[])


@contextlib.contextmanager
def own_node_watched(on_loss: Callable[[ClusterLost], None]) -> Iterator[None]:
    """Look, for the block, whether the node that this driver is connected to and the cluster's head still answer; if
    not, call `on_loss` once, from another thread. What the block raises without them is raised as `ClusterLost`.

    Ray leaves a driver that has lost them hanging, whatever it waits for. So if the block does not end some time after
    that, the process is ended: with a message and the exit code of a lost cluster.
    """
    lifelines, over = _lifelines(), threading.Event()

    def lost() -> ClusterLost | None:
        gone = next((name for name, (address, port) in lifelines.items() if not _answers(address, port)), None)
        return ClusterLost(f"the driver has lost {gone}, which Ray needs") if gone else None

    def watch() -> None:
        missed = 0
        while not over.wait(OWN_NODE_ASKED_EVERY):
            error = lost()
            missed = missed + 1 if error else 0
            if error and missed == OWN_NODE_TRIES:
                on_loss(error)
                if not over.wait(LEAVE_SECONDS):
                    print(f"error: {error}; nothing recorded is lost, the sweep can be resumed", file=sys.stderr)
                    sys.stderr.flush()
                    os._exit(ExitCode.ENVIRONMENT)
                return

    threading.Thread(target=watch, name="own node", daemon=True).start()
    try:
        yield
    except Exception as error:
        if found := lost():
            raise found from error
        raise
    finally:
        over.set()


def _lifelines() -> dict[str, tuple[str, int]]:
    """Without which a driver can do nothing: name -> address and port."""
    own = next(node for node in nodes() if node.id == ray.get_runtime_context().get_node_id())
    head = ray.get_runtime_context().gcs_address
    host, _, port = head.rpartition(":")
    return {f"its own node {own}": (own.address, own.port), f"the head at {head}": (host.strip("[]"), int(port))}


def _answers(address: str, port: int) -> bool:
    try:
        socket.create_connection((address, port), timeout=PROBE_SECONDS).close()
    except OSError:
        return False
    return True


class Node(NamedTuple):
    """A node that Ray knows."""

    id: str
    host: str
    address: str
    port: int
    "where its raylet listens"
    alive: bool
    resources: dict[str, float]

    def __str__(self) -> str:
        return f"{self.host} ({self.address}, node {self.id[:8]})"

    @property
    def accelerators(self) -> list[str]:
        """Types of its GPUs."""
        mark = _marked("")
        return [name.removeprefix(mark) for name in self.resources if name.startswith(mark)]


def nodes() -> list[Node]:
    """Those that are there, and those that have gone."""
    return [
        Node(
            found["NodeID"],
            found["NodeManagerHostname"],
            found["NodeManagerAddress"],
            found["NodeManagerPort"],
            found["Alive"],
            found["Resources"],
        )
        for found in ray.nodes()
    ]


def node_of_actor(actor_id: str) -> str | None:
    """Id of the node on which an actor (its id in hex) lives or died; None if it never got so far."""
    found: dict[str, Any] = ray._private.state.actors(actor_id) or {}
    return found.get("Address", {}).get("NodeID") or None


class ClusterView:
    """What the cluster can run at once, looked up anew every other second: nodes come and go."""

    def __init__(self, resources: Resources, max_concurrent: int | None = None):
        self._resources, self._most = resources, max_concurrent
        self._nodes: dict[str, Node] = {}
        self._lost: set[str] = set()
        self._until = -math.inf

    def nodes(self) -> list[Node]:
        """Those that are there."""
        if time.monotonic() >= self._until:
            self._nodes |= {node.id: node for node in nodes()}
            self._until = time.monotonic() + NODES_ASKED_EVERY
        return [node for node in self._nodes.values() if node.alive and node.id not in self._lost]

    def size(self) -> dict[str, float]:
        """CPUs and GPUs of the nodes that are there, and how many nodes these are."""
        found = self.nodes()
        amounts = {name: sum(node.resources.get(name, 0.0) for node in found) for name in ("CPU", "GPU")}
        return amounts | {"nodes": len(found)}

    def slots(self, avoided: Collection[str] = ()) -> int:
        """How many trials may run side by side on nodes that are not avoided; 0: not a single one."""
        room = _room(self._resources, [node for node in self.nodes() if node.id not in avoided])
        return room if self._most is None else min(room, self._most)

    def usable(self, avoided: Collection[str]) -> set[str]:
        """Ids of the nodes that could run a worker of a trial."""
        fitting = [node for node in self.nodes() if workers_in(node.resources, self._resources.bundle)]
        return {node.id for node in fitting} - set(avoided)

    def name(self, node_id: str) -> str:
        """A node for a person, also one that has gone."""
        return str(self._nodes[node_id]) if node_id in self._nodes else f"node {node_id[:8]}"

    def is_lost(self, node_id: str) -> bool:
        """Whether the node has gone, and with that for good. Ray takes a while to notice; its raylet is asked."""
        if node_id not in self._lost:
            found = next((node for node in nodes() if node.id == node_id), None)
            if found is None or not found.alive or not _answers(found.address, found.port):
                self._lost.add(node_id)
        return node_id in self._lost

    def too_small(self) -> str:
        """What a trial needs and the cluster has."""
        return _too_small(self._resources, self.nodes())


def elsewhere(avoided: Collection[str]) -> dict[str, str]:
    """A label selector of Ray that leaves out these nodes (ids)."""
    return {ray._raylet.RAY_NODE_ID_KEY: f"!in({','.join(sorted(avoided))})"} if avoided else {}


def trials_at_once(resources: Resources) -> int:
    """How many trials the cluster can run side by side, 1 or more.

    Raises InputError, naming have and need, when not even one fits.
    """
    found = [node for node in nodes() if node.alive]
    room = _room(resources, found)
    if not room:
        raise InputError(_too_small(resources, found))
    return room


def _room(resources: Resources, found: Collection[Node]) -> int:
    """Trials that the nodes hold side by side; the workers of one may be on several nodes."""
    workers = sum(workers_in(node.resources, resources.bundle) for node in found)
    return trials_of(workers, resources.fewest, resources.workers)


def _too_small(resources: Resources, found: Collection[Node]) -> str:
    have = ", ".join(_has(node, resources) for node in found)
    return f"a trial needs {resources}, the cluster has {len(found)} node(s): {have}"


def _has(node: Node, resources: Resources) -> str:
    kinds = f" ({', '.join(node.accelerators) or 'of no known type'})" if resources.accelerator_type else ""
    memory = f", {node.resources.get('memory', 0) / 2**30:.3g} GiB" if resources.memory_per_worker else ""
    return f"{node.resources.get('CPU', 0):g} CPU and {node.resources.get('GPU', 0):g} GPU{kinds}{memory}"


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
