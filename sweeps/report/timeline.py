"""Who ran where and when, how large the cluster was, what was idle, and the plan against what it took."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import NamedTuple

import plotly.graph_objects as go

from sweeps.cluster_use import SIZES, busy_line
from sweeps.finalists import finalist_name
from sweeps.ledger import Ledger
from sweeps.plan import read_plan
from sweeps.plan_outcome import planned_against_actual
from sweeps.plan_text import duration_text
from sweeps.records import Run, TrialRecord
from sweeps.report.document import Block, Cell, Picture, Section, Table, Text
from sweeps.report.figures import STATUS_COLOURS, as_json, label
from sweeps.study_record import STATUS, duration_of, runs_of
from sweeps.wording import counted

MAX_ROWS = 200
LANE, LANES = 28, 1400
"pixels of a lane, and of all of them together at most"


class Span(NamedTuple):
    """A trial or re-evaluation in a process. One that paused, was resumed or started again has several."""

    name: str
    status: str
    node: str
    start: datetime
    end: datetime
    is_finalist: bool = False

    @property
    def seconds(self) -> float:
        return (self.end - self.start).total_seconds()


def time_section(ledger: Ledger, records: Sequence[TrialRecord]) -> Section:
    """Everything about time."""
    spans = spans_of(ledger, records)
    blocks = [timeline(spans), *cluster(ledger), *workers(ledger, spans), *plan(ledger, spans)]
    return Section("time", "Time", blocks)


# -- who ran when -----------------------------------------------------------------------------------------------------


class _Told(NamedTuple):
    """What the ledger has of the times of a trial or re-evaluation."""

    name: str
    status: str
    node: str | None
    started: datetime | None
    finished: datetime | None
    duration: float | None
    reason: str | None
    runs: Sequence[Run]
    finalist: bool


def spans_of(ledger: Ledger, records: Sequence[TrialRecord]) -> list[Span]:
    """All that this sweep ran, by start. What is running ends with the last thing that is known to have happened."""
    told = [
        _Told(r.id, r.status, r.node, r.started, r.finished, r.duration, r.reason, r.runs, False)
        for r in own_trials(records)
    ]
    told += _finalists(ledger)
    last = max((moment for one in told for moment in _moments(one)), default=None)
    spans = [
        Span(one.name, one.status, run.node or "unknown", run.start, run.end, one.finalist)
        for one in told
        for run in one.runs or _guessed(one, last)
    ]
    return sorted(spans, key=lambda span: (span.start, span.name))


def own_trials(records: Sequence[TrialRecord]) -> list[TrialRecord]:
    """Trials that this sweep ran itself: no duplicates, no infeasible points, none taken over from earlier sweeps."""
    return [r for r in records if r.duplicate_of is None and r.source is None and r.status != "infeasible"]


def _finalists(ledger: Ledger) -> Iterator[_Told]:
    """Every re-evaluation, earlier ones included, whose times the ledger keeps in Optuna's own terms."""
    for trial in ledger.finalists.trials():
        attrs = trial.user_attrs
        result = attrs.get("result") or {}
        name = f"{finalist_name(attrs['finalist'])} seed {attrs['seed']}"
        start, end = (moment and moment.astimezone() for moment in (trial.datetime_start, trial.datetime_complete))
        facts = (result.get("node"), start, end, duration_of(trial), result.get("reason"), runs_of(trial))
        yield _Told(name, STATUS[trial.state], *facts, finalist=True)


def _moments(told: _Told) -> Iterator[datetime]:
    yield from filter(None, (told.started, told.finished))
    for run in told.runs:
        yield run.end


def _guessed(told: _Told, last: datetime | None) -> list[Run]:
    """When it ran, where nobody noted that: as long as it took, up to its end; one that paused and was never trained on
    ran at the start. What is paused now has no times."""
    if told.started is None or last is None or told.status == "waiting":
        return []
    start, end = told.started, max(told.started, told.finished or last)
    if told.finished and told.duration is not None:
        length = min(timedelta(seconds=told.duration), end - start)
        if told.status == "stopped" and (told.reason or "").startswith("not promoted"):
            end = start + length
        start = end - length
    return [Run(start, end, told.node)]


