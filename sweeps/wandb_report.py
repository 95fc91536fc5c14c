"""A sweep as a Report of Weights & Biases: the verdict as text, and panels over the runs of its trials.

The texts are those of `sweeps.report.summary`, so that two reports of one sweep can't say different things. They are
written as plain text, which Weights & Biases reads nothing else in, and tables as Markdown that is escaped.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from genrec.durable import write_text
from genrec.errors import InputError
from genrec.masking import masked
from genrec.terminal import printable
from genrec.tracking import account, require_server
from genrec.uploads import offline_runs
from sweeps.folders import storage_of, sweeps_command
from sweeps.ledger import Ledger
from sweeps.parameters import Float, Int
from sweeps.report import FOLDER
from sweeps.report.document import Block, Commands, Picture, Section, Text, one_line
from sweeps.report.markdown import block_lines
from sweeps.report.summary import lead, summary
from sweeps.trial import tracked_sweep
from sweeps.wording import counted

try:
    from wandb_workspaces import expr
    from wandb_workspaces.reports import v2 as wr
except ImportError:
    raise InputError("a Report of Weights & Biases needs extra packages: pip install 'genrec-sweeps[wandb]'") from None

PUBLISHED = "wandb_report.json"
"in the sweep's folder: the Report that was published, which the next one replaces"
SHOWN = 5
"runs that are named where many are meant"
WIDE, HIGH = 24, 10
"the whole width of a grid, and the height of a panel, in its columns and rows"


def make_report(ledger: Ledger, folder: Path | None = None, entity: str = "") -> wr.Report:
    """The Report as it would be published, without asking anybody.

    Args:
        folder: of the local report, which the commands name; by default `report` in the sweep's.
        entity: whose project it is; a Report without one can be looked at, not published.

    Raises `InputError` for a sweep that isn't tracked.
    """
    tracking = ledger.spec.base_config().tracking
    if not tracking.wandb_logging:
        fix = "set tracking.wandb_logging: true under `set:` in its file"
        raise InputError(f"sweep {ledger.spec.name}: its trials have no runs in Weights & Biases; fix: {fix}")
    texts = [block for section in summary(ledger, folder or ledger.folder / FOLDER) for block in _section(section)]
    panels = Panels(ledger, entity, tracking.wandb_project)
    return wr.Report(
        project=tracking.wandb_project,
        entity=entity,
        title=f"Sweep {ledger.spec.name}",
        description=lead(ledger),
        blocks=[*texts, *panels.trials(), *panels.finalists()],
        width="fluid",
    )


# -- texts ------------------------------------------------------------------------------------------------------------


def _section(section: Section) -> list[Any]:
    found = [converted for block in section.blocks if (converted := _block(block)) is not None]
    return [wr.H2(text=one_line(section.title)), *found]


def _block(block: Block) -> Any:
    """A block of the local report; None for a picture, of which Weights & Biases draws its own."""
    if isinstance(block, Picture):
        return None
    if isinstance(block, Text):
        return wr.CalloutBlock(text=one_line(block.text)) if block.strong else wr.P(text=one_line(block.text))
    if isinstance(block, Commands):
        lines = [f"# {one_line(purpose)}\n{printable(line)}" for purpose, line in block.lines]
        return wr.CodeBlock(code="\n".join(lines), language=None)
    return wr.MarkdownBlock(text="\n".join(block_lines(block)))


# -- panels -----------------------------------------------------------------------------------------------------------


class Panels:
    """Grids of panels over the sweep's runs in one project."""

    def __init__(self, ledger: Ledger, entity: str, project: str):
        self._ledger, self._entity, self._project = ledger, entity, project
        self._metric, self._ascending = ledger.spec.metric, ledger.spec.mode == "min"

    def trials(self) -> list[Any]:
        """Learning curves, importance, parallel coordinates, and what differs between the runs."""
        metric, best, paths = self._metric, f"best/{self._metric}", sorted(self._ledger.space.paths)
        columns = [
            wr.ParallelCoordinatesPlotColumn(metric=wr.Config(path), log=self._is_log(path) or None) for path in paths
        ]
        columns.append(wr.ParallelCoordinatesPlotColumn(metric=wr.SummaryMetric(best), inverted=self._ascending))
        panels: list[Any] = [
            wr.LinePlot(title=f"Validation {metric}", x="epoch", y=[f"epoch/{metric}"], layout=_place(0, 0)),
            wr.LinePlot(title="Training loss", x="step", y=["train/loss"], layout=_place(0, 1)),
            wr.ParallelCoordinatesPlot(columns=columns, title="Parameters", layout=_place(1, 0, WIDE)),
            wr.ParameterImportancePlot(with_respect_to=best, layout=_place(2, 0)),
            wr.RunComparer(diff_only=True, layout=_place(2, 1)),
        ]
        said = f"One run a trial. {best} is the best of its epochs; a trial that was stopped early has only its curve."
        runs = self._runs("trial", [best], paths)
        return [wr.H2(text="Trials"), wr.P(text=said), wr.PanelGrid(runsets=[runs], panels=panels)]

    def finalists(self) -> list[Any]:
        """Validation, by which the winner is chosen, against test; nothing before there are finalists."""
        if not self._ledger.finalist_runs():
            return []
        validation, test = f"validation/{self._metric}", f"test/{self._metric}"
        panels: list[Any] = [
            wr.ScatterPlot(
                title=f"{self._metric}: validation against test",
                x=wr.SummaryMetric(validation),
                y=wr.SummaryMetric(test),
                layout=_place(0, 0),
            ),
            wr.RunComparer(diff_only=True, layout=_place(0, 1)),
        ]
        said = "One run a finalist and seed; the winner has the best mean on validation."
        runs = self._runs("finalist", [validation, test], [])
        return [wr.H2(text="Finalists"), wr.P(text=said), wr.PanelGrid(runsets=[runs], panels=panels)]

    def _runs(self, kind: str, figures: Sequence[str], paths: Sequence[str]) -> wr.Runset:
        """The runs of one job type in the sweep's group as a table, the best by the first of the figures first."""
        group = tracked_sweep(self._ledger.folder).group
        return wr.Runset(
            entity=self._entity,
            project=self._project,
            name=f"{kind}s",
            filters=expr.And(expr.Metric("Group") == group, expr.Metric("JobType") == kind),
            order=[wr.OrderBy(wr.SummaryMetric(figures[0]), ascending=self._ascending)],
            pinned_columns=["run:displayName"],
            visible_columns=["run:state", *(f"summary:{name}" for name in figures), *map(_column, paths)],
            lock_columns=True,
        )

    def _is_log(self, path: str) -> bool:
        parameter = self._ledger.space.parameters.get(path)
        return isinstance(parameter, (Float, Int)) and parameter.log


