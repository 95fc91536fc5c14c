"""Windows as places: every training target in exactly one window, with its own history."""

from __future__ import annotations

import itertools
from collections import Counter

import numpy as np
import pytest

from genrec.data.spans import Spans, causal_spans, drawn_spans, single_spans

LENGTHS = np.arange(71)
OFFSETS = np.concatenate([[0], np.cumsum(LENGTHS)])
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


def test_one_of_the_single_windows_is_drawn_for_each_user():
    drawn = drawn_spans(OFFSETS, 20, np.random.default_rng(0))
    assert set(zip(*drawn, strict=True)) <= set(zip(*single_spans(OFFSETS, 20), strict=True))
    user = np.searchsorted(OFFSETS, drawn.start, side="right") - 1
    assert user.tolist() == np.flatnonzero(LENGTHS >= 2).tolist()


def test_targets_are_drawn_evenly():
    rng, offsets = np.random.default_rng(0), np.array([0, 5])
    found = Counter(int(drawn_spans(offsets, 20, rng).first_target[0]) for _ in range(4000))
    assert sorted(found) == [1, 2, 3, 4]
    assert all(abs(count - 1000) < 150 for count in found.values())
