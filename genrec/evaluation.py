"""Model, semantic IDs and a split -> item-level metrics over all users asked for; and TIGER as a ranker.

A hit is a hit on the item. The same list read as semantic-ID tuples (the tokenizer's levels, without the collision
code) gives the tuple-level numbers that papers print; they stand beside, under the name `tuple_recall@k`. Users are
spread over the ranks of a process group and sums are reduced, so every user counts exactly once. Histories are batched
by exact length: there is no padding to be counted.

Letters: B users, I items of a history, W beams, L levels of the tokenizer, C codes an item, N items, X items seen.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np
import torch
from scipy import sparse
from torch import Tensor

from genrec.config import EvaluationConfig
from genrec.data.interactions import Histories, Interactions, Split
from genrec.decoding import Beams, beam_search, score_catalogue, unconstrained_beams
from genrec.errors import InputError
from genrec.models.tiger import Tiger, Window
from genrec.modules.embeddings import user_buckets
from genrec.modules.metrics import Coverage, MetricSums, place_metric_names, ranking_metrics
from genrec.ranking import KnownLists, Seen
from genrec.ranks import rank_and_world
from genrec.trie import Trie


def sample_users(users: np.ndarray, max_users: int | None) -> np.ndarray:
    """`max_users` of the users, sorted, the same for every model and seed; all when it is None or not less."""
    if max_users is None or max_users >= len(users):
        return users
    return np.sort(np.random.default_rng(0).permutation(users)[:max_users])


def evaluate(
    model: Tiger,
    trie: Trie,
    interactions: Interactions,
    split: Split,
    config: EvaluationConfig,
    tuple_levels: int,
    users: np.ndarray | None = None,
    known: KnownLists | None = None,
) -> dict[str, float]:
    """`recall@k`, `ndcg@k`, `mrr@k` and their `tuple_` forms, `coverage@k`, and `users`, how many were counted.

    On the validation split also `validation_loss`, the mean cross-entropy of a target's codes. `users` are indices; all
    that have a target in `split` when None. The lists go to `known`, those of this rank's users.
    """
    item, tuples, loss = MetricSums(), MetricSums(), MetricSums()
    coverage = Coverage(config.ks, len(model.codes_NC))
    users = interactions.users_of(split) if users is None else users
    with _evaluating(model):
        for batch in split_batches(model, interactions, split, _of_this_rank(users), config.batch_size, config.seen):
            beams = beam_search(model, trie, batch.history_BI, config.beam_size, batch.seen_BX, batch.user_B)
            tuple_rank_B = _rank_of_tuple(beams, batch.target_B, model.codes_NC[:, :tuple_levels])
            item.merge(ranking_metrics(_rank_of_item(beams, batch.target_B), config.ks, config.beam_size))
            tuples.merge(ranking_metrics(tuple_rank_B, config.ks, config.beam_size))
            coverage.add(beams.item_BW)
            if known is not None:
                known.add(batch.users, beams.item_BW.cpu().numpy(), _probabilities(beams))
            if split == "validation":
                loss.add({"validation_loss": target_loss(model, batch)}, len(batch.target_B))
    names = place_metric_names(config.ks)
    item, tuples = item.over_ranks(names), tuples.over_ranks(names)
    result = item.result()
    result |= {f"tuple_{name}": value for name, value in tuples.result().items()} | coverage.result()
    if split == "validation":
        result |= loss.over_ranks(["validation_loss"]).result()
    return result | {"users": item.count}


def invalid_id_rate(
    model: Tiger, interactions: Interactions, split: Split, config: EvaluationConfig, users: np.ndarray | None = None
) -> dict[str, float]:
    """`invalid_id_rate@k`: the share of the first k semantic IDs that no item has, when decoding is unconstrained."""
    sums, names = MetricSums(), [f"invalid_id_rate@{k}" for k in config.ks]
    users = interactions.users_of(split) if users is None else users
    with _evaluating(model):
        for batch in split_batches(model, interactions, split, _of_this_rank(users), config.batch_size):
            codes_BWC, _ = unconstrained_beams(model, batch.history_BI, config.beam_size, batch.user_B)
            invalid_BW = ~_is_known(codes_BWC, model.codes_NC)
            shares = [invalid_BW[:, :k].double().mean(1).sum() for k in config.ks]
            sums.add(dict(zip(names, shares, strict=True)), len(invalid_BW))
    return sums.over_ranks(names).result()


def agreement(
    model: Tiger,
    trie: Trie,
    interactions: Interactions,
    split: Split,
    config: EvaluationConfig,
    users: np.ndarray | None = None,
) -> dict[str, float]:
    """`beam_agreement@k`: the share of the k best items of the whole catalogue that the beam's first k hold.

    1 where the beam loses nothing. Every item of the catalogue is scored: some dozens of users tell enough.
    """
    sums, names = MetricSums(), [f"beam_agreement@{k}" for k in config.ks]
    users = interactions.users_of(split) if users is None else users
    with _evaluating(model):
        for batch in split_batches(model, interactions, split, _of_this_rank(users), config.batch_size):
            listed_BW = beam_search(model, trie, batch.history_BI, config.beam_size, None, batch.user_B).item_BW
            # A stable sort: equal scores by item id, as the beam has them.
            scores_BN = score_catalogue(model, trie, batch.history_BI, batch.user_B)
            best_BN = scores_BN.sort(dim=1, descending=True, stable=True).indices
            found = [(best_BN[:, :k, None] == listed_BW[:, None, :k]).any(2).double().mean(1).sum() for k in config.ks]
            sums.add(dict(zip(names, found, strict=True)), len(listed_BW))
    return sums.over_ranks(names).result()


def target_loss(model: Tiger, batch: SplitBatch) -> float:
    """Cross-entropy of the targets' codes without label smoothing: mean over the codes, sum over the users."""
    items_BL = torch.cat([batch.history_BI, batch.target_B.unsqueeze(1)], dim=1)
    with torch.inference_mode():
        return float(model.loss(Window(items_BL, batch.history_BI.shape[1], batch.user_B), 0.0))


