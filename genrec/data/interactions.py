"""Interactions: who consumed what, when and in which order, and the catalogue it refers to; NumPy only.

Users lie one after the other in flat arrays, oldest item first. Both splits are defined here and nowhere else:

- leave-one-out: a user with items s_0..s_{n-1} trains on s_0..s_{n-3}, is validated on s_{n-2} and tested on s_{n-1};
- temporal (`periods` is set): one moment for everybody. What lies before the validation period is trained on; the
  target of a split is a user's first interaction in its period, its history is everything of that user before it.

Reading files of other makers is the business of the sources (`genrec.data.sources`), dropping that of
`genrec.data.filtering`.

Shape letters: U users, N items of the catalogue, n interactions, B histories of a batch.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from genrec.data.text_column import TextColumn
from genrec.durable import file_hash, write_json
from genrec.errors import InputError

Split = Literal["train", "validation", "test"]
Fit = Literal["train", "train+validation"]
MIN_LENGTH = 3
"items a user needs: one to train on, one to validate, one to test"

_WITHHELD = {"validation": 2, "test": 1}
_FIT_BEFORE: dict[Fit, Split] = {"train": "validation", "train+validation": "test"}
_FACTS_FILE = "facts.json"
_ARRAYS = ("offsets", "items", "timestamps")
_TEXTS = ("users", "item_ids", "item_titles", "item_texts")
"names of the files, without `.npy`"


class DataError(InputError):
    """Data that cannot be used; the message names file and line (or row), value and rule."""


@dataclass(frozen=True)
class Items:
    """The catalogue; a list's index is the internal item id 0..N-1."""

    ids: Sequence[str]
    "external ids, unique"
    titles: Sequence[str]
    "for people"
    texts: Sequence[str]
    "what the text encoder reads"
    hash: str = ""
    "content hash of ids and texts; computed when left out"

    def __post_init__(self) -> None:
        if not len(self.ids) == len(self.titles) == len(self.texts):
            counts = f"{len(self.ids)} ids, {len(self.titles)} titles, {len(self.texts)} texts"
            raise DataError(f"an item has one id, one title and one text, but got {counts}")
        if len(set(self.ids)) != len(self.ids):
            raise DataError(f"item ids must be unique; {first_repeated(self.ids)!r} occurs more than once")
        if not self.hash:
            object.__setattr__(self, "hash", _digest(json.dumps([list(self.ids), list(self.texts)]).encode()))

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


class Periods(NamedTuple):
    """Where the last two periods of a temporal split begin, in seconds; each ends where the next begins."""

    validation: int
    test: int


