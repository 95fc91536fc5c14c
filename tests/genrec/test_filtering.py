"""Rows to interactions: time order with ties, k-core against a slow loop, short users, the temporal split."""

from __future__ import annotations

import numpy as np
import pytest

from genrec.data.filtering import InteractionRows, core_mask, split_in_time, to_interactions, to_seconds
from genrec.data.interactions import DataError, Interactions, Items


def make_rows(triples: list[tuple[str, int, int]], num_items: int = 6, timed: bool = True) -> InteractionRows:
    """Rows of (user, item, timestamp)."""
    users = list(dict.fromkeys(user for user, _, _ in triples))
    ids = [f"A{i}" for i in range(num_items)]
    return InteractionRows(
        users,
        Items(ids, ids, ids),
        np.array([users.index(user) for user, _, _ in triples], dtype=np.int32),
        np.array([item for _, item, _ in triples], dtype=np.int32),
        np.array([time for _, _, time in triples]) if timed else None,
    )


def random_rows(seed: int, count: int = 600, users: int = 40, items: int = 30) -> InteractionRows:
    rng = np.random.default_rng(seed)
    user, item = (size * rng.random(count) ** 2 for size in (users, items))
    return make_rows(
        [
            (f"u{u}", i, t)
            for u, i, t in zip(
                user.astype(int), item.astype(int), rng.integers(0, 99, size=count).tolist(), strict=True
            )
        ],
        num_items=items,
    )


def slow_core(pairs: list[tuple[int, int]], k: int) -> list[bool]:
    keep = [True] * len(pairs)
    while True:
        kept = [pair for pair, stays in zip(pairs, keep, strict=True) if stays]
        users, items = [u for u, _ in kept], [i for _, i in kept]
        fresh = [s and users.count(u) >= k and items.count(i) >= k for (u, i), s in zip(pairs, keep, strict=True)]
        if fresh == keep:
            return keep
        keep = fresh


def test_a_user_is_sorted_by_time_and_ties_keep_the_order_of_the_file():
    data = to_interactions(make_rows([("a", 3, 9), ("b", 0, 1), ("a", 5, 2), ("a", 1, 2), ("b", 4, 0), ("b", 2, 0)]))
    assert data.users == ["a", "b"]
    assert data.history(0).tolist() == [5, 1, 3]
    assert data.history(1).tolist() == [4, 2, 0]
    assert data.timestamps.tolist() == [2, 2, 9, 0, 0, 1]


def test_rows_without_times_keep_the_order_of_the_file():
    data = to_interactions(make_rows([("a", 3, 9), ("b", 0, 1), ("a", 5, 2), ("b", 4, 0), ("a", 1, 2)], timed=False))
    assert data.users == ["a"]
    assert data.history(0).tolist() == [3, 5, 1]
    assert data.timestamps is None


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("k", [1, 3, 6, 9])
def test_the_core_equals_repeated_counting(seed, k):
    rows = random_rows(seed, count=300)
    expected = slow_core(list(zip(rows.user_n.tolist(), rows.item_n.tolist(), strict=True)), k)
    assert core_mask(rows.user_n, rows.item_n, k)[0].tolist() == expected


def test_the_core_keeps_names_with_their_items_and_counts_what_left():
    rows = random_rows(4)
    keep, _ = core_mask(rows.user_n, rows.item_n, 8)
    data = to_interactions(rows, k_core=8)
    kept = zip(rows.user_n[keep], rows.item_n[keep], strict=True)
    expected = sorted((rows.users[u], rows.catalogue.ids[i]) for u, i in kept)
    found = [(user, data.catalogue.ids[i]) for u, user in enumerate(data.users) for i in data.history(u)]
    assert sorted(found) == expected
    assert 0 < len(data.catalogue) < len(rows.catalogue)
    assert data.dropped == {
        "core_users": len(rows.users) - len(data),
        "core_items": len(rows.catalogue) - len(data.catalogue),
        "core_interactions": int((~keep).sum()),
        "short_users": 0,
    }
    assert np.bincount(data.items).min() >= 8
    assert data.lengths.min() >= 8


