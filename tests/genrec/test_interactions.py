"""Interactions: the leave-one-out split, flat arrays, hash, save and load. The temporal split: test_filtering.py."""

from __future__ import annotations

import itertools
import pickle
from pathlib import Path

import numpy as np
import pytest

from genrec.data.interactions import DataError, Histories, Interactions, Items, Periods, build_interactions
from genrec.data.text_column import TextColumn

SEQUENCES = {"ann": [0, 1, 2, 3], "bob": [4, 4, 1], "cid": [5, 0], "dan": [2, 3, 1, 0, 5, 4]}


def make_items(count: int = 6) -> Items:
    return Items(
        [f"A{i}" for i in range(count)], [f"Title {i}" for i in range(count)], [f"text {i}" for i in range(count)]
    )


def make_timed() -> Interactions:
    """The same with a timestamp for every interaction, split temporally."""
    data = make_interactions()
    times = [1, 2, 3, 4, 2, 2, 5, 1, 2, 2, 2, 6, 6]
    return Interactions(
        data.users, data.offsets, data.items, data.catalogue, np.array(times), Periods(3, 5), {"short_users": 1}
    )


def make_interactions() -> Interactions:
    offsets = np.cumsum([0, *map(len, SEQUENCES.values())])
    return build_interactions(list(SEQUENCES), offsets, np.concatenate(list(SEQUENCES.values())), make_items())


def test_users_with_fewer_than_three_items_are_dropped_and_counted():
    data = make_interactions()
    assert data.users == ["ann", "bob", "dan"]
    assert data.dropped == {"short_users": 1}
    assert [data.history(u).tolist() for u in range(3)] == [SEQUENCES[user] for user in data.users]


def test_leave_one_out_split_equals_slicing_each_sequence():
    data = make_interactions()
    offsets, items = data.training_sequences()
    for u, user in enumerate(data.users):
        sequence = SEQUENCES[user]
        assert items[offsets[u] : offsets[u + 1]].tolist() == sequence[:-2]
        assert data.items[data.offsets[u] : data.history_ends("validation")[u]].tolist() == sequence[:-2]
        assert data.items[data.offsets[u] : data.history_ends("test")[u]].tolist() == sequence[:-1]
    assert data.targets("validation").tolist() == [2, 4, 5]
    assert data.targets("test").tolist() == [3, 1, 4]
    assert np.diff(offsets).tolist() == [length - 2 for length in data.lengths.tolist()]
    assert data.targets("test").dtype == np.int32
    assert data.history_ends("test").dtype == np.int64


def test_sequences_of_training_and_validation_hold_the_validation_item():
    data = make_interactions()
    offsets, items = data.fit_sequences("train+validation")
    assert [items[a:b].tolist() for a, b in itertools.pairwise(offsets)] == [
        SEQUENCES[user][:-1] for user in data.users
    ]


def test_training_split_has_no_single_target():
    with pytest.raises(ValueError, match=r"'validation' and 'test'.*got 'train'"):
        make_interactions().targets("train")


def test_recent_items_carry_their_ages():
    offsets, items, ages = make_interactions().histories("test").recent(limit=2)
    assert offsets.tolist() == [0, 2, 4, 6]
    assert items.tolist() == [1, 2, 4, 4, 0, 5]
    assert ages.tolist() == [1, 0, 1, 0, 1, 0]


def test_histories_can_be_taken_and_given_as_lists():
    data = make_interactions()
    _, items, _ = data.histories("validation").take(np.array([2, 0])).recent()
    assert items.tolist() == [2, 3, 1, 0, 0, 1]
    given = Histories.from_lists([[3, 1], [], [2]])
    assert given.recent()[0].tolist() == [0, 2, 2, 3]
    assert given.take(slice(2, 3)).last().tolist() == [2]


@pytest.mark.parametrize("make", [make_interactions, make_timed])
def test_saved_and_pickled_interactions_load_equal(tmp_path, make):
    data = make()
    data.save(tmp_path / "deep" / "folder")
    for loaded in (Interactions.load(tmp_path / "deep" / "folder"), pickle.loads(pickle.dumps(data))):  # noqa: S301
        assert loaded.data_hash == data.data_hash
        assert loaded.users == data.users
        assert loaded.catalogue == data.catalogue
        assert (loaded.dropped, loaded.periods) == (data.dropped, data.periods)
        assert loaded.offsets.tolist() == data.offsets.tolist()
        assert loaded.items.tolist() == data.items.tolist()
        assert (loaded.timestamps is None) == (data.timestamps is None)
        assert loaded.targets("test").tolist() == data.targets("test").tolist()
    if data.timestamps is not None:
        assert loaded.timestamps.tolist() == data.timestamps.tolist()


