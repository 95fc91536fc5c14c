"""The search in tables and pictures: leaderboard, curves, what matters, where good values lie, the Pareto front."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import accumulate
from typing import Any, NamedTuple

import optuna.visualization
import plotly.graph_objects as go
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import FrozenTrial
from plotly.colors import sample_colorscale

from sweeps.ledger import Ledger
from sweeps.records import TrialRecord, metric_in
from sweeps.report.document import Block, Cell, Picture, Section, Table, Text, scalar, shown
from sweeps.report.figures import BEST_COLOUR, GREY, STATUS_COLOURS, as_json, joined, label, rounded, whole_numbers
from sweeps.report.importance import Comparable, Importance, Share, comparable_trials, measure_importance
from sweeps.report.record import taken_over_line
from sweeps.report.standing import standing
from sweeps.wording import counted

MAX_ROWS = 1000
MAX_POINTS = 30_000
"of all learning curves together"
MAX_CONTOUR = 80
"trials below a contour: Plotly fills a grid of their square"
SHADES = 8
"colours of parallel coordinates"
_AXIS_WIDTH = 75  # pixels of an axis of parallel coordinates at least
_NAMED = 6  # values of an axis that are all written beside it
_NAME_WIDTH = 12


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
    leaders = standing(ledger)
    if not leaders:
        return [Text("No trial has a result yet.")]
    metric = ledger.spec.metric
    names = _parameter_names(ledger, leaders)
    columns = ["place", "trial", "status", metric, *ledger.spec.against, "epochs", "seconds", *names]
    rows = [_row(place, record, ledger.spec.against, names) for place, record in enumerate(leaders[:MAX_ROWS], 1)]
    more, taken = len(leaders) - len(rows), taken_over_line(leaders)
    note = f"Best validation {metric} of its epochs; completed trials stand before all others."
    if any(record.status == "waiting" for record in leaders):
        note += " Waiting ones are paused: they go on if they are promoted."
    note += f" The first {MAX_ROWS:,} of {len(leaders):,}; trials.csv has all." if more > 0 else ""
    note += f" {taken}" if taken else ""
    high = frozenset([metric] if ledger.spec.mode == "max" else []) | {
        name for name, mode in ledger.spec.objectives.items() if mode == "max"
    }
    return [Table("Trials, best first", columns, rows, note, high)]


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
    leaders = standing(ledger)
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
    epochs = [x for _, curve in kept for x, _ in curve]
    figure.update_layout(xaxis={"title": "epoch", **whole_numbers(epochs)}, yaxis={"title": label(metric)})
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
    """Every trial's value by its number, and the best so far."""
    title = "Trials in the order of the search"
    records = sorted(standing(ledger), key=lambda record: record.number)
    if not records:
        return Picture(title, None, "No trial has a result yet.")
    metric, better = ledger.spec.metric, max if ledger.spec.mode == "max" else min
    figure = go.Figure()
    for status in ("waiting", "stopped", "completed"):
        chosen = [r for r in records if r.status == status]
        if chosen:
            figure.add_trace(
                go.Scatter(
                    x=[r.number for r in chosen],
                    y=[rounded(r.value) for r in chosen],
                    mode="markers",
                    name=status,
                    marker={"color": STATUS_COLOURS[status], "size": 6, "opacity": 0.8},
                    hovertemplate="trial %{x}: %{y}<extra></extra>",
                )
            )
    best = list(accumulate((r.value or 0.0 for r in records), better))
    figure.add_trace(
        go.Scatter(
            x=[r.number for r in records],
            y=[rounded(value) for value in best],
            mode="lines",
            name="best so far",
            line={"shape": "hv", "color": BEST_COLOUR, "width": 2},
            hovertemplate="best up to trial %{x}: %{y}<extra></extra>",
        )
    )
    numbers = whole_numbers([0, records[-1].number])
    figure.update_layout(xaxis={"title": "trial", **numbers}, yaxis={"title": label(metric)})
    return Picture(title, as_json(figure), "The line is the best so far: is it still rising, or has it settled?")


# -- parameters -------------------------------------------------------------------------------------------------------


def parameters(ledger: Ledger, comparable: Comparable | str, importance: Importance | str) -> list[Block]:
    """Which parameters matter, and where their good values lie."""
    blocks: list[Block] = []
    if isinstance(comparable, str) or isinstance(importance, str):
        reason = comparable if isinstance(comparable, str) else str(importance)
        blocks.append(Picture("Importance of the parameters", None, f"Left out: {reason}."))
    else:
        if not importance.above_chance:
            blocks.append(Text("With these trials no parameter can be told from chance.", strong=True))
        blocks += [importance_table(importance, comparable), importance_bars(importance, ledger.spec.metric)]
    blocks += [parallel(ledger), *slices(ledger, importance)]
    if not isinstance(comparable, str) and not isinstance(importance, str):
        blocks.append(contour(comparable, importance, ledger.spec.metric))
    return blocks


