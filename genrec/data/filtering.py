"""From the rows that a source holds to `Interactions`: time order, k-core, shortest history, temporal split.

The order of the steps is fixed: sort, k-core, short users, split. A user's interactions are sorted by timestamp; where
times are equal (reviews carry days) the order of the file stays. What every step drops is counted.

Shape letters: n interactions, U users, N items.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from genrec.data.interactions import DataError, Interactions, Items, Periods, Split, build_interactions

_FIRST_MILLISECONDS = 10**11
"as seconds this is the year 5138, as milliseconds 1973"


@dataclass(frozen=True, eq=False)
class InteractionRows:
    """What a source holds, in the order of its file; nothing is dropped yet."""

    users: Sequence[str]
    "external ids, unique"
    catalogue: Items
    user_n: np.ndarray
    "(n,) int32 index into `users`"
    item_n: np.ndarray
    "(n,) int32 internal item ids"
    timestamp_n: np.ndarray | None = None
    "(n,) int64; None: the rows of every user are in time order"
    counts: dict[str, int] = field(default_factory=dict)
    "bad lines and the like, by reason"


def to_interactions(rows: InteractionRows, *, k_core: int = 0, min_history: int = 3) -> Interactions:
    """Sorted and filtered rows. Raises `DataError` naming the step that leaves nothing."""
    if not len(rows.catalogue):
        raise DataError("the catalogue is empty: the source has no items")
    if not len(rows.user_n):
        raise DataError("there are no interactions: the source has none")
    rows = in_time_order(rows)
    if k_core:
        rows = keep_core(rows, k_core)
    # Rows of a user lie together now, and users come in the order of their numbers.
    offsets = np.searchsorted(rows.user_n, np.arange(len(rows.users) + 1))
    return build_interactions(
        rows.users,
        offsets,
        rows.item_n,
        rows.catalogue,
        rows.timestamp_n,
        min_history=min_history,
        dropped=rows.counts,
    )


def in_time_order(rows: InteractionRows) -> InteractionRows:
    """Rows sorted by user, then timestamp, then place in the file; timestamps as seconds."""
    times = rows.timestamp_n
    if times is None:
        order = np.argsort(rows.user_n, kind="stable")
        return dataclasses.replace(rows, user_n=rows.user_n[order], item_n=rows.item_n[order])
    order = np.lexsort((times, rows.user_n))
    return dataclasses.replace(
        rows, user_n=rows.user_n[order], item_n=rows.item_n[order], timestamp_n=to_seconds(times[order])
    )


def to_seconds(times: np.ndarray) -> np.ndarray:
    """Seconds from seconds, milliseconds, microseconds or nanoseconds since 1970; a mixture is refused."""
    smallest, largest = int(times.min()), int(times.max())
    if smallest < 0:
        raise DataError(f"timestamps must be 0 or more, got {smallest}")
    if largest < _FIRST_MILLISECONDS:
        return times
    if smallest < _FIRST_MILLISECONDS:
        rule = "seconds and milliseconds are mixed" if largest < _FIRST_MILLISECONDS * 1000 else "units are mixed"
        raise DataError(f"timestamps run from {smallest} to {largest}: {rule}")
    divisor = next(10**power for power in (3, 6, 9) if largest < _FIRST_MILLISECONDS * 10**power or power == 9)
    return times // divisor


def keep_core(rows: InteractionRows, k: int) -> InteractionRows:
    """Users and items that have at least `k` interactions with one another; the others leave, catalogue included."""
    keep_n, rounds = core_mask(rows.user_n, rows.item_n, k)
    if not keep_n.any():
        raise DataError(
            f"k_core {k} leaves no interactions of {len(keep_n)} ({len(rows.users)} users, {len(rows.catalogue)} "
            f"items; empty after {rounds} rounds); use a smaller k_core"
        )
    users_U = np.bincount(rows.user_n[keep_n], minlength=len(rows.users)) > 0
    items_N = np.bincount(rows.item_n[keep_n], minlength=len(rows.catalogue)) > 0
    kept_items = np.flatnonzero(items_N).tolist()
    ids, titles, texts = (
        [part[i] for i in kept_items] for part in (rows.catalogue.ids, rows.catalogue.titles, rows.catalogue.texts)
    )
    return InteractionRows(
        users=[rows.users[u] for u in np.flatnonzero(users_U).tolist()],
        catalogue=Items(ids, titles, texts),
        user_n=_renumbered(rows.user_n[keep_n], users_U),
        item_n=_renumbered(rows.item_n[keep_n], items_N),
        timestamp_n=None if rows.timestamp_n is None else rows.timestamp_n[keep_n],
        counts=rows.counts
        | {
            "core_users": int((~users_U).sum()),
            "core_items": int((~items_N).sum()),
            "core_interactions": int((~keep_n).sum()),
        },
    )


def core_mask(user_n: np.ndarray, item_n: np.ndarray, k: int) -> tuple[np.ndarray, int]:
    """(n,) bool interactions of the k-core, and the rounds until nothing more fell away."""
    keep_n = np.ones(len(user_n), dtype=bool)
    index, rounds = np.arange(len(user_n)), 0
    while len(index):
        user, item = user_n[index], item_n[index]
        stays = (np.bincount(user)[user] >= k) & (np.bincount(item)[item] >= k)
        if stays.all():
            break
        rounds += 1
        keep_n[index[~stays]] = False
        index = index[stays]
    return keep_n, rounds


def split_in_time(data: Interactions, validation_share: float, test_share: float) -> Interactions:
    """`data` under a temporal split whose last periods hold about these shares of all interactions.

    A period begins at the moment of an interaction, and all interactions of one moment lie in one period.
    """
    if data.timestamps is None:
        raise DataError("split 'temporal' needs timestamps, and this source has none; use split 'leave_one_out'")
    times = np.sort(data.timestamps)
    count = len(times)
    sizes = (max(1, round(count * share)) for share in (validation_share + test_share, test_share))
    periods = Periods(*(int(times[count - size]) for size in sizes))
    shares = f"split 'temporal' with validation_share {validation_share} and test_share {test_share}"
    if periods.validation >= periods.test:
        raise DataError(f"{shares}: both periods begin at {periods.test}, because times are too coarse")
    data = dataclasses.replace(data, periods=periods)
    if not (np.diff(data.training_sequences()[0]) >= 2).any():
        raise DataError(
            f"{shares} leaves nothing to train on: no user has two interactions before {periods.validation}"
        )
    splits: tuple[Split, ...] = ("validation", "test")
    for split in splits:
        if not len(data.users_of(split)):
            raise DataError(f"{shares} leaves the {split} split empty: no user has an item in it and one before")
    return data


def _renumbered(number_n: np.ndarray, kept: np.ndarray) -> np.ndarray:
    """Numbers after those that are not `kept` have left."""
    return (np.cumsum(kept) - 1).astype(np.int32)[number_n]
