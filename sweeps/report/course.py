"""How the sweep ran: stages made and reused, time, failures and stops."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import plotly.graph_objects as go

from genrec.pipeline import STAGES
from sweeps.finalists import finalist_name
from sweeps.ledger import Ledger
from sweeps.records import TrialRecord
from sweeps.report.document import Block, Cell, Picture, Section, Table, Text
from sweeps.report.figures import as_json
from sweeps.report.record import taken_over_line
from sweeps.report.timeline import own_trials, time_section
from sweeps.stopping import rules_in_words, stopped_by
from sweeps.wording import counted

MAX_ROWS = 200


def course_sections(ledger: Ledger) -> list[Section]:
    """Everything about the run itself."""
    records = ledger.trials()
    return [
        Section("stages", "Stages made and reused", stages(ledger, records)),
        time_section(ledger, records),
        Section("stopped", "Stopped early", stopped(ledger, records)),
        Section("failures", "Failures", failures(ledger, records)),
    ]


# -- stages -----------------------------------------------------------------------------------------------------------


def stages(ledger: Ledger, records: Sequence[TrialRecord]) -> list[Block]:
    """How often each stage was made by this sweep, and how often it was there already."""
    made: Counter[str] = Counter()
    reused: Counter[str] = Counter()
    for record in own_trials(records):
        made.update(record.trained)
        reused.update(record.reused)
    for run in ledger.finalist_runs():
        made.update(run.result.get("trained") or [])
        reused.update(run.result.get("reused") or [])
    names = [stage for stage in STAGES if made[stage] or reused[stage]]
    if not names:
        return [Text(taken_over_line(records) or "No trial has told yet what it made and reused.")]
    figure = go.Figure()
    for title, counts, colour in (("made", made, "#c9820a"), ("reused", reused, "#2f9e5b")):
        figure.add_trace(
            go.Bar(name=title, orientation="h", y=names[::-1], x=[counts[n] for n in names[::-1]], marker_color=colour)
        )
    figure.update_layout(barmode="stack", xaxis={"title": "times"}, yaxis={"automargin": True})
    rows: list[list[Cell]] = [[stage, made[stage], reused[stage]] for stage in names]
    note = f"{sum(made.values())} stages were made, {sum(reused.values())} times one that existed was taken."
    note += f" {taken_over_line(records)}" if taken_over_line(records) else ""
    return [Picture("Stages", as_json(figure, 260), note), Table("Stages", ["stage", "made", "reused"], rows)]


# -- stops and failures -----------------------------------------------------------------------------------------------


def stopped(ledger: Ledger, records: Sequence[TrialRecord]) -> list[Block]:
    """Trials that were ended before their last epoch, each with the rule that did it; the rules in words first."""
    chosen = [r for r in records if r.status == "stopped" and r.duplicate_of is None]
    if not chosen:
        return [Text("No trial was stopped early.")]
    causes = {r.id: stopped_by(r, ledger.spec.scheduler) for r in chosen}
    counts = Counter(causes.values())
    rules = [
        Text(f"Rule {name} ({counted(counts[name], 'trial')}): {words}")
        for name, words in rules_in_words(ledger.spec).items()
        if counts[name]
    ]
    rows: list[list[Cell]] = [[r.id, len(r.epochs), r.value, causes[r.id], r.reason] for r in chosen[:MAX_ROWS]]
    trained = sum(len(r.epochs) for r in chosen)
    note = f"{counted(len(chosen), 'trial')} ended after {counted(trained, 'epoch')} in all." + _cut(chosen)
    columns = ["trial", "epochs", f"best {ledger.spec.metric}", "rule", "reason"]
    return [*rules, Table("Stopped trials", columns, rows, note)]


def failures(ledger: Ledger, records: Sequence[TrialRecord]) -> list[Block]:
    """What failed and why; points that broke a constraint, by constraint."""
    failed = [(r.id, r.node, r.reason) for r in records if r.status == "failed"]
    failed += [
        (f"{finalist_name(run.finalist)} seed {run.seed}", run.result.get("node"), run.result.get("reason"))
        for run in ledger.finalist_runs()
        if run.status == "failed"
    ]
    blocks: list[Block] = []
    if failed:
        reasons = Counter(_first_line(reason) for _, _, reason in failed)
        rows: list[list[Cell]] = [[reason, count] for reason, count in reasons.most_common(20)]
        blocks.append(Table("Failures by reason", ["reason", "times"], rows))
        single: list[list[Cell]] = [[name, node, _first_line(reason)] for name, node, reason in failed[:MAX_ROWS]]
        blocks.append(Table("Failed trials and re-evaluations", ["", "node", "reason"], single, _cut(failed)))
    else:
        blocks.append(Text("Nothing failed."))
    again = [(r.id, line) for r in records for line in r.restarts]
    if again:
        lines: list[list[Cell]] = [[name, line] for name, line in again[:MAX_ROWS]]
        blocks.append(Table("Started again", ["trial", "why"], lines, _cut(again)))
    infeasible = Counter(_broken(r) for r in records if r.status == "infeasible")
    if infeasible:
        points: list[list[Cell]] = [[reason, count] for reason, count in infeasible.most_common(20)]
        note = "Proposed and not run: they cost nothing."
        blocks.append(Table("Infeasible points by reason", ["reason", "points"], points, note))
    return blocks


def _broken(record: TrialRecord) -> str:
    """The rule that an infeasible point breaks; ledgers of earlier versions have it in the words of the reason."""
    return record.broken or (record.reason or "").split(" is false for ")[0]


def _first_line(reason: str | None) -> str:
    lines = (reason or "no reason was recorded").strip().splitlines()
    return lines[0][:300] if lines else ""


def _cut(chosen: Sequence[object]) -> str:
    return f" The first {MAX_ROWS} are shown." if len(chosen) > MAX_ROWS else ""
