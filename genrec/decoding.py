"""Beam search over the catalogue: every beam is a real prefix, every result a real item.

The encoder runs once a history, its keys and values are shared by all beams of the row, the decoder's own are cached.
Equal scores are resolved by item id, so a result depends on nothing but model and history.

Letters: B batch, I items of a history, W beams, M children, K codebook size, N items, X excluded items.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from genrec.models.tiger import Tiger
from genrec.modules.transformer import KeyValue
from genrec.trie import Trie


class Beams(NamedTuple):
    """The best items of each history, best first: ids (B, W) and log-probabilities (B, W).

    Where fewer than W items are allowed the rest is id -1 with minus infinity.
    """

    item_BW: Tensor
    score_BW: Tensor


@torch.inference_mode()
def beam_search(
    model: Tiger, trie: Trie, history_BI: Tensor, beam_size: int, exclude_BX: Tensor | None = None
) -> Beams:
    """The `beam_size` best items for histories (B, I) of equal length; exact when `beam_size` covers the widest level.

    `exclude_BX` names items that a row may not get, padded with -1.
    """
    batch = history_BI.shape[0]
    memory = model.remember(model.encode(history_BI))
    score_BW = memory.layers[0].key_BHSA.new_zeros(batch, 1)
    node_BW: Tensor | None = None
    code_BW: Tensor | None = None
    past: list[KeyValue] | None = None
    last = len(trie.levels) - 1
    for level in range(last + 1):
        logp_BWK, past = model.decode_step(code_BW, level, past, memory, batch)
        children = trie.children(level, node_BW, tuple(score_BW.shape))
        score_BWM = score_BW.unsqueeze(-1) + logp_BWK.gather(-1, children.code_PM)
        score_BWM = score_BWM.masked_fill(~children.allowed_PM, float("-inf"))
        if level == last and exclude_BX is not None:
            score_BWM = _forbid(score_BWM, trie.item_N[children.node_PM], exclude_BX)
        tie_BWM = trie.levels[level].first_item_G[children.node_PM]
        chosen_BV = _best(score_BWM.flatten(1), tie_BWM.flatten(1), beam_size)
        score_BW = score_BWM.flatten(1).gather(1, chosen_BV)
        node_BW = children.node_PM.flatten(1).gather(1, chosen_BV)
        code_BW = children.code_PM.flatten(1).gather(1, chosen_BV)
        past = _follow(past, chosen_BV // children.node_PM.shape[-1], children.node_PM.shape[1])
    assert node_BW is not None
    return Beams(trie.item_N[node_BW].masked_fill(score_BW.isneginf(), -1), score_BW)


def _forbid(score_BWM: Tensor, item_BWM: Tensor, exclude_BX: Tensor) -> Tensor:
    seen_BWM = (item_BWM.unsqueeze(-1) == exclude_BX[:, None, None, :]).any(-1)
    return score_BWM.masked_fill(seen_BWM, float("-inf"))


def _best(score_BX: Tensor, tie_BX: Tensor, count: int) -> Tensor:
    """Indices of the best `count` candidates; of equal scores the smaller `tie` first.

    Float order is kept by reading the bits as a signed integer (negative floats reversed), which leaves the lower half
    of an int64 for the tie. A stable sort would do the same and is several times slower than one top-k.
    """
    bits = (score_BX.float() + 0.0).view(torch.int32)  # -0.0 becomes 0.0
    ordered = torch.where(bits < 0, bits ^ 0x7FFFFFFF, bits).long()
    key_BX = (ordered << 32) | (0x7FFFFFFF - tie_BX)
    return key_BX.topk(min(count, key_BX.shape[1]), dim=1).indices


def _follow(past: list[KeyValue], parent_BV: Tensor, beams: int) -> list[KeyValue]:
    """Cached keys and values of the chosen parents."""
    rows = torch.arange(parent_BV.shape[0], device=parent_BV.device).unsqueeze(1) * beams
    index = (rows + parent_BV).flatten()
    return [KeyValue(kv.key_BHSA[index], kv.value_BHSA[index]) for kv in past]
