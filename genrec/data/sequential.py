"""Reads `sequential_data.txt` and `items.jsonl`, the form in which Beauty and Sports are passed around.

`sequential_data.txt` has one user a line, `user item item ...`, oldest first, item ids 1..N; `items.jsonl` has one
item a line with `item_id` and, where known, `asin`, `title`, `keywords`, `brand`, `categories` (a list of paths).
Internal item id = item_id - 1, so that row r of an array of vectors is item_id r+1. Nothing is guessed: what does not
fit raises `DataError` with file, line, value and rule.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from genrec.data.filtering import InteractionRows
from genrec.data.interactions import DataError, Items
from genrec.data.lines import SHOWN, BadLines, first_path, item_text, parse_json, read_lines, text_of

SEQUENCES_FILE, ITEMS_FILE = "sequential_data.txt", "items.jsonl"


@dataclass(frozen=True)
class _Item:
    external_id: str
    title: str
    text: str
    line: int

    def same_as(self, other: _Item) -> bool:
        return (self.external_id, self.title, self.text) == (other.external_id, other.title, other.text)


def sequential_files(folder: Path) -> list[Path]:
    """The two files, which must be there."""
    for name in (SEQUENCES_FILE, ITEMS_FILE):
        if not (folder / name).is_file():
            raise DataError(f"{folder / name}: no such file{_what_to_do(folder)}")
    return [folder / SEQUENCES_FILE, folder / ITEMS_FILE]


def read_sequential(folder: Path, max_bad_lines: int = 0) -> InteractionRows:
    """Users' histories as rows, and the catalogue. `max_bad_lines` is for users: every item is needed."""
    sequences, items = sequential_files(folder)
    catalogue, repeated = read_items(items)
    bad = BadLines(max_bad_lines)
    users, lengths, item_n = _read_sequences(sequences, catalogue, bad)
    user_n = np.repeat(np.arange(len(users), dtype=np.int32), lengths)
    return InteractionRows(
        users, catalogue, user_n, item_n, counts={"bad_lines": bad.count, "repeated_items": repeated}
    )


def read_items(path: Path) -> tuple[Items, int]:
    """The catalogue of an `items.jsonl`, ordered by item_id, and how many lines repeated an item word for word.

    Its ids must be 1..N without gaps.
    """
    items: dict[int, _Item] = {}
    line_of_id: dict[str, int] = {}
    repeated = 0
    for number, line in read_lines(path, BadLines()):
        where = f"{path}:{number}"
        record = parse_json(line, where)
        item_id = record.get("item_id")
        if not isinstance(item_id, int) or isinstance(item_id, bool) or item_id < 1:
            raise DataError(f"{where}: item_id must be an integer of 1 or more, got {item_id!r}")
        item = _make_item(record, number, where)
        if item_id in items:
            if not item.same_as(items[item_id]):
                first = items[item_id].line
                raise DataError(f"{where}: item_id {item_id} stands already on line {first}, with other words")
            repeated += 1
            continue
        if item.external_id in line_of_id:
            first = line_of_id[item.external_id]
            raise DataError(f"{where}: asin {item.external_id!r} stands already on line {first}")
        items[item_id] = item
        line_of_id[item.external_id] = number
    if not items:
        raise DataError(f"{path}: the file is empty; expected one JSON object a line, one line an item")
    _check_gaps(items, path)
    ordered = [items[item_id] for item_id in range(1, len(items) + 1)]
    return Items([i.external_id for i in ordered], [i.title for i in ordered], [i.text for i in ordered]), repeated


def _what_to_do(folder: Path) -> str:
    if any(folder.glob("reviews_*_5.json*")):
        return "; the folder has raw Amazon reviews: set dataset.source=amazon"
    return f"; dataset.dataset_folder must hold {SEQUENCES_FILE} and {ITEMS_FILE}"


def _make_item(record: dict[str, Any], line: int, where: str) -> _Item:
    title, keywords, brand, asin = (text_of(record, key, where) for key in ("title", "keywords", "brand", "asin"))
    external_id = asin or str(record["item_id"])
    name = title or keywords
    return _Item(external_id, name or external_id, item_text(name, brand, first_path(record, where)), line)


def _check_gaps(items: dict[int, _Item], path: Path) -> None:
    missing = set(range(1, len(items) + 1)) - items.keys()
    if missing:
        largest = max(items)
        raise DataError(
            f"{path}:{items[largest].line}: item_id {largest}, but there are {len(items)} items and no item_id "
            f"{min(missing)}; ids must be 1..N without gaps"
        )


def _read_sequences(path: Path, catalogue: Items, bad: BadLines) -> tuple[list[str], list[int], np.ndarray]:
    """Users, how many items each has, and all items one after the other."""
    known = {str(item_id): item_id - 1 for item_id in range(1, len(catalogue) + 1)}
    users: dict[str, int] = {}
    lengths: list[int] = []
    item_n: list[int] = []
    for number, line in read_lines(path, bad):
        user, *tokens = line.split()
        try:
            if user in users:
                raise DataError(f"{path}:{number}: user {user!r} stands already on line {users[user]}; one line a user")
            items = [known.get(token, -1) for token in tokens]
            if -1 in items:
                raise DataError(f"{path}:{number}: {_rule_broken(tokens[items.index(-1)], len(catalogue))}")
        except DataError as error:
            bad.add(error)
            continue
        users[user] = number
        lengths.append(len(items))
        item_n += items
    if not users:
        raise DataError(f"{path}: the file is empty; expected one user a line: user item item ...")
    return list(users), lengths, np.array(item_n, dtype=np.int32)


def _rule_broken(token: str, num_items: int) -> str:
    try:
        item_id = int(token)
    except ValueError:
        return f"item ids must be integers, got {token[:SHOWN]!r}"
    if 1 <= item_id <= num_items:
        return f"item ids must be plain digits, got {token!r}"
    return f"item {item_id} is not in {ITEMS_FILE}; its ids are 1..{num_items}"
