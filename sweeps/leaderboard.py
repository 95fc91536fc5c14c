"""The tables that end a sweep: trials by validation, finalists by test beside baselines and oracle, what to do next.

Plain aligned text: it reads the same on a terminal, in a log file and in a pull request.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from typing import Any

from genrec.terminal import printable
from sweeps.cluster_use import busy_line
from sweeps.folders import artifact_store, sweeps_command
from sweeps.ledger import Ledger
from sweeps.records import TrialRecord
from sweeps.revisions import described
from sweeps.status import sweep_status
from sweeps.wording import aligned, counted, example_history, in_order, number, plus_minus

SHOWN = 10


def status_lines(ledger: Ledger, storage: str) -> list[str]:
    """Leaderboard, finalists, verdict, next commands."""
    status = sweep_status(ledger)
    trials = ", ".join(f"{count} {name}" for name, count in status["trials"].items() if count)
    made, found = status["trained_stages"], status["reused_stages"]
    lines = [f"{status['name']}: {status['state']}; trials: {trials or 'none yet'}"]
    lines.append(f"stages made: {made}, reused: {found}; {status['elapsed_seconds']:.0f} s with a driver running")
    if status["busy_share"]:
        lines.append(busy_line(ledger))
    lines += [f"node {node} is avoided: {reason}" for node, reason in status["avoided_nodes"].items()]
    if status["restarts"]:
        lines.append(f"trials that were started again: {', '.join(status['restarts'])}")
    if status["stop_reason"]:
        lines.append(f"search ended by: {status['stop_reason']}")
    if status["taken_over"]:
        lines.append(f"trials taken over from earlier sweeps: {status['taken_over']}")
    for count, revision in enumerate(ledger.revisions, start=1):
        lines.append(f"revision {count}, {revision.at}, after {revision.trials} trials:")
        lines += [f"  {line}" for line in described(revision.difference)]
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
    names = list(dict.fromkeys(name for record in leaders for name in record.params))
    against = [name for name in leaders[0].objectives if name != metric]
    head = ["trial", "status", "epochs", metric, *against, *(name.rsplit(".", 1)[-1] for name in names)]
    rows = [
        [record.id, record.status, str(len(record.epochs)), number(record.value)]
        + [_short(record.objectives.get(name)) for name in against]
        + [_short(record.params.get(name)) for name in names]
        for record in leaders[:SHOWN]
    ]
    more = [f"... and {len(leaders) - SHOWN} more"] if len(leaders) > SHOWN else []
    return [*aligned([head, *rows]), *more]


def _finalist_tables(status: dict[str, Any]) -> list[str]:
    """Item-level numbers with the references, then the tuple-level ones under their own name."""
    names = in_order(status["finalists"][0]["test"])
    items = [name for name in names if not name.startswith("tuple_")]
    tuples = [name for name in names if name.startswith("tuple_")]
    facts = ", ".join(f"{name} {value}" for name, value in (status["protocol"] or {}).items())
    references = [
        [f"{name} (fit: {row['fit']})", *(number(row.get(column)) for column in items)]
        for name, row in status["baselines"].items()
    ]
    if status["oracle"]:
        references.append(["oracle", *(number(status["oracle"].get(column)) for column in items)])
    lines = ["", f"finalists on the test split, item level ({facts})"]
    lines += aligned([["", *items], *_finalist_rows(status, items), *_ensemble_rows(status, items), *references])
    lines += ["", "the same lists read as semantic-ID tuples, as papers count; not comparable with the rows above"]
    return lines + aligned([["", *tuples], *_finalist_rows(status, tuples)])


def _finalist_rows(status: dict[str, Any], names: Sequence[str]) -> list[list[str]]:
    rows = [_row(row, f"{row['trial']} ({_seeds(row)})", names) for row in status["finalists"]]
    for row in status["finalists_without_result"]:
        rows.append([f"{row['trial']} (failed: {counted(len(row['failed']), 'seed')})", *("" for _ in names)])
    return rows


def _seeds(row: dict[str, Any]) -> str:
    if not row["failed"]:
        return counted(len(row["seeds"]), "seed")
    failed = ", ".join(str(failure["seed"]) for failure in row["failed"])
    return f"{len(row['seeds'])} of {len(row['seeds']) + len(row['failed'])} seeds, failed: {failed}"


def _ensemble_rows(status: dict[str, Any], names: Sequence[str]) -> list[list[str]]:
    row = status["ensemble"]
    return [_row(row, f"ensemble of {len(row['members'])} ({counted(row['seeds'], 'seed')})", names)] if row else []


def _row(row: dict[str, Any], name: str, metrics: Sequence[str]) -> list[str]:
    seeds = row["seeds"] if isinstance(row["seeds"], int) else len(row["seeds"])
    return [name, *(plus_minus(row["test"][metric], seeds) for metric in metrics)]


def _oracle_lines(status: dict[str, Any]) -> list[str]:
    oracle, test = status["oracle"] or {}, status["finalists"][0]["test"]
    return [
        f"the winner reaches {value['mean'] / oracle[name]:.0%} of the oracle's test {name} ({oracle[name]:.4f})"
        for name, value in ((name, test[name]) for name in in_order(test))
        if name in oracle and name.startswith("recall")
    ]


def _next_commands(ledger: Ledger, storage: str) -> list[str]:
    folder, name = ledger.folder, ledger.folder.name
    bundle, best = str(folder / "bundle"), str(folder / "best.yaml")
    store = artifact_store(folder.parent).address
    commands = [
        ["genrec", "recommend", bundle, "--history", example_history(folder), "-k", "10"],
        ["genrec", "evaluate", bundle, "--store", store],
        ["genrec", "train", best, "--store", store, "--set", "train.fit_on=train+validation"],
    ]
    return [
        *(shlex.join(words) for words in commands),
        sweeps_command("report", name, storage=storage),
        sweeps_command("status", name, "--format", "json", storage=storage),
    ]


def _short(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.0f}" if value >= 10_000 else f"{value:.4g}"
    return "" if value is None else str(value)
