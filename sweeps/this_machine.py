"""Whether this machine can run a sweep at all: its data are here, and a trial fits. Known without Ray, and nothing is
begun. Where the trials run on a cluster, its nodes are asked instead (`sweeps.preflight`)."""

from __future__ import annotations

import math
import os
import sys
from pathlib import Path

from genrec.errors import InputError
from sweeps.spec import ResourcesSpec, SweepSpec, trials_of

ELSEWHERE = "fix: name what is there; where the trials run on a cluster that has it all: --address HOST:PORT"
_OTHER_GPUS = ("kfd", "dri", "dxg")
"devices of makers whose GPUs are not counted here, and of those that a virtual machine passes on"


def require_here(spec: SweepSpec, address: str | None) -> None:
    """Refuse, before anything is begun, what this machine cannot run, if it is this machine that would (see
    `runs_here`). Raises `InputError`, a line a fault, and `OSError` where data that may be downloaded cannot be had."""
    if not runs_here(address):
        return
    from genrec.data.presence import missing_inputs

    faults = [*missing_inputs(spec.base_config()), *([] if _has_ray() else lacking(spec.resources))]
    if faults:
        raise InputError("\n".join([*faults, ELSEWHERE]))
    from genrec.pipeline import stage_keys

    stage_keys(spec.base_config())


def runs_here(address: str | None) -> bool:
    """Whether a sweep that is given this address runs its trials on a Ray of this machine's own."""
    if _has_ray():
        from sweeps.ray_cluster import is_own_ray

        return is_own_ray()
    return (address or os.environ.get("RAY_ADDRESS") or "local") == "local"


def _has_ray() -> bool:
    """Whether this process is connected to a Ray, which is then joined whatever the address is."""
    return "ray" in sys.modules and bool(sys.modules["ray"].is_initialized())


def lacking(resources: ResourcesSpec) -> list[str]:
    """What this machine has too little of for a single trial: a line, or none. Where it cannot be counted without Ray,
    Ray says it."""
    have = {"CPU": float(os.cpu_count() or 1), "GPU": _gpus(), "GiB": _memory()}
    need = {
        "CPU": resources.cpus_per_worker,
        "GPU": resources.gpus_per_worker,
        "GiB": resources.memory_per_worker,
    }
    counted = [name for name, amount in need.items() if amount and have[name] < math.inf]
    workers = min(math.floor(have[name] / need[name] + 1e-6) for name in counted)
    if trials_of(workers, resources.fewest_workers, resources.most_workers):
        return []
    wanted = ", ".join(f"{need[name]:g} {name}" for name in counted)
    there = ", ".join(f"{have[name]:.3g} {name}" for name in counted)
    return [f"resources: a trial needs {resources.fewest_workers} x ({wanted}), this machine has {there}"]


def _gpus() -> float:
    """How many GPUs there may be; infinity where that is not known here."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return float(sum(name.strip() not in ("", "-1", "NoDevFiles") for name in visible.split(",")))
    devices = Path("/dev")
    if not devices.is_dir() or any((devices / name).exists() for name in _OTHER_GPUS):
        return math.inf
    return float(len(list(devices.glob("nvidia[0-9]*"))))


def _memory() -> float:
    """GiB of this machine."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    except (ValueError, OSError):
        return math.inf
