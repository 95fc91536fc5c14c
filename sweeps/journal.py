"""The journal file of a ledger: whether its end is whole.

A process that is killed while it appends leaves a last line without its newline. The next append would join it and make
the journal unreadable, so the tail is cut before a writer opens it.
"""

from __future__ import annotations

import json
import os
import warnings
from pathlib import Path
from typing import Any

from sweeps.errors import LedgerError

JOURNAL = "ledger.journal"


def repair_tail(path: Path) -> None:
    """Cut a torn last line, with a warning. Raises `LedgerError` for damage that is no torn line; writes nothing then.

    The cut line was never acknowledged to anyone: its append had not returned.
    """
    with path.open("r+b") as file:
        start = _last_line_start(file)
        file.seek(start)
        line = file.read()
        if not line or line.endswith(b"\n"):
            _check_line(path, line)
            return
        warnings.warn(f"{path}: cut {len(line)} bytes of a line that was not written to its end", stacklevel=2)
        file.truncate(start)
        file.flush()
        os.fsync(file.fileno())


def _last_line_start(file: Any, block: int = 1 << 16) -> int:
    """Offset of the last line; a newline at the very end belongs to it."""
    size = end = file.seek(0, os.SEEK_END)
    while end > 0:
        begin = max(0, end - block)
        file.seek(begin)
        chunk = file.read(end - begin)
        found = chunk.rfind(b"\n", 0, len(chunk) - 1 if end == size else len(chunk))
        if found >= 0:
            return int(begin + found + 1)
        end = begin
    return 0


def _check_line(path: Path, line: bytes) -> None:
    if line and not _is_record(line):
        raise damaged(path, "its last line is no record")


def _is_record(line: bytes) -> bool:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return False
    return isinstance(record, dict) and isinstance(record.get("op_code"), int)


def damaged(path: Path, reason: str) -> LedgerError:
    """The error for a journal that cannot be read, naming the first line that is no record."""
    where = str(path)
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                if line.endswith(b"\n") and not _is_record(line):
                    where = f"{path}:{number}"
                    break
    except OSError as error:
        reason = str(error)
    return LedgerError(f"{where}: the ledger is damaged ({reason}); nothing was changed; fix: restore it from a copy")
