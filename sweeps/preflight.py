"""Before a sweep's first trial on a cluster: every node can do what its trials will need.

A node that has other data or other code spoils numbers without a word; one that does not see the storage, or does not
keep its locks, loses work. Each is asked, and named if it cannot.
"""

from __future__ import annotations

import fcntl
import functools
import importlib.metadata
import os
import platform
import secrets
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import ray
import torch
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

import genrec
import sweeps
from genrec.config import RunConfig, content_hash, validate_config
from genrec.durable import file_hash
from genrec.errors import InputError
from genrec.object_store import ObjectStore, StorageError, is_url
from genrec.pipeline import stage_keys
from sweeps.cluster_view import nodes
from sweeps.disk_need import DiskNeed
from sweeps.driver_lock import is_locked
from sweeps.folders import working_folder
from sweeps.node_health import MIN_FREE_BYTES

ANSWER_SECONDS = 180.0
"for a node to answer; its first process imports torch"
DISTRIBUTIONS = ("ray", "torch", "numpy", "optuna", "genrec-sweeps")
NO_CHECKPOINTS = DiskNeed()


class ClusterNotReady(ConnectionError):
    """Nodes on which trials could not run, or would run differently; a line for each fault."""


def check_nodes(storage: str | Path, config: RunConfig, need: DiskNeed = NO_CHECKPOINTS) -> None:
    """Ask every living node. Ray must be initialised. Raises `ClusterNotReady`.

    Nodes that join later are asked by `faults_of_late_node`.
    """
    with _probe(storage) as probe:
        here = facts_of_this_node(probe, config.to_dict())
        living = [node for node in nodes() if node.alive]
        asked = []
        task = ray.remote(num_cpus=0, max_retries=0)(facts_of_this_node)
        for node in living:
            there = NodeAffinitySchedulingStrategy(node.id, soft=False)
            asked.append(task.options(scheduling_strategy=there).remote(probe, config.to_dict()))
        ray.wait(asked, num_returns=len(asked), timeout=ANSWER_SECONDS)
        found = []
        for node, answer in zip(living, asked, strict=True):
            # All trials write to one shared folder; copies of an object store's checkpoints lie on the trial's node.
            writing = [node] if is_url(storage) else living
            needed = {"needed": need.bytes_on([other.resources for other in writing])}
            found += [f"node {node}: {fault}" for fault in _faults(here | needed, answer)]
    if found:
        raise ClusterNotReady("\n".join(found))


def late_check(storage: str | Path, config: RunConfig, need: DiskNeed = NO_CHECKPOINTS) -> Callable[[], list[str]]:
    """What a trial's process calls before its first task, wherever it is: the faults of its node, by what the driver
    finds here and now."""
    with _probe(storage) as probe:
        here = facts_of_this_node(probe, config.to_dict()) | {"needed": need.bytes_on([])}
    return functools.partial(faults_of_late_node, here, str(storage), config.to_dict())


def gpu_faults() -> list[str]:
    """Whether torch can use the GPUs that Ray has given this process. It would train on the CPU else, unsaid."""
    given = ray.get_runtime_context().get_accelerator_ids().get("GPU", [])
    if not given or torch.cuda.is_available():
        return []
    return [f"gives the trial GPU {', '.join(given)}, which torch {torch.__version__} cannot use; fix: its CUDA driver"]


def idle_gpus() -> str | None:
    """What to tell where the cluster has GPUs, for trials that ask for none."""
    count = ray.cluster_resources().get("GPU", 0)
    return f"note: {count:g} GPU(s) stay idle; fix: resources.gpus_per_worker" if count else None


def faults_of_late_node(here: Mapping[str, Any], storage: str, config: dict[str, Any]) -> list[str]:
    """Of this node. Whether its storage keeps the locks of others is not seen: nobody else holds this one."""
    if faults := gpu_faults():
        return faults
    if not is_url(storage) and not Path(storage).is_dir():
        return [f"does not see {storage}; fix: mount it on all nodes"]
    try:
        with _probe(storage) as probe:
            return list(faults_of(here, facts_of_this_node(probe, config)))
    except OSError as error:
        return [f"cannot write {storage}: {error}"]


def facts_of_this_node(probe: str, config: dict[str, Any]) -> dict[str, Any]:
    """What a node has and can do, as plain JSON. `probe` is the folder, or the object, that the driver has prepared in
    the storage."""
    scratch = tempfile.gettempdir()
    facts: dict[str, Any] = {"versions": versions(), "data": "", "free": {}}
    facts["scratch"] = {scratch: shutil.disk_usage(scratch).free}
    if is_url(probe):
        facts |= {"storage": _fault_of_store(probe), "keeps_locks": True}
        cache = working_folder(probe.rpartition("/")[0])
        facts["free"][str(cache)] = shutil.disk_usage(cache).free
    else:
        folder = Path(probe)
        facts["storage"] = _fault_of_storage(folder)
        if not facts["storage"]:
            facts["keeps_locks"] = is_locked(folder / "lock")
            facts["free"][str(folder.parent)] = shutil.disk_usage(folder).free
    try:
        facts["data"] = stage_keys(validate_config(config))["embeddings"]
    except (InputError, OSError) as error:
        facts["no_data"] = str(error)
    return facts


