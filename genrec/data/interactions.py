"""Interactions: who consumed what, in order, and the catalogue it refers to; NumPy only.

Users lie one after the other in flat arrays, oldest item first. The leave-one-out split is defined here and nowhere
else: a user with items s_0..s_{n-1} trains on s_0..s_{n-3}, is validated on s_{n-2} and tested on s_{n-1}.
Reading files of other makers is the loaders' business (`genrec.data.sequential`, ...).

Shape letters: U users, N items of the catalogue, n interactions, B histories of a batch.
"""

from __future__ import annotations

import hashlib
import json
import zipfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np

from genrec.errors import InputError

Split = Literal["train", "validation", "test"]
MIN_LENGTH = 3
"items a user needs: one to train on, one to validate, one to test"

_WITHHELD = {"validation": 2, "test": 1}
_ARRAYS_FILE, _ITEMS_FILE, _USERS_FILE = "interactions.npz", "items.jsonl", "users.json"


class DataError(InputError):
    """Data that cannot be used; the message names file and line (or row), value and rule."""


@dataclass(frozen=True)
class Items:
    """The catalogue; a list's index is the internal item id 0..N-1."""

    ids: list[str]
    "external ids, unique"
    titles: list[str]
    "for people"
    texts: list[str]
    "what the text encoder reads"
    hash: str = ""
    "content hash of ids and texts; computed when left out"

    def __post_init__(self) -> None:
        if not len(self.ids) == len(self.titles) == len(self.texts):
            counts = f"{len(self.ids)} ids, {len(self.titles)} titles, {len(self.texts)} texts"
            raise DataError(f"an item has one id, one title and one text, but got {counts}")
        if len(self.index) != len(self.ids):
            raise DataError(f"item ids must be unique; {first_repeated(self.ids)!r} occurs more than once")
        if not self.hash:
            object.__setattr__(self, "hash", _digest(json.dumps([self.ids, self.texts]).encode()))

    def __len__(self) -> int:
        return len(self.ids)

    @cached_property
    def index(self) -> dict[str, int]:
        """External id -> internal item id."""
        return {item: number for number, item in enumerate(self.ids)}


