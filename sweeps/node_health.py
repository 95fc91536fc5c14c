"""Which nodes fail the trials that they are given: the driver's record, by which it avoids a node. No Ray here.

A fault that is the node's alone (other code, other data, no disk) speaks for itself. A process that dies, or a package
that is missing, may be the trial's fault as well: only several trials in a row speak against the node. A storage that
is full is no node's fault: all share it.
"""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

IN_A_ROW = 3
"different trials that failed on a node, none having come to its end between them, after which it is avoided"
IN_A_ROW_ON_THE_LAST = 10
"the same where no other node is left to compare with"
MIN_FREE_BYTES = 2**30
"in the storage and in the temporary folder, below which no trial should run"
PROBE_BYTES = 2**20
_NO_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)


class UnfitNode(RuntimeError):
    """No trial may run on the node (its id) on which this was raised."""

    def __init__(self, reason: str, node_id: str):
        super().__init__(reason, node_id)
        self.reason, self.node_id = reason, node_id

    def __str__(self) -> str:
        return self.reason


class StorageFull(OSError):
    """Nothing more can be written to the storage that all nodes share. The sweep is resumable."""


class NodeHealth:
    """Told what became of trials; `avoided` is what it makes of that."""

    def __init__(self) -> None:
        self.avoided: dict[str, str] = {}
        "id of a node -> why nothing is started there any more"
        self._row: dict[str, dict[str, str]] = {}
        "id of a node -> trials that failed there since one came to its end, and how"

    def served(self, node: str | None) -> None:
        """A trial came to its end on the node, be it to a bad one of its own making."""
        if node is not None:
            self._row.pop(node, None)

    def failed(self, node: str, task_id: str, reason: str, *, others: int, certain: bool = False) -> bool:
        """A trial failed for a reason that may lie in the node. `others`: usable nodes beside it; `certain`: no trial
        could run there. Whether the node is avoided from now on, and was not before."""
        row = self._row.setdefault(node, {})
        row[task_id] = reason
        enough = certain or len(row) >= (IN_A_ROW if others else IN_A_ROW_ON_THE_LAST)
        if node in self.avoided or not enough:
            return False
        self.avoided[node] = reason if certain else f"{len(row)} trials in a row failed there; the last: {reason}"
        return True

    def acquit(self, task_id: str) -> None:
        """The trial fails wherever it runs: no node is to blame for it."""
        for row in self._row.values():
            row.pop(task_id, None)


def is_of_the_node(error: Exception) -> bool | None:
    """Whether what a trial raised is the fault of its node. None: it may be (a package is missing there)."""
    if isinstance(error, UnfitNode) or (isinstance(error, OSError) and error.errno in _NO_DISK):
        return True
    return None if isinstance(error, ImportError) else False


def disk_error(error: Exception) -> dict[str, Any] | None:
    """What a trial's process tells the driver of an error of its disk, for `fault_of_storage`; None if it is none."""
    if isinstance(error, OSError) and error.errno in _NO_DISK:
        return {"errno": error.errno, "path": None if error.filename is None else os.path.realpath(error.filename)}
    return None


def fault_of_storage(storage: Path, told: Mapping[str, Any]) -> str | None:
    """Why nothing can be written to the storage, which this process sees as well; None: it is the node's own disk.

    A path in the storage speaks for itself, unless the file system is read-only, which it may be on one node alone.
    Errors often come without a path: then it is tried here.
    """
    free, path, number = shutil.disk_usage(storage).free, told["path"], told["errno"]
    in_storage = path is not None and Path(path).is_relative_to(os.path.realpath(storage))
    is_full = number != errno.EROFS and (in_storage or (path is None and free < MIN_FREE_BYTES))
    if is_full or ((in_storage or path is None) and not _can_be_written(storage)):
        where = f" ({path})" if in_storage else ""
        return f"the storage {storage} cannot be written: {os.strerror(number)}{where}; {free:,} bytes are free there"
    return None


def _can_be_written(folder: Path) -> bool:
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(bytes(PROBE_BYTES))
            file.flush()
            os.fsync(file.fileno())
    except OSError:
        return False
    return True
