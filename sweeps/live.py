"""What a person sees while a sweep runs: a live table on a terminal, plain lines in a log file.

Events come from the driver itself, or from the ledger of a sweep that is driven elsewhere (`sweeps.watch`).
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from genrec.progress import clock
from sweeps.ledger import Ledger
from sweeps.records import TrialRecord
from sweeps.wording import number

RECENT = 12
"finished trials that stay in the live table"
ENDED = ("stopped", "completed", "failed")
LEFT = ("trial", "status", "tokenizer")
"columns that are aligned to the left"
DROPPED = ("tokenizer", "best", "time", "epoch")
"what a narrow terminal goes without, first to last"
OF_THE_CLUSTER = ("cluster", "avoided", "delayed")
"events that are about no trial"
GAP = 2
Event = tuple[str, str, dict[str, Any]]
"what happened, to which trial, and the details"


@dataclass
class Row:
    """A trial or finalist as it is shown."""

    since: float
    "monotonic seconds of its start"
    status: str = "running"
    epoch: int | None = None
    value: float | None = None
    best: float | None = None
    reused: list[str] | None = None
    seconds: float | None = None
    reason: str | None = None
    paused_at: int = 0
    "the last epoch before a pause; a trial that goes on reports those before it once more"

    def cells(self, name: str, metric: str) -> dict[str, str]:
        tokenizer = "" if self.reused is None else "reused" if "tokenizer" in self.reused else "trained"
        return {
            "trial": name,
            "status": self.status,
            "epoch": "" if self.epoch is None else str(self.epoch),
            metric: number(self.value),
            "best": number(self.best),
            "tokenizer": tokenizer,
            "time": clock(time.monotonic() - self.since if self.seconds is None else self.seconds),
        }


class DriverConsole(Console):
    """Progress on stderr. If its reader is gone (`sweeps run FILE 2>&1 | head`), the sweep continues without output."""

    def __init__(self, quiet: bool = False):
        super().__init__(stderr=True, quiet=quiet)

    def on_broken_pipe(self) -> None:
        self.quiet = True
        with suppress(OSError, ValueError), open(os.devnull, "w") as nowhere:
            os.dup2(nowhere.fileno(), self.file.fileno())  # for whoever else writes there


class LiveView:
    """Gets events; `say` prints a line in either form."""

    def __init__(self, ledger: Ledger, console: Console):
        self.ledger = ledger
        self.console = console
        self.rows: dict[str, Row] = {}
        self._live: Live | None = None
        self._elapsed = ledger.elapsed, time.monotonic()

    @contextmanager
    def shown(self) -> Iterator[LiveView]:
        """The live table for the block, if the console is a terminal."""
        if not self.console.is_terminal:
            yield self
            return
        with Live(console=self.console, get_renderable=self._render, refresh_per_second=2, transient=True) as live:
            self._live = live
            yield self
        self._live = None

    def say(self, text: str) -> None:
        self.console.print(Text(text), soft_wrap=True)

    def catch_up(self, events: Iterable[Event]) -> None:
        """Take in what happened before anyone looked, without a line for each."""
        for event in events:
            if event[0] in OF_THE_CLUSTER:
                self.on_event(*event)
            else:
                self._take(*event)

    def on_event(self, event: str, task_id: str, data: dict[str, Any]) -> None:
        if event in OF_THE_CLUSTER:
            if event == "avoided":
                self.say(f"{time.strftime('%H:%M:%S')} node {task_id} is avoided from now on: {data['reason']}")
            elif event == "delayed":
                self.say(f"{time.strftime('%H:%M:%S')} {data['reason']}")
            return
        row = self._take(event, task_id, data)
        if self._live is None:
            self._plain(event, task_id, row, data)

    def _take(self, event: str, task_id: str, data: Mapping[str, Any]) -> Row:
        row = self.rows.setdefault(task_id, Row(time.monotonic()))
        if event in ("waiting", "restarted"):
            row.status = "waiting"
        elif event == "paused":
            row.status, row.paused_at = event, row.epoch or 0
        elif event == "started":
            row.status, row.since = "running", time.monotonic() - data.get("ago", 0.0)
        elif event == "report" and "epoch" in data:
            row.epoch, row.value = data["epoch"], data.get(self.ledger.spec.metric)
            better = max if self.ledger.spec.mode == "max" else min
            row.best = better((value for value in (row.best, row.value) if value is not None), default=None)
        elif event == "finished":
            row.status, row.reason, row.seconds = data["status"], data.get("reason"), data.get("duration")
            row.reused = data.get("reused") or []
        return row

    def _plain(self, event: str, task_id: str, row: Row, data: Mapping[str, Any]) -> None:
        clock = time.strftime("%H:%M:%S")
        if event == "waiting":
            self.say(f"{clock} {task_id} waits for a stage that another trial is making")
        elif event == "started":
            self.say(f"{clock} {task_id} {'goes on' if row.paused_at else 'started'}")
        elif event in ("paused", "restarted"):
            self.say(f"{clock} {task_id} {data['reason']}")
        elif event == "report" and "epoch" in data and data["epoch"] > row.paused_at:
            shown = "" if row.value is None else f" {self.ledger.spec.metric} {row.value:.4f}"
            self.say(f"{clock} {task_id} epoch {row.epoch}{shown}")
        elif event == "finished":
            tokenizer = " (tokenizer reused)" if "tokenizer" in (row.reused or []) else ""
            reason = f": {row.reason}" if row.reason else ""
            took = f" after {row.seconds:.0f} s" if row.seconds is not None else ""
            self.say(f"{clock} {task_id} {row.status}{took}{tokenizer}{reason}{self._end(self.ledger.trials())}")

    def _end(self, records: Sequence[TrialRecord]) -> str:
        """When the search will be over, while it is going on."""
        if self.ledger.fact("phase") not in (None, "searching"):
            return ""
        seconds = remaining_seconds(self.ledger, records)
        return "" if seconds is None else f"; search ends in about {clock(seconds)}"

    def _render(self) -> Group:
        metric, records = self.ledger.spec.metric, self.ledger.trials()
        ended = sum(row.status in ENDED for row in self.rows.values())
        leader = self.ledger.best()
        best = f", best {metric} {number(leader.value)} ({leader.id})" if leader else ""
        head = f"{self.ledger.spec.name}: {ended} ended, {clock(self._elapsed_now())}{best}{self._use()}"
        return Group(Text(head + self._end(records), style="bold"), self._table(metric))

    def _elapsed_now(self) -> float:
        """The sweep's time, which a reader of the ledger learns in steps: the clock goes on between them."""
        known, since = self._elapsed
        if self.ledger.elapsed != known:
            self._elapsed = known, since = self.ledger.elapsed, time.monotonic()
        return known + time.monotonic() - since

    def _use(self) -> str:
        """How much of the cluster the running trials have."""
        cluster, resources = self.ledger.fact("cluster"), self.ledger.spec.resources
        if not cluster:
            return ""
        workers = resources.most_workers * sum(row.status == "running" for row in self.rows.values())
        asked = {"CPU": workers * resources.cpus_per_worker, "GPU": workers * resources.gpus_per_worker}
        used = {name: min(asked[name], cluster.get(name, 0)) for name in asked}  # elastic trials take what there is
        return "".join(f", {used[name]:g} of {cluster[name]:g} {name}" for name in used if cluster.get(name))

    def _table(self, metric: str) -> Table:
        finished = [name for name, row in self.rows.items() if row.status in ENDED]
        hidden = set(finished[:-RECENT])
        rows = [row.cells(name, metric) for name, row in self.rows.items() if name not in hidden]
        columns = fitting(["trial", "status", "epoch", metric, "best", "tokenizer", "time"], rows, self.console.width)
        table = Table(box=None, pad_edge=False)
        for name in columns:
            title = name[: max(4, self.console.width // 5)]
            table.add_column(title, justify="left" if name in LEFT else "right", no_wrap=True)
        for row in rows:
            table.add_row(*(row[name] for name in columns))
        return table


def fitting(columns: Sequence[str], rows: Sequence[dict[str, str]], width: int) -> list[str]:
    """The columns that a terminal of `width` has room for. Where little is left, names lose their beginnings and words
    their ends."""
    kept = list(columns)
    for name in DROPPED:
        if _width(kept, rows) <= width:
            return kept
        kept.remove(name)
    if _width(kept, rows) > width:
        for row in rows:
            row["trial"] = row["trial"].removeprefix("trial-").removeprefix("finalist-")
    if _width(kept, rows) > width:
        for row in rows:
            row["status"] = row["status"][:4]
    return kept


def _width(columns: Sequence[str], rows: Sequence[Mapping[str, str]]) -> int:
    return sum(max([len(name), *(len(row[name]) for row in rows)]) + GAP for name in columns) - GAP


def remaining_seconds(ledger: Ledger, records: Sequence[TrialRecord]) -> float | None:
    """What the search still needs, by its pace so far or by its time limit; None while nothing is known. A paused trial
    counts as ended: few are trained on."""
    budget, left = ledger.spec.budget, []
    ended = sum(record.status in (*ENDED, "waiting") and record.duplicate_of is None for record in records)
    if budget.trials and ended:
        left.append(max(0, budget.trials - ended) * ledger.search_seconds / ended)
    if budget.time:
        left.append(max(0.0, budget.time - ledger.search_seconds))
    return min(left) if left else None