@dataclass(frozen=True, eq=False)
class Histories:
    """B slices of one flat array: history b is `items[starts[b]:ends[b]]`, oldest first."""

    items: np.ndarray
    starts: np.ndarray
    ends: np.ndarray

    @staticmethod
    def from_lists(histories: Sequence[Sequence[int]]) -> Histories:
        """Histories given as lists of internal item ids."""
        ends = np.cumsum([len(history) for history in histories], dtype=np.int64)
        items = np.array([item for history in histories for item in history], dtype=np.int32)
        return Histories(items, np.concatenate([[0], ends[:-1]]).astype(np.int64), ends)

    def __len__(self) -> int:
        return len(self.starts)

    def take(self, selection: slice | np.ndarray) -> Histories:
        """The histories of a slice or of an index array; items are shared, not copied."""
        return Histories(self.items, self.starts[selection], self.ends[selection])

    def last(self) -> np.ndarray:
        """(B,) most recent items. Every history must have one."""
        return self.items[self.ends - 1]

    def recent(self, limit: int | None = None) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The `limit` most recent items of every history, one history after the other, oldest first.

        Returns:
            offsets: (B+1,) int64, bounds of every history in the other two.
            items: internal item ids.
            ages: 0 for the last item of a history, 1 for the one before, ...
        """
        counts = self.ends - self.starts
        if limit is not None:
            counts = np.minimum(counts, limit)
        offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
        place = np.arange(offsets[-1]) - np.repeat(offsets[:-1], counts)
        ages = np.repeat(counts, counts) - 1 - place
        return offsets, self.items[np.repeat(self.ends, counts) - 1 - ages], ages


@dataclass(frozen=True, eq=False)
class Interactions:
    """All users' items in time order. Every user has at least `MIN_LENGTH` items: see `build_interactions`."""

    users: list[str]
    "external user ids, unique"
    offsets: np.ndarray
    "(U+1,) int64: items of user u are `items[offsets[u]:offsets[u+1]]`"
    items: np.ndarray
    "(n,) int32 internal item ids"
    catalogue: Items
    dropped_users: int = 0
    "users left out because they had fewer than `MIN_LENGTH` items"

    def __post_init__(self) -> None:
        object.__setattr__(self, "offsets", np.ascontiguousarray(self.offsets, dtype=np.int64))
        object.__setattr__(self, "items", np.ascontiguousarray(self.items, dtype=np.int32))
        _check_arrays(self)

    def __len__(self) -> int:
        return len(self.users)

    @property
    def lengths(self) -> np.ndarray:
        """(U,) items of every user."""
        return np.diff(self.offsets)

    def history(self, u: int) -> np.ndarray:
        """All items of user `u`, those of validation and test included."""
        return self.items[self.offsets[u] : self.offsets[u + 1]]

    def sequences(self, withheld: int) -> tuple[np.ndarray, np.ndarray]:
        """Offsets (U+1,) and items of all users without the last `withheld` (0, 1 or 2) items of each."""
        keep = np.ones(len(self.items), dtype=bool)
        for back in range(1, withheld + 1):
            keep[self.offsets[1:] - back] = False
        return self.offsets - withheld * np.arange(len(self.offsets)), self.items[keep]

    def training_sequences(self) -> tuple[np.ndarray, np.ndarray]:
        """Offsets (U+1,) int64 and items (n - 2U,) int32: what a model may be trained on."""
        return self.sequences(withheld=2)

    def history_ends(self, split: Split) -> np.ndarray:
        """(U,) int64 index into `items`, exclusive, at which the history of `split` ends; the target stands there."""
        if split not in _WITHHELD:
            rule = "one of 'validation' and 'test'; in training every position is a target, see training_sequences()"
            raise ValueError(f"split must be {rule}, got {split!r}")
        return self.offsets[1:] - _WITHHELD[split]

    def targets(self, split: Split) -> np.ndarray:
        """(U,) int32: the item that a model must find for every user."""
        return self.items[self.history_ends(split)]

    def histories(self, split: Split) -> Histories:
        """The histories that a model reads to find `targets(split)`."""
        return Histories(self.items, self.offsets[:-1], self.history_ends(split))

    @cached_property
    def data_hash(self) -> str:
        """Content hash of users, order of items and catalogue; equal on every machine."""
        head = json.dumps([self.catalogue.hash, self.users]).encode()
        return _digest(head, self.offsets.astype("<i8").tobytes(), self.items.astype("<i4").tobytes())

    def statistics(self) -> dict[str, int | float]:
        """Counts for people: sizes, lengths of histories, share of the user-item matrix that is filled."""
        lengths, pairs = self.lengths, len(self.users) * len(self.catalogue)
        return {
            "users": len(self.users),
            "items": len(self.catalogue),
            "interactions": len(self.items),
            "mean_length": float(lengths.mean()),
            "median_length": float(np.median(lengths)),
            "min_length": int(lengths.min()),
            "max_length": int(lengths.max()),
            "density": len(self.items) / pairs,
            "dropped_users": self.dropped_users,
        }

    def save(self, folder: str | Path) -> None:
        """Write the three files of `load` into `folder`, which is made when missing."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        hash_bytes = np.frombuffer(self.data_hash.encode(), dtype=np.uint8)
        np.savez(
            folder / _ARRAYS_FILE,
            offsets=self.offsets,
            items=self.items,
            dropped_users=np.int64(self.dropped_users),
            data_hash=hash_bytes,
        )
        (folder / _USERS_FILE).write_text(json.dumps(self.users), encoding="utf-8")
        catalogue = self.catalogue
        with open(folder / _ITEMS_FILE, "w", encoding="utf-8", newline="\n") as file:
            for item, title, text in zip(catalogue.ids, catalogue.titles, catalogue.texts, strict=True):
                file.write(json.dumps({"id": item, "title": title, "text": text}) + "\n")

    @staticmethod
    def load(folder: str | Path) -> Interactions:
        """Read what `save` wrote. Raises `DataError` when files are missing or do not belong together."""
        folder = Path(folder)
        try:
            with np.load(folder / _ARRAYS_FILE, allow_pickle=False) as arrays:
                offsets, items = arrays["offsets"], arrays["items"]
                dropped, data_hash = int(arrays["dropped_users"]), arrays["data_hash"].tobytes().decode()
            users = json.loads((folder / _USERS_FILE).read_text(encoding="utf-8"))
            with open(folder / _ITEMS_FILE, encoding="utf-8") as file:
                rows = [json.loads(line) for line in file]
            ids, titles, texts = ([row[key] for row in rows] for key in ("id", "title", "text"))
            loaded = Interactions(users, offsets, items, Items(ids, titles, texts), dropped)
        except DataError as error:
            raise DataError(f"{folder}: {error}") from None
        except (OSError, ValueError, KeyError, TypeError, zipfile.BadZipFile) as error:
            raise DataError(f"{folder}: cannot be read as saved interactions ({error})") from error
        if loaded.data_hash != data_hash:
            raise DataError(f"{folder}: content hash is {loaded.data_hash}, but {data_hash} was saved; write it again")
        return loaded


def build_interactions(users: Sequence[str], offsets: np.ndarray, items: np.ndarray, catalogue: Items) -> Interactions:
    """Interactions of those users who have at least `MIN_LENGTH` items; the others are dropped and counted.

    Args:
        users: U external ids.
        offsets: (U+1,) bounds of every user in `items`.
        items: (n,) internal item ids.
    """
    lengths = np.diff(offsets)
    keep = lengths >= MIN_LENGTH
    kept_offsets = np.concatenate([[0], np.cumsum(lengths[keep])])
    kept_items = np.asarray(items)[np.repeat(keep, lengths)]
    kept_users = [user for user, kept in zip(users, keep.tolist(), strict=True) if kept]
    return Interactions(kept_users, kept_offsets, kept_items, catalogue, dropped_users=int((~keep).sum()))


def training_lengths(lengths: np.ndarray) -> np.ndarray:
    """(U,) items that each user trains on, of `lengths` items each."""
    return lengths - 2


def first_repeated(values: Iterable[str]) -> str | None:
    """The first value that occurs a second time."""
    seen: set[str] = set()
    for value in values:
        if value in seen:
            return value
        seen.add(value)
    return None


def _check_arrays(data: Interactions) -> None:
    offsets, items = data.offsets, data.items
    if not data.users:
        raise DataError(f"no user has {MIN_LENGTH} items or more ({data.dropped_users} users dropped)")
    if offsets.shape != (len(data.users) + 1,) or offsets[0] != 0 or offsets[-1] != len(items):
        raise DataError(f"offsets must run from 0 to {len(items)} in {len(data.users) + 1} values, got {offsets.shape}")
    short = np.flatnonzero(np.diff(offsets) < MIN_LENGTH)
    if short.size:
        count = int(np.diff(offsets)[short[0]])
        raise DataError(f"user {data.users[short[0]]!r} has {count} items; the split needs {MIN_LENGTH} or more")
    outside = np.flatnonzero((items < 0) | (items >= len(data.catalogue)))
    if outside.size:
        raise DataError(f"item {int(items[outside[0]])} is not in the catalogue of {len(data.catalogue)} items")
    if len(set(data.users)) != len(data.users):
        raise DataError(f"user ids must be unique; {first_repeated(data.users)!r} occurs more than once")


def _digest(*parts: Any) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part)
    return digest.hexdigest()[:16]
