"""Every training target once an epoch, in windows of bounded length, in an order that seed and epoch decide."""

from __future__ import annotations

import itertools
from collections import Counter

import numpy as np
import pytest
import torch

from genrec.data.batches import RowBatches, Spans, WindowBatches, causal_spans, single_spans

LENGTHS = np.arange(71)
OFFSETS = np.concatenate([[0], np.cumsum(LENGTHS)])
ITEMS = np.arange(OFFSETS[-1])  # an item is its own place, so a window tells which places it holds
TARGETS = Counter(int(place) for start, end in itertools.pairwise(OFFSETS) for place in range(start + 1, end))


def trained(spans: Spans) -> Counter[int]:
    """How often each place is a target."""
    found: Counter[int] = Counter()
    for start, length, first in zip(*spans, strict=True):
        found.update(range(int(start + first), int(start + length)))
    return found


@pytest.mark.parametrize("make_spans", [causal_spans, single_spans])
@pytest.mark.parametrize("max_items", [1, 2, 3, 5, 20, 69, 70, 100])
def test_every_target_is_trained_exactly_once_with_its_own_history(make_spans, max_items):
    spans = make_spans(OFFSETS, max_items)
    assert trained(spans) == TARGETS
    user = np.searchsorted(OFFSETS, spans.start, side="right") - 1
    assert (spans.start + spans.length <= OFFSETS[user + 1]).all()
    assert (spans.length <= max_items + 1).all()
    assert (spans.first_target >= 1).all()


@pytest.mark.parametrize("max_items", [1, 2, 5, 20])
def test_single_windows_hold_one_target_and_all_the_history_that_fits(max_items):
    spans = single_spans(OFFSETS, max_items)
    assert (spans.first_target == spans.length - 1).all()
    target = spans.start + spans.first_target
    before = target - OFFSETS[np.searchsorted(OFFSETS, target, side="right") - 1]
    assert (spans.first_target == np.minimum(before, max_items)).all()


@pytest.mark.parametrize("max_items", [2, 5, 20])
def test_causal_windows_never_show_less_than_half_of_the_history_that_fits(max_items):
    spans = causal_spans(OFFSETS, max_items)
    for start, length, first in zip(*spans, strict=True):
        beginning = OFFSETS[np.searchsorted(OFFSETS, start, side="right") - 1]
        for place in range(first, length):
            assert place >= min(start + place - beginning, max_items // 2)


def test_a_user_that_fits_is_one_causal_window():
    spans = causal_spans(np.array([0, 6]), max_items=5)
    assert [array.tolist() for array in spans] == [[0], [6], [1]]


def batches_of(causal: bool, batch_size: int = 30, seed: int = 0) -> WindowBatches:
    return WindowBatches(OFFSETS, ITEMS, causal=causal, max_items=20, batch_size=batch_size, seed=seed)


def targets_of(windows) -> list[int]:
    return [item for w in windows for item in w.items_BL[:, w.first_target :].flatten().tolist()]


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("world", [1, 2, 3])
def test_an_epoch_over_all_ranks_holds_every_target_once(causal, world):
    batches = batches_of(causal)
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


@pytest.mark.parametrize("causal", [True, False])
def test_ranks_share_the_step_of_one_process(causal):
    batches = batches_of(causal)
    alone = batches.steps(3)
    for whole, *parts in zip(alone, *(batches.steps(3, rank, 2) for rank in range(2)), strict=True):
        assert sorted(targets_of(whole.batches)) == sorted(t for part in parts for t in targets_of(part.batches))
        assert whole.num_targets == len(targets_of(whole.batches))


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("batch_size", [1, 7, 30, 256, 100_000])
def test_a_step_holds_batch_size_targets_at_most_unless_one_row_has_more(causal, batch_size):
    batches = batches_of(causal, batch_size)
    for step in batches.steps(1):
        rows = sum(len(window.items_BL) for window in step.batches)
        assert step.num_targets <= batch_size or rows == 1
    assert batches.num_steps(1) <= -(-batches.num_targets // batch_size) * 2 + 1


def plan(batches, epoch: int) -> list:
    return [[w.items_BL.tolist() for w in step.batches] for step in batches.steps(epoch)]


@pytest.mark.parametrize("causal", [True, False])
def test_steps_are_a_function_of_seed_and_epoch(causal):
    batches = batches_of(causal)
    torch.manual_seed(1)
    first = plan(batches, 1)
    torch.rand(10)  # the global generator plays no part
    assert plan(batches, 1) == first
    assert plan(batches_of(causal), 1) == first
    assert plan(batches, 2) != first
    assert plan(batches_of(causal, seed=1), 1) != first


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
