"""A column of text reads like the list it was made from."""

from __future__ import annotations

import pickle

import numpy as np
import pytest

from genrec.data.text_column import TextColumn
from genrec.errors import InputError

TEXTS = ["", "plain", "tab\tand\nnewline", "ünïcödé 家", "\x00", "half a character \ud83d", "👍🏽", ""]


@pytest.mark.parametrize("texts", [TEXTS, [], [""]])
def test_a_column_reads_like_its_list(texts):
    column = TextColumn(TextColumn.pack(texts))
    assert len(column) == len(texts)
    assert list(column) == texts
    assert column == texts
    assert column != [*texts, "more"]
    assert column[1:-1] == texts[1:-1]
    assert column[::-2] == texts[::-2]
    assert [column[-1 - place] for place in range(len(texts))] == texts[::-1]
    assert [text in column for text in ("plain", "absent")] == [text in texts for text in ("plain", "absent")]


@pytest.mark.parametrize("place", [len(TEXTS), -len(TEXTS) - 1])
def test_a_place_outside_is_an_index_error(place):
    with pytest.raises(IndexError):
        TextColumn(TextColumn.pack(TEXTS))[place]


def test_columns_are_compared_by_what_they_hold_and_can_be_pickled():
    column = TextColumn(TextColumn.pack(TEXTS))
    assert column == TextColumn(TextColumn.pack(TEXTS))
    assert pickle.loads(pickle.dumps(column)) == TEXTS  # noqa: S301
    assert TextColumn(TextColumn.pack(["plain"])) != "plain"


@pytest.mark.parametrize(
    "packed",
    [
        np.zeros(0, np.uint8),
        np.zeros(4, np.uint8),
        np.zeros(16, np.int64),
        TextColumn.pack(TEXTS)[:-1],
        TextColumn.pack(TEXTS)[: 8 * len(TEXTS)],
        np.array([-1, 0], np.int64).view(np.uint8),
        np.array([2, 0, 5, 3], np.int64).view(np.uint8),
    ],
    ids=["empty", "short", "numbers", "cut text", "cut bounds", "negative count", "falling bounds"],
)
def test_what_is_no_column_is_refused(packed):
    with pytest.raises(InputError, match="not a column of text"):
        TextColumn(packed)
