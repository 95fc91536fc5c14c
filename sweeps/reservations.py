"""Take back what a dead process left reserved: placement groups, by Ray's own table, which works without the dashboard;
Train's own cleaner does not (ray-project/ray#54305)."""

from __future__ import annotations

import time

import ray
from ray.core.generated import gcs_pb2
from ray.util.placement_group import PlacementGroup, remove_placement_group


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
