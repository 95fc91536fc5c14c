"""Lines of the files that others made: read strictly, refused by file and line, bad ones counted.

Text files, plain or gzipped, are read one line at a time. A line that cannot be used is a `DataError` that names file,
line, value and rule; the first `max_bad_lines` of them are counted instead (`BadLines`). A file that is damaged as a
whole (truncated, wrong checksum) is always refused.
"""

from __future__ import annotations

import functools
import gzip
import html
import json
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

from genrec.data.interactions import DataError

SHOWN = 80
"characters of a bad line that a message shows"
TEXT_TEMPLATE = 1
"version of what `item_text` makes; what encoders made of the texts is keyed by it"


class BadLines:
    """The bad lines of a dataset: up to `limit` are counted, the next one is raised."""

    def __init__(self, limit: int = 0):
        self.limit, self.count = limit, 0

    def add(self, error: DataError) -> None:
        """Count a bad line; raise its fault when there are too many."""
        self.add_lazily(1, lambda: error)

    def add_lazily(self, count: int, first_fault: Callable[[], DataError]) -> None:
        """Count bad lines; the fault of the first is asked for only when there are too many."""
        self.count += count
        if self.count > self.limit:
            hint = f" (bad line {self.count}; dataset.max_bad_lines is {self.limit})" if self.limit else ""
            raise DataError(f"{first_fault()}{hint}") from None


def read_lines(path: Path, bad: BadLines, encoding: str = "utf-8-sig") -> Iterator[tuple[int, str]]:
    """Numbers from 1 and lines without their ends. Empty lines at the end are no lines; others are bad."""
    blank: list[int] = []
    for number, raw in enumerate(_raw_lines(path), start=1):
        try:
            line = raw.decode(encoding if number == 1 else encoding.removesuffix("-sig")).rstrip("\r\n")
        except UnicodeDecodeError as error:
            bad.add(DataError(f"{path}:{number}: not UTF-8 at byte {error.start} of the line"))
            continue
        if not line.strip():
            blank.append(number)
            continue
        if blank:
            bad.add_lazily(len(blank), functools.partial(DataError, f"{path}:{blank[0]}: the line is blank"))
            blank = []
        yield number, line


def parse_json(line: str, where: str) -> dict[str, Any]:
    """A line's JSON object. NaN, Infinity and repeated keys are refused: they are no JSON, and Python accepts them."""
    try:
        record = _decoder.decode(line)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where}: not JSON: {error}: {line.strip()[:SHOWN]!r}") from None
    if not isinstance(record, dict):
        raise DataError(f"{where}: expected a JSON object, got {line.strip()[:SHOWN]!r}")
    return record


def text_of(record: dict[str, Any], key: str, where: str) -> str:
    """The text under `key`, entities resolved, without spaces around it; empty when absent or null."""
    value = record.get(key)
    if value is None:
        return ""
    if not isinstance(value, str):
        raise DataError(f"{where}: {key} must be text or null, got {repr(value)[:SHOWN]}")
    return clean_text(value, key, where)


def clean_text(value: str, key: str, where: str) -> str:
    """`value` with entities resolved and without spaces around it; half a character is refused."""
    text = html.unescape(value).strip()
    # isascii is quick, and nearly every text is.
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError as error:
            half = f"{ord(text[error.start]):#06x}"
            raise DataError(f"{where}: {key} has half a character ({half}) at place {error.start}") from None
    return text


def first_path(record: dict[str, Any], where: str) -> list[str]:
    """Names of the first of `categories`, a list of paths."""
    paths = record.get("categories") or []
    if not isinstance(paths, list) or not all(
        isinstance(path, list) and all(isinstance(name, str) for name in path) for path in paths
    ):
        raise DataError(f"{where}: categories must be a list of paths (lists of names), got {str(paths)[:SHOWN]}")
    return [clean_text(name, "categories", where) for name in paths[0]] if paths else []


def item_text(title: str, brand: str, categories: list[str]) -> str:
    """`TITLE; brand: BRAND; categories: A > B > C`; absent parts are left out."""
    parts = [title, f"brand: {brand}" if brand else "", f"categories: {' > '.join(categories)}" if categories else ""]
    return "; ".join(part for part in parts if part)


def _raw_lines(path: Path) -> Iterator[bytes]:
    number = 0
    try:
        with open_lines(path) as file:
            for number, line in enumerate(file, start=1):  # noqa: B007 (the faults below name it)
                yield line
    except EOFError:
        raise DataError(f"{path}: the gzip file is truncated; line {number} is the last good one") from None
    except (gzip.BadGzipFile, zlib.error) as error:
        raise DataError(f"{path}: damaged, or not a gzip file ({error}); {number} lines could be read") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from None


def open_lines(path: Path) -> IO[bytes]:
    """The bytes of a file, unpacked when it is gzipped."""
    # No further buffer around the second: it would lose the lines before a fault.
    return gzip.open(path, "rb") if path.suffix == ".gz" else open(path, "rb")  # type: ignore[return-value]


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON number")


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    record = dict(pairs)
    if len(record) != len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"key {next(key for key in keys if keys.count(key) > 1)!r} occurs twice")
    return record


_decoder = json.JSONDecoder(object_pairs_hook=_unique_keys, parse_constant=_no_constant)
