"""Model, semantic IDs and a split -> item-level metrics over all users asked for.

A hit is a hit on the item. The same list read as semantic-ID tuples (the tokenizer's levels, without the collision
code) gives the tuple-level numbers that papers print; they stand beside, under the name `tuple_recall@k`. Users are
spread over the ranks of a process group and sums are reduced, so every user counts exactly once.

Letters: B users, I items of a history, W beams, L levels of the tokenizer.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from genrec.config import EvaluationConfig
from genrec.data.interactions import Interactions, Split
from genrec.decoding import Beams, beam_search
from genrec.models.tiger import Tiger
from genrec.modules.metrics import MetricSums, ranking_metrics
from genrec.trie import Trie


def sample_users(num_users: int, max_users: int | None) -> np.ndarray:
    """`max_users` users, sorted, the same for every model and seed; all users when it is None or not less."""
    if max_users is None or max_users >= num_users:
        return np.arange(num_users)
    return np.sort(np.random.default_rng(0).permutation(num_users)[:max_users])


def evaluate(
    model: Tiger,
    trie: Trie,
    interactions: Interactions,
    split: Split,
    config: EvaluationConfig,
    tuple_levels: int,
    users: np.ndarray | None = None,
) -> dict[str, float]:
    """`recall@k`, `ndcg@k` and their `tuple_` forms for each k, and `users`, how many were counted."""
    was_training = model.training
    model.eval()
    users = np.arange(len(interactions)) if users is None else users
    rank, world = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    item, tuples = MetricSums(), MetricSums()
    targets = torch.from_numpy(interactions.targets(split).astype(np.int64))
    for batch in history_batches(interactions, split, users[rank::world], model.config.max_seq_len, config.batch_size):
        history_BI = batch.history_BI.to(trie.item_N.device)
        seen_BX = batch.seen(interactions, split).to(history_BI.device) if config.seen == "exclude" else None
        beams = beam_search(model, trie, history_BI, config.beam_size, seen_BX)
        target_B = targets[batch.users].to(history_BI.device)
        tuple_rank_B = _rank_of_tuple(beams, target_B, model.codes_NC[:, :tuple_levels])
        item.merge(ranking_metrics(_rank_of_item(beams, target_B), config.ks, config.beam_size))
        tuples.merge(ranking_metrics(tuple_rank_B, config.ks, config.beam_size))
    model.train(was_training)
    item, tuples = _reduce(item, config.ks), _reduce(tuples, config.ks)
    result = item.result()
    return result | {f"tuple_{name}": value for name, value in tuples.result().items()} | {"users": item.count}


class UserBatch:
    """Users whose histories are equally long, and those histories (B, I)."""

    def __init__(self, users: np.ndarray, history_BI: Tensor):
        self.users = torch.from_numpy(users)
        self.history_BI = history_BI

    def seen(self, interactions: Interactions, split: Split) -> Tensor:
        """All items of the users' histories before the cut, padded with -1 (B, X)."""
        ends = interactions.history_ends(split)[self.users.numpy()]
        starts = interactions.offsets[self.users.numpy()]
        rows = [torch.from_numpy(interactions.items[a:b].astype(np.int64)) for a, b in zip(starts, ends, strict=True)]
        return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=-1)


def history_batches(
    interactions: Interactions, split: Split, users: np.ndarray, max_items: int, batch_size: int
) -> Iterator[UserBatch]:
    """Histories of `users` before the split's target, cut to the last `max_items`, grouped by exact length."""
    ends = interactions.history_ends(split)[users]
    lengths = np.minimum(ends - interactions.offsets[users], max_items)
    flat = torch.from_numpy(interactions.items.astype(np.int64))
    for length in np.unique(lengths):
        if length < 1:
            continue
        group = np.flatnonzero(lengths == length)
        for start in range(0, len(group), batch_size):
            chunk = group[start : start + batch_size]
            index = torch.from_numpy(ends[chunk] - length)[:, None] + torch.arange(int(length))
            yield UserBatch(users[chunk], flat[index])


def _rank_of_item(beams: Beams, target_B: Tensor) -> Tensor:
    """0-based place of the target in the list, -1 where it is missing."""
    return _first(beams.item_BW == target_B.unsqueeze(1))


def _rank_of_tuple(beams: Beams, target_B: Tensor, tuple_NL: Tensor) -> Tensor:
    """Place of the first item with the target's tuple, counting each different tuple before it once."""
    listed_BWL = tuple_NL[beams.item_BW.clamp(min=0)]
    place_B = _first((listed_BWL == tuple_NL[target_B].unsqueeze(1)).all(-1) & (beams.item_BW >= 0))
    same_BWW = (listed_BWL.unsqueeze(2) == listed_BWL.unsqueeze(1)).all(-1)
    repeated_BW = same_BWW.tril(diagonal=-1).any(-1)
    before_BW = torch.arange(listed_BWL.shape[1], device=place_B.device) < place_B.unsqueeze(1)
    return torch.where(place_B < 0, place_B, (before_BW & ~repeated_BW).sum(1))


def _first(match_BW: Tensor) -> Tensor:
    place_B = match_BW.int().argmax(1)
    return torch.where(match_BW.any(1), place_B, torch.full_like(place_B, -1))


def _reduce(sums: MetricSums, ks: list[int]) -> MetricSums:
    """Sums over all ranks; a rank without users brings zeros."""
    if not dist.is_initialized():
        return sums
    names = [f"{name}@{k}" for name in ("recall", "ndcg") for k in ks]
    device = "cuda" if dist.get_backend() == "nccl" else "cpu"  # NCCL cannot add up numbers on the CPU
    values = [sums.sums.get(name, 0.0) for name in names] + [sums.count]
    flat = torch.tensor(values, dtype=torch.float64, device=device)
    dist.all_reduce(flat)
    return MetricSums(dict(zip(names, flat[:-1].tolist(), strict=True)), int(flat[-1]))
