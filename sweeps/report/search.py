"""The search in tables and pictures: leaderboard, curves, what matters, where good values lie, the Pareto front."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import optuna.visualization
import plotly.graph_objects as go
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import FrozenTrial
from plotly.colors import sample_colorscale

from sweeps.ledger import Ledger
from sweeps.records import TrialRecord, metric_in
from sweeps.report.document import Block, Cell, Picture, Section, Table, Text, scalar
from sweeps.report.figures import BEST_COLOUR, STATUS_COLOURS, as_json, joined, label, rounded
from sweeps.report.importance import Comparable, Importance, comparable_trials, measure_importance, new_study
from sweeps.wording import counted

MAX_ROWS = 1000
MAX_POINTS = 30_000
"of all learning curves together"
MAX_CONTOUR = 80
"trials below a contour: Plotly fills a grid of their square"
SHADES = 8
"colours of parallel coordinates"


def search_sections(ledger: Ledger) -> list[Section]:
    """All that the ledger alone tells about the search."""
    comparable = comparable_trials(ledger)
    importance = comparable if isinstance(comparable, str) else measure_importance(comparable)
    sections = [
        Section("leaderboard", "Leaderboard", leaderboard(ledger)),
        Section("curves", "Learning curves", [curves(ledger), history(ledger)]),
        Section("parameters", "Parameters", parameters(ledger, comparable, importance)),
    ]
    if ledger.spec.against:
        sections.append(Section("pareto", "Pareto front", [pareto(ledger)]))
    return sections


# -- leaderboard ------------------------------------------------------------------------------------------------------


def leaderboard(ledger: Ledger) -> list[Block]:
    """All trials with a value, best first."""
    leaders = ledger.leaderboard()
    if not leaders:
        return [Text("No trial has a result yet.")]
    metric = ledger.spec.metric
    names = _parameter_names(ledger, leaders)
    columns = ["place", "trial", "status", metric, *ledger.spec.against, "epochs", "seconds", *names]
    rows = [_row(place, record, ledger.spec.against, names) for place, record in enumerate(leaders[:MAX_ROWS], 1)]
    more = len(leaders) - len(rows)
    note = f"Best validation {metric} of its epochs; completed trials stand before stopped ones."
    note += f" The first {MAX_ROWS:,} of {len(leaders):,}; trials.csv has all." if more > 0 else ""
    return [Table("Trials, best first", columns, rows, note)]


def _row(place: int, record: TrialRecord, against: Iterable[str], names: Sequence[str]) -> list[Cell]:
    row: list[Cell] = [place, record.id, record.status, record.value]
    row += [record.objectives.get(name) for name in against]
    row += [len(record.epochs), None if record.duration is None else round(record.duration, 1)]
    return row + [scalar(record.params.get(name)) for name in names]


def _parameter_names(ledger: Ledger, records: Sequence[TrialRecord]) -> list[str]:
    used = {name for record in records for name in record.params}
    return [name for name in ledger.space.parameters if name in used]


# -- curves -----------------------------------------------------------------------------------------------------------


def curves(ledger: Ledger) -> Picture:
    """The metric over the epochs; where a trial was stopped there is a cross."""
    metric = ledger.spec.metric
    leaders = ledger.leaderboard()
    leading = {record.number for record in leaders}
    others = [r for r in ledger.trials() if r.epochs and r.duplicate_of is None and r.number not in leading]
    lines = {r.id: (r, _curve(r, metric)) for r in [*leaders, *others]}
    lines = {name: pair for name, pair in lines.items() if pair[1]}
    title = f"Validation {metric} over the epochs"
    if not lines:
        return Picture(title, None, "No trial has reported an epoch yet.")
    kept = _thinned(list(lines.values()))
    figure = go.Figure()
    for status, colour in STATUS_COLOURS.items():
        chosen = [(r, curve) for r, curve in kept if r.status == status]
        if chosen:
            figure.add_trace(_line(chosen, status, colour))
    ends = [(r, curve[-1]) for r, curve in kept if r.status == "stopped"]
    if ends:
        figure.add_trace(
            go.Scatter(
                x=[x for _, (x, _) in ends],
                y=[y for _, (_, y) in ends],
                text=[f"{r.id}: {label(r.reason)}" for r, _ in ends],
                mode="markers",
                name="stopped here",
                marker={"symbol": "x", "size": 7, "color": STATUS_COLOURS["stopped"]},
                hovertemplate="%{text}<br>%{y}<extra></extra>",
            )
        )
    if leaders and leaders[0].id in lines:
        figure.add_trace(_line([lines[leaders[0].id]], f"best: {leaders[0].id}", BEST_COLOUR, width=3))
    figure.update_layout(xaxis={"title": "epoch"}, yaxis={"title": metric})
    note = f"One line a trial, {counted(len(lines), 'trial')}; a cross is where one was stopped early."
    if len(kept) < len(lines):
        note += f" Drawn are {len(kept)} of them, from the best to the worst."
    return Picture(title, as_json(figure), note)


def _curve(record: TrialRecord, metric: str) -> list[tuple[int, float]]:
    values = [(row["epoch"], rounded(metric_in(row, metric))) for row in record.epochs]
    return [(epoch, value) for epoch, value in values if value is not None]


def _thinned(lines: list[tuple[TrialRecord, list[Any]]]) -> list[tuple[TrialRecord, list[Any]]]:
    """As many lines as the points allow, evenly from the best to the worst."""
    points = sum(len(curve) for _, curve in lines)
    count = max(1, min(len(lines), len(lines) * MAX_POINTS // points))
    return [lines[index * len(lines) // count] for index in range(count)]


def _line(chosen: list[tuple[TrialRecord, list[Any]]], name: str, colour: str, width: float = 1) -> go.Scatter:
    return go.Scatter(
        x=joined([x for x, _ in curve] for _, curve in chosen),
        y=joined([y for _, y in curve] for _, curve in chosen),
        text=joined([r.id] * len(curve) for r, curve in chosen) if len(chosen) > 1 else None,
        mode="lines+markers",
        name=name,
        marker={"size": 3},
        line={"width": width, "color": colour},
        opacity=1.0 if width > 1 or len(chosen) < 20 else 0.5,
        hovertemplate="%{text} epoch %{x}: %{y}<extra></extra>"
        if len(chosen) > 1
        else "epoch %{x}: %{y}<extra></extra>",
    )


def history(ledger: Ledger) -> Picture:
    """Optuna's history: every completed trial, and the best so far."""
    title = "Completed trials in the order of the search"
    study = new_study(ledger)
    completed = {r.number for r in ledger.trials() if r.status == "completed" and r.duplicate_of is None}
    for trial in ledger.study.get_trials(deepcopy=False):
        if trial.number in completed:
            study.add_trial(optuna.create_trial(value=rounded(trial.values[0])))
    if not completed:
        return Picture(title, None, "No trial is completed yet.")
    figure = optuna.visualization.plot_optimization_history(study, target_name=label(ledger.spec.metric))
    return Picture(title, as_json(figure), "The line is the best so far: is it still rising, or has it settled?")


