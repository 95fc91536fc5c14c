"""Trials as CSV that a spreadsheet may open: no cell of a foreign text is a formula."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from typing import Any

import pandas as pd

from sweeps.frames import trials_frame
from sweeps.ledger import Ledger
from sweeps.report.document import one_line

_FORMULA = ("=", "+", "-", "@", "|", "%", "\uff1d", "\uff0b", "\uff0d", "\uff20")
"the last four are the wide forms of the first, which spreadsheets read alike"


def trials_csv(ledger: Ledger) -> str:
    """One row a trial, as `Sweep.trials` has them."""
    frame = trials_frame(ledger).reset_index(names="number")
    return csv_text(frame.columns.tolist(), frame.itertuples(index=False, name=None))


def csv_text(columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """Header and rows. Numbers stay numbers; texts are kept from being formulas by a quote before them."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow([cell(column) for column in columns])
    writer.writerows([cell(value) for value in row] for row in rows)
    return file.getvalue()


def cell(value: Any) -> Any:
    """A value as a spreadsheet may have it."""
    if value is None or value is pd.NaT or (isinstance(value, float) and value != value):
        return ""
    if isinstance(value, (bool, int, float)):
        return value
    text = one_line(str(value))
    return f"'{text}" if text.startswith(_FORMULA) else text
