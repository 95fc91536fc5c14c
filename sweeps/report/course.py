"""How the sweep ran: stages made and reused, who ran where and when, plan against fact, failures and stops."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import NamedTuple

import plotly.graph_objects as go

from genrec.pipeline import STAGES
from sweeps.cluster_use import SIZES, busy_line
from sweeps.finalists import finalist_name
from sweeps.ledger import Ledger
from sweeps.plan import read_plan
from sweeps.plan_outcome import planned_against_actual
from sweeps.plan_text import duration_text
from sweeps.records import TrialRecord
from sweeps.report.document import Block, Cell, Picture, Section, Table, Text
from sweeps.report.figures import STATUS_COLOURS, as_json, label
from sweeps.stopping import rules_in_words, stopped_by
from sweeps.wording import counted

MAX_ROWS = 200

_Times = tuple[str, str, str | None, datetime | None, datetime | None]


class Span(NamedTuple):
    """A trial or re-evaluation on a worker."""

    name: str
    status: str
    node: str
    start: datetime
    end: datetime

    @property
    def seconds(self) -> float:
        return (self.end - self.start).total_seconds()


def course_sections(ledger: Ledger) -> list[Section]:
    """Everything about the run itself."""
    records = ledger.trials()
    spans = spans_of(ledger, records)
    return [
        Section("stages", "Stages made and reused", stages(ledger, records)),
        Section("time", "Time", [timeline(spans), *cluster(ledger), *workers(spans), *plan(ledger, spans)]),
        Section("stopped", "Stopped early", stopped(ledger, records)),
        Section("failures", "Failures", failures(ledger, records)),
    ]


# -- stages -----------------------------------------------------------------------------------------------------------


def stages(ledger: Ledger, records: Sequence[TrialRecord]) -> list[Block]:
    """How often each stage was made, and how often it was there already."""
    made: Counter[str] = Counter()
    reused: Counter[str] = Counter()
    for record in records:
        if record.duplicate_of is None:
            made.update(record.trained)
            reused.update(record.reused)
    for run in ledger.finalist_runs():
        made.update(run.result.get("trained") or [])
        reused.update(run.result.get("reused") or [])
    names = [stage for stage in STAGES if made[stage] or reused[stage]]
    if not names:
        return [Text("No trial has told yet what it made and reused.")]
    figure = go.Figure()
    for title, counts, colour in (("made", made, "#c9820a"), ("reused", reused, "#2f9e5b")):
        figure.add_trace(
            go.Bar(name=title, orientation="h", y=names[::-1], x=[counts[n] for n in names[::-1]], marker_color=colour)
        )
    figure.update_layout(barmode="stack", xaxis={"title": "times"}, yaxis={"automargin": True})
    rows: list[list[Cell]] = [[stage, made[stage], reused[stage]] for stage in names]
    note = f"{sum(made.values())} stages were made, {sum(reused.values())} times one that existed was taken."
    return [Picture("Stages", as_json(figure, 260), note), Table("Stages", ["stage", "made", "reused"], rows)]


# -- time -------------------------------------------------------------------------------------------------------------


def spans_of(ledger: Ledger, records: Sequence[TrialRecord]) -> list[Span]:
    """All that ran, by start. What is running ends with the last thing that is known to have happened."""
    found: list[_Times] = [
        (r.id, r.status, r.node, r.started, r.finished)
        for r in records
        if r.duplicate_of is None and r.status != "infeasible"
    ]
    found += _finalist_times(ledger)
    moments = [moment for _, _, _, start, end in found for moment in (start, end) if moment]
    last = max(moments, default=None)
    spans = [
        Span(name, status, node or "unknown", start, max(start, end or last))
        for name, status, node, start, end in found
        if start is not None and last is not None
    ]
    return sorted(spans, key=lambda span: (span.start, span.name))


def _finalist_times(ledger: Ledger) -> list[_Times]:
    """When re-evaluations began and ended, which the ledger keeps in Optuna's own terms."""
    statuses = {(run.finalist, run.seed): run for run in ledger.finalist_runs()}
    times: list[_Times] = []
    for trial in ledger.finalists.trials():
        run = statuses[(trial.user_attrs["finalist"], trial.user_attrs["seed"])]
        name = f"{finalist_name(run.finalist)} seed {run.seed}"
        start, end = (moment and moment.astimezone() for moment in (trial.datetime_start, trial.datetime_complete))
        times.append((name, run.status, run.result.get("node"), start, end))
    return times


def lanes_of(spans: Sequence[Span]) -> list[list[Span]]:
    """Spans by the place they took: on each node the first place that was free."""
    lanes: list[list[Span]] = []
    for span in spans:
        for lane in lanes:
            if lane[-1].node == span.node and lane[-1].end <= span.start + timedelta(milliseconds=5):
                lane.append(span)
                break
        else:
            lanes.append([span])
    return sorted(lanes, key=lambda lane: lane[0].node)


