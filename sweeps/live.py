"""What a person sees while a sweep runs: a live table on a terminal, plain lines in a log file."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from sweeps.ledger import Ledger

RECENT = 12
"finished trials that stay in the live table"


class LiveView:
    """Gets the driver's events; `say` prints a line in either form."""

    def __init__(self, ledger: Ledger, console: Console):
        self.ledger = ledger
        self.console = console
        self.started_at = time.monotonic()
        self.rows: dict[str, dict[str, Any]] = {}
        self.done = 0
        self._ended_before = sum(r.status in ("stopped", "completed", "failed") for r in ledger.trials())
        self._live: Live | None = None

    @contextmanager
    def shown(self) -> Iterator[LiveView]:
        """The live table for the block, if the console is a terminal."""
        if not self.console.is_terminal:
            yield self
            return
        with Live(console=self.console, get_renderable=self._render, refresh_per_second=4, transient=True) as live:
            self._live = live
            yield self
        self._live = None

    def say(self, text: str) -> None:
        self.console.print(Text(text), soft_wrap=True)

    def on_event(self, event: str, task_id: str, data: dict[str, Any]) -> None:
        row = self.rows.setdefault(task_id, {"status": "running", "since": time.monotonic()})
        if event == "started":
            row["status"] = "running"
        elif event == "report" and "epoch" in data:
            row |= {"epoch": data["epoch"], "value": data.get(self.ledger.spec.metric)}
        elif event == "report":
            row |= {"reused": data.get("reused", row.get("reused"))}
        elif event == "paused":
            row |= {"status": "paused", "reason": data["reason"]}
        elif event == "finished":
            self.done += 1
            row |= {"status": data["status"], "reason": data.get("reason"), "seconds": data.get("duration")}
            row["reused"] = data.get("reused") or row.get("reused") or []
        if self._live is None:
            self._plain(event, task_id, row)

    def _plain(self, event: str, task_id: str, row: dict[str, Any]) -> None:
        clock = time.strftime("%H:%M:%S")
        metric = self.ledger.spec.metric
        if event == "started":
            self.say(f"{clock} {task_id} started")
        elif event == "report" and "epoch" in row and row["status"] == "running":
            value = row.get("value")
            shown = "" if value is None else f" {metric} {value:.4f}"
            self.say(f"{clock} {task_id} epoch {row['epoch']}{shown}")
        elif event == "paused":
            self.say(f"{clock} {task_id} {row['reason']}")
        elif event == "finished":
            tokenizer = " (tokenizer reused)" if "tokenizer" in row["reused"] else ""
            reason = f": {row['reason']}" if row["reason"] else ""
            took = f" after {row['seconds']:.0f} s" if row.get("seconds") is not None else ""
            self.say(f"{clock} {task_id} {row['status']}{took}{tokenizer}{reason}{self._eta()}")

    def _eta(self) -> str:
        """Time the search still needs, from its pace in this session."""
        budget = self.ledger.spec.budget
        elapsed = time.monotonic() - self.started_at
        left = []
        if budget.trials and self.done:
            remaining = max(0, budget.trials - self._ended_before - self.done)
            left.append(remaining * elapsed / self.done)
        if budget.time:
            left.append(max(0.0, budget.time - self.ledger.elapsed))
        finalists = any(name.startswith("finalist") for name in self.rows)
        return f"; search ends in about {_clock(min(left))}" if left and not finalists else ""

    def _render(self) -> Group:
        metric = self.ledger.spec.metric
        table = Table(box=None, pad_edge=False)
        for name in ("trial", "status", "epoch", metric, "tokenizer", "time"):
            table.add_column(name, justify="left" if name in ("trial", "status", "tokenizer") else "right")
        finished = [name for name, row in self.rows.items() if row["status"] != "running"]
        hidden = set(finished[:-RECENT])
        for name, row in self.rows.items():
            if name not in hidden:
                table.add_row(*self._cells(name, row))
        leaders = self.ledger.leaderboard()
        best = f", best {metric} {leaders[0].value:.4f} ({leaders[0].id})" if leaders else ""
        head = f"{self.ledger.spec.name}: {self.done} ended, {_clock(time.monotonic() - self.started_at)}{best}"
        return Group(Text(head + self._eta(), style="bold"), table)

    def _cells(self, name: str, row: dict[str, Any]) -> list[str]:
        value = row.get("value")
        seconds = row.get("seconds") or time.monotonic() - row["since"]
        reused = row.get("reused")
        tokenizer = "" if reused is None else "reused" if "tokenizer" in reused else "trained"
        shown = "" if value is None else f"{value:.4f}"
        return [name, row["status"], str(row.get("epoch", "")), shown, tokenizer, _clock(seconds)]


def _clock(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}" if minutes >= 60 else f"{minutes}:{rest:02d}"