# -- parameters -------------------------------------------------------------------------------------------------------


def parameters(ledger: Ledger, comparable: Comparable | str, importance: Importance | str) -> list[Block]:
    """Which parameters matter, and where their good values lie."""
    blocks: list[Block] = []
    if isinstance(comparable, str) or isinstance(importance, str):
        reason = comparable if isinstance(comparable, str) else str(importance)
        blocks.append(Picture("Importance of the parameters", None, f"Left out: {reason}."))
    else:
        blocks += [importance_table(importance, comparable), importance_bars(importance, ledger.spec.metric)]
    blocks += [parallel(ledger), *slices(ledger, importance)]
    if not isinstance(comparable, str) and not isinstance(importance, str):
        blocks.append(contour(comparable, importance, ledger.spec.metric))
    return blocks


def importance_table(importance: Importance, comparable: Comparable) -> Table:
    """The shares as numbers, with their ranges."""

    def cell(found: tuple[float, float, float] | None) -> Cell:
        return None if found is None else f"{found[0]:.0%} ({found[1]:.0%} to {found[2]:.0%})"

    rows: list[list[Cell]] = [
        [name, cell(importance.variance.get(name)), cell(importance.top.get(name))] for name in importance.ranked
    ]
    note = (
        f"{counted(len(comparable.trials), 'trial')} as they stood after epoch {comparable.epoch}. In brackets: lowest "
        "and highest answer over random parts of the trials. Where the ranges of two parameters overlap, their order "
        "is not known. A parameter that not all trials have is only in the last column."
    )
    columns = ["parameter", "share of the variance (fANOVA)", "tells the best tenth (PED-ANOVA)"]
    return Table("Importance of the parameters", columns, rows, note)


