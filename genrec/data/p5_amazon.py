"""The guide's import path for Amazon reviews: items and user sequences as datasets for a torch `DataLoader`.

Thin over `genrec.data.sources`: `root` is a folder with the raw files of a category (`reviews_Beauty_5.json.gz`,
`meta_Beauty.json.gz`) or with `sequential_data.txt` and `items.jsonl`, or holds a folder `beauty` with either. The
split is leave-one-out. TIGER itself is trained from `genrec.data.batches`, which need no padding.

Letters: I items of a history, E width of an item's vector.
"""

from __future__ import annotations

import functools
import logging
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from genrec.data.interactions import Interactions, Split
from genrec.data.sequential import SEQUENCES_FILE
from genrec.data.sources import load_dataset
from genrec.data.text import embed_items
from genrec.errors import InputError, nearest
from genrec.settings import AmazonConfig, DatasetConfig, EmbeddingsConfig

logger = logging.getLogger(__name__)
CATEGORIES = {"beauty": "Beauty", "sports": "Sports_and_Outdoors", "toys": "Toys_and_Games"}
"P5's short names; any other name is taken as it stands in the files' names"
SPLITS: tuple[Split, ...] = ("train", "validation", "test")
PADDING = -1


class SequenceSample(NamedTuple):
    """A history and what came next; a `DataLoader` makes (B, I), (B,) and (B,) of it."""

    history: Tensor
    "(I,) item numbers, oldest first, then -1 up to `max_seq_len`"
    target: int
    "the next item's number"
    user: int
    "index into `dataset.interactions.users`"


class P5AmazonReviewsItemDataset(Dataset[Tensor]):
    """The items of a category as vectors: `dataset[i]` is the (E,) float32 vector of item number i.

    Args:
        embeddings: how texts become vectors; by default TF-IDF and truncated SVD, which need no download.
    """

    def __init__(
        self,
        root: str | Path,
        category: str = "beauty",
        embeddings: EmbeddingsConfig | None = None,
        *,
        download: bool = False,
    ):
        data, folder = _open(Path(root), category, download)
        self.items = data.catalogue
        self.vectors_NE = torch.from_numpy(embed_items(self.items, embeddings or EmbeddingsConfig(), folder))

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> Tensor:
        return self.vectors_NE[index]


class P5AmazonReviewsSeqDataset(Dataset[SequenceSample]):
    """Histories and their next items: every position of every user for `train`, one a user for the other splits.

    Args:
        max_seq_len: items of a history; longer ones are cut to their most recent.
    """

    def __init__(
        self,
        root: str | Path,
        split: Split = "train",
        max_seq_len: int = 20,
        category: str = "beauty",
        *,
        download: bool = False,
    ):
        if split not in SPLITS:
            raise InputError(f"split must be one of {', '.join(SPLITS)}, got {split!r}{nearest(split, SPLITS)}")
        if max_seq_len < 1:
            raise InputError(f"max_seq_len must be 1 or more, got {max_seq_len}")
        self.interactions, _ = _open(Path(root), category, download)
        self.max_seq_len = max_seq_len
        self.users, self.targets = _targets(self.interactions, split)
        longer = int((self.targets - self.interactions.offsets[self.users] > max_seq_len).sum())
        if longer:
            logger.info("%s: %d of %d histories are cut to their last %d items", split, longer, len(self), max_seq_len)

    def __len__(self) -> int:
        return len(self.users)

    def __getitem__(self, index: int) -> SequenceSample:
        user, end = int(self.users[index]), int(self.targets[index])
        start = max(int(self.interactions.offsets[user]), end - self.max_seq_len)
        history = torch.full((self.max_seq_len,), PADDING, dtype=torch.int64)
        history[: end - start] = torch.from_numpy(self.interactions.items[start:end].astype(np.int64))
        return SequenceSample(history, int(self.interactions.items[end]), user)


def _targets(data: Interactions, split: Split) -> tuple[np.ndarray, np.ndarray]:
    """(S,) users, and where in `data.items` their targets stand."""
    if split != "train":
        users = data.users_of(split)
        return users, data.history_ends(split)[users]
    first, ends = data.offsets[:-1] + 1, data.history_ends("validation")
    counts = np.maximum(ends - first, 0)
    users = np.repeat(np.arange(len(data)), counts)
    place = np.arange(len(users)) - np.repeat(np.cumsum(counts) - counts, counts)
    return users, first[users] + place


@functools.lru_cache(maxsize=2)
def _open(root: Path, category: str, download: bool) -> tuple[Interactions, Path]:
    """The interactions below `root`, in whichever form they are there, and their folder; kept for the next split."""
    amazon = AmazonConfig(category=CATEGORIES.get(category.lower(), category), download=download)
    for folder in (root / category, root):
        if (folder / SEQUENCES_FILE).is_file():
            return load_dataset(DatasetConfig(source="sequential", dataset_folder=str(folder))), folder
        if any(folder.glob(f"reviews_{amazon.category}_5.json*")):
            break
    # Without either this says what is missing, or fetches it.
    return load_dataset(DatasetConfig(source="amazon", dataset_folder=str(folder), amazon=amazon)), folder