def _place(row: int, column: int, width: int = WIDE // 2) -> wr.Layout:
    return wr.Layout(x=column * WIDE // 2, y=row * HIGH, w=width, h=HIGH)


def _column(path: str) -> str:
    """A setting as a table of runs names it."""
    section, *rest = path.split(".")
    return "config:" + ".".join([section, "value", *rest])


# -- publishing -------------------------------------------------------------------------------------------------------


def publish(ledger: Ledger, folder: Path | None = None) -> str:
    """Send the Report; returns its address. A sweep has one: what was published before is replaced.

    Raises `InputError` without a key or for a sweep that isn't tracked, `ConnectionError` when the server does not
    answer or refuses.
    """
    make_report(ledger, folder)  # what is wrong with the sweep is said first
    require_server()
    try:
        return _sent(ledger, folder)
    except Exception as error:
        reason = str(masked(f"{type(error).__name__}: {error}")).splitlines()[0]
        raise ConnectionError(f"Weights & Biases did not take the Report: {reason}") from error


def _sent(ledger: Ledger, folder: Path | None) -> str:
    project = ledger.spec.base_config().tracking.wandb_project
    entity = account()
    report = make_report(ledger, folder, entity)
    path = ledger.folder / PUBLISHED
    known = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    if (known.get("entity"), known.get("project")) == (entity, project):
        report.id = known["id"]
    report.save()
    found = {"entity": entity, "project": project, "id": report.id, "url": report.url}
    write_text(path, json.dumps(found, indent=1) + "\n")
    return str(report.url)


def not_uploaded(ledger: Ledger) -> list[str]:
    """Names of the runs that `sweeps sync` has not uploaded yet; panels can't show them."""
    folder = Path(tracked_sweep(ledger.folder).folder)
    return list(dict.fromkeys(run.relative_to(folder).parts[0] for run in offline_runs(folder)))


def upload_advice(ledger: Ledger) -> str | None:
    """What is missing in Weights & Biases, and the command that brings it there; None when nothing is."""
    names = not_uploaded(ledger)
    if not names:
        return None
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    shown = ", ".join(names[:SHOWN]) + more
    sync = sweeps_command("sync", ledger.folder.name, storage=storage_of(ledger.folder.parent))
    lacking = f"{counted(len(names), 'run')} ({shown})"
    return f"not uploaded yet, so that its panels lack them: {lacking}; upload them by: {sync}"


# -- looking ----------------------------------------------------------------------------------------------------------


def outline(report: wr.Report) -> list[str]:
    """All that a Report says and asks for, as lines."""
    model = report._to_model()  # the package has no public way to what it would send
    spec = model.spec.model_dump_json(by_alias=True, exclude_none=True)
    return outlined(model.display_name, model.description, spec)


def outlined(title: str, description: str, spec: str) -> list[str]:
    """`outline` of what Weights & Biases gets: `spec` is JSON."""
    lines = [f"# {title}", "", description]
    for block in json.loads(spec)["blocks"]:
        found = list(_outlined(block))
        lines += ["", *found] if any(found) else []
    return lines


def _outlined(block: dict[str, Any]) -> Iterator[str]:
    kind = block["type"]
    if kind == "heading":
        yield "#" * block["level"] + " " + _text(block)
    elif kind == "markdown-block":
        yield from block["content"].splitlines()
    elif kind == "panel-grid":
        metadata = block["metadata"]
        for runs in metadata["runSets"]:
            yield f"{runs['name']} {_compact({key: runs[key] for key in ('filters', 'sort', 'runFeed')})}"
        for panel in metadata["panelBankSectionConfig"]["panels"]:
            yield f"{panel['viewType']} {_compact(panel['config'])}"
    else:
        yield from _text(block).splitlines()


def _text(node: dict[str, Any]) -> str:
    return str(node["text"]) if "text" in node else "".join(_text(child) for child in node.get("children", []))


def _compact(value: Any) -> str:
    return json.dumps(value, sort_keys=True, ensure_ascii=False)
