"""Room that an autoscaler is asked for, as pending placement groups of a made-up Ray."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pytest
from ray.exceptions import RayError

from sweeps import demand
from sweeps.demand import AGAIN_SECONDS, LOOK_EVERY, PendingGroups
from sweeps.resources import Resources


class Groups:
    """Ray's placement groups: number -> bundles, and which of them have found room."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch):
        self.now, self.made, self.there = 0.0, 0, dict[int, Sequence[Mapping[str, float]]]()
        self.granted: set[int] = set()
        self.selectors: list[Any] = []
        self.strategies: list[str] = []
        monkeypatch.setattr("time.monotonic", lambda: self.now)
        monkeypatch.setattr(demand, "placement_group", self.make)
        monkeypatch.setattr(demand, "remove_placement_group", self.there.pop)
        monkeypatch.setattr(demand, "placement_group_table", self.table)

    def make(self, bundles: Sequence[Mapping[str, float]], strategy: str, bundle_label_selector: Any = None) -> int:
        self.made += 1
        self.strategies.append(strategy)
        self.there[self.made] = bundles
        self.selectors.append(bundle_label_selector)
        return self.made

    def table(self, group: int) -> dict[str, str]:
        return {"state": "CREATED" if group in self.granted else "PENDING"}


@pytest.fixture
def groups(monkeypatch: pytest.MonkeyPatch) -> Groups:
    return Groups(monkeypatch)


def test_there_is_a_group_for_each_trial_and_none_in_the_end(groups: Groups) -> None:
    ask = PendingGroups(Resources(workers=2, gpus_per_worker=1))
    for trials in (3, 1, 2, 0):
        groups.now += LOOK_EVERY
        ask(trials)
        assert list(groups.there.values()) == [[{"CPU": 1, "GPU": 1}] * 2] * trials
    groups.now += LOOK_EVERY
    ask(4)
    ask.close()
    assert groups.there == {}


def test_room_that_was_found_is_given_back_at_once_and_not_taken_again(groups: Groups) -> None:
    """It is for trials, of this sweep or of others."""
    ask = PendingGroups(Resources())
    ask(2)
    groups.granted = set(groups.there)
    groups.now += LOOK_EVERY
    ask(2)
    assert groups.there == {}
    groups.now += AGAIN_SECONDS - 1
    ask(2)
    assert groups.there == {}
    groups.now += 1
    ask(2)
    assert len(groups.there) == 2


def test_what_is_asked_for_lies_beside_the_avoided_nodes(groups: Groups) -> None:
    PendingGroups(Resources(workers=2))(1, ["b", "a"])
    assert groups.selectors == [[{"ray.io/node-id": "!in(a,b)"}] * 2]


def test_workers_that_stay_together_ask_for_a_node_that_holds_all(groups: Groups) -> None:
    PendingGroups(Resources(workers=2))(1)
    PendingGroups(Resources(workers=2, together=True))(1)
    assert groups.strategies == ["PACK", "STRICT_PACK"]


def test_a_wish_that_cannot_be_stated_ends_nothing(groups: Groups, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*args: Any, **kwargs: Any) -> None:
        raise RayError("no answer")

    monkeypatch.setattr(demand, "placement_group", fails)
    PendingGroups(Resources())(1)
    assert groups.there == {}