def lanes_of(spans: Sequence[Span]) -> list[list[Span]]:
    """Spans by the place they took: on each node the first place that was free. Nodes by name, numbers as numbers."""
    lanes: list[list[Span]] = []
    for span in spans:
        for lane in lanes:
            if lane[-1].node == span.node and lane[-1].end <= span.start + timedelta(milliseconds=5):
                lane.append(span)
                break
        else:
            lanes.append([span])
    return sorted(lanes, key=lambda lane: _natural(lane[0].node))


def _natural(name: str) -> list[tuple[int, str]]:
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", name)]


def _lane_names(lanes: Sequence[Sequence[Span]]) -> list[str]:
    seen: Counter[str] = Counter()
    names = []
    for lane in lanes:
        seen[lane[0].node] += 1
        names.append(f"{lane[0].node} {seen[lane[0].node]}")
    return names


def timeline(spans: Sequence[Span]) -> Picture:
    """Bars of trials and re-evaluations over the places where they ran."""
    title = "Who ran where and when"
    if not spans:
        return Picture(title, None, "Nothing has run yet, or nothing of which times are known.")
    lanes = lanes_of(spans)
    names = _lane_names(lanes)
    placed = [(name, index, s) for name, lane in zip(names, lanes, strict=True) for index, s in enumerate(lane)]
    figure = go.Figure()
    for status, colour in STATUS_COLOURS.items():
        chosen = [one for one in placed if one[2].status == status]
        if chosen:
            figure.add_trace(
                go.Bar(
                    name=status,
                    orientation="h",
                    y=[label(name) for name, _, _ in chosen],
                    base=[_utc(s.start) for _, _, s in chosen],
                    x=[round(1000 * s.seconds) for _, _, s in chosen],
                    text=[label(s.name) for _, _, s in chosen],
                    textposition="none",
                    customdata=[duration_text(s.seconds) for _, _, s in chosen],
                    # A line of its own colour keeps a short bar visible; two shades keep neighbours apart.
                    marker={
                        "color": colour,
                        "opacity": [1.0 if index % 2 else 0.65 for _, index, _ in chosen],
                        "line": {"width": 1.5, "color": colour},
                    },
                    hovertemplate="%{text}<br>%{customdata}<extra></extra>",
                )
            )
    order = {"categoryorder": "array", "categoryarray": [label(name) for name in names[::-1]]}
    figure.update_layout(
        barmode="overlay",
        xaxis={"type": "date", "title": "UTC"},
        yaxis={"type": "category", "automargin": True, **order},
    )
    note = (
        "One bar a process that a trial or re-evaluation had, by how it ended; one that paused, was resumed or started "
        "again has several. What is empty was idle."
    )
    return Picture(title, as_json(figure, 190 + min(LANE * len(lanes), LANES)), note)


def _utc(moment: datetime) -> str:
    return moment.astimezone(UTC).isoformat(timespec="milliseconds")[:23]


# -- the cluster ------------------------------------------------------------------------------------------------------


def cluster(ledger: Ledger) -> list[Block]:
    """How large the cluster was, when, and how much of it was busy."""
    sizes = ledger.fact(SIZES)
    if not sizes:
        return []
    text = busy_line(ledger)
    note = f"{text[:1].upper()}{text[1:]}, while the sweep was driven. 0 nodes: it was not. Times in UTC."
    rows: list[list[Cell]] = [
        [f"{datetime.fromtimestamp(at, UTC):%Y-%m-%d %H:%M:%S}", int(nodes), cpus, gpus]
        for at, cpus, gpus, nodes in sizes[:MAX_ROWS]
    ]
    more = f" The first {MAX_ROWS} are shown." if len(sizes) > MAX_ROWS else ""
    blocks: list[Block] = [Table("Size of the cluster", ["from", "nodes", "CPUs", "GPUs"], rows, note + more)]
    if avoided := ledger.fact("avoided"):
        reasons: list[list[Cell]] = [[node, reason] for node, reason in avoided.items()]
        blocks.append(Table("Avoided nodes", ["node", "reason"], reasons))
    return blocks


