"""The tables that end a sweep: trials by validation, finalists by test beside baselines and oracle, what to do next.

Plain aligned text: it reads the same on a terminal, in a log file and in a pull request.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any

from genrec.cli import printable
from sweeps.ledger import Ledger
from sweeps.records import TrialRecord
from sweeps.status import sweep_status

SHOWN = 10


def status_lines(ledger: Ledger, storage: str) -> list[str]:
    """Leaderboard, finalists, verdict, next commands."""
    status = sweep_status(ledger)
    trials = ", ".join(f"{count} {name}" for name, count in status["trials"].items() if count)
    made, found = status["trained_stages"], status["reused_stages"]
    lines = [f"{status['name']}: {status['state']}; trials: {trials or 'none yet'}"]
    lines.append(f"stages made: {made}, reused: {found}; {status['elapsed_seconds']:.0f} s of driving")
    leaders = ledger.leaderboard()
    if leaders:
        lines += ["", f"trials, best validation {status['metric']} first", *_trial_table(leaders, status["metric"])]
    if status["finalists"]:
        lines += _finalist_tables(status)
    lines += ["", *status["verdict"]] if status["verdict"] else []
    if status["winner"]:
        lines += [*_oracle_lines(status), "", "next:", *(f"  {line}" for line in _next_commands(ledger, storage))]
    return [printable(line) for line in lines]


def _trial_table(leaders: list[TrialRecord], metric: str) -> list[str]:
    names = list(leaders[0].params)
    head = ["trial", "status", "epochs", metric, *(name.rsplit(".", 1)[-1] for name in names)]
    rows = [
        [record.id, record.status, str(len(record.epochs)), _number(record.value)]
        + [_short(record.params.get(name)) for name in names]
        for record in leaders[:SHOWN]
    ]
    more = [f"... and {len(leaders) - SHOWN} more"] if len(leaders) > SHOWN else []
    return [*_aligned([head, *rows]), *more]


def _finalist_tables(status: dict[str, Any]) -> list[str]:
    """Item-level numbers with the references, then the tuple-level ones under their own name."""
    names = list(status["finalists"][0]["test"])
    items = [name for name in names if not name.startswith("tuple_")]
    tuples = [name for name in names if name.startswith("tuple_")]
    facts = ", ".join(f"{name} {value}" for name, value in (status["protocol"] or {}).items())
    references = [
        [f"{name} (fit: {row['fit']})", *(_number(row.get(column)) for column in items)]
        for name, row in status["baselines"].items()
    ]
    if status["oracle"]:
        references.append(["oracle", *(_number(status["oracle"].get(column)) for column in items)])
    lines = ["", f"finalists on the test split, item level ({facts})"]
    lines += _aligned([["", *items], *_finalist_rows(status, items), *references])
    lines += ["", "the same lists read as semantic-ID tuples, as papers count; not comparable with the rows above"]
    return lines + _aligned([["", *tuples], *_finalist_rows(status, tuples)])


def _finalist_rows(status: dict[str, Any], names: Sequence[str]) -> list[list[str]]:
    return [
        [f"{row['trial']} ({len(row['seeds'])} seeds)"]
        + [f"{row['test'][name]['mean']:.4f} ± {row['test'][name]['std']:.4f}" for name in names]
        for row in status["finalists"]
    ]


def _oracle_lines(status: dict[str, Any]) -> list[str]:
    oracle = status["oracle"] or {}
    return [
        f"the winner reaches {value['mean'] / oracle[name]:.0%} of the oracle's test {name} ({oracle[name]:.4f})"
        for name, value in status["finalists"][0]["test"].items()
        if name in oracle and name.startswith("recall")
    ]


def _next_commands(ledger: Ledger, storage: str) -> list[str]:
    folder = ledger.folder
    option = "" if storage == "runs" else f" --storage {storage}"
    return [
        f"genrec recommend {folder}/bundle --history {_example_history(ledger)} -k 10",
        f"genrec evaluate {folder}/bundle --store {folder.parent}/.artifacts",
        f"genrec train {folder}/best.yaml --store {folder.parent}/.artifacts",
        f"sweeps status {ledger.spec.name}{option} --format json",
    ]


def _example_history(ledger: Ledger) -> str:
    """Two items of the catalogue."""
    with open(ledger.folder / "bundle" / "items.jsonl", encoding="utf-8") as file:
        return ",".join(json.loads(line)["item"] for line, _ in zip(file, range(2), strict=False))


def _aligned(rows: Iterable[Sequence[str]]) -> list[str]:
    """Columns under each other, the first to the left, the others to the right."""
    rows = [list(row) for row in rows]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return [
        "  ".join(
            cell.ljust(width) if column == 0 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    ]


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"
