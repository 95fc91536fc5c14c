"""A/B experiments: two configs, or the winners of two sweeps, each trained with several seeds, compared user by user.

There is no ledger: models, lists and measurements are artifacts, so that a comparison that is made again, or was
interrupted, trains nothing twice. `comparison.json` in its folder, `.comparisons/A-B-...` in the storage, keeps what
came out.
"""

from __future__ import annotations

import dataclasses
import functools
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from genrec.artifacts import ArtifactStore
from genrec.comparison import protocol
from genrec.config import RunConfig, content_hash, load_config, validate_config, with_values
from genrec.data.interactions import Split
from genrec.durable import write_json
from genrec.errors import InputError
from genrec.pipeline import open_interactions, stage_keys
from sweeps.conclusion import as_ranked
from sweeps.differences import differing_settings
from sweeps.errors import LedgerError, SweepFailed
from sweeps.finalists import (
    PER_USER,
    config_of_run,
    current_runs,
    finalist_name,
    metric_per_user,
    note_test_comparison,
    spread,
)
from sweeps.folders import (
    artifact_store,
    folder_to_drive,
    has_sweep,
    storage_of,
    sweep_folder,
    sweeps_command,
    url_of,
    working_folder,
)
from sweeps.ledger import Ledger
from sweeps.measuring import measure
from sweeps.mirror import lock_of
from sweeps.ray_cluster import start_ray
from sweeps.ray_tune import run_queue
from sweeps.records import Task, plain
from sweeps.resources import Resources
from sweeps.sharing import SharedStages
from sweeps.significance import Comparison, compare_all
from sweeps.trial import run_trial, tracked_sweep
from sweeps.wording import aligned, in_order, plus_minus

FOLDER = ".comparisons"


@dataclass(frozen=True)
class Side:
    """One of the two: a config and the seeds it is trained with."""

    name: str
    config: RunConfig
    seeds: tuple[int, ...]
    resources: Resources | None = None
    sweep: str | None = None
    "whose winner it is"

    def seeded(self) -> list[RunConfig]:
        return [validate_config(self.config.to_dict() | {"seed": seed}) for seed in self.seeds]


@dataclass(frozen=True)
class Experiment:
    """What an A/B experiment came to."""

    comparison: Comparison
    rows: list[dict[str, Any]]
    "A and B: name, seeds, mean and std of every metric, parameters"
    differing: dict[str, list[Any]]
    "settings that A and B do not share, by config path"
    protocol: dict[str, Any]
    folder: Path
    "with a log of every training"
    test_read: dict[str, Any] | None = None
    "when the test split was read, and by name of a sweep whether its ledger tells so; None where it was not"

    @property
    def verdict(self) -> str:
        return self.comparison.verdict

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return plain(asdict(self) | {"comparison": self.comparison.to_dict(), "folder": str(self.folder)})

    def __str__(self) -> str:
        """What `sweeps compare` prints."""
        metrics = [name for name in in_order(self.rows[0]["metrics"]) if not name.startswith("tuple_")]
        table = [["", *(row["name"] for row in self.rows)]]
        table += [[key, *map(str, values)] for key, values in self.differing.items()]
        table.append(["parameters", *(f"{row['parameters']:,}" for row in self.rows)])
        table.append(["seeds", *(", ".join(map(str, row["seeds"])) for row in self.rows)])
        for name in metrics:
            values = [row["metrics"].get(name) for row in self.rows]
            cells = [plus_minus(v, len(row["seeds"])) if v else "" for v, row in zip(values, self.rows, strict=True)]
            table.append([f"{self.protocol['split']} {name}", *cells])
        facts = ", ".join(f"{name} {value}" for name, value in self.protocol.items())
        return "\n".join([*aligned(table), "", f"item level ({facts})", "", self.verdict])


