"""What can rank items for histories, and how a ranking is measured: models, baselines and their mixtures alike.

A `Ranker` gives every history the scores of some items as one row of a sparse matrix; an item without a score is not
recommended. Equal scores are ordered by item id. Hits are item hits. NumPy and SciPy only.

Shape letters: B users of a batch, N items of the catalogue, K length of a list.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal, Protocol

import numpy as np
from scipy import sparse

from genrec.data.interactions import Histories, Interactions, Split
from genrec.modules.metrics import Coverage, MetricSums, ranking_metrics, ranks_in_lists

Seen = Literal["keep", "exclude"]
"whether items of the history may be recommended: two protocols, whose numbers are never compared"
_BATCH = 1024
"histories whose scores are held at once"


class Ranker(Protocol):
    """A model, a baseline, or a mixture of them."""

    def scores(
        self, histories: Histories, k: int, seen: Seen = "keep", users: Sequence[str] | None = None
    ) -> sparse.csr_array:
        """(B, N) with a positive value for every item that may be listed.

        Args:
            k: how many items a row will be asked for; a row holds that many wherever the ranker knows as many.
            seen: with `exclude` no item of a history has a score.
            users: their external ids, for rankers that read them.
        """
        ...


def best_items(scores_BN: sparse.csr_array, k: int) -> tuple[np.ndarray, np.ndarray]:
    """(B, k) ids and (B, k) scores of the best items of every row, best first; where a row has no more, -1 and 0."""
    scores_BN.sort_indices()
    size = scores_BN.shape[0]
    counts = np.diff(scores_BN.indptr)
    row = np.repeat(np.arange(size), counts)
    order = np.lexsort((-scores_BN.data, row))  # stable: equal scores stay in the order of their ids
    place = np.arange(len(row)) - np.repeat(scores_BN.indptr[:-1], counts)
    listed = place < k
    items_BK, scores_BK = np.full((size, k), -1, dtype=np.int64), np.zeros((size, k))
    items_BK[row[listed], place[listed]] = scores_BN.indices[order[listed]]
    scores_BK[row[listed], place[listed]] = scores_BN.data[order[listed]]
    return items_BK, scores_BK


def target_ranks(scores_BN: sparse.csr_array, target_B: np.ndarray) -> np.ndarray:
    """(B,) 0-based places of the targets in their rows' rankings, -1 for a target without a score."""
    size, counts = scores_BN.shape[0], np.diff(scores_BN.indptr)
    item, value = scores_BN.indices, scores_BN.data
    found = np.flatnonzero(item == np.repeat(target_B, counts))
    score_B = np.full(size, np.inf)
    score_B[_rows(scores_BN, found)] = value[found]
    ahead = np.flatnonzero(value >= np.repeat(score_B, counts))  # a small part of all entries
    row = _rows(scores_BN, ahead)
    row = row[(value[ahead] > score_B[row]) | (item[ahead] < target_B[row])]
    return np.where(np.isinf(score_B), -1, np.bincount(row, minlength=size))


def _rows(scores_BN: sparse.csr_array, entries: np.ndarray) -> np.ndarray:
    """The rows of some stored entries."""
    return np.searchsorted(scores_BN.indptr, entries, side="right") - 1


def without_seen(scores_BN: sparse.csr_array, histories: Histories) -> sparse.csr_array:
    """The scores less those of the items of each whole history."""
    size, num_items = scores_BN.shape
    seen_BN = np.zeros((size, num_items), dtype=bool)
    seen_BN[seen_pairs(histories)] = True
    row = np.repeat(np.arange(size), np.diff(scores_BN.indptr))
    fresh = ~seen_BN[row, scores_BN.indices]
    offsets = np.concatenate([[0], np.cumsum(np.bincount(row[fresh], minlength=size))])
    return sparse.csr_array((scores_BN.data[fresh], scores_BN.indices[fresh], offsets), shape=scores_BN.shape)


def seen_pairs(histories: Histories) -> tuple[np.ndarray, np.ndarray]:
    """Rows and items of the whole histories, one after the other; a repeated item is repeated."""
    offsets, items, _ = histories.recent()
    return np.repeat(np.arange(len(histories)), np.diff(offsets)), items


