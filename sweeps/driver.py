"""Drives a sweep from its first trial to the exported winner; joins ledger, Ray and re-evaluation.

Each step skips what the ledger says is done, so driving a sweep again resumes it: `run` and `resume` differ only in how
the ledger is opened.
"""

from __future__ import annotations

import contextlib
import functools
import math
import shutil
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from genrec.artifacts import ArtifactStore
from genrec.errors import InputError
from genrec.pipeline import stage_keys
from genrec.tracking import require_trackers
from sweeps.budget import Budget
from sweeps.cluster_use import busy_line, note_begin, note_end, note_size
from sweeps.conclusion import conclude
from sweeps.disk_need import DiskNeed
from sweeps.errors import SweepFailed
from sweeps.failures import FailureLimit
from sweeps.finalists import current_runs, finalists_of, note_plan, plan_finalists, summarise
from sweeps.folders import artifact_store, storage_of, sweeps_command, url_of
from sweeps.ledger import FinalistQueue, Ledger
from sweeps.preflight import check_nodes, gpu_faults, idle_gpus, late_check
from sweeps.queue_run import OnEvent
from sweeps.ray_cluster import is_own_ray, start_ray
from sweeps.ray_tune import NodeCheck, run_queue
from sweeps.records import ClusterLost, TrialRecord
from sweeps.report import write_report
from sweeps.resources import Resources
from sweeps.sharing import SharedStages
from sweeps.spec import FinalistsSpec
from sweeps.stopping import BUDGET, GATE, TARGET, Rule, rule_of, stopped_by
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
    with start_ray(address, say=say):
        check: NodeCheck = gpu_faults
        if not is_own_ray():
            need = DiskNeed.of(ledger.spec)
            check_nodes(storage, ledger.spec.base_config(), need)
            check = late_check(storage, ledger.spec.base_config(), need)
        if ledger.spec.resources.gpus_per_worker == 0 and (note := idle_gpus()):
            say(note)
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
    """Keep in the ledger what is told of the cluster in the block: its size over time, the nodes it avoids, and when it
    ran what has not ended."""

    def tell(event: str, task_id: str, data: dict[str, Any]) -> None:
        if event == "cluster":
            note_size(ledger, data)
        elif event == "avoided":
            ledger.set_fact("avoided", {**(ledger.fact("avoided") or {}), task_id: data["reason"]})
        elif event in ("paused", "halted"):
            ledger.note_runs(task_id, data["runs"])
        on_event(event, task_id, data)

    note_begin(ledger)
    if ledger.fact("avoided"):
        ledger.set_fact("avoided", {})  # a node may be well again
    try:
        yield tell
    finally:
        note_end(ledger)


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
    again = sweeps_command("resume", spec.name, storage=storage_of(ledger.folder.parent))
    failed = sum(record.status == "failed" and record.duplicate_of is None for record in ledger.trials())
    failures = FailureLimit(spec, again, failed)

    def tell(event: str, task_id: str, data: dict[str, Any]) -> None:
        failures.see(event, data)
        if event == "finished" and data["status"] != "completed":
            _discard_unless_finalist(ledger, store, [ledger.number_of(task_id)])
        elif event == "paused":
            ledger.pause(task_id, data["epoch"])
        elif event == "condemned":
            ledger.condemn(task_id, data["epoch"], data["reason"], data["stopped_by"])
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
        should_stop=lambda: failures.exceeded() is not None,
        # A paused trial goes on from its last checkpoint: that has to be the epoch at which it paused.
        **_common(ledger, store, tell, 0.0 if scheduler.type == "promote" else None),
    )
    if (reason := failures.exceeded()) is not None:
        ledger.set_fact("stop_reason", "failed trials")
        ledger.mark("failed")
        raise SweepFailed(reason)
    _end_search(ledger, budget)
    records = ledger.trials()
    _discard_unless_finalist(ledger, store, [r.number for r in records if r.status in ("stopped", "failed")])
    if not ledger.select(1):
        ledger.mark("failed")
        raise _nothing_found(ledger, records)