def importance_table(importance: Importance, comparable: Comparable) -> Table:
    """The shares as numbers, with their ranges."""

    def cell(found: Share | None, floor: float) -> Cell:
        if found is None:
            return None
        chance = "" if found.mean > floor else ", not above chance"
        return f"{found.mean:.0%} ({found.low:.0%} to {found.high:.0%}{chance})"

    rows: list[list[Cell]] = [
        [
            name,
            cell(importance.variance.get(name), importance.variance_floor),
            cell(importance.top.get(name), importance.top_floor),
        ]
        for name in importance.ranked
    ]
    note = (
        f"{counted(len(comparable.trials), 'trial')} as they stood after epoch {comparable.epoch}. In brackets: where "
        "the share would be for nineteen in twenty such sets of trials. Where the ranges of two parameters overlap, "
        "their order is not known. With shuffled values, when nothing can matter, some parameter reaches up to "
        f"{importance.variance_floor:.0%} and {importance.top_floor:.0%}: a share that is not above that says nothing. "
        "A parameter that not all trials have is only in the last column."
    )
    columns = ["parameter", "share of the variance (fANOVA)", "tells the best tenth (PED-ANOVA)"]
    return Table("Importance of the parameters", columns, rows, note)


def importance_bars(importance: Importance, metric: str) -> Picture:
    """Both answers as bars with their ranges; grey where chance alone may have made them."""
    names = importance.ranked[::-1]
    figure = go.Figure()
    for title, shares, floor, colour in (
        ("best tenth", importance.top, importance.top_floor, "#c9820a"),
        ("variance", importance.variance, importance.variance_floor, "#2a78b8"),
    ):
        known = [name for name in names if name in shares]
        figure.add_trace(
            go.Bar(
                name=title,
                orientation="h",
                y=[label(name) for name in known],
                x=[rounded(shares[name].mean) for name in known],
                marker={
                    "color": [colour if shares[name].mean > floor else GREY for name in known],
                    "line": {"color": colour, "width": 1},
                },
                error_x={
                    "type": "data",
                    "color": "#808890",
                    "array": [rounded(shares[name].high - shares[name].mean) for name in known],
                    "arrayminus": [rounded(shares[name].mean - shares[name].low) for name in known],
                },
            )
        )
    figure.update_layout(xaxis={"title": "share", "tickformat": ".0%"}, yaxis={"automargin": True})
    note = f"How much each parameter moves {metric}; the thin lines are the ranges. Grey: not above chance."
    return Picture("Importance with its uncertainty", as_json(figure, 160 + 45 * len(names)), note)


