"""Drives a sweep from its first trial to the exported winner; joins ledger, Ray and re-evaluation.

Every step looks into the ledger for what is done already, so that driving a sweep again after anything goes on where it
was: `run` and `resume` differ only in how the ledger is opened.
"""

from __future__ import annotations

import functools
import json
import shutil
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import yaml

from genrec.artifacts import ArtifactStore
from genrec.comparison import measure_references, protocol
from genrec.config import RunConfig, validate_config
from genrec.pipeline import open_interactions, stage_keys
from genrec.recommender import export_bundle
from sweeps.finalists import BASE, finalist_name, plan_finalists, rank_finalists, summarise, verdict
from sweeps.ledger import FinalistQueue, Ledger
from sweeps.ray_cluster import Resources, start_ray
from sweeps.ray_tune import Asha, OnEvent, run_queue
from sweeps.records import FinalistRun
from sweeps.trial import run_trial

ARTIFACTS = ".artifacts"


class SweepFailed(RuntimeError):
    """No trial, or no finalist, came to a usable end; the message says what happened to them."""


def drive(ledger: Ledger, *, address: str | None, on_event: OnEvent, say: Callable[[str], None]) -> None:
    """Search, re-evaluate, compare, export. `say` gets a line at each turn.

    Raises `SweepFailed`, `Interrupted` (resumable), and what the cluster or the disk raise.
    """
    store = ArtifactStore(ledger.folder.absolute().parent / ARTIFACTS)
    with start_ray(address):
        if not ledger.finalist_runs():
            _search(ledger, store, on_event)
        _reevaluate(ledger, store, on_event, say)
    shutil.rmtree(ledger.folder / "ray", ignore_errors=True)
    _conclude(ledger, store, say)


def _search(ledger: Ledger, store: ArtifactStore, on_event: OnEvent) -> None:
    spec = ledger.spec
    ledger.mark("searching")

    def tell(event: str, task_id: str, data: dict[str, Any]) -> None:
        if event == "finished" and data["status"] != "completed":
            _discard(store, ledger.config_of(int(task_id.rsplit("-", 1)[1])))
        on_event(event, task_id, data)

    scheduler = spec.scheduler
    asha = Asha(grace_epochs=scheduler.grace_epochs, reduction_factor=scheduler.reduction_factor)
    run_queue(
        ledger,
        scheduler="none" if scheduler.type == "none" else asha,
        history=_curves(ledger),
        max_epochs=_most_epochs(ledger),
        **_common(ledger, store, tell),
    )
    records = ledger.trials()
    for record in records:
        if record.status in ("stopped", "failed"):
            _discard(store, ledger.config_of(record.number))
    if not ledger.select(1):
        ledger.mark("failed")
        reasons = sorted({record.reason or record.status for record in records})
        raise SweepFailed(f"0 of {len(records)} trials have a finite {spec.metric}: " + "; ".join(reasons[:5]))


def _reevaluate(ledger: Ledger, store: ArtifactStore, on_event: OnEvent, say: Callable[[str], None]) -> None:
    spec = ledger.spec
    chosen = ledger.select(spec.finalists.top_k)
    plans = plan_finalists(spec, [(record.number, ledger.config_of(record.number)) for record in chosen])
    if ledger.fact("test_opened") is None:
        ledger.set_fact("test_opened", datetime.now(UTC).isoformat(timespec="seconds"))
    say(f"re-evaluating {len(chosen)} trials and the base config, {spec.finalists.seeds} seeds each")
    queue = FinalistQueue(ledger, plans)
    run_queue(queue, scheduler="none", max_epochs=_most_epochs(ledger), **_common(ledger, store, on_event))
    if not summarise(ledger.finalist_runs()):
        ledger.mark("failed")
        reasons = sorted({str(run.result.get("reason")) for run in ledger.finalist_runs()})
        raise SweepFailed("no finalist came to its end: " + "; ".join(reasons[:5]))