def versions() -> dict[str, str]:
    """Of what decides numbers; `code` is a hash of the two packages' files."""
    found = {"python": platform.python_version()}
    for name in DISTRIBUTIONS:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "not installed"
    found["CUDA"] = torch.version.cuda or "none"
    files = [path for package in (genrec, sweeps) for path in sorted(Path(package.__path__[0]).rglob("*.py"))]
    return found | {"code": content_hash([[path.name, file_hash(path)] for path in files])}


def faults_of(here: Mapping[str, Any], there: Mapping[str, Any]) -> Iterator[str]:
    """What a node's facts, measured by those of the driver, are no good for."""
    for name, version in here["versions"].items():
        other = there["versions"].get(name)
        if other != version:
            yield f"has {name} {other}, the driver {version}; fix: the same image or environment on all nodes"
    if there["storage"]:
        yield there["storage"]
    elif not there["keeps_locks"]:
        yield "does not keep locks on the storage, so two nodes would make the same artifact; fix: mount it with locks"
    if "no_data" in there:
        yield f"cannot read the data: {there['no_data']}"
    elif there["data"] != here["data"]:
        yield f"sees other data than the driver ({there['data']}, not {here['data']})"
    needed = here.get("needed", 0)
    yield from _too_full(there["free"], MIN_FREE_BYTES + needed, " for the checkpoints of its trials" * (needed > 0))
    yield from _too_full(there["scratch"], MIN_FREE_BYTES)


def _too_full(free: Mapping[str, int], needed: int, why: str = "") -> Iterator[str]:
    """`free`: folder -> bytes."""
    for folder, there in free.items():
        if there < needed:
            yield f"{there / 2**20:.0f} MB free in {folder}; at least {needed / 2**20:.0f} MB are needed{why}"


def _faults(here: Mapping[str, Any], answer: Any) -> list[str]:
    """Of one node, by its answer or by what came instead."""
    try:
        return list(faults_of(here, ray.get(answer, timeout=0)))
    except ray.exceptions.GetTimeoutError:
        return [f"has not answered in {ANSWER_SECONDS:g} s"]
    except ray.exceptions.RayError as error:
        reason = str(error).strip().splitlines()[-1]
        return [f"cannot run this code ({reason}); fix: the same image or environment on all nodes"]


def _refuse_temporary(storage: Path) -> None:
    """A job's working folder is deleted after it, and other nodes have one of their own."""
    if "working_dir_files" in storage.absolute().parts:
        raise InputError(f"--storage {storage}: lies in the job's temporary folder; give an absolute, shared path")


def _probe(storage: str | Path) -> AbstractContextManager[str]:
    """Something in the storage that its users must find, for the block."""
    return _probe_object(str(storage)) if is_url(storage) else _probe_folder(Path(storage))


@contextmanager
def _probe_folder(storage: Path) -> Iterator[str]:
    """A folder in the storage with a lock that is held, for the block."""
    _refuse_temporary(storage)
    storage.mkdir(parents=True, exist_ok=True)
    folder = storage / f".preflight-{secrets.token_hex(4)}"
    folder.mkdir()
    try:
        with open(folder / "lock", "w", encoding="ascii") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield str(folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _probe_object(storage: str) -> Iterator[str]:
    """An object in the storage, for the block."""
    store, name = ObjectStore(storage), f".preflight-{secrets.token_hex(4)}"
    store.write(name, b"")
    try:
        yield f"{storage}/{name}"
    finally:
        store.delete([name])


def _fault_of_store(probe: str) -> str:
    """Why this node cannot use the object store; empty if it can."""
    storage, _, name = probe.rpartition("/")
    store = ObjectStore(storage)
    try:
        if not store.has(name):
            return f"sees another {storage} than the driver; fix: the same {store.endpoint_variable} on all nodes"
        store.probe()
    except (StorageError, InputError) as error:
        return f"cannot use the storage: {error}"
    return ""


def _fault_of_storage(folder: Path) -> str:
    """Why this node cannot use the storage; empty if it can."""
    if not (folder / "lock").is_file():
        return f"does not see {folder.parent}, the driver's storage; fix: a folder that all nodes share"
    try:
        path = folder / f"{platform.node()}-{os.getpid()}"
        path.write_text("written", encoding="ascii")
        path.unlink()
    except OSError as error:
        return f"cannot write to {folder.parent}: {error}"
    return ""
