"""Rankers made of rankers: the mean of several models, and a model blended with a baseline.

What a model knows (content, order) and what item-to-item knows (exact co-occurrence) are different things, so their sum
is better than either. A blend stands on the footing of its baseline: one that has counted validation items is compared
with baselines that have, and with nothing else.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy import sparse

from genrec.data.interactions import Histories, Interactions
from genrec.modules.metrics import MetricSums, ranking_metrics
from genrec.ranking import Ranker, Seen, target_ranks, user_batches

WEIGHTS = tuple(round(0.1 * step, 1) for step in range(11))


class Blend:
    """`weight` times the model's scores plus 1 - `weight` times the other's, each row of both first made to sum to 1.

    Candidates are the items that either of them lists.
    """

    def __init__(self, model: Ranker, other: Ranker, weight: float):
        if not 0 <= weight <= 1:
            raise ValueError(f"the model's weight must be from 0 to 1, got {weight}")
        self.model, self.other, self.weight = model, other, weight

    def scores(
        self, histories: Histories, k: int, seen: Seen = "keep", users: Sequence[str] | None = None
    ) -> sparse.csr_array:
        """See `Ranker`."""
        model_BN, other_BN = (ranker.scores(histories, k, seen, users) for ranker in (self.model, self.other))
        return _mix(_shares(model_BN), _shares(other_BN), self.weight)


class Ensemble:
    """The mean of the scores of several models over one catalogue; an item that one does not list has 0 from it."""

    def __init__(self, rankers: Sequence[Ranker]):
        if not rankers:
            raise ValueError("an ensemble needs at least one ranker")
        self.rankers = list(rankers)

    def scores(
        self, histories: Histories, k: int, seen: Seen = "keep", users: Sequence[str] | None = None
    ) -> sparse.csr_array:
        """See `Ranker`."""
        first, *rest = (ranker.scores(histories, k, seen, users) for ranker in self.rankers)
        for other in rest:
            if other.shape != first.shape:
                raise ValueError(f"the models rank catalogues of {first.shape[1]} and of {other.shape[1]} items")
            first = first + other
        return sparse.csr_array(first / len(self.rankers))


def choose_weight(
    model: Ranker,
    other: Ranker,
    interactions: Interactions,
    seen: Seen = "keep",
    k: int = 10,
    users: np.ndarray | None = None,
    weights: Sequence[float] = WEIGHTS,
) -> tuple[float, dict[float, float]]:
    """The model's weight with the best NDCG@k on the validation split, and the value of every weight tried.

    `other` must be fit on training items alone; of equal values the smallest weight is taken. Reads no test item.
    """
    measured = {weight: MetricSums() for weight in weights}
    for histories, target_B, names in user_batches(interactions, "validation", users):
        model_BN, other_BN = (_shares(ranker.scores(histories, k, seen, names)) for ranker in (model, other))
        for weight, sums in measured.items():
            sums.merge(ranking_metrics(target_ranks(_mix(model_BN, other_BN, weight), target_B), [k], k))
    values = {weight: sums.result()[f"ndcg@{k}"] for weight, sums in measured.items()}
    return max(values, key=lambda weight: (values[weight], -weight)), values


def _shares(scores_BN: sparse.csr_array) -> sparse.csr_array:
    """Every row divided by its sum; an empty row stays empty."""
    total_B = np.bincount(
        np.repeat(np.arange(scores_BN.shape[0]), np.diff(scores_BN.indptr)),
        scores_BN.data,
        minlength=scores_BN.shape[0],
    )
    shares = scores_BN.data / np.repeat(total_B, np.diff(scores_BN.indptr))
    return sparse.csr_array((shares, scores_BN.indices, scores_BN.indptr), shape=scores_BN.shape)


def _mix(first_BN: sparse.csr_array, second_BN: sparse.csr_array, weight: float) -> sparse.csr_array:
    mixed_BN = sparse.csr_array(weight * first_BN + (1 - weight) * second_BN)
    mixed_BN.eliminate_zeros()
    return mixed_BN
