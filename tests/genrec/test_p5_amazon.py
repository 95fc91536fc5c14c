"""The guide's datasets under a torch DataLoader, from raw files and from the sequential form."""

from __future__ import annotations

import gzip
import json
import logging
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from genrec.data.p5_amazon import P5AmazonReviewsItemDataset, P5AmazonReviewsSeqDataset
from genrec.errors import InputError
from genrec.settings import EmbeddingsConfig

SEQUENCES = {"u1": [0, 1, 2, 3, 4, 5], "u2": [5, 0, 3], "u3": [2, 2, 1, 0, 4]}
WORDS = ["red lamp", "blue lamp", "red cup", "blue cup", "wool scarf", "wool hat"]


@pytest.fixture(params=["sequential", "raw", "folder of the category"])
def root(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    folder = tmp_path / "beauty" if request.param == "folder of the category" else tmp_path
    folder.mkdir(exist_ok=True)
    if request.param == "raw":
        rows = [(f"B{item}", user, day) for user, items in SEQUENCES.items() for day, item in enumerate(items)]
        reviews = [json.dumps({"reviewerID": u, "asin": i, "unixReviewTime": 86400 * d}) for i, u, d in rows]
        meta = [repr({"asin": f"B{i}", "title": title}) for i, title in enumerate(WORDS)]
        for name, lines in (("reviews_Beauty_5", reviews), ("meta_Beauty", meta)):
            (folder / f"{name}.json.gz").write_bytes(gzip.compress("\n".join(lines).encode()))
    else:
        lines = [" ".join([user, *(str(item + 1) for item in items)]) for user, items in SEQUENCES.items()]
        (folder / "sequential_data.txt").write_text("\n".join(lines))
        items = [json.dumps({"item_id": i + 1, "asin": f"B{i}", "title": title}) for i, title in enumerate(WORDS)]
        (folder / "items.jsonl").write_text("\n".join(items))
    return tmp_path


def samples(dataset: P5AmazonReviewsSeqDataset) -> list[tuple[list[int], int, str]]:
    found = []
    for history, target, user in dataset:
        assert history.shape == (dataset.max_seq_len,)
        found.append(([i for i in history.tolist() if i >= 0], target, dataset.interactions.users[user]))
    return found


def test_samples_of_every_split_equal_slicing(root):
    expected = {
        "train": [(s[max(0, i - 3) : i], s[i], u) for u, s in SEQUENCES.items() for i in range(1, len(s) - 2)],
        "validation": [(s[:-2][-3:], s[-2], u) for u, s in SEQUENCES.items()],
        "test": [(s[:-1][-3:], s[-1], u) for u, s in SEQUENCES.items()],
    }
    for split, rows in expected.items():
        assert samples(P5AmazonReviewsSeqDataset(root, split=split, max_seq_len=3)) == rows


def test_a_loader_batches_padded_histories(root):
    loader = DataLoader(P5AmazonReviewsSeqDataset(root, split="test", max_seq_len=8), batch_size=2)
    batches = list(loader)
    assert [tuple(batch.history.shape) for batch in batches] == [(2, 8), (1, 8)]
    assert batches[0].history[1].tolist() == [5, 0, -1, -1, -1, -1, -1, -1]
    assert batches[0].target.tolist() == [5, 3]
    assert batches[0].history.dtype == batches[0].target.dtype == torch.int64


def test_items_are_vectors_that_a_loader_batches(root):
    dataset = P5AmazonReviewsItemDataset(root, embeddings=EmbeddingsConfig(dim=3))
    assert len(dataset) == 6
    assert dataset[0].shape == (3,)
    assert torch.equal(next(iter(DataLoader(dataset, batch_size=6))), dataset.vectors_NE)


def test_vectors_of_a_file_are_found_beside_the_data(root):
    folder = root / "beauty" if (root / "beauty").is_dir() else root
    vectors = np.arange(1, 13, dtype=np.float32).reshape(6, 2)
    np.save(folder / "v.npy", vectors)
    dataset = P5AmazonReviewsItemDataset(root, embeddings=EmbeddingsConfig(encoder="npy", path="v.npy"))
    assert dataset[5].tolist() == [11, 12]


def test_cut_histories_are_noted(root, caplog):
    with caplog.at_level(logging.INFO, "genrec.data.p5_amazon"):
        P5AmazonReviewsSeqDataset(root, split="test", max_seq_len=4)
    assert "test: 1 of 3 histories are cut to their last 4 items" in caplog.text


def test_a_wrong_split_and_a_missing_folder_are_refused(root, tmp_path):
    with pytest.raises(InputError, match="got 'valid'; did you mean 'validation'"):
        P5AmazonReviewsSeqDataset(root, split="valid")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="reviews_Toys_and_Games_5.json.gz: no such file"):
        P5AmazonReviewsSeqDataset(tmp_path / "nowhere", category="toys")