def workers(ledger: Ledger, spans: Sequence[Span]) -> list[Block]:
    """Busy and idle time of every place."""
    if not spans:
        return []
    first, last = min(s.start for s in spans), max(s.end for s in spans)
    whole = _driven_seconds(ledger, first, last)
    lanes = lanes_of(spans)
    rows: list[list[Cell]] = []
    for name, lane in zip(_lane_names(lanes), lanes, strict=True):
        busy = sum(s.seconds for s in lane)
        idle = max(0.0, whole - busy)
        rows.append([name, len(lane), round(busy, 1), round(idle, 1), f"{idle / max(whole, 1e-9):.0%}"])
    note = f"Of {duration_text(whole)} between the first start and the last end"
    note += " in which the sweep was driven." if ledger.fact(SIZES) else "; when nobody drove the sweep is not known."
    return [Table("Busy and idle", ["place", "ran", "busy seconds", "idle seconds", "idle"], rows, note)]


def _driven_seconds(ledger: Ledger, first: datetime, last: datetime) -> float:
    """Of the time between two moments those seconds in which a session drove the sweep; all where none was noted."""
    start, end = first.timestamp(), last.timestamp()
    sizes = ledger.fact(SIZES)
    if not sizes:
        return end - start
    steps = [*pairwise([at for at, *_ in sizes]), (sizes[-1][0], end)]
    driven = [step for step, (_, *size) in zip(steps, sizes, strict=True) if any(size)]
    return sum(max(0.0, min(b, end) - max(a, start)) for a, b in driven)


# -- plan and fact ----------------------------------------------------------------------------------------------------


def busy_seconds(ledger: Ledger, spans: Sequence[Span]) -> float:
    """For which trials and re-evaluations held their processes, all together: pauses and downtime are not in it."""
    ended = [record.duration for record in own_trials(ledger.trials()) if record.status != "running"]
    ended += [told.duration for told in _finalists(ledger) if told.status != "running"]
    return sum(filter(None, ended)) + sum(span.seconds for span in spans if span.status == "running")


def plan(ledger: Ledger, spans: Sequence[Span]) -> list[Block]:
    """What was planned against what it took."""
    planned = read_plan(ledger.folder)
    if planned is None:
        return [Text("No plan lies beside this sweep: sweeps plan FILE makes one before the start.")]
    resources = ledger.spec.resources
    cpus, gpus = (each * resources.most_workers for each in (resources.cpus_per_worker, resources.gpus_per_worker))
    hours = busy_seconds(ledger, spans) / 3600
    rows: list[tuple[str, float | None, float]] = [*planned_against_actual(planned, ledger)]
    ran = [span for span in spans if span.is_finalist]
    if ran:
        wall = (max(s.end for s in ran) - min(s.start for s in ran)).total_seconds()
        rows.append(("finalists seconds", (planned.get("finalists") or {}).get("seconds"), wall))
    rows += [("CPU-hours", planned.get("cpu_hours"), hours * cpus)]
    if gpus:
        rows += [("GPU-hours", planned.get("gpu_hours"), hours * gpus)]
    price = planned.get("price_per_hour")
    if price is not None:
        rows += [("cost", planned.get("cost"), hours * price)]
    cells: list[list[Cell]] = [
        [name, expected, actual, None if not expected else f"{actual / expected:.0%}"]
        for name, expected, actual in rows
    ]
    made = f"The plan is of {planned.get('created') or 'an unknown time'}."
    if planned.get("spec_hash") != ledger.spec.hash:
        made += " It was made for other settings of this sweep."
    if price is not None:
        made += f" Cost: {price:g} for every hour that a trial or re-evaluation held its workers."
    if taken := sum(record.source is not None for record in ledger.trials()):
        made += f" {counted(taken, 'trial')} of earlier sweeps were taken over and cost nothing."
    return [Table("Planned and actual", ["", "planned", "actual", "of the plan"], cells, made)]
