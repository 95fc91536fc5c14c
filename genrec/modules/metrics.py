"""Recall@K, NDCG@K, MRR@K for a single target, as sums and counts, and coverage@K, as a union of items.

Sums and counts of any batches add up to those of all users, so the last short batch weighs what it should and the ranks
of a distributed job are added up; what they listed is united. Equal scores are ordered by item id everywhere. Values
may be NumPy or torch.

Shape letters: B users, N items, C codes an item, K length of the list that is shown, W beams.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from genrec.errors import InputError
from genrec.ranks import sum_over_ranks, union_over_ranks
from genrec.trie import Trie

BEAM = 20
"beams that `TopKAccumulator.evaluate` takes at least"

PLACE_METRICS = ("recall", "ndcg", "mrr")
"what the place of the target tells"


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

    def over_ranks(self, names: Sequence[str]) -> MetricSums:
        """The sums of all ranks. Every rank must call it with the same names, also one that measured nobody."""
        *sums, count = sum_over_ranks([*(self.sums.get(name, 0.0) for name in names), self.count])
        return MetricSums(dict(zip(names, sums, strict=True)), int(count))

    def result(self) -> dict[str, float]:
        """Means over all users."""
        if not self.count:
            raise ValueError("no users were measured")
        return {name: total / self.count for name, total in self.sums.items()}


class Coverage:
    """Share of a catalogue of `num_items` that stands among the first K of at least one list."""

    def __init__(self, ks: Sequence[int], num_items: int):
        self.ks = list(ks)
        self.listed_KN = np.zeros((len(self.ks), num_items), dtype=np.uint8)

    def add(self, items_BW: Any) -> Coverage:
        """Count the lists of more users, best item first; what is below 0 is no item."""
        items_BW = _to_numpy(items_BW)
        for row, k in enumerate(self.ks):
            shown = items_BW[:, :k]
            self.listed_KN[row, shown[shown >= 0]] = 1
        return self

    def result(self) -> dict[str, float]:
        """`coverage@k` over the lists of all ranks; every rank must call it."""
        share = union_over_ranks(self.listed_KN).mean(axis=1)
        return {f"coverage@{k}": float(value) for k, value in zip(self.ks, share, strict=True)}


def place_metric_names(ks: Iterable[int]) -> list[str]:
    """Names of what `ranking_metrics` sums."""
    return [f"{name}@{k}" for k in ks for name in PLACE_METRICS]


def ranking_metrics(rank_B: Any, ks: Sequence[int], list_length: int) -> MetricSums:
    """Sums of `recall@K`, `ndcg@K` and `mrr@K` over a batch.

    Args:
        rank_B: (B,) 0-based place of the target in the list, negative when it is not there; NumPy or torch.
        ks: cut-offs. Each must be in 1..list_length: a shorter list cannot tell.
        list_length: number of items in each user's list.
    """
    if any(k < 1 or k > list_length for k in ks):
        raise ValueError(f"every K must be in 1..{list_length}, the length of the list, got {list(ks)}")
    rank_B = _to_numpy(rank_B)
    rank_B = np.where(rank_B < 0, list_length, rank_B)
    gain_B, inverse_B = 1.0 / np.log2(rank_B + 2.0), 1.0 / (rank_B + 1.0)
    sums: dict[str, float] = {}
    for k in ks:
        hit_B = rank_B < k
        sums[f"recall@{k}"] = float(hit_B.sum())
        sums[f"ndcg@{k}"] = math.fsum(gain_B[hit_B])
        sums[f"mrr@{k}"] = math.fsum(inverse_B[hit_B])
    return MetricSums(sums, len(rank_B))


def ranks_in_lists(items_BK: np.ndarray, target_B: np.ndarray) -> np.ndarray:
    """(B,) 0-based place of the target in each user's list, -1 when it is not there."""
    return _first(items_BK == np.asarray(target_B)[:, None])


