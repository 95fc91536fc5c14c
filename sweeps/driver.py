"""Drives a sweep from its first trial to the exported winner; joins ledger, Ray and re-evaluation.

Every step looks into the ledger for what is done already, so that driving a sweep again after anything goes on where it
was: `run` and `resume` differ only in how the ledger is opened.
"""

from __future__ import annotations

import contextlib
import functools
import math
import shutil
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from genrec.artifacts import ArtifactStore
from genrec.config import RunConfig
from genrec.errors import InputError
from genrec.object_store import is_url
from genrec.pipeline import stage_keys
from genrec.tracking import require_trackers
from sweeps.budget import Budget
from sweeps.cluster_use import busy_line, note_begin, note_end, note_size
from sweeps.conclusion import conclude
from sweeps.errors import SweepFailed
from sweeps.finalists import current_runs, finalists_of, note_plan, plan_finalists, summarise
from sweeps.folders import artifact_store, storage_of, sweeps_command, url_of
from sweeps.ledger import FinalistQueue, Ledger
from sweeps.preflight import check_nodes, late_check
from sweeps.queue_run import OnEvent
from sweeps.ray_cluster import is_own_ray, start_ray
from sweeps.ray_tune import NodeCheck, run_queue
from sweeps.records import ClusterLost, TrialRecord
from sweeps.report import write_report
from sweeps.resources import Resources
from sweeps.sharing import SharedStages
from sweeps.spec import SweepSpec
from sweeps.stopping import BUDGET, GATE, Rule, rule_of
from sweeps.trial import run_trial, tracked_sweep
from sweeps.wording import counted


def drive(
    ledger: Ledger,
    *,
    address: str | None,
    on_event: OnEvent,
    say: Callable[[str], None],
    on_ready: Callable[[], None] = lambda: None,
    wait_seconds: float | None = None,
) -> None:
    """Search, re-evaluate, compare, export. `say` gets a line at each turn; `on_ready` is called when the cluster is
    there and its nodes have been checked, before anything is asked of them; `wait_seconds` as in `run_queue`.

    Raises `SweepFailed`, `Interrupted` (resumable), and what the cluster or the disk raise.
    """
    storage = storage_of(ledger.folder.parent)
    store = artifact_store(storage)
    require_trackers(ledger.spec.base_config().tracking)
    with start_ray(address):
        check: NodeCheck = tuple
        if not is_own_ray():
            _refuse_groups(ledger.spec, storage)
            check_nodes(storage, ledger.spec.base_config())
            check = late_check(storage, ledger.spec.base_config())
        on_ready()
        run_tasks = functools.partial(run_queue, check_node=check, wait_seconds=wait_seconds)
        with _cluster_noted(ledger, on_event) as tell:
            if ledger.fact("phase") in (None, "searching"):
                _search(ledger, store, tell, run_tasks)
            _reevaluate(ledger, store, tell, say, run_tasks)
    say(busy_line(ledger))
    shutil.rmtree(ledger.folder / "ray", ignore_errors=True)
    conclude(ledger, store, say)
    _report(ledger, say)


@contextlib.contextmanager
def _cluster_noted(ledger: Ledger, on_event: OnEvent) -> Iterator[OnEvent]:
    """Keep in the ledger what is told of the cluster in the block: its size over time, and the nodes it avoids."""

    def tell(event: str, task_id: str, data: dict[str, Any]) -> None:
        if event == "cluster":
            note_size(ledger, data)
        elif event == "avoided":
            ledger.set_fact("avoided", {**(ledger.fact("avoided") or {}), task_id: data["reason"]})
        on_event(event, task_id, data)

    note_begin(ledger)
    if ledger.fact("avoided"):
        ledger.set_fact("avoided", {})  # a node may be well again
    try:
        yield tell
    finally:
        note_end(ledger)


def _refuse_groups(spec: SweepSpec, storage: str) -> None:
    """The workers of a group share a folder for its checkpoints, which an object store is not."""
    if is_url(storage) and spec.resources.most_workers > 1:
        raise InputError(
            f"storage {storage}: trials with resources.workers {spec.resources.workers} on a cluster need a folder "
            "that all nodes share; fix: --storage FOLDER, or resources.workers 1"
        )


def _report(ledger: Ledger, say: Callable[[str], None]) -> None:
    """The report beside the sweep; a fault in it takes nothing from the sweep, which is finished."""
    try:
        say(f"report: {write_report(ledger).page}")
    except Exception as error:
        again = sweeps_command("report", ledger.folder.name, storage=storage_of(ledger.folder.parent))
        say(f"warning: no report ({type(error).__name__}: {error}); again with: {again}")


def _search(ledger: Ledger, store: ArtifactStore, on_event: OnEvent, run_tasks: Callable[..., None]) -> None:
    spec = ledger.spec
    ledger.mark("searching")

    def tell(event: str, task_id: str, data: dict[str, Any]) -> None:
        if event == "finished" and data["status"] != "completed":
            _discard(store, ledger.config_of(int(task_id.rsplit("-", 1)[1])))
        elif event == "paused":
            ledger.pause(task_id, data["epoch"])
        on_event(event, task_id, data)

    scheduler, budget = spec.scheduler, _LedgerBudget(ledger)
    rule = rule_of(scheduler, spec.mode, _most_epochs(ledger))
    run_tasks(
        ledger,
        rule=rule,
        to_do=_most_left(ledger),
        history=_curves(ledger, rule),
        epochs_of=lambda payload: payload["config"]["train"]["epochs"],
        budget=budget,
        # A paused trial goes on from its last checkpoint: that has to be the epoch at which it paused.
        **_common(ledger, store, tell, 0.0 if scheduler.type == "promote" else None),
    )
    _end_search(ledger, budget.reason)
    records = ledger.trials()
    for record in records:
        if record.status in ("stopped", "failed"):
            _discard(store, ledger.config_of(record.number))
    if not ledger.select(1):
        ledger.mark("failed")
        reasons = sorted({record.reason or record.status for record in records})
        raise SweepFailed(
            f"0 of {len(records)} trials have a finite {spec.metric}: " + "; ".join(reasons[:5]) + _gated(records)
        )