def _nothing_found(ledger: Ledger, records: Sequence[TrialRecord]) -> Exception:
    """Why no trial has a value: nothing could be run, or nothing that was run came to one."""
    if all(record.status == "infeasible" for record in records):
        return InputError(f"no trial was run: {ledger.stop_reason}; fix: relax the constraints or narrow the ranges")
    reasons = "; ".join(sorted({record.reason or record.status for record in records})[:5])
    gated = sum(stopped_by(r, ledger.spec.scheduler) == GATE for r in records if r.status == "stopped")
    fix = f"\nthe {GATE} stopped {gated}; fix: loosen `health`, or search other tokenizers" if gated else ""
    return SweepFailed(f"0 of {len(records)} trials have a finite {ledger.spec.metric}: {reasons}{fix}")


def _most_left(ledger: Ledger) -> int | None:
    """How many trials the search may still run, if that is known."""
    most = ledger.spec.budget.trials
    over = ("stopped", "completed", "failed", "infeasible")
    return None if most is None else max(1, most - sum(record.status in over for record in ledger.trials()))


class _LedgerBudget(Budget):
    """The budget of a sweep's search; what trials spend is noted in the ledger as it grows."""

    def __init__(self, ledger: Ledger):
        known = [value for curve in _curves(ledger, Rule()).values() for _, value in curve]
        best = (max(known) if ledger.spec.mode == "max" else min(known)) if known else None
        super().__init__(
            ledger.spec, elapsed=lambda: ledger.search_seconds, spent=ledger.earlier_trial_seconds, best=best
        )
        self._ledger = ledger

    def reached(self, trial_seconds: float) -> str | None:
        self._ledger.note_trial_seconds(trial_seconds)
        return super().reached(trial_seconds)


def _end_search(ledger: Ledger, budget: Budget) -> None:
    """Keep why the search ended; a trial that was interrupted and that the budget does not let go on ends with it."""
    ledger.stop_reason = budget.reason or ledger.stop_reason
    ledger.set_fact("stop_reason", ledger.stop_reason)
    for record in ledger.trials():
        if budget.reason and record.status in ("running", "waiting") and record.duplicate_of is None:
            values = [row[ledger.spec.metric] for row in record.epochs if ledger.spec.metric in row]
            by = TARGET if any(map(budget.is_target, values)) else BUDGET
            ledger.finish(record.id, "stopped", {"reason": f"ended with the budget: {budget.reason}", "stopped_by": by})
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
    say(_what_is_reevaluated(chosen, finalists))
    queue = FinalistQueue(ledger, plans)
    if queue.left:  # or no node need come
        run_tasks(queue, to_do=queue.left, **_common(ledger, store, on_event))
    if not summarise(current_runs(ledger)):
        ledger.mark("failed")
        reasons = sorted({str(run.result.get("reason")) for run in current_runs(ledger)})
        raise SweepFailed("no finalist came to its end: " + "; ".join(reasons[:5]))


def _what_is_reevaluated(chosen: Sequence[TrialRecord], finalists: FinalistsSpec) -> str:
    """Also which of them the search has not trained to their end."""
    how = "as they are" if finalists.seeds == 1 else f"{finalists.seeds} seeds each"
    trials = counted(len(chosen), "trial")
    if len(chosen) < finalists.top_k:
        trials += f" (top_k is {finalists.top_k}; no other has a value)"
    short = [f"{record.id} ({counted(len(record.epochs), 'epoch')})" for record in chosen if record.status == "stopped"]
    rest = f"; of the trials {len(short)} had been stopped early: {', '.join(short)}" if short else ""
    if short and finalists.seeds == 1:
        rest += "; they are trained to their end first"
    return f"re-evaluating {trials} and the base config, {how}{rest}"


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
        "progress_timeout": spec.progress_timeout,
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


def _discard_unless_finalist(ledger: Ledger, store: ArtifactStore, numbers: Sequence[int]) -> None:
    """Remove the checkpoints of trials that nobody will train on. With a single seed, a stopped trial that is
    re-evaluated goes on from its own."""
    finalists = finalists_of(ledger)
    chosen = {record.number for record in ledger.select(finalists.top_k)} if finalists.seeds == 1 else set()
    for number in numbers:
        config = ledger.config_of(number)
        key = stage_keys(config)["tiger"]
        if number not in chosen or key != stage_keys(ledger.spec.finalist_of(config))["tiger"]:
            store.discard("tiger", key)
