"""Recall@K and NDCG@K for a single target, as sums and counts, and the rankings they are read from.

Sums and counts of any batches add up to those of all users, so the last short batch weighs what it should and ranks of
a distributed job can be reduced by addition. Equal scores are ordered by item id everywhere. NumPy only; ranks may be
torch tensors.

Shape letters: B users, N items, K length of the list that is shown.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np


@dataclass
class MetricSums:
    """Sums of per-user values and the number of users they are over."""

    sums: dict[str, float] = field(default_factory=dict)
    count: int = 0

    def add(self, sums: Mapping[str, Any], count: Any) -> MetricSums:
        """Add the sums of `count` more users. Values may be numbers, NumPy or torch scalars."""
        if self.count and sums.keys() != self.sums.keys():
            raise ValueError(f"metrics differ: {sorted(self.sums)} so far, {sorted(sums)} added")
        for name, value in sums.items():
            self.sums[name] = self.sums.get(name, 0.0) + float(value)
        self.count += int(count)
        return self

    def merge(self, other: MetricSums) -> MetricSums:
        """Add another batch's or process's sums; one of no users changes nothing."""
        return self.add(other.sums, other.count) if other.count else self

    def result(self) -> dict[str, float]:
        """Means over all users."""
        if not self.count:
            raise ValueError("no users were measured")
        return {name: total / self.count for name, total in self.sums.items()}


def ranking_metrics(rank_B: Any, ks: Sequence[int], list_length: int) -> MetricSums:
    """Sums of `recall@K` and `ndcg@K` over a batch.

    Args:
        rank_B: (B,) 0-based place of the target in the list, negative when it is not there; NumPy or torch.
        ks: cut-offs. Each must be in 1..list_length: a shorter list cannot tell.
        list_length: number of items in each user's list.
    """
    if any(k < 1 or k > list_length for k in ks):
        raise ValueError(f"every K must be in 1..{list_length}, the length of the list, got {list(ks)}")
    rank_B = _to_numpy(rank_B)
    rank_B = np.where(rank_B < 0, list_length, rank_B)
    gain_B = 1.0 / np.log2(rank_B + 2.0)
    sums: dict[str, float] = {}
    for k in ks:
        hit_B = rank_B < min(k, list_length)
        sums[f"recall@{k}"] = float(hit_B.sum())
        sums[f"ndcg@{k}"] = math.fsum(gain_B[hit_B])
    return MetricSums(sums, len(rank_B))


def ranks_in_lists(items_BK: np.ndarray, target_B: np.ndarray) -> np.ndarray:
    """(B,) 0-based place of the target in each user's list, -1 when it is not there."""
    hit_BK = items_BK == np.asarray(target_B)[:, None]
    return np.where(hit_BK.any(axis=1), hit_BK.argmax(axis=1), -1)


def top_k_items(scores_BN: np.ndarray, k: int) -> np.ndarray:
    """(B, k) ids of the k highest scores of every row, best first; equal scores by item id.

    Exact also where the k-th score is shared, which `argpartition` alone is not.
    """
    num_items = scores_BN.shape[1]
    if not 1 <= k <= num_items:
        raise ValueError(f"k must be in 1..{num_items}, the number of items, got {k}")
    kth_B1 = np.partition(scores_BN, num_items - k, axis=1)[:, num_items - k, None]
    chosen_BN = scores_BN > kth_B1
    room_B1 = k - chosen_BN.sum(axis=1, keepdims=True)
    tied_BN = scores_BN == kth_B1
    tied_BN &= np.cumsum(tied_BN, axis=1, dtype=np.int32) <= room_B1
    chosen_BN |= tied_BN
    ids_BK = np.nonzero(chosen_BN)[1].reshape(len(scores_BN), k)
    order_BK = np.argsort(-np.take_along_axis(scores_BN, ids_BK, axis=1), axis=1, kind="stable")
    return np.take_along_axis(ids_BK, order_BK, axis=1).astype(np.int32)


def _to_numpy(values: Any) -> np.ndarray:
    if hasattr(values, "detach"):
        values = values.detach().cpu().numpy()
    return np.atleast_1d(np.asarray(values))
