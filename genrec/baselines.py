"""Baselines that every report prints: most popular items, and item-to-item co-occurrence tuned on validation.

Both see exactly what a model sees. Two footings are told apart by `fit`: counts of `train` items only, as a model is
trained, or of `train+validation`; on the test split the validation item is part of the history on both. Both are
rankers (`genrec.ranking`), so that they are measured, blended and asked for recommendations as a model is.

Shape letters: B users of a batch, N items of the catalogue.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import sparse

from genrec.data.interactions import Fit, Histories, Interactions, Split
from genrec.modules.metrics import MetricSums, ranking_metrics
from genrec.ranking import Ranker, Seen, measure_rankers, seen_pairs, target_ranks, user_batches, without_seen

HISTORY = 20
"most recent items of a history that item-to-item reads"
WINDOWS, DECAYS, CORRECTIONS = (3, 5, 10), (0.3, 0.5, 0.7, 0.8, 0.9), (0.0, 0.25, 0.5)


@dataclass(frozen=True)
class ItemToItemSettings:
    """What `tune_item_to_item` chooses."""

    window: int = 10
    "places between two items of a user that still count as a pair"
    decay: float = 0.5
    "weight of a history item is decay**age; the last item has age 0"
    symmetric: bool = False
    "whether the pair (a before b) also counts for (b before a)"
    correction: float = 0.0
    "scores are divided by popularity**correction"


class MostPopular:
    """Items by their number of interactions, the same list for everybody; an item without any is not listed."""

    def __init__(self, counts_N: np.ndarray):
        self.counts_N = counts_N.astype(np.float64)
        order = np.argsort(-self.counts_N, kind="stable")
        self.order = order[self.counts_N[order] > 0]

    @classmethod
    def fit(cls, offsets: np.ndarray, items: np.ndarray, num_items: int) -> MostPopular:
        """Count the items of flat sequences."""
        return cls(np.bincount(items, minlength=num_items))

    def scores(
        self, histories: Histories, k: int, seen: Seen = "keep", users: Sequence[str] | None = None
    ) -> sparse.csr_array:
        """(B, N) counts of the first `k` items of the list; see `Ranker`."""
        size, num_items = len(histories), len(self.counts_N)
        longest = int((histories.ends - histories.starts).max(initial=0)) if seen == "exclude" else 0
        items_BX = np.tile(self.order[: k + longest], (size, 1))
        listed_BX = np.ones(items_BX.shape, dtype=bool)
        if seen == "exclude":
            row, item = seen_pairs(histories)
            seen_BN = np.zeros((size, num_items), dtype=bool)
            seen_BN[row, item] = True
            listed_BX = ~np.take_along_axis(seen_BN, items_BX, axis=1)
        listed_BX &= np.cumsum(listed_BX, axis=1) <= k
        offsets = np.concatenate([[0], np.cumsum(listed_BX.sum(axis=1))])
        items = items_BX[listed_BX]
        return sparse.csr_array((self.counts_N[items], items, offsets), shape=(size, num_items))


class ItemToItem:
    """Score of a candidate: sum over the last `HISTORY` items of decay**age times how often and closely it followed."""

    def __init__(self, counts_NN: sparse.csr_array, discount_N: np.ndarray, settings: ItemToItemSettings):
        """Counts as `fit` makes them, and what every item's score is multiplied by."""
        self.counts_NN, self.discount_N, self.settings = counts_NN, discount_N, settings

    @classmethod
    def fit(cls, offsets: np.ndarray, items: np.ndarray, num_items: int, settings: ItemToItemSettings) -> ItemToItem:
        """Count the pairs of flat sequences."""
        counts_NN = pair_counts(offsets, items, num_items, settings.window)
        counts_NN = _symmetric(counts_NN) if settings.symmetric else counts_NN
        return cls(counts_NN, _popularity_discount(items, num_items, settings.correction), settings)

    def scores(
        self, histories: Histories, k: int, seen: Seen = "keep", users: Sequence[str] | None = None
    ) -> sparse.csr_array:
        """(B, N) scores of all items that ever followed one of the history; see `Ranker`."""
        weights_BN = _history_weights(histories, len(self.discount_N), self.settings.decay)
        scores_BN = sparse.csr_array(weights_BN @ self.counts_NN)
        if seen == "exclude":
            scores_BN = without_seen(scores_BN, histories)
        return _scale_columns(scores_BN, self.discount_N)

    def with_new_items(self, count: int) -> ItemToItem:
        """The same counts for a catalogue with `count` more items, which nothing is known of."""
        size = len(self.discount_N) + count
        offsets = np.append(self.counts_NN.indptr, np.full(count, self.counts_NN.nnz))
        counts_NN = sparse.csr_array((self.counts_NN.data, self.counts_NN.indices, offsets), shape=(size, size))
        return ItemToItem(counts_NN, np.append(self.discount_N, np.ones(count)), self.settings)


