"""Any CSV or Parquet table of interactions and one of items; columns are named in the config.

Tables are read in batches by pyarrow, cell by cell as text where the file is CSV, and checked in whole columns: a row
whose id is missing or whose time cannot be read is refused by line (CSV) or row (Parquet), or counted when
`dataset.max_bad_lines` allows it. Times are numbers, of which fractions are cut off, or dates and moments in ISO form
(UTC where no zone is given). The text of an item is `TITLE; column: VALUE; ...`; a list in a Parquet cell becomes
`A > B > C`.

Reading holds 16 bytes an interaction and one batch; 32 million rows, sorting included, need about 2 GB.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from genrec.data.filtering import InteractionRows
from genrec.data.interactions import DataError, Items
from genrec.data.lines import SHOWN, BadLines, clean_text
from genrec.data.table_files import TableFile, header_of, place_of, read_batches
from genrec.errors import nearest
from genrec.settings import TableConfig


@dataclass
class Columns:
    """Interactions as they are read: ids numbered by first appearance, in rows of the file."""

    users: dict[str, int] = field(default_factory=dict)
    items: dict[str, int] = field(default_factory=dict)
    user_parts: list[np.ndarray] = field(default_factory=list)
    item_parts: list[np.ndarray] = field(default_factory=list)
    time_parts: list[np.ndarray] = field(default_factory=list)


def table_files(folder: Path, config: TableConfig) -> list[Path]:
    """The table of interactions and, where there is one, of items. They must be there."""
    names = [config.interactions, *([config.items] if config.items else [])]
    for name in names:
        if not (folder / name).is_file():
            there = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
            raise DataError(f"{folder / name}: no such file{nearest(name, there)}")
    return [folder / name for name in names]


def read_table(folder: Path, config: TableConfig, max_bad_lines: int = 0) -> InteractionRows:
    """Interactions as rows, and the catalogue: of the item table, or the items that occur."""
    files = table_files(folder, config)
    bad = BadLines(max_bad_lines)
    counts = {}
    catalogue = None
    if config.items:
        catalogue, counts["repeated_items"] = read_items(TableFile(files[1]), config, bad)
    names = (config.user_column, config.item_column, config.timestamp_column)
    return read_interactions(TableFile(files[0]), names, catalogue, bad, counts)


def read_interactions(
    table: TableFile,
    names: tuple[str, str, str | None],
    catalogue: Items | None,
    bad: BadLines,
    counts: dict[str, int] | None = None,
) -> InteractionRows:
    """Rows of a table whose columns for user, item and (or None) timestamp are `names`."""
    user, item, timestamp = names
    found = Columns(items=dict(catalogue.index) if catalogue else {})
    known = pa.array(catalogue.ids, pa.string()) if catalogue else None
    for first_row, batch in read_batches(table, [name for name in names if name], bad):
        user_B, item_B = _id_column(batch, user, table), _id_column(batch, item, table)
        time_B, untimed = _times(batch, timestamp, table)
        checks = [Check(user, user_B, _bad_ids(user_B), _id_rule), Check(item, item_B, _bad_ids(item_B), _id_rule)]
        if known is not None:
            unknown_B = ~pc.is_in(item_B, value_set=known).to_numpy(zero_copy_only=False)
            checks.append(Check(item, item_B, unknown_B, functools.partial(_catalogue_rule, catalogue)))
        if timestamp:
            checks.append(Check(timestamp, batch.column(timestamp), untimed, _time_rule))
        keep = _refuse_rows(table, first_row, checks, bad)
        if not keep.all():
            user_B, item_B, time_B = user_B.filter(keep), item_B.filter(keep), time_B[keep]
        found.user_parts.append(_numbers(user_B, found.users))
        found.item_parts.append(_numbers(item_B, found.items))
        found.time_parts.append(time_B)
    return _rows(table, found, catalogue, bool(timestamp), (counts or {}) | {"bad_lines": bad.count})


def read_items(table: TableFile, config: TableConfig, bad: BadLines) -> tuple[Items, int]:
    """The catalogue in the order of the file, and how many rows repeated an item word for word."""
    columns = _text_columns(table, config)
    items: dict[str, tuple[str, str]] = {}
    row_of: dict[str, int] = {}
    repeated = 0
    for first_row, batch in read_batches(table, [config.item_column, *columns], bad):
        id_B = _id_column(batch, config.item_column, table)
        keep = _refuse_rows(table, first_row, [Check(config.item_column, id_B, _bad_ids(id_B), _id_rule)], bad)
        cells = [batch.column(name).to_pylist() for name in columns]
        for row, (item, *values) in enumerate(zip(id_B.to_pylist(), *cells, strict=True)):
            if not keep[row]:
                continue
            try:
                described = _describe(values, columns, f"{table.path}, item {item!r}")
                if items.setdefault(item, described) != described:
                    first, second = place_of(table, row_of[item]), place_of(table, first_row + row)
                    raise DataError(f"{second}: item {item!r} stands already at {first}, with other words")
            except DataError as error:
                bad.add(error)
                continue
            repeated += item in row_of
            row_of.setdefault(item, first_row + row)
    if not items:
        raise DataError(f"{table.path}: the table of items has no rows")
    titles = [title or item for item, (title, _) in items.items()]
    return Items(list(items), titles, [text for _, text in items.values()]), repeated


def _text_columns(table: TableFile, config: TableConfig) -> list[str]:
    """The title's column, then those of the text."""
    names = header_of(table)
    others = [name for name in names if name not in (config.item_column, config.title_column)]
    return [config.title_column, *(config.text_columns or others)]