class BeamRanker:
    """TIGER as a ranker (`genrec.ranking`): the probabilities of the items that its beams end in."""

    def __init__(self, model: Tiger, trie: Trie, beam_size: int, *, batch_size: int = 256, room_for_seen: bool = False):
        """Items left out as seen take places in the beam; with `room_for_seen` it is so much wider."""
        self.model, self.trie = model.eval(), trie
        self.beam_size, self.batch_size, self.room_for_seen = beam_size, batch_size, room_for_seen

    def scores(
        self, histories: Histories, k: int, seen: Seen = "keep", users: Sequence[str] | None = None
    ) -> sparse.csr_array:
        """See `Ranker`. A list longer than the beam is an error."""
        if k > self.beam_size:
            raise InputError(f"a list of {k} items needs a beam at least as wide, got beam_size {self.beam_size}")
        rows, items, values = [np.empty(0, np.int64)], [np.empty(0, np.int64)], [np.empty(0)]
        for batch in self._batches(histories, seen):
            user_B = _buckets(self.model, [users[row] for row in batch.row_B]) if users is not None else None
            beam_size = self.beam_size + batch.room
            beams = beam_search(self.model, self.trie, batch.history_BI, beam_size, batch.seen_BX, user_B)
            found = (beams.item_BW >= 0).cpu().numpy()
            rows.append(np.broadcast_to(batch.row_B[:, None], found.shape)[found])
            items.append(beams.item_BW.cpu().numpy()[found])
            values.append(_probabilities(beams)[found])
        shape = (len(histories), len(self.model.codes_NC))
        entries = (np.concatenate(values), (np.concatenate(rows), np.concatenate(items)))
        return sparse.csr_array(entries, shape=shape)

    def _batches(self, histories: Histories, seen: Seen) -> Iterator[HistoryBatch]:
        device, max_items = self.model.codes_NC.device, self.model.config.max_seq_len
        room_B = np.zeros(len(histories), dtype=np.int64)
        if seen == "exclude" and self.room_for_seen:
            room_B = histories.ends - histories.starts
        for room in np.unique(room_B):  # alike in room too, so that a list does not depend on its companions
            group = np.flatnonzero(room_B == room)
            for row_B, history_BI in equal_length_batches(histories.take(group), max_items, self.batch_size):
                part = group[row_B]
                seen_BX = seen_items(histories.take(part)).to(device) if seen == "exclude" else None
                yield HistoryBatch(part, history_BI.to(device), seen_BX, int(room))