@dataclass(frozen=True, eq=False)
class Interactions:
    """All users' items in time order. Every user has at least `MIN_LENGTH` items: see `build_interactions`."""

    users: Sequence[str]
    "external user ids, unique"
    offsets: np.ndarray
    "(U+1,) int64: items of user u are `items[offsets[u]:offsets[u+1]]`"
    items: np.ndarray
    "(n,) int32 internal item ids"
    catalogue: Items
    timestamps: np.ndarray | None = None
    "(n,) int64 seconds, never falling inside a user; None where the source knows only the order"
    periods: Periods | None = None
    "of the temporal split; None: leave-one-out"
    dropped: dict[str, int] = field(default_factory=dict)
    "what reading and filtering left out or merged, by reason"

    def __post_init__(self) -> None:
        object.__setattr__(self, "offsets", np.ascontiguousarray(self.offsets, dtype=np.int64))
        object.__setattr__(self, "items", np.ascontiguousarray(self.items, dtype=np.int32))
        if self.timestamps is not None:
            object.__setattr__(self, "timestamps", np.ascontiguousarray(self.timestamps, dtype=np.int64))
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

    def training_sequences(self) -> tuple[np.ndarray, np.ndarray]:
        """Offsets (U+1,) int64 and items: what a model may be trained on. Temporally, users may have none."""
        return self.fit_sequences("train")

    def fit_sequences(self, fit: Fit) -> tuple[np.ndarray, np.ndarray]:
        """Offsets (U+1,) int64 and items of the training split, or of training and validation together."""
        if fit not in _FIT_BEFORE:
            raise ValueError(f"fit must be one of {list(_FIT_BEFORE)}, got {fit!r}")
        # What may be learnt from ends where the histories of the split that follows end.
        ends = self.history_ends(_FIT_BEFORE[fit])
        counts_U2 = np.stack([ends - self.offsets[:-1], self.offsets[1:] - ends], axis=1)
        keep = np.repeat(np.tile([True, False], len(self)), counts_U2.ravel())
        return np.concatenate([[0], np.cumsum(counts_U2[:, 0])]), self.items[keep]

    def history_ends(self, split: Split) -> np.ndarray:
        """(U,) int64 index into `items`, exclusive, at which the history of `split` ends; a target stands there.

        Under a temporal split a user may have none: see `targets` and `users_of`.
        """
        if split not in _WITHHELD:
            rule = "one of 'validation' and 'test'; in training every position is a target, see training_sequences()"
            raise ValueError(f"split must be {rule}, got {split!r}")
        return self._ends[split]

    def targets(self, split: Split) -> np.ndarray:
        """(U,) int32: the item that a model must find for every user; -1 for a user who has none in `split`."""
        ends = self.history_ends(split)
        if self.periods is None:
            return self.items[ends]
        period_ends = self._ends["test"] if split == "validation" else self.offsets[1:]
        return np.where(ends < period_ends, self.items[np.minimum(ends, len(self.items) - 1)], np.int32(-1))

    def users_of(self, split: Split) -> np.ndarray:
        """(u,) int64 sorted indices of the users with a target and something to read before it: all but temporally."""
        return np.flatnonzero((self.targets(split) >= 0) & (self.history_ends(split) > self.offsets[:-1]))

    def histories(self, split: Split) -> Histories:
        """The histories that a model reads to find `targets(split)`; take those of `users_of(split)`."""
        return Histories(self.items, self.offsets[:-1], self.history_ends(split))

    @cached_property
    def _ends(self) -> dict[str, np.ndarray]:
        """Where the histories of each split end."""
        if self.periods is None or self.timestamps is None:
            return {split: self.offsets[1:] - withheld for split, withheld in _WITHHELD.items()}
        ends = {}
        for split, begin in self.periods._asdict().items():
            count_before = np.concatenate([[0], np.cumsum(self.timestamps < begin)])
            ends[split] = self.offsets[:-1] + np.diff(count_before[self.offsets])
        return ends

    @cached_property
    def data_hash(self) -> str:
        """Content hash of users, order and times of items, catalogue and split; equal on every machine."""
        head = json.dumps([self.catalogue.hash, list(self.users), self.periods]).encode()
        times = b"" if self.timestamps is None else self.timestamps.astype("<i8", copy=False)
        return _digest(head, self.offsets.astype("<i8", copy=False), self.items.astype("<i4", copy=False), times)

    def statistics(self) -> dict[str, int | float]:
        """Counts for people: sizes, lengths of histories, share of the matrix that is filled, what was dropped."""
        lengths, pairs = self.lengths, len(self.users) * len(self.catalogue)
        counts: dict[str, int | float] = {
            "users": len(self.users),
            "items": len(self.catalogue),
            "interactions": len(self.items),
            "mean_length": float(lengths.mean()),
            "median_length": float(np.median(lengths)),
            "min_length": int(lengths.min()),
            "max_length": int(lengths.max()),
            "density": len(self.items) / pairs,
        }
        for split in ("validation", "test") if self.periods else ():
            counts[f"{split}_users"] = len(self.users_of(split))
        return counts | {f"dropped_{reason}": count for reason, count in self.dropped.items()}

    def save(self, folder: str | Path) -> None:
        """Write the files of `load` into `folder`, which is made when missing: an array each, and their checksums."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        arrays: dict[str, Any] = {"offsets": self.offsets, "items": self.items, "timestamps": self.timestamps}
        catalogue = self.catalogue
        for name, texts in zip(_TEXTS, (self.users, catalogue.ids, catalogue.titles, catalogue.texts), strict=True):
            arrays[name] = TextColumn.pack(texts)
        files = {}
        for name, array in arrays.items():
            if array is not None:
                np.save(_file(folder, name), array)
                files[name] = file_hash(_file(folder, name))
        facts = {"files": files, "catalogue_hash": catalogue.hash, "periods": self.periods, "dropped": self.dropped}
        write_json(folder / _FACTS_FILE, facts)

    @staticmethod
    def load(folder: str | Path) -> Interactions:
        """Map what `save` wrote into memory: processes on one machine share it, and texts are decoded when read.

        Raises `DataError` when a file is missing, damaged or of another data set.
        """
        folder = Path(folder)
        try:
            facts = json.loads((folder / _FACTS_FILE).read_text(encoding="utf-8"))
            for name, checksum in facts["files"].items():
                if file_hash(_file(folder, name)) != checksum:
                    rule = "does not fit its checksum: damaged, or of another data set; write the data again"
                    raise DataError(f"{_file(folder, name)} {rule}")
            arrays = {name: _mapped(_file(folder, name)) for name in _ARRAYS if name in facts["files"]}
            users, ids, titles, texts = (TextColumn(_mapped(_file(folder, name))) for name in _TEXTS)
            return Interactions(
                users,
                arrays["offsets"],
                arrays["items"],
                Items(ids, titles, texts, facts["catalogue_hash"]),
                arrays.get("timestamps"),
                facts["periods"] and Periods(*facts["periods"]),
                facts["dropped"],
            )
        except DataError as error:
            raise DataError(f"{folder}: {error}") from None
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise DataError(f"{folder}: cannot be read as saved interactions ({error})") from error


def build_interactions(
    users: Sequence[str],
    offsets: np.ndarray,
    items: np.ndarray,
    catalogue: Items,
    timestamps: np.ndarray | None = None,
    *,
    min_history: int = MIN_LENGTH,
    dropped: dict[str, int] | None = None,
) -> Interactions:
    """Interactions of those users who have at least `min_history` items; the others are dropped and counted.

    Args:
        users: U external ids.
        offsets: (U+1,) bounds of every user in `items`.
        items: (n,) internal item ids.
        timestamps: (n,) seconds, never falling inside a user.
        dropped: what was dropped before.
    """
    lengths = np.diff(offsets)
    keep = lengths >= min_history
    if not keep.any():
        raise DataError(f"no user has {min_history} items or more ({len(keep)} users dropped)")
    # A slice shares memory where nobody is dropped.
    keep_n = slice(None) if keep.all() else np.repeat(keep, lengths)
    kept_offsets = np.concatenate([[0], np.cumsum(lengths[keep])])
    kept_users = [user for user, kept in zip(users, keep.tolist(), strict=True) if kept]
    return Interactions(
        kept_users,
        kept_offsets,
        np.asarray(items)[keep_n],
        catalogue,
        None if timestamps is None else timestamps[keep_n],
        dropped=(dropped or {}) | {"short_users": int((~keep).sum())},
    )


def _file(folder: Path, name: str) -> Path:
    return folder / f"{name}.npy"


def _mapped(path: Path) -> np.ndarray:
    """The array in a file, page by page as it is read. What is written into it stays in this process."""
    return np.asarray(np.load(path, mmap_mode="c", allow_pickle=False))


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
        raise DataError("there are no users")
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
    _check_times(data)


def _check_times(data: Interactions) -> None:
    times, offsets = data.timestamps, data.offsets
    if times is None:
        if data.periods:
            raise DataError("a temporal split needs timestamps, and there are none; use leave_one_out")
        return
    if times.shape != data.items.shape:
        raise DataError(f"every interaction has one timestamp, but got {len(times)} for {len(data.items)}")
    falls = np.diff(times) < 0
    falls[offsets[1:-1] - 1] = False  # a new user may begin earlier
    if falls.any():
        user = int(np.searchsorted(offsets, int(falls.argmax()), side="right")) - 1
        raise DataError(f"timestamps of user {data.users[user]!r} are not in order")
    if data.periods and data.periods.validation >= data.periods.test:
        raise DataError(f"the validation period must begin before the test period, got {tuple(data.periods)}")


def _digest(*parts: Any) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part)
    return digest.hexdigest()[:16]
