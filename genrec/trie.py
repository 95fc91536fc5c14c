"""The catalogue as flat tensors: which codes may follow a prefix of a semantic ID.

Items are sorted by their codes; a node is a distinct prefix. The children of a node are a contiguous run of the next
level's nodes, so beams are constrained by gathers and there is no object per node. After the idea of a static index
(Su et al. 2025, "static constraint decoding"). Everything is kept as int32: a million items take less than 10 MB.

Letters: N items, C codes an item, G nodes of a level, B rows, W parents a row, Y candidates a row.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from genrec.errors import InputError


class Level(NamedTuple):
    """Nodes of one level, in lexicographic order of their prefixes."""

    code_G: Tensor
    "last code of the prefix"
    first_item_G: Tensor
    "smallest item id below the node: resolves equal scores"
    start_G: Tensor
    """(G + 1): below node g are start[g] .. start[g + 1], nodes of the next level or, below the last, places of items;
    empty at the last level where every node is one item"""


class Candidates(NamedTuple):
    """Runs of several parents side by side, padded at the end of a row; `allowed` tells which are real."""

    index_BY: Tensor
    "node of the next level, or place in `item_N`; 0 where it is padding"
    parent_BY: Tensor
    "which of the row's W parents it is below"
    allowed_BY: Tensor


class Trie:
    """Built from `codes_NC`. Rows may repeat: items of one semantic ID stand side by side in `item_N`, by their ids."""

    def __init__(self, codes_NC: Tensor):
        if codes_NC.ndim != 2 or not codes_NC.numel() or codes_NC.is_floating_point() or int(codes_NC.min()) < 0:
            got = f"{codes_NC.dtype} {tuple(codes_NC.shape)}"
            below = codes_NC.numel() and codes_NC.min() < 0
            raise InputError(
                "semantic IDs must be whole numbers from 0 in the shape (items, codes an item), "
                f"got {got}{', some below 0' if below else ''}"
            )
        order_N = _lexicographic_order(codes_NC)
        self.item_N = order_N.int()
        self.num_items = len(order_N)
        self.levels = self._build(codes_NC, order_N)
        self.root_start = self.item_N.new_tensor([0, len(self.levels[0].code_G)])
        self._most_children = [int(self._starts(index - 1).diff().max()) for index in range(len(self.levels))]

    def _build(self, codes_NC: Tensor, order_N: Tensor) -> list[Level]:
        levels: list[Level] = []
        starts: list[Tensor] = []
        "for each level the places in item_N where its nodes begin"
        changed_N = torch.zeros_like(order_N, dtype=torch.bool)
        changed_N[0] = True
        for column in codes_NC.unbind(1):
            sorted_N = column[order_N]
            changed_N[1:] |= sorted_N[1:] != sorted_N[:-1]
            start_G = changed_N.nonzero().flatten()
            starts.append(start_G)
            levels.append(Level(sorted_N[start_G].int(), self.item_N[start_G], start_G))
        end = order_N.new_tensor([self.num_items])
        for index in reversed(range(len(levels))):
            below = starts[index + 1] if index + 1 < len(levels) else None
            place_G = torch.cat([starts[index], end])
            start_G = place_G if below is None else torch.searchsorted(below, place_G)
            first_G = levels[index].first_item_G
            if below is not None:
                first_G = _smallest(levels[index + 1].first_item_G, start_G)
            elif len(first_G) == self.num_items:
                first_G, start_G = self.item_N, start_G[:0]  # what is known already is not kept twice
            levels[index] = Level(levels[index].code_G, first_G, start_G.int())
        return levels

    def to(self, device: torch.device | str) -> Trie:
        """Move all tensors; returns self."""
        self.item_N, self.root_start = self.item_N.to(device), self.root_start.to(device)
        self.levels = [Level(*(part.to(device) for part in level)) for level in self.levels]
        return self

    def children(self, level: int, parent_BW: Tensor, alive_BW: Tensor | None = None) -> Candidates:
        """Nodes of `level` below nodes of `level - 1`; the root is node 0 of level -1.

        Parents that are not `alive` have no children.
        """
        return _runs(self._starts(level - 1), parent_BW, alive_BW)

    def items(self, node_BW: Tensor, alive_BW: Tensor | None = None, at_most: int | None = None) -> Candidates:
        """Places in `item_N` of the items of nodes that may share them, the first `at_most` of each node."""
        return _runs(self.levels[-1].start_G, node_BW, alive_BW, at_most)

    def child_range(self, level: int, first: int, end: int) -> tuple[Tensor, Tensor]:
        """Nodes of `level` below neighbours `first` .. `end` of the level above, and each one's parent, from 0."""
        start = self._starts(level - 1)[first : end + 1].long()
        node_Y = torch.arange(int(start[0]), int(start[-1]), device=start.device)
        return node_Y, torch.arange(end - first, device=start.device).repeat_interleave(start.diff())

    @property
    def leaf_N(self) -> Tensor:
        """The node of the last level that each item has."""
        leaf_N = torch.arange(len(self.levels[-1].code_G), dtype=torch.int32, device=self.item_N.device)
        if not self.distinct:
            leaf_N = leaf_N.repeat_interleave(self.levels[-1].start_G.diff())
        return torch.empty_like(leaf_N).index_copy_(0, self.item_N.long(), leaf_N)

    def codes(self, item_BW: Tensor) -> Tensor:
        """The semantic IDs (B, W, C) of items; -1 for item -1."""
        node_BW = self.leaf_N[item_BW.clamp(min=0)]
        codes = [self.levels[-1].code_G[node_BW].long()]
        for level in reversed(self.levels[:-1]):
            node_BW = (torch.searchsorted(level.start_G, node_BW, right=True) - 1).int()
            codes.append(level.code_G[node_BW].long())
        return torch.stack(codes[::-1], dim=-1).masked_fill(item_BW.unsqueeze(-1) < 0, -1)

    def most_candidates(self, level: int, parents: int) -> int:
        """An upper bound on the children in `level` of that many parents."""
        return min(parents * self._most_children[level], len(self.levels[level].code_G))

    @property
    def distinct(self) -> bool:
        """Whether every item has a semantic ID of its own: node g of the last level is then item `item_N[g]`."""
        return len(self.levels[-1].code_G) == self.num_items

    @property
    def widest_level(self) -> int:
        """A beam this wide never drops a prefix, so beam search is exact."""
        return max(level.code_G.shape[0] for level in self.levels)

    @property
    def level_sizes(self) -> tuple[int, ...]:
        """The largest code of each level plus one."""
        return tuple(int(level.code_G.max()) + 1 for level in self.levels)

    @property
    def num_bytes(self) -> int:
        """Memory of the index."""
        parts = [self.item_N, self.root_start, *(part for level in self.levels for part in level)]
        storages = {part.untyped_storage().data_ptr(): part.untyped_storage().nbytes() for part in parts}
        return sum(storages.values())

    def _starts(self, level: int) -> Tensor:
        return self.root_start if level < 0 else self.levels[level].start_G


