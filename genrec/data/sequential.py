"""Reads `sequential_data.txt` and `items.jsonl`, the form in which Beauty and Sports are passed around.

`sequential_data.txt` has one user a line, `user item item ...`, oldest first, item ids 1..N; `items.jsonl` has one
item a line with `item_id` and, where known, `asin`, `title`, `keywords`, `brand`, `categories` (a list of paths).
Internal item id = item_id - 1, so that row r of an array of vectors is item_id r+1. Nothing is guessed: what does not
fit raises `DataError` with file, line, value and rule.
"""

from __future__ import annotations

import html
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from genrec.data.interactions import DataError, Interactions, Items, build_interactions

SEQUENCES_FILE, ITEMS_FILE = "sequential_data.txt", "items.jsonl"


@dataclass(frozen=True)
class _Item:
    external_id: str
    title: str
    text: str
    line: int


def load_sequential(path: str | Path) -> Interactions:
    """Interactions from the folder `path`; users with fewer than 3 items are dropped and counted."""
    folder = Path(path)
    catalogue = load_items(folder / ITEMS_FILE)
    return _load_sequences(folder / SEQUENCES_FILE, catalogue)


def load_items(path: Path) -> Items:
    """The catalogue from an `items.jsonl`, ordered by item_id. Its ids must be 1..N without gaps."""
    items: dict[int, _Item] = {}
    line_of_id: dict[str, int] = {}
    for number, line in _lines(path):
        where = f"{path}:{number}"
        record = _parse_json(line, where)
        item_id = record.get("item_id")
        if not isinstance(item_id, int) or isinstance(item_id, bool) or item_id < 1:
            raise DataError(f"{where}: item_id must be an integer of 1 or more, got {item_id!r}")
        if item_id in items:
            raise DataError(f"{where}: item_id {item_id} stands already on line {items[item_id].line}")
        items[item_id] = item = _make_item(record, number, where)
        if item.external_id in line_of_id:
            first = line_of_id[item.external_id]
            raise DataError(f"{where}: asin {item.external_id!r} stands already on line {first}")
        line_of_id[item.external_id] = number
    if not items:
        raise DataError(f"{path}: the file is empty; expected one JSON object a line, one line an item")
    _check_gaps(items, path)
    ordered = [items[item_id] for item_id in range(1, len(items) + 1)]
    return Items([i.external_id for i in ordered], [i.title for i in ordered], [i.text for i in ordered])


def item_text(title: str, brand: str, categories: list[str]) -> str:
    """`TITLE; brand: BRAND; categories: A > B > C`; absent parts are left out."""
    parts = [title, f"brand: {brand}" if brand else "", f"categories: {' > '.join(categories)}" if categories else ""]
    return "; ".join(part for part in parts if part)


def _make_item(record: dict[str, Any], line: int, where: str) -> _Item:
    title, keywords, brand, asin = (_text(record, key, where) for key in ("title", "keywords", "brand", "asin"))
    external_id = asin or str(record["item_id"])
    name = title or keywords
    return _Item(external_id, name or external_id, item_text(name, brand, _first_path(record, where)), line)


def _text(record: dict[str, Any], key: str, where: str) -> str:
    value = record.get(key)
    if value is None:
        return ""
    if not isinstance(value, str):
        raise DataError(f"{where}: {key} must be text or null, got {value!r}")
    return html.unescape(value).strip()


def _first_path(record: dict[str, Any], where: str) -> list[str]:
    paths = record.get("categories") or []
    if not isinstance(paths, list) or not all(
        isinstance(path, list) and all(isinstance(name, str) for name in path) for path in paths
    ):
        raise DataError(f"{where}: categories must be a list of paths (lists of names), got {paths!r}")
    return [html.unescape(name).strip() for name in paths[0]] if paths else []


def _check_gaps(items: dict[int, _Item], path: Path) -> None:
    missing = set(range(1, len(items) + 1)) - items.keys()
    if missing:
        largest = max(items)
        raise DataError(
            f"{path}:{items[largest].line}: item_id {largest}, but there are {len(items)} items and no item_id "
            f"{min(missing)}; ids must be 1..N without gaps"
        )


def _load_sequences(path: Path, catalogue: Items) -> Interactions:
    users: dict[str, int] = {}
    lengths, line_numbers = [0], []
    tokens: list[str] = []
    for number, line in _lines(path):
        user, *items = line.split()
        if user in users:
            raise DataError(f"{path}:{number}: user {user!r} stands already on line {users[user]}; one line a user")
        users[user] = number
        line_numbers.append(number)
        lengths.append(len(items))
        tokens += items
    if not users:
        raise DataError(f"{path}: the file is empty; expected one user a line: user item item ...")
    offsets = np.cumsum(lengths)
    fault = next((i for i, token in enumerate(tokens) if not _is_item_id(token, len(catalogue))), None)
    if fault is not None:
        line_number = line_numbers[int(np.searchsorted(offsets, fault, side="right")) - 1]
        raise DataError(f"{path}:{line_number}: {_rule_broken(tokens[fault], len(catalogue))}")
    items_n = np.array(tokens, dtype=np.int64) - 1
    try:
        return build_interactions(list(users), offsets, items_n, catalogue)
    except DataError as error:
        raise DataError(f"{path}: {error}") from None


def _is_item_id(token: str, num_items: int) -> bool:
    return token.isascii() and token.isdecimal() and len(token) < 19 and 1 <= int(token) <= num_items


def _rule_broken(token: str, num_items: int) -> str:
    try:
        item_id = int(token)
    except ValueError:
        return f"item ids must be integers, got {token[:80]!r}"
    if 1 <= item_id <= num_items:
        return f"item ids must be plain digits, got {token!r}"
    return f"item {item_id} is not in {ITEMS_FILE}; its ids are 1..{num_items}"


def _parse_json(line: str, where: str) -> dict[str, Any]:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where}: not JSON: {error}") from None
    if not isinstance(record, dict):
        raise DataError(f"{where}: expected a JSON object, got {line.strip()[:80]!r}")
    return record


def _lines(path: Path) -> list[tuple[int, str]]:
    """Lines that are not blank, with their numbers from 1."""
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise DataError(
            f"{path}: cannot be read ({error.strerror}); expected {SEQUENCES_FILE} and {ITEMS_FILE}"
        ) from None
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8 at byte {error.start}") from None
    return [(number, line) for number, line in enumerate(text.split("\n"), start=1) if line.strip()]
