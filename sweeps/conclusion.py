"""The end of a sweep: finalists compared with each other and with the references, the winner named and exported.

Everything is made from the ledger and the artifacts, so it can be made again at any time.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import yaml

from genrec.artifacts import ArtifactStore
from genrec.comparison import measure_references, protocol
from genrec.config import RunConfig
from genrec.durable import write_text
from genrec.pipeline import open_interactions, stage_keys
from genrec.recommender import export_bundle
from genrec.tracking import track_bundle
from sweeps.finalists import (
    BASE,
    compare_finalists,
    config_of_run,
    current_runs,
    failed_seeds,
    finalist_name,
    metric_per_user,
    rank_finalists,
    spread,
    summarise,
    verdict,
    without_result,
)
from sweeps.ledger import Ledger
from sweeps.measuring import Measured, measure, measure_ensemble
from sweeps.records import FinalistRun, finalist_id
from sweeps.significance import Ranked
from sweeps.trial import tracked_sweep, tracked_trial
from sweeps.wording import in_order, plus_minus

ENSEMBLE = "ensemble"


def conclude(ledger: Ledger, store: ArtifactStore, say: Callable[[str], None]) -> None:
    """Compare, say what came out, export the winner; the facts go to the ledger."""
    spec, started = ledger.spec, time.monotonic()
    planned = current_runs(ledger)
    runs = [run for run in planned if run.status == "completed"]
    ranked = rank_finalists(summarise(planned), spec.metric, spec.mode)
    metric = metric_per_user(spec.metric, ranked[0]["test"])
    config = spec.finalist_config(spec.base_config())
    say("measuring the baselines")
    references = measure_references(config, store, "test")
    say("comparing the finalists user by user")
    names = [row["trial"] for row in ranked]
    measured = {row["trial"]: _ranked(row, ledger, store, runs) for row in ranked}
    whole = [row["trial"] for row in ranked if not row["failed"]]
    ensemble, ensemble_ranked = _ensemble(ledger, store, names[0], [run for run in runs if _name(run) in whole])
    comparisons = compare_finalists(names, measured, metric, ensemble_ranked)
    for key, value in references.items():
        ledger.set_fact(key, value)
    ledger.set_fact("ensemble", ensemble)
    ledger.set_fact("protocol", protocol(config, open_interactions(store, stage_keys(config)), "test"))
    ledger.set_fact("comparisons", [comparison.to_dict() for comparison in comparisons])
    ledger.set_fact("verdict", verdict(ranked, comparisons, references["baselines"], metric, without_result(planned)))
    _export(ledger, store, ranked[0], runs)
    ledger.set_fact("conclusion_seconds", round(time.monotonic() - started, 3))
    ledger.mark("finished")


def _ranked(row: Mapping[str, Any], ledger: Ledger, store: ArtifactStore, runs: Sequence[FinalistRun]) -> Ranked:
    """A finalist's places on the test split, over its seeds."""
    configs = [config_of_run(ledger, run) for run in _of(row["trial"], runs)]
    return as_ranked(row["trial"], [measure(config, store, "test") for config in configs], failed_seeds(row))


def as_ranked(name: str, measured: Sequence[Measured], failed: tuple[int, ...] = ()) -> Ranked:
    """Seeds of one config, or of one ensemble, as the tests want them."""
    return Ranked(name, measured[0].users, np.stack([one.rank_U for one in measured]), failed)


def _ensemble(
    ledger: Ledger, store: ArtifactStore, winner: str, runs: Sequence[FinalistRun]
) -> tuple[dict[str, Any] | None, Ranked | None]:
    """The trials among the finalists that share the semantic IDs of the best of them, as one: its row and its places.
    `runs`: of finalists that failed with no seed.

    Its n-th seed is made of the n-th seed of each. None where no two trials share."""
    names = list(dict.fromkeys(finalist_name(run.finalist) for run in runs if run.finalist != BASE))
    first = winner if winner in names else names[0] if names else BASE
    configs = {name: [config_of_run(ledger, run) for run in _of(name, runs)] for name in names}
    members = [name for name in names if configs[name] and _trie_of(configs[name][0]) == _trie_of(configs[first][0])]
    if len(members) < 2:
        return None, None
    groups = list(zip(*(configs[name] for name in members), strict=False))
    test = [measure_ensemble(group, store, "test") for group in groups]
    validation = [measure_ensemble(group, store, "validation") for group in groups]
    row = {
        "trial": ENSEMBLE,
        "members": members,
        "seeds": len(groups),
        "parameters": sum(int(_of(name, runs)[0].result.get("parameters") or 0) for name in members),
        "test": spread([one.metrics for one in test]),
        "validation": spread([one.metrics for one in validation]),
    }
    return row, as_ranked(f"ensemble of {' + '.join(members)}", test)


def _trie_of(config: RunConfig) -> str:
    return stage_keys(config)["semantic_ids"]


def _name(run: FinalistRun) -> str:
    return finalist_name(run.finalist)


def _of(name: str, runs: Sequence[FinalistRun]) -> list[FinalistRun]:
    return sorted((run for run in runs if _name(run) == name), key=lambda run: run.seed)


def _export(ledger: Ledger, store: ArtifactStore, row: dict[str, Any], runs: Sequence[FinalistRun]) -> None:
    """`bundle/` and `best.yaml` of the winner's seed with the best validation."""
    metric, sign = ledger.spec.metric, 1 if ledger.spec.mode == "max" else -1
    best = max(_of(row["trial"], runs), key=lambda run: sign * float(run.result["validation"][metric]))
    config = config_of_run(ledger, best)
    export_bundle(config, store, ledger.folder / "bundle")
    sweep = tracked_sweep(ledger.folder, ledger.identity)
    run = tracked_trial(sweep, finalist_id(best.finalist, best.seed), "finalist", config)
    track_bundle(config, run, ledger.folder / "bundle")
    failed = f" (failed: {list(failed_seeds(row))})" if row["failed"] else ""
    seeds = f"seeds {row['seeds']}{failed}"
    head = [f"# Winner of the sweep {ledger.spec.name}: {row['trial']}, {seeds}; this is seed {best.seed}."]
    head += [f"# test {name}: {plus_minus(row['test'][name], len(row['seeds']))}" for name in in_order(row["test"])]
    head += [f"# {sentence}" for sentence in ledger.fact("verdict")]
    head.append(f"# protocol: {json.dumps(ledger.fact('protocol'), sort_keys=True)}")
    text = "\n".join(head) + "\n" + yaml.safe_dump(config.to_dict(), sort_keys=False)
    write_text(ledger.folder / "best.yaml", text)
    ledger.set_fact("winner", {"trial": row["trial"], "seed": best.seed})