def _runs(start_G: Tensor, parent_BW: Tensor, alive_BW: Tensor | None, at_most: int | None = None) -> Candidates:
    """The runs start[p] .. start[p + 1] of all parents of a row, one after the other."""
    first_BW = start_G[parent_BW].long()
    count_BW = start_G[parent_BW + 1].long() - first_BW
    if at_most is not None:
        count_BW = count_BW.clamp(max=at_most)
    if alive_BW is not None:
        count_BW = count_BW * alive_BW
    end_BW = count_BW.cumsum(1)
    total_B1 = end_BW[:, -1:]
    slots = max(1, int(total_B1.max()))
    slot_Y = torch.arange(slots, device=start_G.device)
    # The parent of a slot is the number of runs that end at or before it.
    step_BY = torch.zeros(len(parent_BW), slots + 1, dtype=torch.int64, device=start_G.device)
    step_BY.scatter_add_(1, end_BW, torch.ones_like(end_BW))
    parent_BY = step_BY[:, :slots].cumsum(1).clamp_(max=parent_BW.shape[1] - 1)
    allowed_BY = slot_Y < total_B1
    index_BY = (first_BW - end_BW + count_BW).gather(1, parent_BY) + slot_Y
    return Candidates(index_BY.masked_fill_(~allowed_BY, 0), parent_BY, allowed_BY)


def _smallest(value_G: Tensor, start_P: Tensor) -> Tensor:
    """The minimum of each run start[p] .. start[p + 1] of `value_G`."""
    parent_G = torch.arange(len(start_P) - 1, device=value_G.device).repeat_interleave(start_P.diff())
    return value_G.new_full((len(start_P) - 1,), 2**31 - 1).scatter_reduce(0, parent_G, value_G, "amin")


def _lexicographic_order(codes_NC: Tensor) -> Tensor:
    """Indices that sort the rows, equal rows by their index: columns packed into as few 62-bit keys as hold them."""
    keys: list[Tensor] = []
    room = 0
    for column in codes_NC.long().unbind(1):
        size = int(column.max()) + 1
        if keys and size <= room:
            keys[-1] = keys[-1] * size + column
            room //= size
        else:
            keys.append(column)
            room = 2**62 // size
    order_N = keys[-1].argsort(stable=True)
    for key in reversed(keys[:-1]):
        order_N = order_N[key[order_N].argsort(stable=True)]
    return order_N
