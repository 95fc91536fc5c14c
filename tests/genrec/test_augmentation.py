"""Histories change, targets do not: each is trained once, as itself, and sees nothing of its future."""

from __future__ import annotations

import itertools
from collections import Counter

import numpy as np
import pytest

from genrec.data.augmentation import MAX_RUN, Runs, crop, hidden_items, reorder, shuffled_columns
from genrec.data.spans import Spans, causal_spans, single_spans

OFFSETS = np.concatenate([[0], np.cumsum(np.arange(41))])
TARGETS = Counter(int(place) for start, end in itertools.pairwise(OFFSETS) for place in range(start + 1, end))
FORMS = pytest.mark.parametrize("make_spans", [causal_spans, single_spans])


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def read(spans: Spans, runs: Runs | None = None, seed: int = 0) -> list[tuple[int, list[int]]]:
    """(target, history in the order it is read) of all windows; an item is its own place in the flat items."""
    found, generator = [], rng(seed)
    for index, (start, length, first) in enumerate(zip(*(a.tolist() for a in spans), strict=True)):
        places = np.arange(start, start + length)
        if runs:
            run = Runs(runs.begin[[index]], runs.length[[index]])
            places = places[shuffled_columns(run, length, generator)[0]]
        found += [(int(places[place]), places[:place].tolist()) for place in range(first, length)]
    return found


def beginning(place: int) -> int:
    return int(OFFSETS[np.searchsorted(OFFSETS, place, side="right") - 1])


@FORMS
@pytest.mark.parametrize("probability", [0.0, 0.3, 1.0])
def test_cropping_leaves_each_target_a_run_of_its_latest_items(make_spans, probability):
    before = dict(read(make_spans(OFFSETS, 20)))
    spans = crop(make_spans(OFFSETS, 20), probability, rng())
    samples = read(spans)
    assert Counter(target for target, _ in samples) == TARGETS
    shorter = 0
    for target, history in samples:
        assert history == list(range(target - len(history), target))
        assert 1 <= len(history) <= len(before[target])
        shorter += len(history) < len(before[target])
    assert (shorter > 0) == (probability > 0)
    assert (spans.length <= 21).all()


def test_every_single_window_with_room_is_cropped_when_the_probability_is_one():
    spans = single_spans(OFFSETS, 20)
    cropped = crop(spans, 1.0, rng())
    assert len(cropped.start) == len(spans.start)
    assert (cropped.length < spans.length)[spans.length >= 3].all()


def test_all_shorter_histories_are_equally_likely():
    window = Spans(*(np.full(6000, value) for value in (0, 7, 6)))
    lengths = Counter(crop(window, 1.0, rng()).first_target.tolist())
    assert sorted(lengths) == [1, 2, 3, 4, 5]
    assert all(abs(count - 1200) < 150 for count in lengths.values())


@FORMS
@pytest.mark.parametrize("probability", [0.0, 0.3, 1.0])
def test_reordering_shuffles_a_short_run_of_the_history_and_nothing_else(make_spans, probability):
    before = dict(read(make_spans(OFFSETS, 20)))
    spans, runs = reorder(make_spans(OFFSETS, 20), probability, rng())
    samples = read(spans, runs)
    assert Counter(target for target, _ in samples) == TARGETS
    moved = 0
    for target, history in samples:
        assert sorted(history) == before[target]  # all of its own history, nothing of its future
        places = [place for place, item in enumerate(history) if item != before[target][place]]
        moved += bool(places)
        assert not places or places[-1] - places[0] < MAX_RUN
    assert (moved > 0) == (probability > 0)


@FORMS
def test_crop_and_reorder_together_still_train_every_target_once(make_spans):
    spans, runs = reorder(crop(make_spans(OFFSETS, 20), 0.5, rng(1)), 0.5, rng(2))
    samples = read(spans, runs)
    assert Counter(target for target, _ in samples) == TARGETS
    assert all(beginning(target) <= min(history) and max(history) < target for target, history in samples)


def test_a_window_of_two_items_has_nothing_to_change():
    spans = Spans(np.array([5]), np.array([2]), np.array([1]))
    assert read(crop(spans, 1.0, rng())) == read(spans)
    changed, runs = reorder(spans, 1.0, rng())
    assert runs.length.tolist() == [0]
    assert read(changed, runs) == read(spans)


def test_columns_outside_the_run_stay_and_those_inside_are_a_permutation():
    runs = Runs(np.array([0, 2, 4, 0]), np.array([0, 3, 2, 6]))
    columns = shuffled_columns(runs, 6, rng())
    for row, begin, length in zip(columns, runs.begin, runs.length, strict=True):
        outside = [c for c in range(6) if not begin <= c < begin + length]
        assert row[outside].tolist() == outside
        assert sorted(row.tolist()) == list(range(6))


def test_items_are_hidden_with_their_probability_but_never_the_last_which_no_target_reads():
    hidden = hidden_items(2000, 11, 0.3, rng())
    assert not hidden[:, -1].any()
    assert abs(hidden[:, :-1].mean() - 0.3) < 0.02
