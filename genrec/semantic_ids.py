"""Semantic IDs of a catalogue: codes, the collision code that makes them distinct, and their health.

Letters: N items, L levels of the tokenizer, C codes an item (L, or L + 1 with the collision code), K codebook size.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Health:
    """What tells a good set of IDs from a collapsed one, over all items and before the collision code."""

    usage: list[float]
    "share of each level's codes that some item has"
    perplexity: list[float]
    "exp of the entropy of each level's codes: how many codes are used, weighted by how often"
    collision_rate: float
    "share of items that share their tuple with another item"
    largest_group: int
    distinct: int
    "number of different tuples"

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class SemanticIds:
    """codes_NC with distinct rows, the number of codes of each level, and how many levels the tokenizer made."""

    codes_NC: Tensor
    level_sizes: tuple[int, ...]
    tuple_levels: int
    health: Health


def assign_ids(codes_NL: Tensor, num_codes: int) -> SemanticIds:
    """Append the collision code: 0, 1, 2 ... in each group of equal tuples, by item id; none if all are distinct."""
    _, group_N, size_G = torch.unique(codes_NL, dim=0, return_inverse=True, return_counts=True)
    levels = codes_NL.shape[1]
    sizes = [num_codes] * levels
    largest = int(size_G.max())
    codes_NC = codes_NL
    if largest > 1:
        codes_NC = torch.cat([codes_NL, _index_in_group(group_N, size_G).unsqueeze(1)], dim=1)
        sizes.append(largest)
    return SemanticIds(codes_NC, tuple(sizes), levels, _health(codes_NL, num_codes, group_N, size_G))


def _index_in_group(group_N: Tensor, size_G: Tensor) -> Tensor:
    order = group_N.argsort(stable=True)
    start_G = size_G.cumsum(0) - size_G
    index_N = torch.empty_like(group_N)
    index_N[order] = torch.arange(len(group_N)) - start_G[group_N[order]]
    return index_N


def _health(codes_NL: Tensor, num_codes: int, group_N: Tensor, size_G: Tensor) -> Health:
    usage, perplexity = [], []
    for level in range(codes_NL.shape[1]):
        share_K = torch.bincount(codes_NL[:, level], minlength=num_codes).double() / codes_NL.shape[0]
        used = share_K[share_K > 0]
        usage.append(round(len(used) / num_codes, 6))
        perplexity.append(round(float((-(used * used.log()).sum()).exp()), 3))
    collided = float((size_G[group_N] > 1).double().mean())
    return Health(usage, perplexity, round(collided, 6), int(size_G.max()), len(size_G))
