"""What a sweep has come to, from its ledger alone: the contract of `sweeps status --format json`, and its table."""

from __future__ import annotations

from typing import Any

from sweeps.cluster_use import busy_share
from sweeps.finalists import current_runs, rank_finalists, summarise, without_result
from sweeps.ledger import Ledger
from sweeps.records import TrialRecord


def sweep_status(ledger: Ledger) -> dict[str, Any]:
    """The sweep as plain JSON types; counts are numbers, what is not known yet is null or empty."""
    spec = ledger.spec
    leaders = ledger.leaderboard()
    runs = ledger.finalist_runs()
    lists = [(r.reused, r.trained) for r in ledger.trials() if r.duplicate_of is None and r.source is None]
    lists += [(run.result.get("reused", []), run.result.get("trained", [])) for run in runs]
    summary = rank_finalists(summarise(current_runs(ledger)), spec.metric, spec.mode)
    return {
        "name": spec.name,
        "state": ledger.state,
        "metric": spec.metric,
        "mode": spec.mode,
        "trials": ledger.counts(),
        "best": _best(ledger, leaders[0]) if leaders else None,
        "finalists": summary,
        "finalists_without_result": without_result(current_runs(ledger)),
        "ensemble": ledger.fact("ensemble"),
        "comparisons": ledger.fact("comparisons") or [],
        "winner": ledger.fact("winner"),
        "verdict": ledger.fact("verdict") or [],
        "baselines": ledger.fact("baselines") or {},
        "oracle": ledger.fact("oracle"),
        "protocol": ledger.fact("protocol"),
        "reused_stages": sum(len(reused) for reused, _ in lists),
        "trained_stages": sum(len(trained) for _, trained in lists),
        "taken_over": sum(r.source is not None for r in ledger.trials()),
        "revisions": [revision.to_dict() for revision in ledger.revisions],
        "sessions": ledger.fact("sessions") or [],
        "stop_reason": ledger.fact("stop_reason"),
        "avoided_nodes": ledger.fact("avoided") or {},
        "restarts": {record.id: record.restarts for record in ledger.trials() if record.restarts},
        "busy_share": {name: round(share, 4) for name, share in busy_share(ledger).items()},
        "elapsed_seconds": round(ledger.elapsed, 1),
        "search_seconds": round(ledger.search_seconds, 1),
        "test_opened": ledger.fact("test_opened"),
        "test_readings": ledger.fact("test_readings") or [],
    }


def _best(ledger: Ledger, record: TrialRecord) -> dict[str, Any]:
    return {
        "trial": record.id,
        "value": record.value,
        "params": record.params,
        "config": ledger.config_of(record.number).to_dict(),
    }
