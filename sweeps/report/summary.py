"""The top of a report: what came out, in words and numbers, and the commands that repeat and use it."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from genrec.config import RunConfig
from sweeps.differences import differing_settings
from sweeps.finalists import BASE, current_runs, failed_seeds, finalist_name, metric_per_user
from sweeps.folders import artifact_store, storage_of, sweeps_command
from sweeps.ledger import Ledger
from sweeps.plan_text import duration_text
from sweeps.records import FinalistRun
from sweeps.report.document import Block, Cell, Commands, Section, Spread, Table, Text, scalar
from sweeps.report.standing import best_so_far, chosen_config
from sweeps.significance import seeds_in_words
from sweeps.status import sweep_status
from sweeps.wording import counted, example_history, in_order


def summary(ledger: Ledger, report: Path) -> list[Section]:
    """Verdict, winner, numbers on the test split, commands. `report`: the folder that the report is written to."""
    status = sweep_status(ledger)
    sections = [Section("verdict", "Verdict", verdict(ledger, status))]
    if status["finalists"]:
        sections.append(Section("numbers", "On the test split", numbers(ledger, status)))
    return [*sections, Section("commands", "Commands", [commands(ledger, status, report)])]


def lead(ledger: Ledger) -> str:
    """State, trials and time in one line."""
    trials = ", ".join(f"{count} {name}" for name, count in ledger.counts().items() if count)
    return f"{ledger.state}; trials: {trials or 'none yet'}; {duration_text(ledger.elapsed)} of driving"


# -- verdict ----------------------------------------------------------------------------------------------------------


def verdict(ledger: Ledger, status: Mapping[str, Any]) -> list[Block]:
    """The finalists' verdict, and how the winner's settings differ from the base."""
    spec = ledger.spec
    if status["state"] != "finished" or status["winner"] is None:
        return _unfinished(ledger, status)
    row = status["finalists"][0]
    metric = metric_per_user(spec.metric, row["test"])
    seeds = _seeds(row)
    over = "one seed" if seeds == 1 else f"mean and deviation over {seeds} seeds"
    over += f" ({seeds_in_words(failed_seeds(row))} failed)" if row["failed"] else ""
    wins = (
        f"{row['trial']} wins: {metric} {_spread(row, 'test', metric)} on the test split, {over}; chosen by "
        f"validation, where it has {spec.metric} {_spread(row, 'validation', spec.metric)}."
    )
    sentences = [*_above_on_test(status, metric, spec.metric), *status["verdict"], *_against_references(status, metric)]
    return [Text(wins, strong=True), *(Text(sentence) for sentence in sentences), *_difference(ledger, "winner")]


_DOING = {
    "searching": "the sweep is searching",
    "finalists": "the finalists are being measured",
    "interrupted": "the sweep was interrupted",
    "failed": "the sweep failed",
}


def _unfinished(ledger: Ledger, status: Mapping[str, Any]) -> list[Block]:
    """What is known before the end. A winner of before is no winner of what has changed since."""
    doing = _DOING.get(status["state"], "it was not compared")
    blocks: list[Block] = [Text(_so_far(ledger, status, doing), strong=True)]
    if status["winner"] is None:
        return [*blocks, *_difference(ledger, "best trial")]
    name, measured = status["winner"]["trial"], _measured(ledger)
    if ledger.fact("phase") == "finalists":
        again = any(finalist_name(run.finalist) == name for run in _planned(ledger))
        fate = "being measured again" if again else "not among those being measured now"
        words = f"Previous winner: {name}, {fate}; {measured} of this re-evaluation have ended."
    else:
        words = f"Previous winner: {name}; what it was compared with has changed since."
    previous = f"The bundle and the exported config are still those of {name}."
    return [*blocks, Text(words), Text(previous), *_difference(ledger, "previous winner")]


def _so_far(ledger: Ledger, status: Mapping[str, Any], doing: str) -> str:
    which = "no winner yet" if status["winner"] is None else "no winner of the sweep as it is now"
    best = best_so_far(ledger)
    if best is None:
        return f"There is {which}: {doing}, and no trial has a result."
    words = {"completed": "", "waiting": " (paused)"}.get(best.status, f" ({best.status})")
    return (
        f"There is {which}: {doing}. Best so far is {best.id}{words}, with validation {ledger.spec.metric} "
        f"{best.value:.4f}."
    )


def _planned(ledger: Ledger) -> list[FinalistRun]:
    """The runs of the last re-evaluation, those that have not begun among them."""
    readings = ledger.fact("test_readings") or [{"runs": []}]
    known = {(run.finalist, run.seed): run for run in current_runs(ledger)}
    return [known.get((f, s)) or FinalistRun(f, s, "waiting") for f, s in readings[-1]["runs"]]


def _measured(ledger: Ledger) -> str:
    runs = _planned(ledger)
    ended = sum(run.status in ("completed", "stopped", "failed") for run in runs)
    return f"{ended} of {counted(len(runs), 'run')}"


def _above_on_test(status: Mapping[str, Any], metric: str, chosen_by: str) -> list[str]:
    """Finalists that are above the winner on the test split, so that nobody takes that for a mistake."""
    winner, *others = status["finalists"]
    value = winner["test"][metric]["mean"]
    return [
        f"{row['trial']} is above the winner on the test split ({row['test'][metric]['mean']:.4f}); validation alone "
        f"chooses, where it has {chosen_by} {row['validation'][chosen_by]['mean']:.4f}."
        for row in others
        if metric in row["test"] and row["test"][metric]["mean"] > value
    ]


def _against_references(status: Mapping[str, Any], metric: str) -> list[str]:
    """The baselines that the winner is above (the verdict names the others), and what is possible."""
    value = status["finalists"][0]["test"][metric]["mean"]
    sentences = [
        f"The winner is above the baseline {name} (fit: {row['fit']}): {value:.4f} against {row[metric]:.4f}."
        for name, row in status["baselines"].items()
        if metric in row and value > row[metric]
    ]
    oracle = (status["oracle"] or {}).get(metric)
    if oracle:
        sentences.append(
            f"The best possible {metric} on this data is {oracle:.4f}; the winner reaches {value / oracle:.0%}."
        )
    return sentences


def _difference(ledger: Ledger, whose: str) -> list[Block]:
    config = _previous_config(ledger) if whose == "previous winner" else chosen_config(ledger)
    if config is None:
        return []
    found = differing_settings(ledger.spec.base_config(), config)
    if not found:
        return [Text(f"The {whose} has the settings of the base config.")]
    rows = [[path, scalar(base), scalar(own)] for path, (base, own) in found.items()]
    return [Table(f"Settings of the {whose} that differ from the base config", ["setting", "base", whose], rows)]


def _previous_config(ledger: Ledger) -> RunConfig:
    trial = ledger.fact("winner")["trial"]
    if trial == BASE:
        return ledger.spec.finalist_config(ledger.spec.base_config())
    return ledger.spec.finalist_config(ledger.config_of(int(trial.rsplit("-", 1)[1])))


# -- numbers ----------------------------------------------------------------------------------------------------------


def numbers(ledger: Ledger, status: Mapping[str, Any]) -> list[Block]:
    """Item-level metrics with the references; tuple-level ones apart; what both are measured by."""
    final, chosen_by = status["state"] == "finished", status["metric"]
    names = in_order(status["finalists"][0]["test"])
    items = [name for name in names if not name.startswith("tuple_")]
    tuples = [name for name in names if name.startswith("tuple_")]
    ensemble = [status["ensemble"]] if status["ensemble"] and final else []
    references: list[list[Cell]] = [
        [f"{name} (fit: {row['fit']})", None, *(row.get(column) for column in items), None, None]
        for name, row in status["baselines"].items()
    ]
    if status["oracle"]:
        oracle = [status["oracle"].get(column) for column in items]
        references.append(["oracle (best possible)", None, *oracle, None, None])
    rows_of_all = [*status["finalists"], *ensemble]
    lost: list[list[Cell]] = [
        [row["trial"], None, *(None for _ in items), f"0 of {len(row['failed'])}", None]
        for row in status["finalists_without_result"]
    ]
    note = f"Best first by validation {chosen_by}, which chooses; who failed with a seed comes behind those that did "
    note += "not. All other metrics are of the test split. Mean ± sample deviation over the seeds."
    if not final:
        note += f" Not final: {_measured(ledger)} have ended, so that rows differ in their seeds."
    blocks: list[Block] = [
        Table(
            "Item level: a hit is the very item",
            ["", f"validation {chosen_by}", *items, "seeds", "parameters"],
            [*(_finalist(row, items, chosen_by) for row in rows_of_all), *lost, *references],
            note,
            [*items, *([f"validation {chosen_by}"] if ledger.spec.mode == "max" else [])],
        )
    ]
    if tuples:
        blocks.append(
            Table(
                "Tuple level: a hit is the item's semantic-ID tuple, as papers count",
                ["", *tuples, "seeds", "parameters"],
                [_finalist(row, tuples) for row in rows_of_all if any(name in row["test"] for name in tuples)],
                "Not comparable with the table above.",
            )
        )
    if status["protocol"]:
        rows: list[list[Cell]] = [[name, scalar(value)] for name, value in status["protocol"].items()]
        rows += [["test split opened", status["test_opened"]], ["times it was read", len(status["test_readings"])]]
        blocks.append(Table("What every number is measured by", ["", "value"], rows))
    if status["comparisons"] and final:
        blocks.append(_comparisons(status["comparisons"]))
    return blocks


def _finalist(row: Mapping[str, Any], metrics: Sequence[str], chosen_by: str | None = None) -> list[Cell]:
    name = row["trial"] if "members" not in row else "ensemble of " + ", ".join(row["members"])
    validation = [_spread(row, "validation", chosen_by)] if chosen_by else []
    tests = [_spread(row, "test", metric) for metric in metrics]
    failed = len(row.get("failed") or [])
    seeds = f"{_seeds(row)} of {_seeds(row) + failed}" if failed else _seeds(row)
    return [name, *validation, *tests, seeds, row.get("parameters")]


def _seeds(row: Mapping[str, Any]) -> int:
    return row["seeds"] if isinstance(row["seeds"], int) else len(row["seeds"])


def _spread(row: Mapping[str, Any], split: str, metric: str) -> Spread | None:
    found = row[split].get(metric)
    return None if found is None else Spread(found["mean"], found["std"], _seeds(row))


def _comparisons(rows: Sequence[Mapping[str, Any]]) -> Table:
    columns = {
        "A": "a",
        "B": "b",
        "metric": "metric",
        "A's mean": "mean_a",
        "B's mean": "mean_b",
        "difference": "difference",
        "low": "low",
        "high": "high",
        "over": "interval_over",
        "effect size": "effect",
        "p": "p",
        "users": "users",
    }
    note = (
        "Paired over users. Low and high bound the difference with 95 %, over what the column says: users alone where "
        "a side has one seed. Effect size: mean difference over its deviation among users. p is corrected for all "
        "comparisons (Holm), the interval is not."
    )
    cells: list[list[Cell]] = [[row.get(key) for key in columns.values()] for row in rows]
    return Table("Comparisons behind the verdict", list(columns), cells, note)


# -- commands ---------------------------------------------------------------------------------------------------------


def commands(ledger: Ledger, status: Mapping[str, Any], report: Path) -> Commands:
    """How to go on, repeat, train and recommend; `sweep.yaml` and `best.yaml` lie beside the report."""
    folder, name = ledger.folder, ledger.folder.name
    storage, store = storage_of(folder.parent), artifact_store(folder.parent).address
    file, best, bundle = (str(path) for path in (report / "sweep.yaml", report / "best.yaml", folder / "bundle"))
    lines = [("repeat the sweep", sweeps_command("run", file, "--name", f"{name}-again", storage=storage))]
    if status["winner"]:
        whose = "" if status["state"] == "finished" else "previous "
        recommend = ["genrec", "recommend", bundle, "--history", _history(folder), "-k", "10"]
        lines += [
            (f"train the {whose}winner again", shlex.join(["genrec", "train", best, "--store", store])),
            (f"recommend with the {whose}winner", shlex.join(recommend)),
        ]
    if status["state"] in ("searching", "finalists"):
        return Commands([*lines, ("look on until it ends", sweeps_command("status", name, "--watch", storage=storage))])
    if status["state"] != "finished":
        lines.append(("continue the sweep", sweeps_command("resume", name, storage=storage)))
    return Commands([*lines, ("see where it is", sweeps_command("status", name, storage=storage))])


def _history(folder: Path) -> str:
    try:
        return example_history(folder)
    except (OSError, ValueError, KeyError):
        return "ITEM,ITEM"
