"""Sparse rankings against sorting one row at a time."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import sparse

from genrec.data.interactions import Histories
from genrec.ranking import KnownLists, WithNewItems, best_items, target_ranks, without_seen

NUM_ITEMS = 9


def random_scores(seed: int = 0) -> sparse.csr_array:
    """20 rows with few different values, so that there are ties; the last row is empty. Indices are not sorted."""
    rng = np.random.default_rng(seed)
    dense = rng.integers(1, 4, (20, NUM_ITEMS)) * (rng.random((20, NUM_ITEMS)) < 0.6)
    dense[-1] = 0
    scores = sparse.csr_array(dense.astype(np.float64))
    for start, end in zip(scores.indptr[:-1], scores.indptr[1:], strict=True):
        scores.data[start:end] = scores.data[start:end][::-1]
        scores.indices[start:end] = scores.indices[start:end][::-1]
    scores.has_sorted_indices = False
    return scores


def slow_list(row: np.ndarray) -> list[int]:
    return sorted(np.flatnonzero(row).tolist(), key=lambda item: (-row[item], item))


@pytest.mark.parametrize("k", [1, 4, NUM_ITEMS, 12])
def test_the_best_items_are_sorted_by_score_then_id_and_padded(k):
    dense = random_scores().toarray()
    items_BK, scores_BK = best_items(random_scores(), k)
    for row, items, scores in zip(dense, items_BK.tolist(), scores_BK.tolist(), strict=True):
        best = slow_list(row)[:k]
        assert items == best + [-1] * (k - len(best))
        assert scores == [*row[best].tolist(), *[0.0] * (k - len(best))]


def test_ranks_of_targets_are_their_places_in_the_list():
    scores = random_scores()
    for target in range(NUM_ITEMS):
        ranks = target_ranks(scores, np.full(20, target)).tolist()
        for row, rank in zip(scores.toarray(), ranks, strict=True):
            found = slow_list(row)
            assert rank == (found.index(target) if target in found else -1)


def test_seen_items_lose_their_scores():
    rng = np.random.default_rng(1)
    lists = [rng.integers(0, NUM_ITEMS, rng.integers(1, 6)).tolist() for _ in range(20)]
    expected = random_scores().toarray()
    for row, history in enumerate(lists):
        expected[row, history] = 0
    found = without_seen(random_scores(), Histories.from_lists(lists))
    np.testing.assert_array_equal(found.toarray(), expected)
    assert not (found.data == 0).any()


def test_known_lists_are_given_back_by_user_in_any_order():
    known = KnownLists(["a", "b", "c"], 5, "keep")
    known.add(np.array([2, 0]), np.array([[4, 1], [3, -1]]), np.array([[0.5, 0.2], [0.9, 0.0]]))
    scores = known.scores(Histories.from_lists([[0], [0], [0]]), 2, "keep", ["a", "c", "a"])
    assert scores.toarray().tolist() == [[0, 0, 0, 0.9, 0], [0, 0.2, 0, 0, 0.5], [0, 0, 0, 0.9, 0]]


def test_known_lists_are_not_given_for_another_protocol_or_for_nobody():
    known = KnownLists(["a"], 5, "keep")
    for seen, users in (("exclude", ["a"]), ("keep", None)):
        with pytest.raises(ValueError, match="these lists are of named users with seen items under 'keep'"):
            known.scores(Histories.from_lists([[0]]), 1, seen, users)  # type: ignore[arg-type]


class Fixed:
    """The same scores for everybody."""

    def __init__(self, row: list[float]):
        self.row = row

    def scores(self, histories, k, seen="keep", users=None):
        scores = sparse.csr_array(np.tile(self.row, (len(histories), 1)))
        return without_seen(scores, histories) if seen == "exclude" else scores


def test_a_new_item_has_the_mean_of_what_it_is_like_or_its_own_score_if_more():
    # Items 3, 4 and 5 are new: like 0 and 1, like 2, like none.
    like = sparse.csr_array(([0.5, 0.5, 1.0], ([0, 1, 2], [3, 3, 4])), shape=(6, 6))
    ranker = WithNewItems(Fixed([0.4, 0.2, 0.1, 0.0, 0.15, 0.05]), like)
    found = ranker.scores(Histories.from_lists([[0], [4]]), 6)
    np.testing.assert_allclose(found.toarray(), [[0.4, 0.2, 0.1, 0.3, 0.15, 0.05]] * 2)
    found = ranker.scores(Histories.from_lists([[0], [4]]), 6, "exclude")
    np.testing.assert_allclose(found.toarray(), [[0, 0.2, 0.1, 0.1, 0.15, 0.05], [0.4, 0.2, 0.1, 0.3, 0, 0.05]])
