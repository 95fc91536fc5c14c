"""One local Ray for all tests that need one."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import pytest


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[None]:
    """A local Ray with 4 logical CPUs, no dashboard; started by the first test that asks, gone at the end."""
    from sweeps.ray_cluster import start_ray

    with start_ray("local", num_cpus=4):
        yield


@pytest.fixture
def nothing_left(ray_cluster: None) -> Callable[[], None]:
    """Call it: fails unless within 30 s no actor runs and no placement group is held."""

    def check() -> None:
        import ray
        from ray.util import placement_group_table

        shared = "_AutoscalingCoordinatorActor"  # Ray's own: one a cluster, holds nothing
        deadline = time.monotonic() + 30
        while True:
            alive = [a["ActorClassName"] for a in ray._private.state.actors().values() if a["State"] != "DEAD"]
            actors = [name for name in alive if name != shared]
            groups = [g["bundles"] for g in placement_group_table().values() if g["state"] != "REMOVED"]
            if not actors and not groups:
                return
            assert time.monotonic() < deadline, f"left behind: actors {actors}, placement groups {groups}"
            time.sleep(0.2)

    return check