def test_short_users_are_dropped_after_the_core_and_items_stay_in_the_catalogue():
    rows = make_rows([("a", i, i) for i in range(4)] + [("b", 5, 1), ("b", 5, 2), ("b", 5, 3)])
    data = to_interactions(rows, min_history=4)
    assert data.users == ["a"]
    assert data.dropped["short_users"] == 1
    assert len(data.catalogue) == 6


@pytest.mark.parametrize("unit", [1, 10**3, 10**6, 10**9])
def test_times_of_any_unit_become_seconds(unit):
    assert to_seconds(np.array([1_400_000_000 * unit, 1_500_000_000 * unit])).tolist() == [1_400_000_000, 1_500_000_000]


def test_mixed_units_and_times_before_1970_are_refused():
    with pytest.raises(DataError, match="seconds and milliseconds are mixed"):
        to_seconds(np.array([1_400_000_000, 1_400_000_000_000]))
    with pytest.raises(DataError, match="0 or more, got -5"):
        to_seconds(np.array([3, -5]))


# ------------------------------------------------------------------- temporal


def timed(seed: int = 0) -> Interactions:
    return to_interactions(random_rows(seed, count=400))


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_temporal_split_equals_walking_through_each_user(seed):
    data = split_in_time(timed(seed), 0.2, 0.15)
    begin = {"validation": data.periods.validation, "test": data.periods.test}
    end = {"validation": data.periods.test, "test": 10**9}
    training, both = data.training_sequences(), data.fit_sequences("train+validation")
    for u in range(len(data)):
        span = slice(data.offsets[u], data.offsets[u + 1])
        events = list(zip(data.items[span].tolist(), data.timestamps[span].tolist(), strict=True))
        for split in ("validation", "test"):
            before = [item for item, time in events if time < begin[split]]
            inside = [item for item, time in events if begin[split] <= time < end[split]]
            assert data.items[data.offsets[u] : data.history_ends(split)[u]].tolist() == before
            assert data.targets(split)[u] == (inside[0] if inside else -1)
            assert (u in data.users_of(split)) == bool(inside and before)
        for (offsets, items), split in ((training, "validation"), (both, "test")):
            assert items[offsets[u] : offsets[u + 1]].tolist() == [i for i, time in events if time < begin[split]]


def test_periods_hold_about_their_shares_and_a_moment_lies_in_one():
    data = split_in_time(timed(), 0.2, 0.1)
    assert (data.timestamps >= data.periods.test).mean() == pytest.approx(0.1, abs=0.03)
    assert (data.timestamps >= data.periods.validation).mean() == pytest.approx(0.3, abs=0.03)
    assert data.statistics()["test_users"] == len(data.users_of("test"))


def test_leave_one_out_has_a_target_for_every_user():
    data = timed()
    assert data.users_of("test").tolist() == list(range(len(data)))
    assert data.users_of("test").dtype == np.int64


@pytest.mark.parametrize(
    ("triples", "message"),
    [
        ([("a", i, 7) for i in range(5)], "both periods begin at 7"),
        ([("a", i, i) for i in range(6)] + [("b", i, 9 + i) for i in range(4)], "leaves the test split empty"),
        ([(user, i, 10 * i) for user in "abc" for i in range(3)], "leaves nothing to train on"),
    ],
)
def test_a_temporal_split_that_leaves_a_part_empty_is_refused(triples, message):
    with pytest.raises(DataError, match=message):
        split_in_time(to_interactions(make_rows(triples, num_items=20)), 0.4, 0.4)


def test_a_temporal_split_without_times_is_refused():
    rows = make_rows([("a", i, i) for i in range(5)], timed=False)
    with pytest.raises(DataError, match="needs timestamps.*leave_one_out"):
        split_in_time(to_interactions(rows), 0.1, 0.1)