def _conclude(ledger: Ledger, store: ArtifactStore, say: Callable[[str], None]) -> None:
    """Compare with the references, name the winner, export it."""
    spec = ledger.spec
    config = spec.finalist_config(spec.base_config())
    say("measuring the baselines")
    references = measure_references(config, store, "test")
    ranked = rank_finalists(summarise(ledger.finalist_runs()), spec.metric, spec.mode)
    for name, value in references.items():
        ledger.set_fact(name, value)
    interactions = open_interactions(store, stage_keys(config))
    ledger.set_fact("protocol", protocol(config, interactions, "test"))
    ledger.set_fact("verdict", verdict(ranked, references["baselines"], _test_metric(ranked, spec.metric)))
    winner = _best_seed(ledger, ranked[0]["trial"])
    winning_config = _config_of_run(ledger, winner)
    export_bundle(winning_config, store, ledger.folder / "bundle")
    _write_best(ledger, ranked[0], winning_config)
    ledger.set_fact("winner", {"trial": ranked[0]["trial"], "seed": winner.seed})
    ledger.mark("finished")


def _common(ledger: Ledger, store: ArtifactStore, on_event: OnEvent) -> dict[str, Any]:
    spec = ledger.spec
    resources = spec.resources
    return {
        "function": functools.partial(run_trial, store=str(store.root)),
        "name": spec.name,
        "folder": ledger.folder,
        "resources": Resources(
            workers=resources.workers,
            cpus_per_worker=resources.cpus_per_worker,
            gpus_per_worker=resources.gpus_per_worker,
        ),
        "max_concurrent": resources.max_concurrent,
        "metric": spec.metric,
        "mode": spec.mode,
        "max_failures": spec.max_failures,
        "on_event": on_event,
    }


def _curves(ledger: Ledger) -> dict[str, list[tuple[int, float]]]:
    """The recorded epochs of the search's trials, from which the scheduler's rungs are rebuilt."""
    metric = ledger.spec.metric
    return {
        record.id: [(row["epoch"], row[metric]) for row in record.epochs if metric in row]
        for record in ledger.trials()
        if record.duplicate_of is None
    }


def _most_epochs(ledger: Ledger) -> int:
    """An upper bound of the epochs of any trial and finalist."""
    spec = ledger.spec
    searched = spec.search_space.parameters.get("train.epochs")
    base, final = spec.base_config(), spec.finalist_config(spec.base_config())
    return max(base.train.epochs, final.train.epochs, *(int(value) for value in (searched.probes if searched else [])))


def _discard(store: ArtifactStore, config: RunConfig) -> None:
    """Checkpoints of a TIGER that will not be trained to its end."""
    store.discard("tiger", stage_keys(config)["tiger"])


def _test_metric(ranked: list[dict[str, Any]], metric: str) -> str:
    """The sweep's metric, or NDCG@10's nearest kin where that is not one of the test split."""
    names = list(ranked[0]["test"])
    return metric if metric in names else next(name for name in reversed(names) if name.startswith("ndcg"))


def _best_seed(ledger: Ledger, name: str) -> FinalistRun:
    """Of the winner's runs the one with the best validation: its model is exported."""
    metric, sign = ledger.spec.metric, 1 if ledger.spec.mode == "max" else -1
    runs = [run for run in ledger.finalist_runs() if finalist_name(run.finalist) == name and run.status == "completed"]
    return max(runs, key=lambda run: sign * float(run.result["validation"][metric]))


def _config_of_run(ledger: Ledger, run: FinalistRun) -> RunConfig:
    spec = ledger.spec
    config = spec.base_config() if run.finalist == BASE else ledger.config_of(int(run.finalist))
    return validate_config(spec.finalist_config(config).to_dict() | {"seed": run.seed})


def _write_best(ledger: Ledger, winner: dict[str, Any], config: RunConfig) -> None:
    """`best.yaml`: the winner's config, as `genrec train` reads it, with its numbers as comments."""
    head = [f"# Winner of the sweep {ledger.spec.name}: {winner['trial']}, seeds {winner['seeds']}."]
    for name, value in winner["test"].items():
        head.append(f"# test {name}: {value['mean']:.4f} +- {value['std']:.4f}")
    head.append(f"# protocol: {json.dumps(ledger.fact('protocol'), sort_keys=True)}")
    text = "\n".join(head) + "\n" + yaml.safe_dump(config.to_dict(), sort_keys=False)
    path = ledger.folder / "best.yaml"
    partial = Path(f"{path}.partial")
    partial.write_text(text)
    partial.replace(path)
