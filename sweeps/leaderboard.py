"""The tables that end a sweep: trials by validation, finalists by test beside baselines and oracle, what to do next."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from genrec.cli import printable
from sweeps.ledger import Ledger, TrialRecord
from sweeps.status import sweep_status

SHOWN = 10


def print_status(ledger: Ledger, console: Console, storage: str) -> None:
    """Leaderboard, finalists, verdict, next commands."""
    status = sweep_status(ledger)
    trials = ", ".join(f"{count} {name}" for name, count in status["trials"].items() if count)
    console.print(f"[bold]{status['name']}[/bold]: {status['state']}; {trials or 'no trials yet'}")
    made, found = status["trained_stages"], status["reused_stages"]
    console.print(f"stages made: {made}, reused: {found}; {status['elapsed_seconds']:.0f} s of driving")
    leaders = ledger.leaderboard()
    if leaders:
        console.print(_trial_table(leaders[:SHOWN], status["metric"]))
    if status["finalists"]:
        console.print(_finalist_table(status))
    for sentence in status["verdict"]:
        console.print(escape(sentence))
    if status["winner"]:
        _print_oracle(status, console)
        _print_next(ledger, console, storage)


def _trial_table(leaders: list[TrialRecord], metric: str) -> Table:
    names = list(leaders[0].params)
    table = Table(title=f"trials, best validation {metric} first", title_justify="left")
    for name in ("trial", "status", "epochs", metric, *(name.rsplit(".", 1)[-1] for name in names)):
        table.add_column(name)
    for record in leaders:
        values = [_short(record.params.get(name)) for name in names]
        table.add_row(record.id, record.status, str(len(record.epochs)), f"{record.value:.4f}", *values)
    return table


def _finalist_table(status: dict[str, Any]) -> Table:
    """Item-level numbers first, then the tuple-level ones under their own names."""
    columns = list(status["finalists"][0]["test"])
    protocol = status["protocol"] or {}
    facts = ", ".join(f"{name} {value}" for name, value in protocol.items())
    table = Table(title=f"test split: {facts}" if facts else "test split", title_justify="left")
    table.add_column("finalist")
    for name in columns:
        table.add_column(name.replace("tuple_", "tuple "))
    for row in status["finalists"]:
        cells = [f"{row['test'][name]['mean']:.4f} ±{row['test'][name]['std']:.4f}" for name in columns]
        table.add_row(f"{row['trial']} ({len(row['seeds'])} seeds)", *cells)
    table.add_section()
    for name, row in status["baselines"].items():
        table.add_row(f"{name} (fit: {row['fit']})", *(_number(row.get(column)) for column in columns))
    if status["oracle"]:
        table.add_row("oracle", *(_number(status["oracle"].get(column)) for column in columns))
    return table


def _print_oracle(status: dict[str, Any], console: Console) -> None:
    if not status["oracle"]:
        return
    for name, value in status["finalists"][0]["test"].items():
        if name in status["oracle"] and name.startswith("recall"):
            best = status["oracle"][name]
            console.print(f"winner reaches {value['mean'] / best:.0%} of the oracle's {name} ({best:.4f})")


def _print_next(ledger: Ledger, console: Console, storage: str) -> None:
    folder = ledger.folder
    example = _example_history(ledger)
    option = "" if storage == "runs" else f" --storage {storage}"
    console.print("next:", highlight=False)
    for command in (
        f"genrec recommend {folder}/bundle --history {example} -k 10",
        f"genrec evaluate {folder}/bundle",
        f"genrec train {folder}/best.yaml",
        f"sweeps status {ledger.spec.name}{option} --format json",
    ):
        console.print(f"  {printable(command)}", markup=False, highlight=False, soft_wrap=True)


def _example_history(ledger: Ledger) -> str:
    """Two items of the catalogue."""
    import json

    with open(ledger.folder / "bundle" / "items.jsonl", encoding="utf-8") as file:
        return ",".join(json.loads(next(file))["item"] for _ in range(2))


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else escape(str(value))


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"
