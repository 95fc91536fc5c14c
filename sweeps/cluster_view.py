"""The nodes of the cluster that this process is connected to: which are there, and how many trials they hold.

Needs `ray` alone: no Train, no Tune, no dashboard.
"""

from __future__ import annotations

import json
import math
import re
import socket
import time
from collections.abc import Collection, Sequence
from typing import Any, NamedTuple

import ray
from ray._private.ray_constants import DEBUG_AUTOSCALING_STATUS
from ray.autoscaler.v2.utils import is_autoscaler_v2
from ray.experimental.internal_kv import _internal_kv_get

from genrec.errors import InputError
from sweeps.resources import Resources, marked, workers_in

PROBE_SECONDS = 5.0
NODES_ASKED_EVERY = 2.0  # seconds
LOST_ASKED_EVERY = 10.0  # seconds after which a node that did not answer is asked again
LOST_PROBE_SECONDS = 1.0


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
        mark = marked("")
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
        self._lost: dict[str, float] = {}  # id of a node that did not answer -> when it is asked again
        self._until = -math.inf

    def nodes(self) -> list[Node]:
        """Those that are there."""
        if time.monotonic() >= self._until:
            self._nodes |= {node.id: node for node in nodes()}
            self._until = time.monotonic() + NODES_ASKED_EVERY
            self._forget_what_answers()
        return [node for node in self._nodes.values() if node.alive and node.id not in self._lost]

    def _forget_what_answers(self) -> None:
        """A node that did not answer once, and that Ray holds for alive, may only have been busy."""
        for node_id, again in list(self._lost.items()):
            node = self._nodes.get(node_id)
            if node is None or not node.alive or time.monotonic() < again:
                continue
            if answers(node.address, node.port, LOST_PROBE_SECONDS):
                del self._lost[node_id]
            else:
                self._lost[node_id] = time.monotonic() + LOST_ASKED_EVERY

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
        """Ids of the nodes that could run a worker of a trial; or all of them, where they have to stay together."""
        least = self._resources.workers if self._resources.together else 1
        fitting = [node for node in self.nodes() if workers_in(node.resources, self._resources.bundle) >= least]
        return {node.id for node in fitting} - set(avoided)

    def home(self, avoided: Collection[str], homes: Sequence[str]) -> str | None:
        """Where a trial whose workers stay together is put: the id of the node that holds most further trials, beside
        those that have their `homes` already. None if its workers may be anywhere, or no node is there."""
        if not self._resources.together:
            return None
        usable = self.usable(avoided)
        room = {
            node.id: self._resources.trials_in([workers_in(node.resources, self._resources.bundle)])
            - homes.count(node.id)
            for node in self.nodes()
            if node.id in usable
        }
        return max(sorted(room), key=room.__getitem__, default=None)

    def name(self, node_id: str) -> str:
        """A node for a person, also one that has gone."""
        return str(self._nodes[node_id]) if node_id in self._nodes else f"node {node_id[:8]}"

    def is_lost(self, node_id: str) -> bool:
        """Whether the node has gone. Ray takes a while to notice; its raylet is asked. Until it answers again it counts
        as room no more."""
        if node_id not in self._lost:
            found = next((node for node in nodes() if node.id == node_id), None)
            if found is None or not found.alive or not answers(found.address, found.port):
                self._lost[node_id] = time.monotonic() + LOST_ASKED_EVERY
        return node_id in self._lost

    def too_small(self) -> str:
        """What a trial needs and the cluster has."""
        return _too_small(self._resources, self.nodes())


def only_on(node_id: str) -> dict[str, str]:
    """A label selector of Ray for this node alone."""
    return {ray._raylet.RAY_NODE_ID_KEY: node_id}


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
    """Trials that the nodes hold side by side."""
    return resources.trials_in([workers_in(node.resources, resources.bundle) for node in found])


def _too_small(resources: Resources, found: Collection[Node]) -> str:
    have = ", ".join(_has(node, resources) for node in found)
    return f"a trial needs {resources}, the cluster has {len(found)} node(s): {have}"


def _has(node: Node, resources: Resources) -> str:
    kinds = f" ({', '.join(node.accelerators) or 'of no known type'})" if resources.accelerator_type else ""
    memory = f", {node.resources.get('memory', 0) / 2**30:.3g} GiB" if resources.memory_per_worker else ""
    return f"{node.resources.get('CPU', 0):g} CPU and {node.resources.get('GPU', 0):g} GPU{kinds}{memory}"


def scales_itself() -> bool:
    """Whether an autoscaler may add nodes to the cluster. Ray has no question for that: `ray up` and Kubernetes give
    the head a node type, and the older autoscaler names the types that it knows. Where Kubernetes does not scale this
    is wrong, and waits for nothing."""
    if is_autoscaler_v2():
        return any(node["Alive"] and node["Labels"].get(ray._raylet.RAY_NODE_GROUP_KEY) for node in ray.nodes())
    status = _internal_kv_get(DEBUG_AUTOSCALING_STATUS)
    types = (json.loads(status).get("autoscaler_report") or {}).get("active_nodes", {}) if status else {}
    return any(not re.fullmatch(r"node_[0-9a-f]+", name) for name in types)


def answers(address: str, port: int, within: float = PROBE_SECONDS) -> bool:
    """Whether someone listens there."""
    try:
        socket.create_connection((address, port), timeout=within).close()
    except OSError:
        return False
    return True