class KnownLists:
    """Lists that were made before, as a ranker: what a slow model found is blended without asking it again."""

    def __init__(self, users: Sequence[str], num_items: int, seen: Seen):
        """`users`: external ids; lists are added by a user's index in them, and asked for by the id."""
        self.index = {user: number for number, user in enumerate(users)}
        self.num_items, self.seen = num_items, seen
        self.lists: dict[int, tuple[np.ndarray, np.ndarray]] = {}

    def add(self, users: np.ndarray, items_BW: np.ndarray, scores_BW: np.ndarray) -> None:
        """The lists of some users, best first, with positive scores; an item below 0 is none."""
        for user, item_W, score_W in zip(users.tolist(), items_BW, scores_BW, strict=True):
            self.lists[user] = item_W[item_W >= 0], score_W[item_W >= 0]

    def scores(
        self, histories: Histories, k: int, seen: Seen = "keep", users: Sequence[str] | None = None
    ) -> sparse.csr_array:
        """See `Ranker`. Known are the lists of the users that were added, under the protocol they were made for."""
        if users is None or seen != self.seen:
            raise ValueError(f"these lists are of named users with seen items under {self.seen!r}, got {seen!r}")
        found = [self.lists[self.index[user]] for user in users]
        offsets = np.concatenate([[0], np.cumsum([len(items) for items, _ in found])])
        items = np.concatenate([items for items, _ in found])
        values = np.concatenate([values for _, values in found])
        return sparse.csr_array((values, items, offsets), shape=(len(users), self.num_items))


class WithNewItems:
    """A ranker that also lists items of which it has seen no interaction, by what it thinks of those most like them."""

    def __init__(self, ranker: Ranker, like_NN: sparse.csr_array):
        """Column n of `like_NN` (N, N) has the weights of the items that new item n is like; they sum to 1."""
        self.ranker, self.like_NN = ranker, like_NN

    def scores(
        self, histories: Histories, k: int, seen: Seen = "keep", users: Sequence[str] | None = None
    ) -> sparse.csr_array:
        """See `Ranker`. A new item has the mean of those it is like, or what the ranker itself gives it, if more."""
        own_BN = self.ranker.scores(histories, k, seen, users)
        scores_BN = sparse.csr_array(own_BN.maximum(own_BN @ self.like_NN))
        return without_seen(scores_BN, histories) if seen == "exclude" else scores_BN


def measure_rankers(
    rankers: Mapping[str, Ranker],
    interactions: Interactions,
    split: Split,
    ks: Sequence[int],
    seen: Seen = "keep",
    users: np.ndarray | None = None,
) -> dict[str, dict[str, float]]:
    """Of each ranker `recall@k`, `ndcg@k`, `mrr@k`, `coverage@k` for each k, and `users`, how many were counted.

    Args:
        users: indices of the users to count; all that have a target in `split` when None.
    """
    k, num_items = max(ks), len(interactions.catalogue)
    sums = {name: MetricSums() for name in rankers}
    coverage = {name: Coverage(ks, num_items) for name in rankers}
    for histories, target_B, ids in user_batches(interactions, split, users):
        for name, ranker in rankers.items():
            items_BK, _ = best_items(ranker.scores(histories, k, seen, ids), k)
            sums[name].merge(ranking_metrics(ranks_in_lists(items_BK, target_B), ks, k))
            coverage[name].add(items_BK)
    return {name: sums[name].result() | coverage[name].result() | {"users": sums[name].count} for name in rankers}


def user_batches(
    interactions: Interactions, split: Split, users: np.ndarray | None = None
) -> list[tuple[Histories, np.ndarray, list[str]]]:
    """Histories, targets (B,) and external ids of `users`, in batches; of all that have a target when None."""
    users = interactions.users_of(split) if users is None else users
    histories, targets = interactions.histories(split), interactions.targets(split)
    parts = [users[start : start + _BATCH] for start in range(0, len(users), _BATCH)]
    return [(histories.take(part), targets[part], [interactions.users[u] for u in part.tolist()]) for part in parts]
