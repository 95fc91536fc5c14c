"""Look on at a sweep that another process drives, on this machine or another: reads the ledger and nothing else."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from datetime import datetime

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
        self._ended: set[str] = set()
        self._avoided: set[str] = set()

    def poll(self) -> Iterator[Event]:
        for node, reason in (self._ledger.fact("avoided") or {}).items():
            if node not in self._avoided:
                self._avoided.add(node)
                yield "avoided", node, {"reason": reason}
        for record in self._ledger.trials():
            if record.status not in ("running", *ENDED) or record.duplicate_of is not None:
                continue
            yield from self._start(record.id, record.started)
            for row in record.epochs[self._epochs[record.id] :]:
                yield "report", record.id, row
            self._epochs[record.id] = len(record.epochs)
            facts = {"reason": record.reason, "duration": record.duration, "reused": record.reused}
            yield from self._end(record.id, {"status": record.status, **facts})
        for run in self._ledger.finalist_runs():
            task_id = finalist_id(run.finalist, run.seed)
            yield from self._start(task_id, None)
            yield from self._end(task_id, {**run.result, "status": run.status})

    def _start(self, task_id: str, when: datetime | None) -> Iterator[Event]:
        if task_id not in self._epochs:
            self._epochs[task_id] = 0
            ago = 0.0 if when is None else max(0.0, time.time() - when.timestamp())
            yield "started", task_id, {"ago": ago}

    def _end(self, task_id: str, data: dict[str, object]) -> Iterator[Event]:
        if data["status"] in ENDED and task_id not in self._ended:
            self._ended.add(task_id)
            yield "finished", task_id, data
