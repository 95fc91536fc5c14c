"""Baselines that every report prints: most popular items, and item-to-item co-occurrence tuned on validation.

Both see exactly what a model sees. Two footings are told apart by `fit`: counts of `train` items only, as a model is
trained, or of `train+validation`; on the test split the validation item is part of the history on both. Hits are item
hits over all users; equal scores are ordered by item id.

Shape letters: B users of a batch, N items of the catalogue.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
from scipy import sparse

from genrec.data.interactions import Histories, Interactions, Split
from genrec.modules.metrics import MetricSums, ranking_metrics, top_k_items

Fit = Literal["train", "train+validation"]
Seen = Literal["keep", "exclude"]
HISTORY = 20
"most recent items of a history that item-to-item reads"
WINDOWS, DECAYS, CORRECTIONS = (3, 5, 10), (0.3, 0.5, 0.7, 0.8, 0.9), (0.0, 0.25, 0.5)
_BATCH = 1024
"histories whose scores are held at once"
_WITHHELD: dict[str, int] = {"train": 2, "train+validation": 1}


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


class Baseline(Protocol):
    """What reports and recommendations need of a baseline."""

    def scores(self, histories: Histories) -> np.ndarray:
        """(B, N) float64 scores of 0 or more; higher is better, equal scores rank by item id."""
        ...

    def target_ranks(self, histories: Histories, target_B: np.ndarray, seen: Seen = "keep") -> np.ndarray:
        """(B,) 0-based place of each target in the ranking of the catalogue; -1 where it is excluded as seen."""
        ...


class MostPopular:
    """Items by their number of interactions, the same list for everybody."""

    def __init__(self, offsets: np.ndarray, items: np.ndarray, num_items: int):
        self.counts_N = np.bincount(items, minlength=num_items).astype(np.float64)
        self.place_N = np.empty(num_items, dtype=np.int64)
        self.place_N[np.argsort(-self.counts_N, kind="stable")] = np.arange(num_items)

    def scores(self, histories: Histories) -> np.ndarray:
        """(B, N) counts; see `Baseline`."""
        return np.tile(self.counts_N, (len(histories), 1))

    def target_ranks(self, histories: Histories, target_B: np.ndarray, seen: Seen = "keep") -> np.ndarray:
        """See `Baseline`."""
        rank_B = self.place_N[target_B]
        if seen == "keep":
            return rank_B
        row, item = _distinct_seen(histories, len(self.place_N))
        ahead = row[self.place_N[item] < rank_B[row]]
        rank_B = rank_B - np.bincount(ahead, minlength=len(target_B))
        rank_B[row[item == target_B[row]]] = -1
        return rank_B


class ItemToItem:
    """Score of a candidate: sum over the last `HISTORY` items of decay**age times how often and closely it followed."""

    def __init__(self, offsets: np.ndarray, items: np.ndarray, num_items: int, settings: ItemToItemSettings):
        self.settings = settings
        counts_NN = pair_counts(offsets, items, num_items, settings.window)
        self.counts_NN = _symmetric(counts_NN) if settings.symmetric else counts_NN
        self.discount_N = _popularity_discount(items, num_items, settings.correction)

    def scores(self, histories: Histories) -> np.ndarray:
        """(B, N) scores; see `Baseline`."""
        return self._sparse_scores(histories).toarray()

    def target_ranks(self, histories: Histories, target_B: np.ndarray, seen: Seen = "keep") -> np.ndarray:
        """See `Baseline`."""
        ranks = [np.empty(0, dtype=np.int64)]
        for part in _batches(len(histories)):
            chunk = histories.take(part)
            ranks.append(_sparse_ranks(self._sparse_scores(chunk), chunk, target_B[part], seen))
        return np.concatenate(ranks)

    def _sparse_scores(self, histories: Histories) -> sparse.csr_array:
        weights_BN = _history_weights(histories, len(self.discount_N), self.settings.decay)
        return _scale_columns(weights_BN @ self.counts_NN, self.discount_N)


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


def top_k(baseline: Baseline, histories: Histories, k: int, seen: Seen = "keep") -> np.ndarray:
    """(B, k) item ids, best first. With `seen="exclude"` items of the history come after all others."""
    scores_BN = baseline.scores(histories)
    if seen == "exclude":
        scores_BN[_distinct_seen(histories, scores_BN.shape[1])] = -1.0
    return top_k_items(scores_BN, k)


def tune_item_to_item(interactions: Interactions, seen: Seen = "keep", k: int = 10) -> ItemToItemSettings:
    """The settings with the best validation NDCG@k; counts from training items. Reads no test item.

    Users whose target was never near an item of their history in anybody's sequence are skipped: it scores 0 under
    all settings, so that its place says nothing about them.
    """
    offsets, items = interactions.training_sequences()
    num_items = len(interactions.catalogue)
    histories, target_B = interactions.histories("validation"), interactions.targets("validation")
    counts = {window: pair_counts(offsets, items, num_items, window) for window in WINDOWS}
    reachable = _reachable(histories, target_B, _symmetric(counts[max(WINDOWS)]))
    histories, target_B = histories.take(reachable), target_B[reachable]
    discounts = {beta: _popularity_discount(items, num_items, beta) for beta in CORRECTIONS}
    k = min(k, num_items)
    best, best_value, metric = ItemToItemSettings(), -1.0, f"ndcg@{k}"
    for window, symmetric, decay in itertools.product(WINDOWS, (False, True), DECAYS):
        counts_NN = _symmetric(counts[window]) if symmetric else counts[window]
        measured = {beta: MetricSums() for beta in CORRECTIONS}
        for part in _batches(len(histories)):
            chunk = histories.take(part)
            scores_BN = _history_weights(chunk, num_items, decay) @ counts_NN
            for beta, discount_N in discounts.items():
                rank_B = _sparse_ranks(_scale_columns(scores_BN, discount_N), chunk, target_B[part], seen)
                measured[beta].merge(ranking_metrics(rank_B, [k], num_items))
        for beta, sums in measured.items():
            value = sums.sums.get(metric, 0.0)
            if value > best_value:
                best, best_value = ItemToItemSettings(window, decay, symmetric, beta), value
    return best


def evaluate_baselines(
    interactions: Interactions,
    split: Split,
    ks: Sequence[int],
    seen: Seen = "keep",
    fit: Fit = "train",
    settings: ItemToItemSettings | None = None,
) -> dict[str, dict[str, float]]:
    """Recall@K and NDCG@K of `most_popular` and `item_to_item` over all users.

    Args:
        fit: whose counts the baselines hold. On the validation split only `train` is honest.
        settings: of item-to-item; tuned on validation when None (`tune_item_to_item`).
    """
    if fit not in _WITHHELD:
        raise ValueError(f"fit must be one of {list(_WITHHELD)}, got {fit!r}")
    if split == "validation" and fit != "train":
        raise ValueError("fit 'train+validation' has counted the targets of the validation split; use fit 'train'")
    histories, target_B = interactions.histories(split), interactions.targets(split)
    offsets, items = interactions.sequences(withheld=_WITHHELD[fit])
    num_items = len(interactions.catalogue)
    settings = settings or tune_item_to_item(interactions, seen)
    baselines: dict[str, Baseline] = {
        "most_popular": MostPopular(offsets, items, num_items),
        "item_to_item": ItemToItem(offsets, items, num_items, settings),
    }
    return {
        name: ranking_metrics(baseline.target_ranks(histories, target_B, seen), ks, num_items).result()
        for name, baseline in baselines.items()
    }


def _symmetric(counts_NN: sparse.csr_array) -> sparse.csr_array:
    return (counts_NN + counts_NN.T).tocsr()


def _history_weights(histories: Histories, num_items: int, decay: float) -> sparse.csr_array:
    """(B, N) decay**age of the recent items of every history; a repeated item has the sum."""
    offsets, items, ages = histories.recent(HISTORY)
    return sparse.csr_array((float(decay) ** ages, items, offsets), shape=(len(histories), num_items))


def _popularity_discount(items: np.ndarray, num_items: int, correction: float) -> np.ndarray:
    return np.maximum(np.bincount(items, minlength=num_items), 1).astype(np.float64) ** -correction


def _scale_columns(scores_BN: sparse.csr_array, factor_N: np.ndarray) -> sparse.csr_array:
    scaled = scores_BN.data * factor_N[scores_BN.indices]
    return sparse.csr_array((scaled, scores_BN.indices, scores_BN.indptr), shape=scores_BN.shape)


def _reachable(histories: Histories, target_B: np.ndarray, counts_NN: sparse.csr_array) -> np.ndarray:
    """Indices of the users whose target has a count with at least one of the recent items of their history."""
    offsets, items, _ = histories.recent(HISTORY)
    owner = np.repeat(np.arange(len(histories)), np.diff(offsets))
    pair_rows = np.repeat(np.arange(counts_NN.shape[0], dtype=np.int64), np.diff(counts_NN.indptr))
    known = pair_rows * counts_NN.shape[1] + counts_NN.indices
    wanted = items.astype(np.int64) * counts_NN.shape[1] + target_B[owner]
    return np.unique(owner[np.isin(wanted, known)])


def _distinct_seen(histories: Histories, num_items: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows and items of the whole histories, every item once a row."""
    offsets, items, _ = histories.recent()
    rows = np.repeat(np.arange(len(histories), dtype=np.int64), np.diff(offsets))
    keys = np.unique(rows * num_items + items)
    return keys // num_items, keys % num_items