def _describe(values: list[Any], columns: list[str], where: str) -> tuple[str, str]:
    """Title and text of an item."""
    texts = [_cell(value, name, where) for value, name in zip(values, columns, strict=True)]
    parts = [texts[0], *(f"{name}: {text}" for name, text in zip(columns[1:], texts[1:], strict=True) if text)]
    return texts[0], "; ".join(part for part in parts if part)


def _cell(value: Any, name: str, where: str) -> str:
    if value is None:
        return ""
    if isinstance(value, list):
        return " > ".join(_cell(part, name, where) for part in value if part is not None)
    return clean_text(str(value), name, where)


# --------------------------------------------------------------------- checks


def _rows(
    table: TableFile, found: Columns, catalogue: Items | None, timed: bool, counts: dict[str, int]
) -> InteractionRows:
    if not found.users or not sum(len(part) for part in found.user_parts):
        raise DataError(f"{table.path}: the table of interactions has no rows that can be used")
    ids = list(found.items)
    return InteractionRows(
        list(found.users),
        catalogue or Items(ids, ids, ids),
        _joined(found.user_parts),
        _joined(found.item_parts),
        _joined(found.time_parts) if timed else None,
        counts,
    )


def _joined(parts: list[np.ndarray]) -> np.ndarray:
    """One array of many, which are given up, so that memory holds them twice only one column at a time."""
    whole = np.concatenate(parts)
    parts.clear()
    return whole


def _id_column(batch: pa.RecordBatch, name: str, table: TableFile) -> pa.StringArray:
    """A column of ids as text. Numbers with a fraction are no ids: they are what a table with gaps makes of numbers."""
    column = batch.column(name)
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    if not (
        pa.types.is_integer(column.type) or pa.types.is_string(column.type) or pa.types.is_large_string(column.type)
    ):
        raise DataError(f"{table.path}: column {name!r} must hold text or integers as ids, got {column.type}")
    return column.cast(pa.string())


def _bad_ids(id_B: pa.StringArray) -> np.ndarray:
    """(B,) bool: missing, empty, or with spaces around it."""
    odd = pc.or_(pc.equal(id_B, ""), pc.not_equal(id_B, pc.utf8_trim_whitespace(id_B)))
    return pc.fill_null(odd, True).to_numpy(zero_copy_only=False)


