"""Every training target once an epoch, in steps of bounded size, in an order that seed and epoch decide."""

from __future__ import annotations

import itertools
from collections import Counter

import numpy as np
import pytest
import torch

from genrec.data.augmentation import Augmentation
from genrec.data.batches import RowBatches, WindowBatches

LENGTHS = np.arange(71)
OFFSETS = np.concatenate([[0], np.cumsum(LENGTHS)])
ITEMS = np.arange(OFFSETS[-1])  # an item is its own place, so a window tells which places it holds
TARGETS = Counter(int(place) for start, end in itertools.pairwise(OFFSETS) for place in range(start + 1, end))


ALL = Augmentation(crop=0.5, mask=0.3, reorder=0.5)


def batches_of(causal: bool, batch_size: int = 30, seed: int = 0, **settings) -> WindowBatches:
    return WindowBatches(OFFSETS, ITEMS, causal=causal, max_items=20, batch_size=batch_size, seed=seed, **settings)


def targets_of(windows) -> list[int]:
    return [item for w in windows for item in w.items_BL[:, w.first_target :].flatten().tolist()]


CHANGES = pytest.mark.parametrize("changes", [{}, {"accumulate": 3}, {"augmentation": ALL}])


@CHANGES
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("world", [1, 2, 3])
def test_an_epoch_over_all_ranks_holds_every_target_once(causal, world, changes):
    batches = batches_of(causal, **changes)
    found: Counter[int] = Counter()
    counted = []
    for rank in range(world):
        steps = list(batches.steps(1, rank, world))
        counted.append([step.num_targets for step in steps])
        for step in steps:
            found.update(targets_of(step.batches))
    assert found == TARGETS
    assert all(counts == counted[0] for counts in counted)  # all ranks divide by the same number
    assert sum(counted[0]) == batches.num_targets == TARGETS.total()
    assert len(counted[0]) == batches.num_steps(1)


def rows_of(windows) -> list:
    """Every row with all that the model gets of it, sorted."""
    rows = []
    for window in windows:
        for row, items in enumerate(window.items_BL.tolist()):
            hidden = [] if window.hidden_BL is None else window.hidden_BL[row].tolist()
            user = -1 if window.user_B is None else int(window.user_B[row])
            rows.append((items, window.first_target, user, hidden))
    return sorted(rows)


@pytest.mark.parametrize("changes", [{}, {"accumulate": 3}, {"augmentation": ALL}, {"subsample": True}])
@pytest.mark.parametrize("causal", [True, False])
def test_ranks_share_the_step_of_one_process(causal, changes):
    batches = batches_of(causal, **changes)
    alone = batches.steps(3)
    for whole, *parts in zip(alone, *(batches.steps(3, rank, 2) for rank in range(2)), strict=True):
        assert rows_of(whole.batches) == rows_of(window for part in parts for window in part.batches)
        assert whole.num_targets == len(targets_of(whole.batches))


@pytest.mark.parametrize("causal", [True, False])
def test_accumulated_batches_make_the_step_of_one_large_batch(causal):
    small, large = batches_of(causal, 30, accumulate=4), batches_of(causal, 120)
    for many, one in zip(small.steps(2), large.steps(2), strict=True):
        assert rows_of(many.batches) == rows_of(one.batches)
        assert many.num_targets == one.num_targets
        assert all(len(targets_of([window])) <= 30 for window in many.batches)


@pytest.mark.parametrize("causal", [True, False])
def test_subsampling_trains_one_target_a_user_and_another_in_the_next_epoch(causal):
    batches = batches_of(causal, subsample=True)
    drawn = {}
    for epoch in range(1, 4):
        targets = [target for step in batches.steps(epoch) for target in targets_of(step.batches)]
        users = np.searchsorted(OFFSETS, targets, side="right") - 1
        assert sorted(users.tolist()) == np.flatnonzero(LENGTHS >= 2).tolist()
        assert len(targets) == batches.num_targets
        drawn[epoch] = sorted(targets)
    assert drawn[1] != drawn[2] != drawn[3]


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("changes", [{}, {"subsample": True}, {"augmentation": ALL}])
def test_windows_carry_the_bucket_of_their_user(causal, changes):
    buckets = torch.arange(len(LENGTHS)) * 7 % 13
    for step in batches_of(causal, user_U=buckets, **changes).steps(1):
        for window in step.batches:
            user_B = np.searchsorted(OFFSETS, window.items_BL[:, 0], side="right") - 1
            assert window.user_B.tolist() == buckets[user_B].tolist()


def test_without_users_and_masks_windows_hold_neither():
    for step in batches_of(True, augmentation=Augmentation(crop=0.5)).steps(1):
        assert all(window.user_B is None and window.hidden_BL is None for window in step.batches)


def test_items_are_hidden_as_often_as_asked():
    batches = batches_of(True, augmentation=Augmentation(mask=0.25))
    hidden = torch.cat([w.hidden_BL[:, :-1].flatten() for step in batches.steps(1) for w in step.batches])
    assert abs(float(hidden.float().mean()) - 0.25) < 0.03


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("batch_size", [1, 7, 30, 256, 100_000])
def test_a_step_holds_batch_size_targets_at_most_unless_one_row_has_more(causal, batch_size):
    batches = batches_of(causal, batch_size)
    for step in batches.steps(1):
        rows = sum(len(window.items_BL) for window in step.batches)
        assert step.num_targets <= batch_size or rows == 1
    assert batches.num_steps(1) <= -(-batches.num_targets // batch_size) * 2 + 1


def plan(batches, epoch: int) -> list:
    return [rows_of(step.batches) for step in batches.steps(epoch)]


@pytest.mark.parametrize("changes", [{}, {"subsample": True}, {"augmentation": ALL}])
@pytest.mark.parametrize("causal", [True, False])
def test_steps_are_a_function_of_seed_and_epoch(causal, changes):
    batches = batches_of(causal, **changes)
    torch.manual_seed(1)
    first = plan(batches, 1)
    torch.rand(10)  # the global generator plays no part
    assert plan(batches, 1) == first
    assert plan(batches_of(causal, **changes), 1) == first
    assert plan(batches, 2) != first
    assert plan(batches_of(causal, seed=1, **changes), 1) != first


def test_users_without_a_target_are_refused():
    with pytest.raises(ValueError, match="no training targets"):
        WindowBatches(np.array([0, 1, 2]), np.array([3, 4]), causal=True, max_items=5, batch_size=8, seed=0)


@pytest.mark.parametrize("world", [1, 2, 3])
def test_row_batches_hold_every_row_once(world):
    batches = RowBatches(torch.arange(23).unsqueeze(1), batch_size=5, seed=3)
    found, per_step = [], []
    for rank in range(world):
        steps = list(batches.steps(2, rank, world))
        per_step.append([step.num_targets for step in steps])
        found += [row for step in steps for batch in step.batches for row in batch.flatten().tolist()]
    assert sorted(found) == list(range(23))
    assert per_step == [[5, 5, 5, 5, 3]] * world
    assert batches.num_steps(2) == 5


def test_row_batches_depend_on_seed_and_epoch_alone():
    def rows(seed: int, epoch: int) -> list:
        batches = RowBatches(torch.arange(23), batch_size=100, seed=seed)
        return [batch.tolist() for step in batches.steps(epoch) for batch in step.batches]

    assert rows(0, 1) == rows(0, 1)
    assert rows(0, 1) != rows(0, 2) != rows(1, 1)
    assert len(rows(0, 1)[0]) == 23  # fewer rows than a batch: one step of all