def _sparse_ranks(scores_BN: sparse.csr_array, histories: Histories, target_B: np.ndarray, seen: Seen) -> np.ndarray:
    """(B,) places of the targets by score, then item id; the same as a dense ranking, from the stored entries alone."""
    size, num_items = scores_BN.shape
    rows = np.repeat(np.arange(size), np.diff(scores_BN.indptr))
    columns, values = scores_BN.indices, scores_BN.data
    if seen == "exclude":
        seen_row, seen_item = _distinct_seen(histories, num_items)
        seen_BN = np.zeros((size, num_items), dtype=bool)
        seen_BN[seen_row, seen_item] = True
        fresh = ~seen_BN[rows, columns]
        rows, columns, values = rows[fresh], columns[fresh], values[fresh]
    target_column = target_B[rows]
    target_score_B = np.zeros(size)
    at_target = columns == target_column
    target_score_B[rows[at_target]] = values[at_target]
    target_value, before = target_score_B[rows], columns < target_column
    rank_B = np.bincount(rows[(values > target_value) | ((values == target_value) & before)], minlength=size)
    # A target without a score stands, by id, among the other items that have neither a score nor been seen.
    taken_B = np.bincount(rows[before], minlength=size)
    if seen == "exclude":
        taken_B += np.bincount(seen_row[seen_item < target_B[seen_row]], minlength=size)
    rank_B = np.where(target_score_B > 0, rank_B, rank_B + target_B - taken_B)
    if seen == "exclude":
        rank_B[seen_BN[np.arange(size), target_B]] = -1
    return rank_B


def _batches(size: int) -> list[slice]:
    return [slice(start, start + _BATCH) for start in range(0, size, _BATCH)]