def _times(batch: pa.RecordBatch, name: str | None, table: TableFile) -> tuple[np.ndarray, np.ndarray]:
    """(B,) int64 times and (B,) bool where they cannot be read."""
    if name is None:
        return np.empty(batch.num_rows, dtype=np.int64), np.zeros(batch.num_rows, dtype=bool)
    column = batch.column(name)
    if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
        column = _times_of_text(column.cast(pa.string()))
    elif pa.types.is_date(column.type) or pa.types.is_timestamp(column.type):
        column = column.cast(pa.timestamp("us")).cast(pa.int64())
    elif pa.types.is_floating(column.type):
        column = pc.if_else(pc.less(pc.abs(column), 2.0**62), pc.floor(column), None).cast(pa.int64())
    elif pa.types.is_integer(column.type):
        column = column.cast(pa.int64())
    else:
        raise DataError(f"{table.path}: column {name!r} must hold times, got {column.type}")
    bad = pc.fill_null(pc.less(column, 0), True).to_numpy(zero_copy_only=False)
    return pc.fill_null(column, 0).to_numpy(zero_copy_only=False), bad


def _times_of_text(text_B: pa.StringArray) -> pa.Int64Array:
    """Numbers, or ISO dates and moments; null where a cell is neither."""
    text_B = pc.replace_substring_regex(text_B, r"^(\d+)\.\d*$", r"\1")
    digits = pc.match_substring_regex(text_B, r"^\d{1,18}$")
    if pc.all(digits).as_py():
        return text_B.cast(pa.int64())
    values = []
    for text, whole in zip(text_B.to_pylist(), digits.to_pylist(), strict=True):
        values.append(int(text) if whole else _microseconds(text))
    return pa.array(values, pa.int64())


def _microseconds(text: str | None) -> int | None:
    """Microseconds since 1970 of an ISO moment."""
    try:
        moment = datetime.fromisoformat(text or "")
    except ValueError:
        return None
    moment = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    return (moment - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(microseconds=1)


def _numbers(id_B: pa.StringArray, known: dict[str, int]) -> np.ndarray:
    """(B,) int32 numbers of ids; new ones get the next, in order of appearance."""
    encoded = id_B.dictionary_encode()
    numbers = [known.setdefault(item, len(known)) for item in encoded.dictionary.to_pylist()]
    return np.array(numbers, dtype=np.int32)[encoded.indices.to_numpy()]


class Check(NamedTuple):
    """A rule for the cells of a column."""

    column: str
    values: pa.Array
    broken_B: np.ndarray
    rule: Callable[[Any], str]
    "what to say of a cell that breaks it"


def _refuse_rows(table: TableFile, first_row: int, checks: list[Check], bad: BadLines) -> np.ndarray:
    """(B,) bool rows that can be used. The others are counted, or the first of them is raised."""
    broken_B = np.any([check.broken_B for check in checks], axis=0)
    if broken_B.any():
        row = int(broken_B.argmax())
        check = next(check for check in checks if check.broken_B[row])
        bad.add_lazily(int(broken_B.sum()), lambda: _fault(table, first_row, row, check))
    return ~broken_B


def _fault(table: TableFile, first_row: int, row: int, check: Check) -> DataError:
    rule = check.rule(check.values[row].as_py())
    return DataError(f"{place_of(table, first_row + row)}: column {check.column!r}: {rule}")


def _id_rule(value: Any) -> str:
    fault = f"an id must have no spaces around it, got {repr(value)[:SHOWN]}"
    return fault if value else "the cell is empty"


def _time_rule(value: Any) -> str:
    fault = f"expected seconds since 1970 (0 or more) or an ISO date, got {repr(value)[:SHOWN]}"
    return "the cell is empty" if value in (None, "") else fault


def _catalogue_rule(catalogue: Items | None, value: str) -> str:
    ids = catalogue.ids if catalogue else []
    return f"item {value[:SHOWN]!r} is not in the catalogue of {len(ids)} items{nearest(value, ids)}"
