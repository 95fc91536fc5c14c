"""What an autoscaler is asked for: room for trials that could run beside what the cluster holds.

Stated as pending placement groups, one a trial. Those of several sweeps add up, each is granted or not by itself, and
they vanish with their driver. `ray.autoscaler.sdk.request_resources` is one value for the whole cluster, which the next
caller overwrites (Ray Train is one) and of which Ray's autoscaler grants all or nothing. A group that finds room has
done its work and is given back at once: the room is for trials.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Collection

from ray.exceptions import RayError
from ray.util.placement_group import PlacementGroup, placement_group, placement_group_table, remove_placement_group

from sweeps.cluster_view import elsewhere
from sweeps.resources import Resources

LOOK_EVERY = 1.0
"seconds between looks at what has been granted"
AGAIN_SECONDS = 15.0
"after one was granted, before more is asked for: the room is taken by trials, here or of others, in the meantime"


class PendingGroups:
    """Call it all the time with how many trials nodes should come for, beside the avoided ones; `close` ends it."""

    def __init__(self, resources: Resources):
        self._bundles = [resources.bundle] * resources.workers
        self._strategy = "STRICT_PACK" if resources.together else "PACK"
        self._groups: list[PlacementGroup] = []
        self._look_at = self._more_at = 0.0

    def __call__(self, trials: int, avoided: Collection[str] = ()) -> None:
        if len(self._groups) > trials:
            self._drop(self._groups[trials:])
        now = time.monotonic()
        if now >= self._look_at:
            self._look_at = now + LOOK_EVERY
            with contextlib.suppress(RayError):  # a wish that cannot be stated is no failure of the sweep
                self._look(trials, avoided, now)

    def _look(self, trials: int, avoided: Collection[str], now: float) -> None:
        if granted := [group for group in self._groups if placement_group_table(group)["state"] != "PENDING"]:
            self._drop(granted)
            self._more_at = now + AGAIN_SECONDS
        if now >= self._more_at:
            there = elsewhere(avoided)
            selectors = {"bundle_label_selector": [there] * len(self._bundles)} if there else {}
            while len(self._groups) < trials:
                self._groups.append(placement_group(self._bundles, strategy=self._strategy, **selectors))

    def close(self) -> None:
        """Ask for nothing any more."""
        self._drop(self._groups)

    def _drop(self, groups: Collection[PlacementGroup]) -> None:
        for group in list(groups):
            remove_placement_group(group)
            self._groups.remove(group)
