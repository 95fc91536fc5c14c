"""Embedding of semantic IDs: one table for the codes of all levels.

Letters: B batch, I items, C codes an item, D width, K codebook size.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class SemIdEmbedding(nn.Module):
    """codes (..., C) -> (..., C, D); every level has rows of its own, so equal codes of two levels differ."""

    offsets_C: Tensor

    def __init__(self, level_sizes: Sequence[int], embedding_dim: int):
        super().__init__()
        starts = [sum(level_sizes[:level]) for level in range(len(level_sizes))]
        self.table = nn.Embedding(sum(level_sizes), embedding_dim)
        self.register_buffer("offsets_C", torch.tensor(starts), persistent=False)

    def forward(self, codes: Tensor) -> Tensor:
        return self.table(codes + self.offsets_C)

    def level(self, codes: Tensor, level: int) -> Tensor:
        """codes (...) of one level -> (..., D)."""
        return self.table(codes + self.offsets_C[level])
