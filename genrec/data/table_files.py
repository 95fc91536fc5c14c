"""CSV and Parquet files as batches of named columns, and where in the file a row stands.

A CSV is read cell by cell as text, so that nothing is guessed about types; its delimiter is found from the header.
"""

from __future__ import annotations

import contextlib
import csv
import functools
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet

from genrec.data.interactions import DataError
from genrec.data.lines import SHOWN, BadLines, open_lines
from genrec.errors import nearest

PARQUET = (".parquet", ".pq")
DELIMITERS = ",\t;|"
BLOCK_BYTES = 1 << 24


@dataclass(frozen=True)
class TableFile:
    """A table and how to read it. `names` are the columns of a CSV without a header."""

    path: Path
    delimiter: str = ""
    "empty: found from the header"
    names: Sequence[str] = ()
    encoding: str = "utf8"

    @property
    def parquet(self) -> bool:
        return self.path.suffix.lower() in PARQUET


def read_batches(table: TableFile, columns: list[str], bad: BadLines) -> Iterator[tuple[int, pa.RecordBatch]]:
    """Batches of some columns, each with the number of its first row."""
    header = header_of(table)
    for name in columns:
        if header.count(name) != 1:
            fault = "stands twice" if name in header else f"is missing{nearest(name, header)}; there are {header}"
            raise DataError(f"{table.path}: column {name!r} {fault}")
    row = 0
    for batch in _parquet_batches(table, columns) if table.parquet else _csv_batches(table, columns, bad):
        yield row, batch
        row += batch.num_rows


def _parquet_batches(table: TableFile, columns: list[str]) -> Iterator[pa.RecordBatch]:
    try:
        with pyarrow.parquet.ParquetFile(table.path) as file:
            yield from file.iter_batches(batch_size=1 << 18, columns=columns)
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"{table.path}: cannot be read as Parquet ({_first_line(error)})") from None


def _csv_batches(table: TableFile, columns: list[str], bad: BadLines) -> Iterator[pa.RecordBatch]:
    ragged: list[str] = []
    told = 0

    def skip(row: pyarrow.csv.InvalidRow) -> str:
        ragged.append(f"{row.actual_columns} cells, not {row.expected_columns}: {row.text[:SHOWN]!r}")
        return "skip"

    def tell() -> None:
        nonlocal told
        for number in range(told, len(ragged)):
            bad.add_lazily(1, functools.partial(_ragged_fault, table, number, ragged[number]))
        told = len(ragged)

    try:
        with (
            contextlib.closing(open_lines(table.path)) as file,
            pyarrow.csv.open_csv(
                file,
                pyarrow.csv.ReadOptions(
                    block_size=BLOCK_BYTES, column_names=list(table.names) or None, encoding=table.encoding
                ),
                pyarrow.csv.ParseOptions(
                    delimiter=_delimiter(table), newlines_in_values=not table.names, invalid_row_handler=skip
                ),
                pyarrow.csv.ConvertOptions(include_columns=columns, column_types=dict.fromkeys(columns, pa.string())),
            ) as reader,
        ):
            for batch in reader:
                tell()
                yield batch
        tell()
    except (OSError, EOFError, pa.ArrowException) as error:
        raise DataError(f"{_undecodable(table)}: cannot be read as CSV ({_first_line(error)})") from None


def _ragged_fault(table: TableFile, number: int, fault: str) -> DataError:
    return DataError(f"{place_of(table, number, ragged=True)}: {fault}")


def header_of(table: TableFile) -> list[str]:
    if table.names:
        return list(table.names)
    if table.parquet:
        try:
            return list(pyarrow.parquet.read_schema(table.path).names)
        except (OSError, pa.ArrowException) as error:
            raise DataError(f"{table.path}: cannot be read as Parquet ({_first_line(error)})") from None
    names = next(csv.reader([_first_text(table)], delimiter=_delimiter(table)), [])
    if not names:
        raise DataError(f"{table.path}: the file is empty; expected a header with the columns' names")
    return names


def _delimiter(table: TableFile) -> str:
    """What stands most often in the first line."""
    first = "" if table.delimiter else _first_text(table)
    return table.delimiter or max(DELIMITERS, key=first.count)


def _first_text(table: TableFile) -> str:
    try:
        with contextlib.closing(open_lines(table.path)) as file:
            return file.readline().decode(table.encoding).lstrip("\ufeff").rstrip("\r\n")
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise DataError(f"{table.path}: cannot be read as CSV ({_first_line(error)})") from None


def place_of(table: TableFile, row: int, ragged: bool = False) -> str:
    """`FILE:LINE` of a row, for messages. Rows are counted as pyarrow does: empty ones never, ragged ones apart."""
    if not table.parquet:
        width, row_left = len(header_of(table)), row + (not table.names and not ragged)
        with contextlib.closing(open_lines(table.path)) as file, contextlib.suppress(csv.Error):
            reader = csv.reader(io.TextIOWrapper(file, table.encoding, newline=""), delimiter=_delimiter(table))
            for cells in reader:
                row_left -= bool(cells) and (len(cells) != width) == ragged
                if row_left < 0:
                    return f"{table.path}:{reader.line_num}"
    # Of Parquet, or behind a cell that is too long for this reader.
    return f"{table.path}: row {row + 1}"


def _undecodable(table: TableFile) -> str:
    """`FILE:LINE` of the first line that is not UTF-8, or the file where all are."""
    if table.encoding == "utf8":
        with contextlib.suppress(OSError, EOFError), contextlib.closing(open_lines(table.path)) as file:
            for number, line in enumerate(file, start=1):
                try:
                    line.decode()
                except UnicodeDecodeError as error:
                    return f"{table.path}:{number}: not UTF-8 at byte {error.start} of the line"
    return str(table.path)


def _first_line(error: Exception) -> str:
    return str(error).split("\n", 1)[0] or type(error).__name__