def timeline(spans: Sequence[Span]) -> Picture:
    """Bars of trials and re-evaluations over the places where they ran."""
    title = "Who ran where and when"
    if not spans:
        return Picture(title, None, "Nothing has run yet.")
    lanes = lanes_of(spans)
    names = _lane_names(lanes)
    figure = go.Figure()
    for status, colour in STATUS_COLOURS.items():
        chosen = [(name, s) for name, lane in zip(names, lanes, strict=True) for s in lane if s.status == status]
        if chosen:
            figure.add_trace(
                go.Bar(
                    name=status,
                    orientation="h",
                    y=[label(name) for name, _ in chosen],
                    base=[s.start.isoformat(timespec="milliseconds")[:23] for _, s in chosen],
                    x=[round(1000 * s.seconds) for _, s in chosen],
                    text=[label(s.name) for _, s in chosen],
                    textposition="none",
                    customdata=[duration_text(s.seconds) for _, s in chosen],
                    marker={"color": colour, "line": {"width": 1, "color": "rgba(255,255,255,0.6)"}},
                    hovertemplate="%{text}<br>%{customdata}<extra></extra>",
                )
            )
    figure.update_layout(
        barmode="overlay", xaxis={"type": "date"}, yaxis={"automargin": True, "categoryorder": "category descending"}
    )
    note = "One bar a trial or re-evaluation, from when it was handed out to its end; what is empty was idle."
    return Picture(title, as_json(figure, 180 + 28 * len(lanes)), note)


def cluster(ledger: Ledger) -> list[Block]:
    """How large the cluster was, when, and how much of it was busy."""
    sizes = ledger.fact(SIZES)
    if not sizes:
        return []
    text = busy_line(ledger)
    note = f"{text[:1].upper()}{text[1:]}, while the sweep was driven. 0 nodes: it was not."
    rows: list[list[Cell]] = [
        [datetime.fromtimestamp(at).isoformat(" ", "seconds"), int(nodes), cpus, gpus]
        for at, cpus, gpus, nodes in sizes[:MAX_ROWS]
    ]
    blocks: list[Block] = [Table("Size of the cluster", ["from", "nodes", "CPUs", "GPUs"], rows, note + _cut(sizes))]
    if avoided := ledger.fact("avoided"):
        reasons: list[list[Cell]] = [[node, reason] for node, reason in avoided.items()]
        blocks.append(Table("Avoided nodes", ["node", "reason"], reasons))
    return blocks


def _lane_names(lanes: Sequence[Sequence[Span]]) -> list[str]:
    seen: Counter[str] = Counter()
    names = []
    for lane in lanes:
        seen[lane[0].node] += 1
        names.append(f"{lane[0].node} {seen[lane[0].node]}")
    return names


def workers(spans: Sequence[Span]) -> list[Block]:
    """Busy and idle time of every place."""
    if not spans:
        return []
    first, last = min(s.start for s in spans), max(s.end for s in spans)
    whole = (last - first).total_seconds()
    lanes = lanes_of(spans)
    rows: list[list[Cell]] = []
    for name, lane in zip(_lane_names(lanes), lanes, strict=True):
        busy = sum(s.seconds for s in lane)
        rows.append(
            [name, len(lane), round(busy, 1), round(whole - busy, 1), f"{(whole - busy) / max(whole, 1e-9):.0%}"]
        )
    note = f"From the first start to the last end: {duration_text(whole)}. A pause between two sessions counts as idle."
    return [Table("Busy and idle", ["place", "ran", "busy seconds", "idle seconds", "idle"], rows, note)]


def plan(ledger: Ledger, spans: Sequence[Span]) -> list[Block]:
    """What was planned against what it took."""
    planned = read_plan(ledger.folder)
    if planned is None:
        return [Text("No plan lies beside this sweep: sweeps plan FILE makes one before the start.")]
    resources = ledger.spec.resources
    cpus, gpus = (each * resources.most_workers for each in (resources.cpus_per_worker, resources.gpus_per_worker))
    busy = sum(span.seconds for span in spans)
    rows = [*planned_against_actual(planned, ledger)]
    finalists = planned.get("finalists") or {}
    ran = [span for span in spans if not span.name.startswith("trial-") or " seed " in span.name]
    if ran:
        wall = (max(s.end for s in ran) - min(s.start for s in ran)).total_seconds()
        rows.append(("finalists seconds", finalists.get("seconds"), wall))
    rows += [("CPU-hours", planned.get("cpu_hours"), busy / 3600 * cpus)]
    if gpus:
        rows += [("GPU-hours", planned.get("gpu_hours"), busy / 3600 * gpus)]
    cells: list[list[Cell]] = [
        [name, expected, actual, None if not expected else f"{actual / expected:.0%}"]
        for name, expected, actual in rows
    ]
    made = f"The plan is of {planned.get('created') or 'an unknown time'}."
    if planned.get("spec_hash") != ledger.spec.hash:
        made += " It was made for other settings of this sweep."
    return [Table("Planned and actual", ["", "planned", "actual", "of the plan"], cells, made)]


# -- stops and failures -----------------------------------------------------------------------------------------------


def stopped(ledger: Ledger, records: Sequence[TrialRecord]) -> list[Block]:
    """Trials that were ended before their last epoch, each with the rule that did it; the rules in words first."""
    chosen = [r for r in records if r.status == "stopped" and r.duplicate_of is None]
    if not chosen:
        return [Text("No trial was stopped early.")]
    causes = {r.id: stopped_by(r.reason, ledger.spec.scheduler) for r in chosen}
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
    infeasible = Counter((r.reason or "").split(" is false for ")[0] for r in records if r.status == "infeasible")
    if infeasible:
        points: list[list[Cell]] = [[reason, count] for reason, count in infeasible.most_common(20)]
        note = "Proposed and not run: they cost nothing."
        blocks.append(Table("Infeasible points by reason", ["reason", "points"], points, note))
    return blocks


def _first_line(reason: str | None) -> str:
    lines = (reason or "no reason was recorded").strip().splitlines()
    return lines[0][:300] if lines else ""


def _cut(chosen: Sequence[object]) -> str:
    return f" The first {MAX_ROWS} are shown." if len(chosen) > MAX_ROWS else ""
