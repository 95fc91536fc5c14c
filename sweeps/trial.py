"""One configuration -> stages -> metrics, on any machine. No Ray here: loops are started by the `launch` that is given.

A trial of the search trains up to TIGER and reports its epochs. A finalist does the same with another seed and then
reads the test split, which nothing else in a sweep does.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable
from typing import Any

from genrec.artifacts import ArtifactStore
from genrec.config import RunConfig, validate_config
from genrec.data.interactions import Split
from genrec.evaluation import evaluate
from genrec.pipeline import Launch, open_interactions, open_tiger, pick_device, run_pipeline, stage_keys
from genrec.trie import Trie


def run_trial(
    payload: dict[str, Any], report: Callable[[dict[str, Any]], None], launch: Launch, *, store: str
) -> dict[str, Any]:
    """Run all stages of `payload["config"]`; `report` gets one row an epoch. Returns what the ledger keeps.

    What the trial shares with others is told before TIGER trains, so that the ledger has it for a stopped trial too.
    """
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", stream=sys.stdout, force=True)
    config = validate_config(payload["config"])
    artifacts = ArtifactStore(store)
    shared = run_pipeline(config, artifacts, until="semantic_ids", launch=launch)
    report({"_notes": {"artifacts": dict(shared.keys), "trained": shared.trained, "reused": shared.reused}})
    tiger = run_pipeline(config, artifacts, stages=("tiger",), launch=launch)
    model, facts = open_tiger(artifacts.path("tiger", tiger.keys["tiger"]), pick_device())
    if tiger.reused:
        for row in facts["rows"]:
            report(row)
    result = {
        "artifacts": shared.keys | tiger.keys,
        "trained": shared.trained + tiger.trained,
        "reused": shared.reused + tiger.reused,
        "validation": facts["best"],
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
    }
    if payload["kind"] == "finalist":
        result["test"] = measure(config, artifacts, "test")
    return result


def measure(config: RunConfig, store: ArtifactStore, split: Split) -> dict[str, float]:
    """Metrics of the trained model of `config` on all users of `split`."""
    keys = stage_keys(config)
    model, facts = open_tiger(store.path("tiger", keys["tiger"]), pick_device())
    trie = Trie(model.codes_NC)
    interactions = open_interactions(store, keys)
    return evaluate(model, trie, interactions, split, config.evaluation, facts["tuple_levels"])