def importance_bars(importance: Importance, metric: str) -> Picture:
    """Both answers as bars with their ranges."""
    names = importance.ranked[::-1]
    figure = go.Figure()
    for title, shares in (("best tenth", importance.top), ("variance", importance.variance)):
        known = [name for name in names if name in shares]
        figure.add_trace(
            go.Bar(
                name=title,
                orientation="h",
                y=[label(name) for name in known],
                x=[shares[name][0] for name in known],
                error_x={
                    "type": "data",
                    "color": "#808890",
                    "array": [shares[name][2] - shares[name][0] for name in known],
                    "arrayminus": [shares[name][0] - shares[name][1] for name in known],
                },
            )
        )
    figure.update_layout(xaxis={"title": "share", "tickformat": ".0%"}, yaxis={"automargin": True})
    note = f"How much each parameter moves {metric}; the thin lines are the ranges."
    return Picture("Importance with its uncertainty", as_json(figure, 160 + 45 * len(names)), note)


def parallel(ledger: Ledger) -> Picture:
    """One line a trial across all parameters, coloured from the worst to the best."""
    title = "Parallel coordinates"
    leaders = ledger.leaderboard()
    axes = {name: axis for name in _parameter_names(ledger, leaders) if (axis := _axis(leaders, name))}
    if len(leaders) < 2 or not axes:
        return Picture(title, None, "Left out: fewer than two trials with a result, or no parameter that varies.")
    values = sorted((record.value or 0.0 for record in leaders), reverse=ledger.spec.mode == "min")
    axes[ledger.spec.metric] = {record.number: _place(record.value, values) for record in leaders}
    figure = go.Figure()
    groups: dict[int, list[TrialRecord]] = {}
    for record in leaders:
        groups.setdefault(int(SHADES * values.index(record.value or 0.0) / len(values)), []).append(record)
    for shade, group in sorted(groups.items()):
        figure.add_trace(
            go.Scatter(
                x=joined([label(name) for name in axes] for _ in group),
                y=joined([rounded(axis.get(r.number), 3) for axis in axes.values()] for r in group),
                mode="lines",
                name=_part_name(shade),
                line={"color": _shade(shade), "width": 1.5},
                opacity=0.7 if shade < SHADES - 1 else 1.0,
                hoverinfo="skip",
            )
        )
    ticks = {"tickvals": [0, 1], "ticktext": ["low", "high"], "range": [-0.03, 1.03]}
    figure.update_layout(xaxis={"type": "category", "automargin": True}, yaxis=ticks)
    note = (
        "Every axis runs from its lowest to its highest value, in equal steps from one value that was tried to the "
        "next. A click in the legend hides a part of the trials, so that the best show alone."
    )
    return Picture(title, as_json(figure, 420), note)


def _axis(records: Sequence[TrialRecord], name: str) -> dict[int, float]:
    """Trial number -> place 0..1; empty for a parameter with one value."""
    found = {r.number: r.params[name] for r in records if name in r.params}
    numbers = all(isinstance(v, (int, float)) and not isinstance(v, bool) for v in found.values())
    order = sorted(set(found.values())) if numbers else sorted({str(v) for v in found.values()})
    if len(order) < 2:
        return {}
    return {number: _place(v if numbers else str(v), order) for number, v in found.items()}


def _place(value: Any, order: Sequence[Any]) -> float:
    """0..1 between the first and the last of `order`, by rank."""
    return order.index(value) / (len(order) - 1) if len(order) > 1 else 0.5


def _part_name(shade: int) -> str:
    low, high = round(100 * shade / SHADES), round(100 * (shade + 1) / SHADES)
    return f"best {100 - low} %" if high == 100 else f"{low} to {high} %"


def _shade(shade: int) -> str:
    """From grey to orange, which stand out from a light and from a dark ground."""
    return str(sample_colorscale(["#98a2ab", "#d9480f"], [shade / (SHADES - 1)], colortype="rgb")[0])


def slices(ledger: Ledger, importance: Importance | str) -> list[Block]:
    """The metric against every parameter by itself, the most important first."""
    leaders = ledger.leaderboard()
    names = _parameter_names(ledger, leaders)
    if not isinstance(importance, str):
        ranked = importance.ranked
        names.sort(key=lambda name: ranked.index(name) if name in ranked else len(ranked))
    distributions = {name: d for t in ledger.study.get_trials(deepcopy=False) for name, d in t.distributions.items()}
    return [
        Picture(
            f"{ledger.spec.metric} against {name}",
            as_json(_slice(leaders, name, distributions.get(name), ledger.spec.metric), 300),
            "",
        )
        for name in names
        if len({str(record.params.get(name)) for record in leaders}) > 1
    ]


