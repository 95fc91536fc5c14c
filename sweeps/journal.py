"""The files around a ledger: who drives the sweep, and whether the journal's end is whole.

A process that is killed while it appends leaves a last line without its newline. The next append would join it and make
the journal unreadable, so the tail is cut before a writer opens it. The lock is the kernel's: it ends with its owner.
"""

from __future__ import annotations

import fcntl
import json
import os
import socket
import warnings
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from genrec.durable import write_text

JOURNAL = "ledger.journal"
LOCK = "driver.lock"
DRIVER = "driver.json"
_WAIT_FOR_PROBES = 0.5  # seconds; a reader that asks `is_driven` holds the lock for an instant


class LedgerError(RuntimeError):
    """The record of a sweep cannot be used as asked; the message says why and what to do."""


class DriverLock:
    """The right to write a sweep's ledger, for one process at a time."""

    def __init__(self, folder: Path):
        self._folder = folder
        self._lock = FileLock(folder / LOCK, thread_local=False)

    def acquire(self) -> None:
        """Take the lock and leave a note who has it. Raises `LedgerError` naming the process that has it."""
        try:
            self._lock.acquire(timeout=_WAIT_FOR_PROBES, poll_interval=0.05)
        except Timeout:
            driver = read_driver(self._folder)
            who = "another process"
            if driver:
                who = f"pid {driver.get('pid')} on {driver.get('host')} since {driver.get('started')}"
            raise LedgerError(f"sweep {self._folder.name} is being driven by {who}") from None
        started = datetime.now(UTC).isoformat(timespec="seconds")
        note = {"host": socket.gethostname(), "pid": os.getpid(), "started": started}
        write_text(self._folder / DRIVER, json.dumps(note) + "\n")

    def release(self) -> None:
        self._lock.release()


def read_driver(folder: Path) -> dict[str, Any] | None:
    """Host, pid and start of the last driver; it may be gone."""
    try:
        note = json.loads((folder / DRIVER).read_text())
    except (OSError, ValueError):
        return None
    return note if isinstance(note, dict) else None


def is_driven(folder: Path) -> bool:
    """Whether a driver is alive, asked of the kernel without waiting or writing."""
    try:
        descriptor = os.open(folder / LOCK, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return True
    finally:
        os.close(descriptor)
    return False


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
