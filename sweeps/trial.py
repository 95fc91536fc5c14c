"""One configuration -> stages -> metrics, on any machine. No Ray here: loops are started by the `launch` that is given.

A trial of the search trains up to TIGER and reports its epochs. A finalist does the same and is then measured on all
users of both splits; nothing else in a sweep reads the test split.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from genrec.artifacts import open_store
from genrec.config import RunConfig, validate_config, with_values
from genrec.object_store import is_url
from genrec.pipeline import Launch, open_ids, open_tiger, pick_device, run_pipeline
from genrec.tracking import TrackedRun, open_tracker
from sweeps.folders import TRACKING, storage_with
from sweeps.measuring import measure
from sweeps.mirror import folder_here
from sweeps.records import Stopped
from sweeps.stopping import GATE


def run_trial(
    payload: dict[str, Any],
    report: Callable[[dict[str, Any]], None],
    launch: Launch,
    *,
    store: str,
    checkpoint_interval: float | None = None,
    health: Mapping[str, float] | None = None,
    tracked: TrackedRun | None = None,
) -> dict[str, Any]:
    """Run all stages of `payload["config"]`; `report` gets one row an epoch, and before that signs of life, rows with
    `stage` in them (`genrec.pipeline.run_pipeline`). Returns what the ledger keeps.

    What the trial shares with others is told before TIGER trains, so that the ledger has it for a stopped trial too.
    `checkpoint_interval` replaces the config's: a trial that is paused at an epoch continues from that very epoch if
    every epoch is saved (0).
    `health` holds the sweep's rules for the semantic IDs; a trial of the search that breaks one raises `Stopped`.
    `tracked`: the sweep's name and folder for trackers, of which the trial gets its own run.
    """
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", stream=sys.stdout, force=True)
    config = validate_config(payload["config"])
    if checkpoint_interval is not None:
        config = validate_config(with_values(config.to_dict(), {"train.checkpoint_interval": checkpoint_interval}))
    artifacts = open_store(store)
    if tracked is not None and is_url(store):
        tracked = replace(tracked, folder=str(folder_here(storage_with(store), str(tracked.group)) / TRACKING))
    mine = tracked and tracked_trial(tracked, payload["id"], payload["kind"], config)
    shared = run_pipeline(config, artifacts, until="semantic_ids", launch=launch, tracked=mine, waiting=report)
    found = open_ids(artifacts, shared.keys).health
    notes = {"artifacts": dict(shared.keys), "trained": shared.trained, "reused": shared.reused}
    report({"_notes": notes | {"health": found.to_dict()}})
    faults = found.faults(**health) if health and payload["kind"] == "trial" else []
    if faults:
        _summarise(config, mine, found.figures() | {"stopped": f"{GATE}: {'; '.join(faults)}"})
        raise Stopped(f"{GATE}: {'; '.join(faults)}", GATE)
    tiger = run_pipeline(config, artifacts, stages=("tiger",), launch=launch, tracked=mine, waiting=report)
    model, facts = open_tiger(artifacts.path("tiger", tiger.keys["tiger"]), pick_device())
    if tiger.reused:
        for row in facts["rows"]:
            report(row)
    result = {
        "artifacts": shared.keys | tiger.keys,
        "trained": shared.trained + tiger.trained,
        "reused": shared.reused + tiger.reused,
        "health": found.to_dict(),
        "validation": facts["best"],
        "changes": facts.get("changes", []),
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
    }
    if payload["kind"] == "finalist":
        measured = {}
        for split in payload.get("splits", ("validation", "test")):
            measured[split] = measure(config, artifacts, split).metrics
            result[split] = result.get(split, {}) | measured[split]
        figures = {f"{split}/{name}": value for split, row in measured.items() for name, value in row.items()}
        _summarise(config, mine, figures)
    return result


def tracked_sweep(folder: Path, identity: str | None = None) -> TrackedRun:
    """What the runs of a sweep have in common: group, folder, `identity` of the sweep. They upload nothing while they
    run."""
    return TrackedRun("sweep", str(folder.absolute() / TRACKING), group=folder.name, offline=True, identity=identity)


def tracked_trial(sweep: TrackedRun, task_id: str, kind: str, config: RunConfig) -> TrackedRun:
    """The run of a trial or of a finalist in the group of its sweep."""
    return replace(sweep, name=task_id, job_type=kind, tags=(config.dataset.source, config.tokenizer.kind))


def _summarise(config: RunConfig, run: TrackedRun | None, values: dict[str, Any]) -> None:
    """Add figures to the trial's run, if it has one."""
    if run is not None:
        with open_tracker(config.tracking, run, config.to_dict()) as tracker:
            tracker.summarise(values)