def _slice(records: Sequence[TrialRecord], name: str, distribution: Any, metric: str) -> go.Figure:
    figure = go.Figure()
    category = not isinstance(distribution, (FloatDistribution, IntDistribution))
    for status in ("stopped", "completed"):
        chosen = [r for r in records if r.status == status and name in r.params]
        if chosen:
            values = [r.params[name] for r in chosen]
            figure.add_trace(
                go.Scatter(
                    x=[label(v) for v in values] if category else [rounded(v) for v in values],
                    y=[rounded(r.value) for r in chosen],
                    text=[r.id for r in chosen],
                    mode="markers",
                    name=status,
                    marker={"color": STATUS_COLOURS[status], "size": 7, "opacity": 0.7},
                    hovertemplate="%{text}: %{x}, %{y}<extra></extra>",
                )
            )
    logarithmic = bool(getattr(distribution, "log", False))
    axis: dict[str, Any] = {"title": label(name), "type": "log" if logarithmic else "linear"}
    if category:
        axis |= {"type": "category", "categoryarray": [label(c) for c in getattr(distribution, "choices", [])]}
    figure.update_layout(xaxis=axis, yaxis={"title": label(metric)})
    return figure


def contour(comparable: Comparable, importance: Importance, metric: str) -> Picture:
    """Optuna's contour of the two most important parameters."""
    title = "The two most important parameters together"
    trials = sorted(comparable.trials, key=lambda trial: trial.values[0])
    names = [name for name in importance.ranked if len({str(t.params.get(name)) for t in trials}) > 1][:2]
    both = [trial for trial in trials if all(name in trial.params for name in names)]
    if len(names) < 2 or len(both) < 2:
        return Picture(title, None, "Left out: there are no two parameters that vary together.")
    count = min(len(both), MAX_CONTOUR)
    study = optuna.create_study(direction=comparable.study.direction)
    for index in range(count):
        study.add_trial(_small(both[index * len(both) // count], names))
    figure = optuna.visualization.plot_contour(study, params=names, target_name=label(metric))
    note = (
        f"{metric} after epoch {comparable.epoch}; dots are {counted(count, 'trial')}, the colours between are guesses."
    )
    return Picture(title, as_json(figure, 420), note)


def _small(trial: FrozenTrial, names: Sequence[str]) -> FrozenTrial:
    """A trial with these parameters alone, in so many digits as a picture shows."""
    params: dict[str, Any] = {}
    distributions: dict[str, Any] = {}
    for name in names:
        distribution, value = trial.distributions[name], trial.params[name]
        if isinstance(distribution, FloatDistribution):
            value = min(max(rounded(value) or 0.0, distribution.low), distribution.high)
            distribution = FloatDistribution(distribution.low, distribution.high, log=distribution.log)
        elif isinstance(distribution, CategoricalDistribution):
            distribution = CategoricalDistribution([label(choice) for choice in distribution.choices])
            value = label(value)
        params[name], distributions[name] = value, distribution
    return optuna.create_trial(value=rounded(trial.values[0]), params=params, distributions=distributions)


# -- several objectives -----------------------------------------------------------------------------------------------


def pareto(ledger: Ledger) -> Picture:
    """The first two objectives against each other; the front is joined."""
    first, second = list(ledger.spec.objectives)[:2]
    title = f"{first} against {second}"
    leaders = ledger.leaderboard()
    if not leaders:
        return Picture(title, None, "No trial has a result yet.")
    front = {record.number for record in ledger.pareto_front()}
    figure = go.Figure()
    for name, chosen in (
        ("beaten by another", [r for r in leaders if r.number not in front]),
        ("Pareto front", sorted((r for r in leaders if r.number in front), key=lambda r: r.objectives[first])),
    ):
        if chosen:
            figure.add_trace(_objectives(chosen, name, first, second, joined_up=name == "Pareto front"))
    figure.update_layout(xaxis={"title": label(first)}, yaxis={"title": label(second)})
    directions: Mapping[str, str] = ledger.spec.objectives
    note = f"{first}: {directions[first]}, {second}: {directions[second]}. "
    note += "No trial beats one of the front in one objective without losing in another"
    note += "." if len(directions) == 2 else f"; of {len(directions)} objectives two are drawn."
    return Picture(title, as_json(figure, 420), note)


def _objectives(records: Sequence[TrialRecord], name: str, first: str, second: str, joined_up: bool) -> go.Scatter:
    return go.Scatter(
        x=[rounded(r.objectives.get(first)) for r in records],
        y=[rounded(r.objectives.get(second)) for r in records],
        text=[r.id for r in records],
        mode="lines+markers" if joined_up else "markers",
        name=name,
        marker={"size": 9 if joined_up else 6, "color": BEST_COLOUR if joined_up else STATUS_COLOURS["completed"]},
        line={"shape": "hv", "dash": "dot"},
        hovertemplate="%{text}: %{x}, %{y}<extra></extra>",
    )
