"""Look on at a sweep that another process drives, on this machine or another: reads the ledger and nothing else."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime
from typing import Any

from rich.console import Console

from sweeps.ledger import Ledger
from sweeps.live import ENDED, Event, LiveView
from sweeps.records import finalist_id

POLL_SECONDS = 1.0


def watch(ledger: Ledger, console: Console, refresh: Callable[[], object] = lambda: None) -> None:
    """Show the sweep as its driver would, until it has ended or is driven no more. `refresh` brings what is new to
    where the ledger is read from, if it is not written there."""
    view, news = LiveView(ledger, console), LedgerNews(ledger)
    view.catch_up(news.poll())
    with view.shown():
        while ledger.state in ("searching", "finalists"):
            time.sleep(POLL_SECONDS)
            refresh()
            for event in news.poll():
                view.on_event(*event)


class LedgerNews:
    """What has happened since it was last asked, as the driver's events."""

    def __init__(self, ledger: Ledger):
        self._ledger = ledger
        self._epochs: dict[str, int] = {}
        "epochs told, of trials that are known"
        self._paused: set[str] = set()
        self._ended: set[str] = set()
        self._avoided: set[str] = set()

    def poll(self) -> Iterator[Event]:
        for node, reason in (self._ledger.fact("avoided") or {}).items():
            if node not in self._avoided:
                self._avoided.add(node)
                yield "avoided", node, {"reason": reason}
        for record in self._ledger.trials():
            is_paused = record.status == "waiting" and bool(record.epochs)
            if record.duplicate_of is not None or not (is_paused or record.status in ("running", *ENDED)):
                continue
            yield from self._progress(record.id, record.started, record.epochs, runs=record.status == "running")
            if is_paused and record.id not in self._paused:
                epoch = record.epochs[-1]["epoch"]
                self._paused.add(record.id)
                yield "paused", record.id, {"epoch": epoch, "reason": f"paused at epoch {epoch}"}
            facts = {"reason": record.reason, "duration": record.duration, "reused": record.reused}
            yield from self._end(record.id, {"status": record.status, **facts})
        for run in self._ledger.finalist_runs():
            task_id = finalist_id(run.finalist, run.seed)
            yield from self._progress(task_id, None, run.epochs, runs=True)
            yield from self._end(task_id, {**run.result, "status": run.status})

    def _progress(
        self, task_id: str, started: datetime | None, epochs: Sequence[dict[str, Any]], *, runs: bool
    ) -> Iterator[Event]:
        """Its start, also the one after a pause, and its epochs since the last time."""
        told = self._epochs.get(task_id)
        if told is None:
            yield "started", task_id, {"ago": 0.0 if started is None else max(0.0, time.time() - started.timestamp())}
        elif task_id in self._paused and (runs or len(epochs) > told):
            self._paused.discard(task_id)
            yield "started", task_id, {}
        for row in epochs[told or 0 :]:
            yield "report", task_id, row
        self._epochs[task_id] = len(epochs)

    def _end(self, task_id: str, data: dict[str, object]) -> Iterator[Event]:
        if data["status"] in ENDED and task_id not in self._ended:
            self._ended.add(task_id)
            yield "finished", task_id, data
