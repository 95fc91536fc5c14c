"""Beam search over the catalogue: every beam is a real prefix, every result a real item.

The encoder runs once a history, its keys and values are shared by all beams of the row, the decoder's own are kept
token by token and follow their beams. Equal scores are resolved by item id, so a result depends on nothing but model
and history. `score_catalogue` is the exact answer that beams approach: it walks the whole trie.

Letters: B batch, I items of a history, W beams, Y candidates a row, K codebook size, N items, X excluded items.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from genrec.modules.transformer import KeyValue
from genrec.trie import Candidates, Trie

if TYPE_CHECKING:
    from genrec.models.tiger import Memory, Tiger

CANDIDATES = 2**22
"prefixes that are ranked at once: rows of a batch are taken in turns when they have more"
TOKENS = 4096
"tokens that `score_catalogue` decodes at once"
Past = list[list[KeyValue]]
"for each token so far its keys and values in every layer"


class Beams(NamedTuple):
    """The best items of each history, best first: ids (B, W) and log-probabilities (B, W).

    Where fewer than W items are allowed the rest is id -1 with minus infinity.
    """

    item_BW: Tensor
    score_BW: Tensor


class Frontier(NamedTuple):
    """The beams after a level: scores, the trie's nodes, the nodes' last codes, and the beams they came from."""

    score_BW: Tensor
    node_BW: Tensor
    code_BW: Tensor
    parent_BW: Tensor


@torch.no_grad()
def beam_search(
    model: Tiger,
    trie: Trie,
    history_BI: Tensor,
    beam_size: int,
    exclude_BX: Tensor | None = None,
    user_B: Tensor | None = None,
) -> Beams:
    """The `beam_size` best items for histories (B, I) of equal length; exact when `beam_size` covers the widest level.

    `exclude_BX` names items that a row may not get, padded with -1.
    """
    memory = model.remember(model.encode(history_BI, user_B))
    return search(model, trie, memory, history_BI.shape[0], beam_size, exclude_BX)


@torch.no_grad()
def search(
    model: Tiger, trie: Trie, memory: Memory, batch: int, beam_size: int, exclude_BX: Tensor | None = None
) -> Beams:
    """As `beam_search`, for histories that are encoded already."""
    frontier = leaves(model, trie, memory, batch, beam_size, exclude_BX)
    item_BW, score_BW = trie.item_N[frontier.node_BW].long(), frontier.score_BW
    if not trie.distinct:
        item_BW, score_BW = _items(trie, frontier, beam_size, exclude_BX)
    return Beams(item_BW.masked_fill(score_BW.isneginf(), -1), score_BW)


def leaves(
    model: Tiger, trie: Trie, memory: Memory, batch: int, beam_size: int, exclude_BX: Tensor | None = None
) -> Frontier:
    """The best nodes of the last level. Where items share nodes, as many more as may turn out to be excluded."""
    frontier: Frontier | None = None
    past: Past = []
    last = len(trie.levels) - 1
    if exclude_BX is not None and not trie.distinct:
        beam_size, exclude_BX = beam_size + exclude_BX.shape[1], None
    for level in range(last + 1):
        code_BW = None if frontier is None else frontier.code_BW
        logits_BWK, entries = model.decode_step(code_BW, level, past, memory, batch)
        grown = grow(trie, level, frontier, logits_BWK, beam_size, exclude_BX if level == last else None)
        if level < last:  # nothing follows the last code
            past = [_follow(token, grown.parent_BW) for token in [*past, entries]]
        frontier = grown
    assert frontier is not None
    return frontier


@torch.no_grad()
def unconstrained_beams(
    model: Tiger, history_BI: Tensor, beam_size: int, user_B: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """The best `beam_size` semantic IDs (B, W, C) and their log-probabilities, whether or not an item has them.

    Of equal scores the beam that stood higher comes first, and in it the smaller code.
    """
    batch = history_BI.shape[0]
    memory = model.remember(model.encode(history_BI, user_B))
    score_BW = history_BI.new_zeros((batch, 1), dtype=torch.float32)
    codes_BWC = history_BI.new_zeros(batch, 1, 0)
    past: Past = []
    for level, size in enumerate(model.level_sizes):
        logits_BWK, entries = model.decode_step(codes_BWC[:, :, -1] if level else None, level, past, memory, batch)
        logits_BWK = _at_least_float(logits_BWK)
        score_BY = (logits_BWK + (score_BW - logits_BWK.logsumexp(-1)).unsqueeze(-1)).flatten(1)
        chosen_BW = _best(score_BY, torch.arange(score_BY.shape[1], device=score_BY.device), beam_size)
        score_BW, parent_BW = score_BY.gather(1, chosen_BW), chosen_BW // size
        kept_BWC = codes_BWC.gather(1, parent_BW.unsqueeze(-1).expand(-1, -1, level))
        codes_BWC = torch.cat([kept_BWC, (chosen_BW % size).unsqueeze(-1)], dim=2)
        if level + 1 < len(model.level_sizes):
            past = [_follow(token, parent_BW) for token in [*past, entries]]
    return codes_BWC, score_BW


# ------------------------------------------------------------------ one level


def grow(
    trie: Trie,
    level: int,
    frontier: Frontier | None,
    logits_BWK: Tensor,
    count: int,
    exclude_BX: Tensor | None = None,
) -> Frontier:
    """The best `count` children of the beams, by what the beams had and the codes' log-probabilities."""
    logits_BWK = _at_least_float(logits_BWK)
    if frontier is None:
        node_BW = torch.zeros(len(logits_BWK), 1, dtype=torch.int64, device=logits_BWK.device)
        score_BW = torch.zeros_like(logits_BWK[:, :, 0])
    else:
        node_BW, score_BW = frontier.node_BW, frontier.score_BW
    base_BW = score_BW - logits_BWK.logsumexp(-1)
    rows = max(1, CANDIDATES // trie.most_candidates(level, node_BW.shape[1]))
    parts = []
    for start in range(0, len(node_BW), rows):
        part = slice(start, start + rows)
        candidates = trie.children(level, node_BW[part], score_BW[part] > float("-inf"))
        excluded_BX = None if exclude_BX is None else exclude_BX[part]
        parts.append(_choose(trie, level, candidates, base_BW[part], logits_BWK[part], count, excluded_BX))
    return parts[0] if len(parts) == 1 else _stack(parts)


def _choose(
    trie: Trie,
    level: int,
    candidates: Candidates,
    base_BW: Tensor,
    logits_BWK: Tensor,
    count: int,
    exclude_BX: Tensor | None,
) -> Frontier:
    nodes = trie.levels[level]
    node_BY, parent_BY, allowed_BY = candidates
    code_BY = nodes.code_G[node_BY].long()
    place_BY = parent_BY * logits_BWK.shape[-1] + code_BY
    score_BY = base_BW.gather(1, parent_BY) + logits_BWK.flatten(1).gather(1, place_BY)
    score_BY = score_BY.masked_fill_(~allowed_BY, float("-inf"))
    tie_BY = nodes.first_item_G[node_BY]
    if exclude_BX is not None:  # node and item are the same thing here
        score_BY = score_BY.masked_fill_(_among(tie_BY, exclude_BX), float("-inf"))
    chosen_BW = _best(score_BY, tie_BY, count)
    return Frontier(*(part.gather(1, chosen_BW) for part in (score_BY, node_BY, code_BY, parent_BY)))


def _stack(parts: list[Frontier]) -> Frontier:
    """Rows of several frontiers; the narrower get dead beams."""
    width = max(part.score_BW.shape[1] for part in parts)
    columns = zip(zip(*parts, strict=True), (float("-inf"), 0, 0, 0), strict=True)
    padded = ([F.pad(part, (0, width - part.shape[1]), value=fill) for part in column] for column, fill in columns)
    return Frontier(*(torch.cat(column) for column in padded))


def _items(trie: Trie, frontier: Frontier, count: int, exclude_BX: Tensor | None) -> tuple[Tensor, Tensor]:
    """The best `count` items (B, W) below leaves that several items may share, and their scores."""
    score_BW, node_BW = frontier.score_BW, frontier.node_BW
    at_most = count + (0 if exclude_BX is None else exclude_BX.shape[1])
    place_BY, parent_BY, allowed_BY = trie.items(node_BW, score_BW > float("-inf"), at_most)
    item_BY = trie.item_N[place_BY].long()
    score_BY = score_BW.gather(1, parent_BY).masked_fill(~allowed_BY, float("-inf"))
    if exclude_BX is not None:
        score_BY = score_BY.masked_fill_(_among(item_BY, exclude_BX), float("-inf"))
    chosen_BW = _best(score_BY, item_BY, count)
    return item_BY.gather(1, chosen_BW), score_BY.gather(1, chosen_BW)


def _among(item_BY: Tensor, exclude_BX: Tensor) -> Tensor:
    """Which items are excluded in their row."""
    sorted_BX = exclude_BX.to(item_BY.dtype).sort(1).values
    place_BY = torch.searchsorted(sorted_BX, item_BY).clamp_(max=sorted_BX.shape[1] - 1)
    return sorted_BX.gather(1, place_BY) == item_BY


def _best(score_BY: Tensor, tie_BY: Tensor, count: int) -> Tensor:
    """Indices of the best `count` candidates; of equal scores the smaller `tie` first.

    Float order is kept by reading the bits as a signed integer (negative floats reversed), which leaves the lower half
    of an int64 for the tie. A stable sort would do the same and is several times slower than one top-k.
    """
    bits = (score_BY.float() + 0.0).view(torch.int32)  # -0.0 becomes 0.0
    ordered = torch.where(bits < 0, bits ^ 0x7FFFFFFF, bits).long()
    key_BY = (ordered << 32) | (0x7FFFFFFF - tie_BY)
    return key_BY.topk(min(count, key_BY.shape[1]), dim=1).indices


def _follow(token: list[KeyValue], parent_BW: Tensor) -> list[KeyValue]:
    """A token's keys and values for the beams that are left; what all beams of a row share stays as it is."""
    return [_select(entry, parent_BW) for entry in token] if token[0].key.shape[1] > 1 else token


def _select(entry: KeyValue, parent_BW: Tensor) -> KeyValue:
    rows = torch.arange(len(parent_BW), device=parent_BW.device).unsqueeze(1) * entry.key.shape[1]
    index = (rows + parent_BW).flatten()
    return KeyValue(*(part.flatten(0, 1)[index].unflatten(0, parent_BW.shape) for part in entry))


def _at_least_float(logits: Tensor) -> Tensor:
    """Half precision would make different scores equal."""
    return logits if logits.dtype == torch.float64 else logits.float()


# --------------------------------------------------------------- whole catalogue


@torch.no_grad()
def score_catalogue(model: Tiger, trie: Trie, history_BI: Tensor, user_B: Tensor | None = None) -> Tensor:
    """The log-probability (B, N) of every item, exact.

    The trie is walked in depth, some thousand prefixes at a time, so memory is that of the answer and a few of those.
    """
    memory = model.remember(model.encode(history_BI, user_B))
    walk = _Walk(model, trie, memory, history_BI.shape[0])
    start_B1 = torch.zeros(walk.batch, 1, dtype=model.output_projection.weight.dtype, device=history_BI.device)
    walk.descend(0, 0, start_B1, None, [])
    return walk.leaf_score_BG[:, trie.leaf_N]


class _Walk:
    """All that stays the same while `score_catalogue` goes through the trie, and the scores of the leaves it passed."""

    def __init__(self, model: Tiger, trie: Trie, memory: Memory, batch: int):
        self.model, self.trie, self.memory, self.batch = model, trie, memory, batch
        self.at_once = max(1, TOKENS // batch)
        weight = model.output_projection.weight
        shape = (batch, len(trie.levels[-1].code_G))
        self.leaf_score_BG = torch.empty(shape, dtype=_at_least_float(weight[:0]).dtype, device=weight.device)

    def descend(self, level: int, first: int, score_BP: Tensor, code_BP: Tensor | None, past: Past) -> None:
        """Score all below P neighbouring nodes of the level above, of which `first` is the first."""
        logits_BPK, entries = self.model.decode_step(code_BP, level, past, self.memory, self.batch)
        logp_BPK = _at_least_float(logits_BPK).log_softmax(-1) + score_BP.unsqueeze(-1)
        node_Y, parent_Y = self.trie.child_range(level, first, first + score_BP.shape[1])
        code_Y = self.trie.levels[level].code_G[node_Y].long()
        score_BY = logp_BPK[:, parent_Y, code_Y]
        if level + 1 == len(self.trie.levels):
            self.leaf_score_BG[:, node_Y] = score_BY
            return
        for start in range(0, len(node_Y), self.at_once):
            part = slice(start, start + self.at_once)
            parent_BY = parent_Y[part].expand(self.batch, -1)
            grown = [_follow(token, parent_BY) for token in [*past, entries]]
            code_BY = code_Y[part].expand(self.batch, -1)
            self.descend(level + 1, int(node_Y[start]), score_BY[:, part], code_BY, grown)