def test_saving_twice_writes_the_same_bytes(tmp_path):
    for name in ("a", "b"):
        make_interactions().save(tmp_path / name)
    for file in (tmp_path / "a").iterdir():
        assert file.read_bytes() == (tmp_path / "b" / file.name).read_bytes()


@pytest.mark.parametrize("name", ["facts.json", "offsets.npy", "items.npy", "users.npy", "item_titles.npy"])
def test_loading_a_folder_with_a_missing_or_changed_file_is_an_error(tmp_path, name):
    make_interactions().save(tmp_path)
    (tmp_path / name).write_bytes((tmp_path / name).read_bytes()[:-20])
    with pytest.raises(DataError, match="cannot be read|does not fit its checksum"):
        Interactions.load(tmp_path)
    (tmp_path / name).unlink()
    with pytest.raises(DataError, match="cannot be read"):
        Interactions.load(tmp_path)


def test_loading_users_of_another_data_set_is_an_error(tmp_path):
    make_interactions().save(tmp_path)
    np.save(tmp_path / "users.npy", TextColumn.pack(["ann", "bob", "eve"]))
    with pytest.raises(DataError, match=r"users.npy does not fit its checksum: damaged, or of another data set"):
        Interactions.load(tmp_path)


def test_loaded_arrays_are_the_pages_of_their_files_and_writing_does_not_change_them(tmp_path):
    make_timed().save(tmp_path)
    loaded = Interactions.load(tmp_path)
    mapped = Path("/proc/self/maps").read_text().split()
    names = ("offsets", "items", "timestamps", "users", "item_ids", "item_titles", "item_texts")
    assert {str(tmp_path / f"{name}.npy") for name in names} <= set(mapped)
    loaded.items[0] = 5
    assert Interactions.load(tmp_path).items[0] == 0


def test_hash_follows_the_content_and_not_the_titles():
    items = make_items()
    assert items.hash == make_items().hash
    assert items.hash == Items(items.ids, ["other"] * 6, items.texts).hash
    assert items.hash != Items(items.ids, items.titles, ["other", *items.texts[1:]]).hash
    swapped = build_interactions(["ann"], np.array([0, 3]), np.array([1, 0, 2]), items)
    plain = build_interactions(["ann"], np.array([0, 3]), np.array([0, 1, 2]), items)
    assert swapped.data_hash != plain.data_hash
    assert make_timed().data_hash != make_interactions().data_hash


def test_statistics_count_what_is_there():
    statistics = make_interactions().statistics()
    assert statistics["users"] == 3
    assert statistics["items"] == 6
    assert statistics["interactions"] == 13
    assert statistics["mean_length"] == pytest.approx(13 / 3)
    assert statistics["median_length"] == 4
    assert statistics["density"] == pytest.approx(13 / 18)
    assert statistics["dropped_short_users"] == 1


@pytest.mark.parametrize(
    ("users", "items", "message"),
    [
        (["ann"], [0, 1, 6], "item 6 is not in the catalogue of 6 items"),
        (["ann"], [0, 1, -1], "item -1"),
        (["ann"], [0, 1], "no user has 3 items or more \\(1 users dropped\\)"),
        (["ann", "ann"], [0, 1, 2, 0, 1, 2], "'ann' occurs more than once"),
    ],
)
def test_bad_interactions_are_refused(users, items, message):
    offsets = np.linspace(0, len(items), len(users) + 1).astype(int)
    with pytest.raises(DataError, match=message):
        build_interactions(users, offsets, np.array(items), make_items())


@pytest.mark.parametrize(
    ("times", "periods", "message"),
    [
        ([1, 2, 3, 4, 2, 2], None, "one timestamp, but got 6 for 13"),
        ([1, 2, 3, 4, 2, 2, 1, 1, 2, 2, 2, 6, 6], None, "timestamps of user 'bob' are not in order"),
        ([1, 2, 3, 4, 2, 2, 5, 1, 2, 2, 2, 6, 6], Periods(5, 5), "must begin before the test period"),
        (None, Periods(1, 2), "temporal split needs timestamps"),
    ],
)
def test_bad_timestamps_are_refused(times, periods, message):
    data = make_interactions()
    with pytest.raises(DataError, match=message):
        Interactions(data.users, data.offsets, data.items, data.catalogue, times and np.array(times), periods)


def test_repeated_item_ids_are_refused():
    with pytest.raises(DataError, match="'A' occurs more than once"):
        Items(["A", "A"], ["", ""], ["", ""])
