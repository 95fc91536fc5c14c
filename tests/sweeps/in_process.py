"""A queue worked off in this process, one task after the other: what `run_queue` does on a cluster."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from genrec.artifacts import ArtifactStore
from sweeps.trial import run_trial


def work(queue: Any, store: ArtifactStore, faulty: Mapping[str, str] | None = None) -> None:
    """`faulty`: tasks that fail at once, with this reason and on a node of that name."""
    while task := queue.next():
        if faulty and task.id in faulty:
            queue.finish(task.id, "failed", {"reason": faulty[task.id], "node": faulty[task.id]})
            continue

        def report(row: dict[str, Any], task_id: str = task.id) -> None:
            if "epoch" in row:
                queue.report(task_id, row)

        def launch(loop: Callable[..., None], argument: dict[str, Any], report: Callable[..., None] = report) -> None:
            loop(argument, report)

        result = run_trial(task.payload, report, launch, store=store.address)
        queue.finish(task.id, "completed", result | {"node": "here", "duration": 0.1})