class HistoryBatch(NamedTuple):
    """Equally long histories (B, I), which rows they are, the items they may not get (B, X), and extra beams."""

    row_B: np.ndarray
    history_BI: Tensor
    seen_BX: Tensor | None
    room: int


class SplitBatch(NamedTuple):
    """Users with equally long histories (B, I), their targets, the items they may not get (B, X), and their buckets."""

    users: np.ndarray
    history_BI: Tensor
    target_B: Tensor
    seen_BX: Tensor | None
    user_B: Tensor | None


def split_batches(
    model: Tiger, interactions: Interactions, split: Split, users: np.ndarray, batch_size: int, seen: Seen = "keep"
) -> Iterator[SplitBatch]:
    """Histories of `users` before the split's target, cut to what the model reads, grouped by exact length.

    With `seen="exclude"` the items of each whole history come with them.
    """
    histories, targets = interactions.histories(split).take(users), interactions.targets(split)[users]
    device = model.codes_NC.device
    for row_B, history_BI in equal_length_batches(histories, model.config.max_seq_len, batch_size):
        target_B = torch.from_numpy(targets[row_B].astype(np.int64)).to(device)
        names = [interactions.users[user] for user in users[row_B].tolist()]
        seen_BX = seen_items(histories.take(row_B)).to(device) if seen == "exclude" else None
        yield SplitBatch(users[row_B], history_BI.to(device), target_B, seen_BX, _buckets(model, names))


def equal_length_batches(histories: Histories, max_items: int, batch_size: int) -> Iterator[tuple[np.ndarray, Tensor]]:
    """Rows (B,) and their last `max_items` items (B, I), grouped by exact length; empty histories are left out."""
    lengths = np.minimum(histories.ends - histories.starts, max_items)
    for length in np.unique(lengths[lengths > 0]).tolist():
        group = np.flatnonzero(lengths == length)
        for start in range(0, len(group), batch_size):
            row_B = group[start : start + batch_size]
            index_BI = histories.ends[row_B, None] - length + np.arange(length)
            yield row_B, torch.from_numpy(histories.items[index_BI].astype(np.int64))


def seen_items(histories: Histories) -> Tensor:
    """All items of each whole history, padded with -1 (B, X)."""
    offsets, items, _ = histories.recent()
    lengths = np.diff(offsets)
    seen_BX = np.full((len(lengths), int(lengths.max(initial=0))), -1, dtype=np.int64)
    seen_BX[np.arange(seen_BX.shape[1]) < lengths[:, None]] = items
    return torch.from_numpy(seen_BX)


@contextmanager
def _evaluating(model: Tiger) -> Iterator[None]:
    """Without dropout; afterwards the model is in the mode that it was in."""
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)


def _of_this_rank(users: np.ndarray) -> np.ndarray:
    rank, world = rank_and_world()
    return users[rank::world]


def _buckets(model: Tiger, users: Sequence[str]) -> Tensor | None:
    """Buckets (B,) of the users' ids; None for a model without user tokens."""
    num_buckets = model.config.num_user_embeddings
    return user_buckets(users, num_buckets).to(model.codes_NC.device) if num_buckets else None


def _probabilities(beams: Beams) -> np.ndarray:
    """(B, W) in float64, so that different log-probabilities stay different."""
    return beams.score_BW.double().exp().cpu().numpy()


def _is_known(codes_BWC: Tensor, codes_NC: Tensor) -> Tensor:
    """(B, W) whether some item has this semantic ID: prefixes are numbered level by level, so no number overflows."""
    known_BW = torch.ones_like(codes_BWC[..., 0], dtype=torch.bool)
    prefix_BW, prefix_N = torch.zeros_like(codes_BWC[..., 0]), torch.zeros_like(codes_NC[:, 0])
    size = int(max(codes_BWC.max(), codes_NC.max())) + 1
    for level in range(codes_NC.shape[1]):
        key_G, prefix_N = torch.unique(prefix_N * size + codes_NC[:, level], return_inverse=True)
        key_BW = prefix_BW * size + codes_BWC[..., level]
        prefix_BW = torch.searchsorted(key_G, key_BW).clamp(max=len(key_G) - 1)
        known_BW &= key_G[prefix_BW] == key_BW
    return known_BW


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