def run_experiment(
    a: str,
    b: str,
    seeds: int,
    overrides: Mapping[str, Any],
    *,
    metric: str | None,
    split: Split,
    resources: Resources | None,
    storage: str,
    address: str | None,
    say: Callable[[str], None],
) -> Experiment:
    """Train what is not trained yet, measure, compare. `storage`: a folder, or the URL of an object store. Raises
    `InputError` and `SweepFailed`."""
    sides = open_sides(a, b, seeds, overrides, storage)
    metric = _common_metric(sides, metric)
    store = artifact_store(storage)
    identity = [[side.config.to_dict(), side.seeds] for side in sides]
    name = f"{sides[0].name}-{sides[1].name}-{content_hash(identity)[:8]}"
    folder = working_folder(f"{storage}/{FOLDER}") / name  # kept, locked and copied as a sweep's
    tasks = Trainings(sides, _splits(sides, split), say)
    folder.mkdir(parents=True, exist_ok=True)
    lock = lock_of(folder)
    lock.acquire()
    try:
        test_read = note_reading(sides, storage, say) if split == "test" else None
        with start_ray(address, say=say):
            _train(tasks, sides, resources, store, folder)
        shutil.rmtree(folder / "ray", ignore_errors=True)
        experiment = dataclasses.replace(finish(sides, tasks, metric, split, store, folder), test_read=test_read)
        write_json(folder / "comparison.json", experiment.to_dict())
        return experiment
    finally:
        lock.release()


def note_reading(sides: Sequence[Side], storage: str | Path, say: Callable[[str], None]) -> dict[str, Any]:
    """Record in the ledgers of the sweeps among `sides` that their test split is read again: `at`, and `noted`, by name
    of a sweep. One that is driven just now, or cannot be written, is said to be without."""
    noted = {}
    for side, other in (sides, sides[::-1]):
        if side.sweep is None:
            continue
        try:
            with Ledger.open(folder_to_drive(side.sweep, storage)) as ledger:
                note_test_comparison(ledger, other.name, side.seeds)
            noted[side.sweep] = True
        except (LedgerError, OSError) as error:
            noted[side.sweep] = False
            say(f"warning: the ledger of {side.sweep} does not tell that its test split is read again: {error}")
    return {"at": datetime.now(UTC).isoformat(timespec="seconds"), "noted": noted}


def _splits(sides: Sequence[Side], split: Split) -> list[Split]:
    """What is measured: validation as well, which costs little, unless the models have learnt it."""
    if sides[0].config.train.refit:
        if split == "validation":
            raise InputError(
                "train.fit_on: the validation items are learnt, so they can't be compared on; --split test"
            )
        return ["test"]
    return ["validation"] if split == "validation" else ["validation", "test"]


def open_sides(a: str, b: str, seeds: int, overrides: Mapping[str, Any], storage: str | Path) -> list[Side]:
    """A and B by their names. Refused are two that cannot be compared user by user, and two that are the same."""
    if seeds < 1:
        raise InputError(f"seeds must be 1 or more, got {seeds}")
    names = [Path(name).stem if Path(name).suffix else name for name in (a, b)]
    if names[0] == names[1]:
        names = ["A", "B"] if a == b else [a.replace("/", "-"), b.replace("/", "-")]
    sides = [_open(name, text, seeds, overrides, storage) for name, text in zip(names, (a, b), strict=True)]
    first, second = (side.config for side in sides)
    keys = [stage_keys(validate_config(config.to_dict() | {"seed": 0})) for config in (first, second)]
    if keys[0]["tiger"] == keys[1]["tiger"]:
        raise InputError(f"{a} and {b} train the same model: nothing to compare")
    if keys[0]["dataset"] != keys[1]["dataset"]:
        raise InputError(f"{a} and {b} have different data, so no user can be compared; set the same dataset for both")
    if first.train.fit_on != second.train.fit_on:
        raise InputError(
            f"train.fit_on: {first.train.fit_on} in {a}, {second.train.fit_on} in {b}: two footings, whose numbers are "
            "never compared"
        )
    if first.evaluation.seen != second.evaluation.seen:
        raise InputError(
            f"evaluation.seen: {first.evaluation.seen} in {a}, {second.evaluation.seen} in {b}: two protocols, whose "
            "numbers are never compared"
        )
    return sides


def _open(name: str, text: str, seeds: int, overrides: Mapping[str, Any], storage: str | Path) -> Side:
    if Path(text).name == text and has_sweep(text, storage):
        winner = _winner(name, Ledger.read(sweep_folder(text, storage)), seeds, overrides)
        return dataclasses.replace(winner, sweep=text)
    config = load_config(text, overrides)
    return Side(name, config, tuple(range(config.seed, config.seed + seeds)))


