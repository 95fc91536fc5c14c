"""Clusters of several small nodes on this machine: raylets of their own, real processes that can be killed for real."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ray
from ray.cluster_utils import Cluster

from sweeps.ledger import Ledger
from sweeps.ray_token import require_token

STORE = 2**27  # bytes


class SmallCluster:
    """A head, and the nodes that are added to it, each given as `Cluster.add_node` takes it; for a `with` block.

    They live in a process of their own: where the driver itself starts a node, Tune loses what it has registered.
    """

    def __init__(self, **head: Any):
        require_token()
        self._process = subprocess.Popen(
            [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.head = self._ask(head=head)
        "id of the head's node"
        self.address: str = self._ask(address=None)

    def __enter__(self) -> SmallCluster:
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(timeout=60)

    def _ask(self, **order: Any) -> str:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(json.dumps(order), file=self._process.stdin, flush=True)
        while not (line := self._process.stdout.readline()).startswith("answer "):
            assert line, "the cluster did not start"
        return line.split()[1]

    def add(self, environment: dict[str, str] | None = None, **node: Any) -> str:
        """The id of a node that has joined; `environment` is that of its processes."""
        return self._ask(add=node, environment=environment or {})

    def kill(self, node_id: str) -> None:
        """SIGKILL to a node's raylet, as when a machine goes."""
        self._ask(kill=node_id)

    def kill_head(self) -> None:
        """SIGKILL to the process that keeps the cluster's state."""
        self._ask(kill="")


def serve() -> None:
    """Start and kill nodes as told, one order a line, until there is no more to read."""
    head = json.loads(sys.stdin.readline())["head"]
    given = {"object_store_memory": STORE, "include_dashboard": False, **head}
    cluster = Cluster(initialize_head=True, head_node_args=given)
    nodes = {cluster.head_node.node_id: cluster.head_node}
    try:
        print("answer", cluster.head_node.node_id, flush=True)
        for line in sys.stdin:
            order = json.loads(line)
            if "add" in order:
                os.environ.update(order["environment"])
                node = cluster.add_node(object_store_memory=STORE, **order["add"])
                nodes[node.node_id] = node
                print("answer", node.node_id, flush=True)
            elif "kill" in order:
                node, kind = nodes.get(order["kill"], cluster.head_node), "raylet" if order["kill"] else "gcs_server"
                [found] = [info.process for info in node.all_processes[kind]]
                os.kill(found.pid, signal.SIGKILL)
                found.wait()  # its workers do not see that a raylet is gone while it is a zombie
                print("answer", "killed", flush=True)
            else:
                print("answer", cluster.address, flush=True)
    finally:
        cluster.shutdown()


def noting(history: Path, seconds: float) -> Callable[..., dict[str, Any]]:
    """A trial function that trains three epochs of so many seconds, and notes its starts and ends with their node."""

    def trial(payload: dict[str, Any], report: Callable[..., None], launch: Callable[..., None]) -> dict[str, Any]:
        def note(word: str) -> None:
            with open(history, "a") as file:
                file.write(f"{word} {payload['id']} {ray.get_runtime_context().get_node_id()}\n")

        note("starts")
        for epoch in (1, 2, 3):
            time.sleep(seconds)
            report({"epoch": epoch, "ndcg@10": payload["config"]["train"]["learning_rate"] * epoch})
        note("ends")
        return {}

    return trial


def notes(history: Path) -> list[tuple[str, str, str]]:
    """What was noted: word, task, node."""
    lines = history.read_text().splitlines() if history.exists() else []
    return [tuple(line.split()) for line in lines]  # type: ignore[misc]


def by_hand(ledger: Ledger) -> None:
    """The trials of `noting`, one after another in this process."""
    while (task := ledger.next()) is not None:
        for epoch in (1, 2, 3):
            ledger.report(
                task.id, {"epoch": epoch, "ndcg@10": task.payload["config"]["train"]["learning_rate"] * epoch}
            )
        ledger.finish(task.id, "completed", {})


def outcome(ledger: Ledger) -> list[tuple[Any, ...]]:
    """What must not depend on where and how often trials ran."""
    return [(t.number, t.status, json.dumps(t.params), t.seed, t.value) for t in ledger.trials()]


if __name__ == "__main__":
    serve()