def _most_left(ledger: Ledger) -> int | None:
    """How many trials the search may still run, if that is known."""
    most = ledger.spec.budget.trials
    over = ("stopped", "completed", "failed", "infeasible")
    return None if most is None else max(1, most - sum(record.status in over for record in ledger.trials()))


def _gated(records: Sequence[TrialRecord]) -> str:
    """What to do where the health gate has left nothing."""
    count = sum((record.reason or "").startswith(GATE) for record in records)
    return f"\nthe {GATE} stopped {count}; fix: loosen `health`, or search other tokenizers" if count else ""


class _LedgerBudget(Budget):
    """The budget of a sweep's search; what trials spend is noted in the ledger as it grows."""

    def __init__(self, ledger: Ledger):
        known = [value for curve in _curves(ledger, Rule()).values() for _, value in curve]
        best = (max(known) if ledger.spec.mode == "max" else min(known)) if known else None
        super().__init__(ledger.spec, elapsed=lambda: ledger.elapsed, spent=ledger.earlier_trial_seconds, best=best)
        self._ledger = ledger

    def reached(self, trial_seconds: float) -> str | None:
        self._ledger.note_trial_seconds(trial_seconds)
        return super().reached(trial_seconds)


def _end_search(ledger: Ledger, limit: str | None) -> None:
    """Keep why the search ended; a trial that was interrupted and that the budget does not let go on ends with it."""
    ledger.stop_reason = limit or ledger.stop_reason
    ledger.set_fact("stop_reason", ledger.stop_reason)
    for record in ledger.trials():
        if limit and record.status in ("running", "waiting") and record.duplicate_of is None:
            ledger.finish(record.id, "stopped", {"reason": f"{BUDGET}: {limit}"})
    left = [r.id for r in ledger.trials() if r.status in ("running", "waiting") and r.duplicate_of is None]
    if left:
        raise ClusterLost(f"{counted(len(left), 'trial')} of the search did not end: {', '.join(left[:5])}")


def _reevaluate(
    ledger: Ledger,
    store: ArtifactStore,
    on_event: OnEvent,
    say: Callable[[str], None],
    run_tasks: Callable[..., None],
) -> None:
    spec, finalists = ledger.spec, finalists_of(ledger)
    chosen = ledger.select(finalists.top_k)
    best = [(record.number, ledger.config_of(record.number)) for record in chosen]
    plans = plan_finalists(spec, best, finalists)
    note_plan(ledger, plans)
    how = "as they are" if finalists.seeds == 1 else f"{finalists.seeds} seeds each"
    say(f"re-evaluating {len(chosen)} trials and the base config, {how}")
    queue = FinalistQueue(ledger, plans)
    if queue.left:  # or no node need come
        run_tasks(queue, to_do=queue.left, **_common(ledger, store, on_event))
    if not summarise(current_runs(ledger)):
        ledger.mark("failed")
        reasons = sorted({str(run.result.get("reason")) for run in current_runs(ledger)})
        raise SweepFailed("no finalist came to its end: " + "; ".join(reasons[:5]))


def _common(
    ledger: Ledger,
    store: ArtifactStore,
    on_event: OnEvent,
    checkpoint_interval: float | None = None,
) -> dict[str, Any]:
    spec = ledger.spec
    return {
        "function": functools.partial(
            run_trial,
            store=store.address,
            health=spec.health.model_dump(),
            tracked=tracked_sweep(ledger.folder, ledger.identity),
            checkpoint_interval=checkpoint_interval,
        ),
        "name": spec.name,
        "folder": ledger.folder,
        "storage": url_of(ledger.folder.parent),
        "resources": Resources.of(spec.resources),
        "max_concurrent": spec.resources.max_concurrent,
        "metric": spec.metric,
        "max_failures": spec.max_failures,
        "missing": SharedStages(store),
        "on_event": on_event,
    }


def _curves(ledger: Ledger, rule: Rule) -> dict[str, list[tuple[int, float]]]:
    """The recorded epochs of the search's trials that did not fail, from which the scheduler goes on."""
    metric = ledger.spec.metric
    return {
        record.id: [(rule.point(row), row[metric]) for row in record.epochs if math.isfinite(row.get(metric, math.nan))]
        for record in ledger.trials()
        if record.duplicate_of is None and record.status != "failed"
    }


def _most_epochs(ledger: Ledger) -> int:
    """An upper bound of the epochs of any trial and finalist."""
    spec = ledger.spec
    searched = spec.search_space.possible_values(spec.base_values, "train.epochs")
    base, final = spec.base_config(), spec.finalist_config(spec.base_config())
    return max(base.train.epochs, final.train.epochs, *searched)


def _discard(store: ArtifactStore, config: RunConfig) -> None:
    """Checkpoints of a TIGER that will not be trained to its end."""
    store.discard("tiger", stage_keys(config)["tiger"])