def _winner(name: str, ledger: Ledger, seeds: int, overrides: Mapping[str, Any]) -> Side:
    """A sweep's winner with the seeds that it has, and further ones where more are asked for."""
    winner = ledger.fact("winner")
    if winner is None:
        resume = sweeps_command("resume", ledger.folder.name, storage=storage_of(ledger.folder.parent))
        raise InputError(f"sweep {ledger.spec.name} has no winner yet; continue with: {resume}")
    runs = [run for run in current_runs(ledger) if finalist_name(run.finalist) == winner["trial"]]
    runs = sorted((run for run in runs if run.status == "completed"), key=lambda run: run.seed)
    config = validate_config(with_values(config_of_run(ledger, runs[0]).to_dict(), overrides))
    known = [run.seed for run in runs][:seeds]
    further = range(known[-1] + 1, known[-1] + 1 + seeds - len(known))
    return Side(name, config, (*known, *further), Resources.of(ledger.spec.resources))


def _common_metric(sides: Sequence[Side], metric: str | None) -> str:
    """A metric that both measure and that is a mean over users."""
    known = [[f"{name}@{k}" for name in PER_USER for k in side.config.evaluation.ks] for side in sides]
    both = [name for name in known[0] if name in known[1]]
    if not both:
        raise InputError(f"evaluation.ks has nothing in common: {known[0]} and {known[1]}")
    wanted = metric or metric_per_user(sides[0].config.evaluation.monitor, both)
    if wanted not in both:
        raise InputError(f"metric {wanted!r}: expected one that both measure: {', '.join(both)}")
    return wanted


class Trainings:
    """The trainings of both sides as a queue; the first seed of both comes first."""

    def __init__(self, sides: Sequence[Side], splits: Sequence[Split], say: Callable[[str], None]):
        self.results: dict[str, dict[str, Any]] = {}
        self.failures: list[str] = []
        self._say = say
        self._todo: list[Task] = []
        rounds = zip(*([(side, config) for config in side.seeded()] for side in sides), strict=True)
        for side, config in (pair for pairs in rounds for pair in pairs):
            payload = {"config": config.to_dict(), "seed": config.seed, "kind": "finalist", "splits": list(splits)}
            self._todo.append(Task(task_id(side, config), payload))

    def next(self) -> Task | None:
        return self._todo.pop(0) if self._todo else None

    def report(self, task_id: str, metrics: Mapping[str, Any]) -> None:
        """Epochs are in the task's log."""

    def finish(self, task_id: str, status: str, result: Mapping[str, Any]) -> None:
        if status == "completed":
            self.results[task_id] = dict(result)
        else:
            self.failures.append(f"{task_id}: {result.get('reason') or status}")

    def on_event(self, event: str, task_id: str, data: dict[str, Any]) -> None:
        if event == "delayed":
            self._say(f"{time.strftime('%H:%M:%S')} {data['reason']}")
        elif event == "finished":
            reused = " (was trained before)" if "tiger" in (data.get("reused") or []) else ""
            self._say(f"{time.strftime('%H:%M:%S')} {task_id} {data['status']}{reused}")


def task_id(side: Side, config: RunConfig) -> str:
    """Names a training and its log."""
    return f"{side.name}-s{config.seed}"


def _train(
    tasks: Trainings, sides: Sequence[Side], resources: Resources | None, store: ArtifactStore, folder: Path
) -> None:
    run_queue(
        tasks,
        functools.partial(run_trial, store=store.address, tracked=tracked_sweep(folder)),
        name=folder.name,
        folder=folder,
        storage=url_of(folder.parent),
        resources=resources or next((side.resources for side in sides if side.resources), Resources()),
        metric=sides[0].config.evaluation.monitor,
        missing=SharedStages(store),
        on_event=tasks.on_event,
    )
    if tasks.failures:
        raise SweepFailed("the comparison is not complete: " + "; ".join(tasks.failures))


def finish(
    sides: Sequence[Side], tasks: Trainings, metric: str, split: Split, store: ArtifactStore, folder: Path
) -> Experiment:
    """Measurements and verdict, once all trainings are done."""
    rows, ranked = [], []
    for side in sides:
        measured = [measure(config, store, split) for config in side.seeded()]
        parameters = tasks.results[task_id(side, side.seeded()[0])].get("parameters")
        metrics = spread([one.metrics for one in measured])
        rows.append({"name": side.name, "seeds": list(side.seeds), "parameters": parameters, "metrics": metrics})
        ranked.append(as_ranked(side.name, measured))
    [comparison] = compare_all([(ranked[0], ranked[1])], metric, split)
    config = sides[0].config
    facts = protocol(config, open_interactions(store, stage_keys(config)), split)
    return Experiment(comparison, rows, differing_settings(*(side.config for side in sides)), facts, folder)
