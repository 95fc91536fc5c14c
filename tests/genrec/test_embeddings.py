"""Embeddings of codes and users."""

from __future__ import annotations

import subprocess
import sys

import torch

from genrec.modules.embeddings import SemIdEmbedding, UserIdEmbedding, user_bucket, user_buckets


def test_equal_codes_of_two_levels_have_vectors_of_their_own():
    embedding = SemIdEmbedding((3, 4), 5)
    vectors = embedding(torch.tensor([[1, 1], [1, 2]]))
    assert vectors.shape == (2, 2, 5)
    assert not torch.equal(vectors[0, 0], vectors[0, 1])
    assert torch.equal(vectors[0, 0], vectors[1, 0])
    assert torch.equal(vectors[:, 1], embedding.level(torch.tensor([1, 2]), 1))
    assert len(embedding.table.weight) == 7


def test_a_user_has_the_same_bucket_in_every_process():
    """Python's own hash of a string would differ: these processes have hash seeds of their own."""
    users = ("A1", "A2", "用户")
    code = f"from genrec.modules.embeddings import user_bucket; print([user_bucket(u, 2000) for u in {users}])"
    seeds = ("1", "2")
    printed = [
        subprocess.run(
            [sys.executable, "-c", code], env={"PYTHONHASHSEED": seed}, check=True, capture_output=True, text=True
        ).stdout
        for seed in seeds
    ]
    here = [user_bucket(user, 2000) for user in users]
    assert printed == [f"{here}\n"] * 2
    assert here == [1497, 488, 1383]


def test_buckets_are_filled_evenly():
    buckets = user_buckets([f"user{number}" for number in range(20_000)], 100)
    counts = buckets.bincount(minlength=100)
    assert buckets.dtype == torch.int64
    assert counts.min() > 140
    assert counts.max() < 280


def test_an_unknown_user_is_the_mean_of_all():
    embedding = UserIdEmbedding(4, 3)
    assert embedding(torch.tensor([2, 0]), 2).shape == (2, 1, 3)
    assert torch.equal(embedding(torch.tensor([2]), 1)[0, 0], embedding.table.weight[2])
    torch.testing.assert_close(embedding(None, 2)[1, 0], embedding.table.weight.mean(0))
