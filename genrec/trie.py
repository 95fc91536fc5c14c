"""The catalogue as flat tensors: which codes may follow a prefix of a semantic ID.

Items are sorted by their codes; a node is a distinct prefix. The children of a node are a contiguous run of the next
level's nodes, so beams are constrained by gathers and there is no object per node. After the idea of a static index
(Su et al. 2025, "static constraint decoding").

Letters: N items, C codes an item, G nodes of a level, P parents (any shape), M most children of a node of the level.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Level(NamedTuple):
    """Nodes of one level, in lexicographic order of their prefixes."""

    code_G: Tensor
    "last code of the prefix"
    first_item_G: Tensor
    "smallest item id below the node: resolves equal scores"
    child_start_G: Tensor
    "(G + 1): children of node g are child_start[g] .. child_start[g + 1] of the next level"
    max_children: int


class Children(NamedTuple):
    """Candidate next nodes of some parents, padded to M; `allowed` tells which are real."""

    node_PM: Tensor
    code_PM: Tensor
    allowed_PM: Tensor


class Trie:
    """Built once from `codes_NC`, whose rows must be distinct. Node g of the last level is item `item_N[g]`."""

    def __init__(self, codes_NC: Tensor):
        codes_NC = codes_NC.long()
        self.item_N = _lexicographic_order(codes_NC)
        sorted_NC = codes_NC[self.item_N]
        changes_NC = torch.ones_like(sorted_NC, dtype=torch.bool)
        changes_NC[1:] = (sorted_NC[1:] != sorted_NC[:-1]).cumsum(1) > 0
        if not bool(changes_NC[:, -1].all()):
            raise ValueError("two items share a semantic ID; add a collision code first")
        node_NC = changes_NC.cumsum(0) - 1
        self.levels = [self._level(sorted_NC, changes_NC, node_NC, level) for level in range(codes_NC.shape[1])]
        roots = int(node_NC[-1, 0]) + 1
        self.root_children = roots

    def _level(self, sorted_NC: Tensor, changes_NC: Tensor, node_NC: Tensor, level: int) -> Level:
        starts_G = changes_NC[:, level].nonzero().flatten()
        first_item = torch.full_like(starts_G, sorted_NC.shape[0])
        first_item = first_item.scatter_reduce(0, node_NC[:, level], self.item_N, "amin")
        if level + 1 == sorted_NC.shape[1]:
            return Level(sorted_NC[starts_G, level], first_item, starts_G.new_zeros(0), 0)
        last = node_NC[-1, level + 1 :][:1] + 1
        child_start = torch.cat([node_NC[starts_G, level + 1], last])
        return Level(sorted_NC[starts_G, level], first_item, child_start, int(child_start.diff().max()))

    def to(self, device: torch.device | str) -> Trie:
        """Move all tensors; returns self."""
        self.item_N = self.item_N.to(device)
        self.levels = [
            level._replace(
                code_G=level.code_G.to(device),
                first_item_G=level.first_item_G.to(device),
                child_start_G=level.child_start_G.to(device),
            )
            for level in self.levels
        ]
        return self

    def children(self, level: int, parent_P: Tensor | None, shape: tuple[int, ...] = ()) -> Children:
        """Nodes of `level` below parents of `level - 1`; below the root (`parent_P` None) for parents of `shape`."""
        nodes = self.levels[level]
        if parent_P is None:
            node_PM = torch.arange(self.root_children, device=nodes.code_G.device).expand(*shape, -1)
            return Children(node_PM, nodes.code_G[node_PM], torch.ones_like(node_PM, dtype=torch.bool))
        above = self.levels[level - 1]
        start, end = above.child_start_G[parent_P], above.child_start_G[parent_P + 1]
        node_PM = start.unsqueeze(-1) + torch.arange(above.max_children, device=start.device)
        allowed_PM = node_PM < end.unsqueeze(-1)
        node_PM = torch.where(allowed_PM, node_PM, start.unsqueeze(-1))
        return Children(node_PM, nodes.code_G[node_PM], allowed_PM)

    @property
    def widest_level(self) -> int:
        """A beam this wide never drops a prefix, so beam search is exact."""
        return max(level.code_G.shape[0] for level in self.levels)


def _lexicographic_order(codes_NC: Tensor) -> Tensor:
    """Indices that sort the rows: stable sorts from the last column to the first."""
    order = torch.arange(codes_NC.shape[0], device=codes_NC.device)
    for column in reversed(range(codes_NC.shape[1])):
        order = order[codes_NC[order, column].argsort(stable=True)]
    return order
