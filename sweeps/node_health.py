"""Which nodes fail the trials that they are given: the driver's record, by which it avoids a node. No Ray here.

A fault that is the node's alone (other code, other data, no disk) speaks for itself. A process that dies, or a package
that is missing, may be the trial's fault as well: only several trials in a row speak against the node.
"""

from __future__ import annotations

import errno

IN_A_ROW = 3
"different trials that failed on a node, none having come to its end between them, after which it is avoided"
IN_A_ROW_ON_THE_LAST = 10
"the same where no other node is left to compare with"
_NO_STORAGE = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)


class UnfitNode(RuntimeError):
    """No trial may run on the node (its id) on which this was raised."""

    def __init__(self, reason: str, node_id: str):
        super().__init__(reason, node_id)
        self.reason, self.node_id = reason, node_id

    def __str__(self) -> str:
        return self.reason


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
    if isinstance(error, UnfitNode) or (isinstance(error, OSError) and error.errno in _NO_STORAGE):
        return True
    return None if isinstance(error, ImportError) else False
