"""How much room the trials of a sweep need for their checkpoints, by the plan's arithmetic."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from sweeps.costs import Shape, checkpoint_bytes
from sweeps.planner import planned_points
from sweeps.spec import ResourcesSpec, SweepSpec

GENERATIONS = 3
"of checkpoints: the two that a trial keeps, and the one that it is writing"
POINTS = 100
"of the space, of which the largest model counts"


@dataclass(frozen=True)
class DiskNeed:
    """What one trial writes at most, and by what the trials that run side by side are counted."""

    checkpoint: int = 0
    "bytes"
    resources: ResourcesSpec = field(default_factory=ResourcesSpec)

    @classmethod
    def of(cls, spec: SweepSpec) -> DiskNeed:
        points = planned_points(spec, POINTS)
        configs = [spec.search_space.build(spec.base_values, point).to_dict() for point in points]
        return cls(max((checkpoint_bytes(Shape.of(config)) for config in configs), default=0), spec.resources)

    def bytes_on(self, nodes: Iterable[Mapping[str, float]]) -> int:
        """For the trials that run on these nodes, of which each has so much of every resource of Ray, and for one
        more: what a trial has left stays until it is exported."""
        trials = sum(self._trials_on(node) for node in nodes)
        if self.resources.max_concurrent is not None:
            trials = min(trials, self.resources.max_concurrent)
        return GENERATIONS * (max(trials, 1) + 1) * self.checkpoint

    def _trials_on(self, node: Mapping[str, float]) -> int:
        """As many as have room for their smallest group of workers; a share of a trial counts as one."""
        asked = {"CPU": self.resources.cpus_per_worker, "GPU": self.resources.gpus_per_worker}
        workers = min(int(node.get(name, 0.0) / amount) for name, amount in asked.items() if amount)
        return -(-workers // self.resources.fewest_workers)
