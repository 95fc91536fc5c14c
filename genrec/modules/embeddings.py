"""Embeddings of semantic IDs and of users.

A user's row is a hash of the user's id that is the same in every process, so a model meets a user again after a restart
and on another machine, and knows what to do with one that it has never seen.

Letters: B batch, U users, C codes an item, D width.
"""

from __future__ import annotations

import hashlib
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


class UserIdEmbedding(nn.Module):
    """A vector for each of `num_buckets` groups of users."""

    def __init__(self, num_buckets: int, embedding_dim: int):
        super().__init__()
        self.table = nn.Embedding(num_buckets, embedding_dim)

    def forward(self, user_B: Tensor | None, batch: int) -> Tensor:
        """Buckets (B,) -> (B, 1, D). Without a user, the mean of all buckets stands for one that nobody knows."""
        if user_B is None:
            return self.table.weight.mean(0).expand(batch, 1, -1)
        return self.table(user_B).unsqueeze(1)


def user_bucket(user_id: str, num_buckets: int) -> int:
    """The bucket of a user id: the same in every process, unlike Python's own hash of a string."""
    digest = hashlib.blake2b(user_id.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") % num_buckets


def user_buckets(users: Sequence[str], num_buckets: int) -> Tensor:
    """The buckets (U,) of many user ids."""
    return torch.tensor([user_bucket(user, num_buckets) for user in users], dtype=torch.int64)
