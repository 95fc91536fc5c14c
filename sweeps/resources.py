"""What one trial gets: workers with CPUs, GPUs and memory, and the arithmetic of what fits. No Ray here."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from sweeps.spec import ResourcesSpec, trials_of

DRIVER_CPUS = 0.0001  # what the process that drives a worker group holds, the least that Ray can count
DRIVERS_OF_A_NODE = 100  # for so many, CPUs come off each worker's share, so that workers fit beside them
MARK = 0.001  # of the resource by which Ray marks nodes with a type of accelerator; each node has 1


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
    together: bool = False
    "all workers of a trial on one node"

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
        return memory | ({marked(self.accelerator_type): MARK} if self.accelerator_type else {})

    @property
    def bundle(self) -> dict[str, float]:
        """What one worker asks Ray for."""
        gpus = {"GPU": self.gpus_per_worker} if self.gpus_per_worker else {}
        return {"CPU": self.cpus_per_worker} | gpus | self.further

    @property
    def bundle_in_group(self) -> dict[str, float]:
        """What one worker of a group asks Ray for. The slivers of drivers come off its CPUs, so that a group fits where
        its workers just fit, wherever the drivers are."""
        cpus = max(round(self.cpus_per_worker - DRIVERS_OF_A_NODE * DRIVER_CPUS, 4), DRIVER_CPUS)
        return self.bundle | {"CPU": cpus}

    @property
    def threads(self) -> int:
        """torch threads of one worker."""
        return max(1, int(self.cpus_per_worker))

    def __str__(self) -> str:
        gpus = f" and {self.gpus_per_worker:g} GPU" if self.gpus_per_worker else ""
        kind = f" of type {self.accelerator_type}" if self.accelerator_type else ""
        memory = f", {self.memory_per_worker:g} GiB" if self.memory_per_worker else ""
        least = "" if self.fewest == self.workers else f"{self.fewest} to "
        where = " on one node" if self.together else ""
        return f"{least}{self.workers} x ({self.cpus_per_worker:g} CPU{gpus}{kind}{memory}){where}"

    def trials_in(self, nodes: Collection[int]) -> int:
        """How many trials run side by side on nodes that have room for so many workers each."""
        if self.together:
            return sum(room // self.workers for room in nodes)
        return trials_of(sum(nodes), self.fewest, self.workers)


def marked(accelerator_type: str) -> str:
    """The resource by which Ray marks nodes with GPUs of this type."""
    return f"accelerator_type:{accelerator_type}"


def workers_in(have: Mapping[str, float], need: Mapping[str, float]) -> int:
    """How many workers that need so much fit into what a node has."""
    return min(math.floor(have.get(name, 0) / amount + 1e-6) for name, amount in need.items() if amount > 0)