def parallel(ledger: Ledger) -> Picture:
    """One line a trial across all parameters, coloured from the worst to the best."""
    title = "Parallel coordinates"
    sign = -1 if ledger.spec.mode == "max" else 1
    leaders = sorted(standing(ledger), key=lambda record: (sign * (record.value or 0.0), record.number))
    axes = {name: axis for name in _parameter_names(ledger, leaders) if (axis := _axis(leaders, name)) is not None}
    if len(leaders) < 2 or not axes:
        return Picture(title, None, "Left out: fewer than two trials with a result, or no parameter that varies.")
    values = sorted({rounded(record.value) or 0.0 for record in leaders}, reverse=ledger.spec.mode == "min")
    places = {record.number: _place(rounded(record.value) or 0.0, values) for record in leaders}
    axes[ledger.spec.metric] = Axis(places, {0.0: shown(values[0]), 1.0: shown(values[-1])})
    figure = go.Figure()
    groups: dict[int, list[int]] = {}
    for place in range(len(leaders)):
        groups.setdefault(SHADES - 1 - SHADES * place // len(leaders), []).append(place)
    for shade, group in sorted(groups.items()):
        figure.add_trace(
            go.Scatter(
                x=joined(range(len(axes)) for _ in group),
                y=joined([rounded(axis.places.get(leaders[p].number), 3) for axis in axes.values()] for p in group),
                mode="lines",
                name=_group_name(group),
                line={"color": _shade(shade), "width": 1.5 if shade < SHADES - 1 else 2.5},
                opacity=0.7 if shade < SHADES - 1 else 1.0,
                hoverinfo="skip",
            )
        )
    names = {"tickvals": list(range(len(axes))), "ticktext": [label(name) for name in axes]}
    figure.update_layout(
        xaxis={**names, "range": [-0.3, len(axes) - 0.3], "automargin": True, "zeroline": False, "fixedrange": True},
        yaxis={"visible": False, "range": [-0.06, 1.06], "fixedrange": True},
        annotations=[
            {"x": at, "y": place, "text": label(text), "showarrow": False, "xanchor": "left", "font": {"size": 10}}
            for at, axis in enumerate(axes.values())
            for place, text in axis.ticks.items()
        ],
        meta={"min_width": _AXIS_WIDTH * len(axes)},
    )
    note = (
        "Every axis runs from its lowest to its highest value, in equal steps from one value that was tried to the "
        "next; the last from the worst to the best. A click in the legend hides a part of the trials."
    )
    return Picture(title, as_json(figure, 420), note)


class Axis(NamedTuple):
    """Where the trials stand on one axis of parallel coordinates."""

    places: dict[int, float]
    "trial number -> 0..1"
    ticks: dict[float, str]
    "place -> what stands there"


def _axis(records: Sequence[TrialRecord], name: str) -> Axis | None:
    """None for a parameter with one value."""
    found = {r.number: r.params[name] for r in records if name in r.params}
    numbers = all(isinstance(v, (int, float)) and not isinstance(v, bool) for v in found.values())
    order = sorted(set(found.values())) if numbers else sorted({str(v) for v in found.values()})
    if len(order) < 2:
        return None
    named = order if len(order) <= _NAMED else [order[0], order[-1]]
    ticks = {_place(value, order): shown(value) if numbers else str(value)[:_NAME_WIDTH] for value in named}
    return Axis({number: _place(v if numbers else str(v), order) for number, v in found.items()}, ticks)


def _place(value: Any, order: Sequence[Any]) -> float:
    """0..1 between the first and the last of `order`, by rank."""
    return order.index(value) / (len(order) - 1) if len(order) > 1 else 0.5


def _group_name(places: Sequence[int]) -> str:
    """`best`, `best 12`, `places 13 to 24`; places count from 0."""
    first, last = places[0] + 1, places[-1] + 1
    if first == 1:
        return "best" if last == 1 else f"best {last}"
    return f"place {first}" if first == last else f"places {first} to {last}"


def _shade(shade: int) -> str:
    """From grey to orange, which stand out from a light and from a dark ground."""
    return str(sample_colorscale(["#98a2ab", "#d9480f"], [shade / (SHADES - 1)], colortype="rgb")[0])


def slices(ledger: Ledger, importance: Importance | str) -> list[Block]:
    """The metric against every parameter by itself, the most important first."""
    leaders = standing(ledger)
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
    for status in ("waiting", "stopped", "completed"):
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
    if isinstance(distribution, IntDistribution) and not logarithmic:
        axis |= whole_numbers([rounded(r.params[name]) or 0.0 for r in records if name in r.params])
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
    weak = [name for name in names if name not in importance.above_chance]
    if weak:
        note += f" Not above chance: {' and '.join(weak)}; what this shows of it may be noise."
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
    directions = ledger.spec.objectives
    front = front_of(leaders, directions)
    figure = go.Figure()
    for name, chosen in (
        ("beaten by another", [r for r in leaders if r.number not in front]),
        ("Pareto front", sorted((r for r in leaders if r.number in front), key=lambda r: r.objectives[first])),
    ):
        if chosen:
            figure.add_trace(_objectives(chosen, name, first, second, directions[first]))
    figure.update_layout(xaxis={"title": label(first)}, yaxis={"title": label(second)})
    note = f"{first}: {directions[first]}, {second}: {directions[second]}. "
    note += "No trial beats one of the front in one objective without losing in another"
    note += "." if len(directions) == 2 else f"; of {len(directions)} objectives two are drawn."
    return Picture(title, as_json(figure, 420), note)


def front_of(records: Sequence[TrialRecord], directions: Mapping[str, str]) -> set[int]:
    """Numbers of the trials, of whatever status, that no other beats in one objective without losing in another."""
    signs = [-1 if mode == "max" else 1 for mode in directions.values()]
    losses = {
        r.number: [sign * r.objectives[name] for sign, name in zip(signs, directions, strict=True)] for r in records
    }

    def beaten(mine: list[float]) -> bool:
        return any(o != mine and all(a <= b for a, b in zip(o, mine, strict=True)) for o in losses.values())

    return {number for number, mine in losses.items() if not beaten(mine)}


def _objectives(records: Sequence[TrialRecord], name: str, first: str, second: str, direction: str) -> go.Scatter:
    """Points; those of the front are joined by the edge of what they reach: between two points that is the second
    objective of the one that is better in the first."""
    joined_up = name == "Pareto front"
    return go.Scatter(
        x=[rounded(r.objectives.get(first)) for r in records],
        y=[rounded(r.objectives.get(second)) for r in records],
        text=[r.id for r in records],
        mode="lines+markers" if joined_up else "markers",
        name=name,
        marker={"size": 9 if joined_up else 6, "color": BEST_COLOUR if joined_up else STATUS_COLOURS["completed"]},
        line={"shape": "hv" if direction == "min" else "vh", "dash": "dot"},
        hovertemplate="%{text}: %{x}, %{y}<extra></extra>",
    )