class TopKAccumulator:
    """Counts hits batch by batch, or over a data loader: `TopKAccumulator(k=[5, 10, 20]).evaluate(model, loader)`.

    Items are given by number, or by their semantic IDs, whose results bear the name `tuple_recall@k`: two items that
    share an ID are not told apart.
    """

    def __init__(self, k: Sequence[int] = (5, 10, 20), num_items: int | None = None):
        """`num_items`: size of the catalogue, for coverage; `evaluate` takes it from the model."""
        self.ks, self.num_items = list(k), num_items
        self.reset()

    def reset(self) -> None:
        """Forget everything counted so far."""
        self.sums: dict[str, MetricSums] = {"": MetricSums(), "tuple_": MetricSums()}
        self.coverage = Coverage(self.ks, self.num_items) if self.num_items else None

    def accumulate(self, actual: Any, top_k: Any) -> None:
        """Count the lists of some users.

        Args:
            actual: the items that were wanted, (B,) numbers or (B, C) semantic IDs. Below 0 is padding: not counted.
            top_k: what was listed, best first: (B, W), or (B, W, C). Lists shorter than the largest K are an error.
        """
        actual, top_k = _to_numpy(actual), _to_numpy(top_k)
        if top_k.ndim != actual.ndim + 1 or top_k.shape[:1] + top_k.shape[2:] != actual.shape:
            raise ValueError(f"lists must be (B, W) or (B, W, C) for targets {actual.shape}, got {top_k.shape}")
        real_B = _is_real(actual)
        actual, top_k = actual[real_B], top_k[real_B]
        if actual.ndim == 1:
            self._count("", top_k == actual[:, None], top_k)
        else:
            self._count("tuple_", (top_k == actual[:, None]).all(axis=2), None)

    def _count(self, prefix: str, match_BW: np.ndarray, items_BW: np.ndarray | None) -> None:
        self.sums[prefix].merge(ranking_metrics(_first(match_BW), self.ks, match_BW.shape[1]))
        if self.coverage is not None and items_BW is not None:
            self.coverage.add(items_BW)

    def reduce(self) -> dict[str, float]:
        """`recall@k`, `ndcg@k`, `mrr@k`, where it is known `coverage@k`, and `users`, over all ranks."""
        names, users, result = place_metric_names(self.ks), 0, dict[str, float]()
        for prefix, sums in self.sums.items():
            total = sums.over_ranks(names)
            if total.count:
                result |= {f"{prefix}{name}": value for name, value in total.result().items()}
                users = max(users, total.count)
        if not users:
            raise ValueError("no users were counted: accumulate at least one target that is not padding")
        if self.coverage is not None:
            result |= self.coverage.result()
        return result | {"users": users}

    def evaluate(self, model: Any, dataloader: Iterable[Any], beam_size: int | None = None) -> dict[str, float]:
        """What `reduce` returns, of a TIGER on all batches of a loader. Forgets what was counted before.

        A batch is (histories, targets, users) or a dict of `history`, `target` and `user`. Users are read for a model
        with user tokens alone: their ids, or indices into `dataloader.dataset.interactions.users`. Histories are item
        numbers (B, I) or semantic IDs (B, I, C), targets the like without I, all padded with -1. A target's semantic ID
        stands for its item where no other item has it; else the numbers are `tuple_recall@k` and so on.

        Args:
            beam_size: at least the largest K, else an error; 20 or the largest K when None.
        """
        beam_size = max(*self.ks, BEAM) if beam_size is None else beam_size
        if max(self.ks) > beam_size:
            raise InputError(f"k ({max(self.ks)}) must be at most the beam_size ({beam_size})")
        model = getattr(model, "module", model)  # the model inside a DistributedDataParallel
        was_training = model.training
        model.eval()
        trie = Trie(model.codes_NC)
        self.num_items = len(model.codes_NC)
        self.reset()
        for batch in dataloader:
            history, target, users = _parts(batch)
            if not len(target):
                continue
            users = _user_ids(users, dataloader) if model.config.num_user_embeddings else None
            found = model.generate_with_trie(
                history, trie=trie, max_length=beam_size, users=users, items=history.ndim == 2
            )
            items_BW = _to_numpy(found.item_BW)
            if target.ndim == 1:
                self._count("", items_BW == target[:, None], items_BW)
            else:
                match_BW = (_to_numpy(found.semantic_ids_BWC) == target[:, None]).all(axis=2)
                self._count("" if trie.distinct else "tuple_", match_BW, items_BW)
        model.train(was_training)
        return self.reduce()


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


def _first(match_BW: np.ndarray) -> np.ndarray:
    """(B,) index of the first true value, -1 where there is none."""
    return np.where(match_BW.any(axis=1), match_BW.argmax(axis=1), -1)


def _is_real(target: np.ndarray) -> np.ndarray:
    """(B,) which targets are not padding."""
    return np.asarray((target >= 0).reshape(len(target), -1).all(axis=1))


def _parts(batch: Any) -> tuple[Any, np.ndarray, list[Any] | None]:
    """Histories, targets and users of those rows of a batch that are not padding."""
    if isinstance(batch, Mapping):
        missing = [key for key in ("history", "target") if key not in batch]
        if missing:
            raise InputError(f"a batch must have history and target; {missing[0]} is not among {sorted(batch)}")
        history, target, users = batch["history"], batch["target"], batch.get("user")
    else:
        history, target, users = (*batch, None)[:3]
    target = _to_numpy(target)
    real_B = _is_real(target)
    kept_users = None if users is None else [user for user, real in zip(users, real_B.tolist(), strict=True) if real]
    return history[real_B], target[real_B], kept_users


def _user_ids(users: list[Any] | None, dataloader: Any) -> list[str]:
    if users is None:
        raise InputError("the model has user tokens: its batches must have users")
    if all(isinstance(user, str) for user in users):
        return users
    interactions = getattr(getattr(dataloader, "dataset", None), "interactions", None)
    if interactions is None:
        raise InputError(f"users must be ids, or indices into dataloader.dataset.interactions.users, got {users[0]!r}")
    return [interactions.users[int(user)] for user in users]


def _to_numpy(values: Any) -> np.ndarray:
    if hasattr(values, "detach"):
        values = values.detach().cpu().numpy()
    return np.atleast_1d(np.asarray(values))
