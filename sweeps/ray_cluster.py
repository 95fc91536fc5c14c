"""Join or start Ray, and notice when the driver has lost it.

Everything here needs `ray` alone: no Train, no Tune.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import socket
import sys
import threading
from collections.abc import Callable, Iterator

import grpc
import ray
from ray._private.gcs_utils import create_gcs_channel
from ray._private.ray_logging import stdout_deduplicator
from ray._private.services import canonicalize_bootstrap_address_or_die, get_node_to_connect_for_driver
from ray.core.generated import gcs_service_pb2, gcs_service_pb2_grpc

from genrec.errors import ExitCode, InputError
from sweeps.cluster_view import PROBE_SECONDS, answers, nodes
from sweeps.interruption import own_handlers_kept
from sweeps.ray_token import private_folder, require_token, use_token_if_there_is_one, wrong_token
from sweeps.records import ClusterLost

HERE_SECONDS = 15  # for a node on this machine that is just starting
START_TRIES = 4
RAYS_OWN_WORDS = "A worker died or was killed|has been marked dead|Raylet is terminated"
"messages that Ray prints in any case; the trial says it in one line"
OWN_NODE_ASKED_EVERY = 2.0  # seconds
OWN_NODE_TRIES = 8  # in a row, without an answer, until it counts as lost
LEAVE_SECONDS = 40.0  # for a driver without a node to end by itself
OBJECT_STORE_BYTES = 256 * 2**20  # nothing large travels through Ray's object store


@contextlib.contextmanager
def start_ray(
    address: str | None = None,
    num_cpus: int | None = None,
    num_gpus: int | None = None,
    *,
    dashboard: bool = False,
    say: Callable[[str], None] = lambda line: None,
) -> Iterator[None]:
    """Hold a connection to Ray for the block and shut down only what the block started.

    A Ray that is already initialised is joined. Otherwise `address` (or RAY_ADDRESS) names the cluster, probed first;
    without one a new local Ray starts, telemetry off, silent, with a token, its dashboard (if wanted) on loopback only.
    `say` gets a line before what takes seconds.

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
                say("starting Ray on this machine")
                _start_local(num_cpus, num_gpus, dashboard)
            else:
                say("joining the Ray of this machine" if address == "auto" else f"joining the Ray at {address}")
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
    _require_node_here(found)
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


def _require_node_here(address: str) -> None:
    """A driver needs a node of the cluster on its own machine; `ray.init` would look for one for a minute."""
    try:
        get_node_to_connect_for_driver(ray._raylet.GcsClient(address=address), timeout_seconds=HERE_SECONDS)
    except RuntimeError:
        host = address.rpartition(":")[0]
        raise ConnectionError(
            f"this machine is no node of the Ray cluster at {address}, and a driver must run on one; fix: run it there,"
            f" or from here: sweeps submit FILE --address http://{host}:8265"
        ) from None


def is_own_ray() -> bool:
    """Whether this process has started the Ray that it is connected to."""
    node = ray._private.worker._global_node
    return node is not None and node.is_head()


@contextlib.contextmanager
def own_node_watched(on_loss: Callable[[ClusterLost], None]) -> Iterator[None]:
    """Look, for the block, whether the node that this driver is connected to and the cluster's head still answer; if
    not, call `on_loss` once, from another thread. What the block raises without them is raised as `ClusterLost`.

    Ray leaves a driver that has lost them hanging, whatever it waits for. So if the block does not end some time after
    that, the process is ended: with a message and the exit code of a lost cluster.
    """
    lifelines, over = _lifelines(), threading.Event()

    def lost() -> ClusterLost | None:
        gone = next((name for name, (address, port) in lifelines.items() if not answers(address, port)), None)
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