def pair_counts(offsets: np.ndarray, items: np.ndarray, num_items: int, window: int) -> sparse.csr_array:
    """(N, N) sum of 1/distance over all pairs of a user's items, row before column, at most `window` apart."""
    owner = np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))
    counts_NN = sparse.csr_array((num_items, num_items), dtype=np.float64)
    for distance in range(1, min(window, len(items) - 1) + 1):
        same = owner[distance:] == owner[:-distance]
        rows, columns = items[:-distance][same], items[distance:][same]
        weights = np.full(len(rows), 1 / distance)
        counts_NN = counts_NN + sparse.csr_array((weights, (rows, columns)), shape=(num_items, num_items))
    return counts_NN


def tune_item_to_item(interactions: Interactions, seen: Seen = "keep", k: int = 10) -> ItemToItemSettings:
    """The settings with the best validation NDCG@k; counts from training items. Reads no test item.

    Users whose target was never near an item of their history in anybody's sequence are skipped: no settings list it.
    """
    offsets, items = interactions.fit_sequences("train")
    num_items = len(interactions.catalogue)
    counts = {window: pair_counts(offsets, items, num_items, window) for window in WINDOWS}
    users = _reachable(interactions, _symmetric(counts[max(WINDOWS)]))
    batches = user_batches(interactions, "validation", users)
    discounts = {beta: _popularity_discount(items, num_items, beta) for beta in CORRECTIONS}
    best, best_value = ItemToItemSettings(), -1.0
    for window, symmetric, decay in itertools.product(WINDOWS, (False, True), DECAYS):
        counts_NN = _symmetric(counts[window]) if symmetric else counts[window]
        measured = {beta: MetricSums() for beta in CORRECTIONS}
        for histories, target_B, _ in batches:
            scores_BN = sparse.csr_array(_history_weights(histories, num_items, decay) @ counts_NN)
            if seen == "exclude":
                scores_BN = without_seen(scores_BN, histories)
            for beta, discount_N in discounts.items():
                rank_B = target_ranks(_scale_columns(scores_BN, discount_N), target_B)
                measured[beta].merge(ranking_metrics(rank_B, [k], k))
        for beta, sums in measured.items():
            value = sums.sums.get(f"ndcg@{k}", 0.0)
            if value > best_value:
                best, best_value = ItemToItemSettings(window, decay, symmetric, beta), value
    return best


def fit_baselines(interactions: Interactions, fit: Fit, settings: ItemToItemSettings) -> dict[str, Ranker]:
    """`most_popular` and `item_to_item` with the counts of `fit`: `train`, or `train+validation`."""
    offsets, items = interactions.fit_sequences(fit)
    num_items = len(interactions.catalogue)
    return {
        "most_popular": MostPopular.fit(offsets, items, num_items),
        "item_to_item": ItemToItem.fit(offsets, items, num_items, settings),
    }


def evaluate_baselines(
    interactions: Interactions,
    split: Split,
    ks: Sequence[int],
    seen: Seen = "keep",
    fit: Fit = "train",
    settings: ItemToItemSettings | None = None,
) -> dict[str, dict[str, float]]:
    """Metrics of `most_popular` and `item_to_item` over all users that have a target in `split`.

    Args:
        fit: whose counts the baselines hold. On the validation split only `train` is honest.
        settings: of item-to-item; tuned on validation when None (`tune_item_to_item`).
    """
    if split == "validation" and fit != "train":
        raise ValueError("fit 'train+validation' has counted the targets of the validation split; use fit 'train'")
    rankers = fit_baselines(interactions, fit, settings or tune_item_to_item(interactions, seen))
    return measure_rankers(rankers, interactions, split, ks, seen)


def _symmetric(counts_NN: sparse.csr_array) -> sparse.csr_array:
    return sparse.csr_array(counts_NN + counts_NN.T)


def _history_weights(histories: Histories, num_items: int, decay: float) -> sparse.csr_array:
    """(B, N) decay**age of the recent items of every history; a repeated item has the sum."""
    offsets, items, ages = histories.recent(HISTORY)
    return sparse.csr_array((float(decay) ** ages, items, offsets), shape=(len(histories), num_items))


def _popularity_discount(items: np.ndarray, num_items: int, correction: float) -> np.ndarray:
    return np.maximum(np.bincount(items, minlength=num_items), 1).astype(np.float64) ** -correction


def _scale_columns(scores_BN: sparse.csr_array, factor_N: np.ndarray) -> sparse.csr_array:
    scaled = scores_BN.data * factor_N[scores_BN.indices]
    return sparse.csr_array((scaled, scores_BN.indices, scores_BN.indptr), shape=scores_BN.shape)


def _reachable(interactions: Interactions, counts_NN: sparse.csr_array) -> np.ndarray:
    """Users whose validation target has a count with at least one of the recent items of their history."""
    users = interactions.users_of("validation")
    histories, target_B = interactions.histories("validation").take(users), interactions.targets("validation")[users]
    offsets, items, _ = histories.recent(HISTORY)
    owner = np.repeat(np.arange(len(histories)), np.diff(offsets))
    pair_rows = np.repeat(np.arange(counts_NN.shape[0], dtype=np.int64), np.diff(counts_NN.indptr))
    known = pair_rows * counts_NN.shape[1] + counts_NN.indices
    wanted = items.astype(np.int64) * counts_NN.shape[1] + target_B[owner]
    return users[np.unique(owner[np.isin(wanted, known)])]
