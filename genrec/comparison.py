"""What a model's numbers stand beside: baselines, and the oracle where the truth of the data is known.

Two footings are never mixed. `most_popular` and `item_to_item` are fit on training items, as the model is;
`item_to_item_refit` has also counted the validation items, which is an advantage on the test split.
"""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

from genrec.artifacts import ArtifactStore
from genrec.baselines import evaluate_baselines, tune_item_to_item
from genrec.checkpoint import write_json
from genrec.config import RunConfig, content_hash, validate_config
from genrec.data.interactions import Interactions, Split
from genrec.data.synthetic import SyntheticTruth, oracle
from genrec.evaluation import evaluate
from genrec.pipeline import open_interactions, open_tiger, pick_device, run_pipeline, stage_keys
from genrec.trie import Trie

logger = logging.getLogger(__name__)


def measure_references(config: RunConfig, store: ArtifactStore, split: Split) -> dict[str, Any]:
    """`{"baselines": {name: metrics}, "oracle": metrics or None}` on all users of `split`; measured once a dataset."""
    run_pipeline(config, store, until="dataset")
    keys = stage_keys(config)
    settings = {"code": 1, "ks": config.evaluation.ks, "seen": config.evaluation.seen, "split": split}
    key = content_hash({"dataset": keys["dataset"], **settings})

    def build(folder: Path) -> dict[str, Any]:
        write_json(folder / "references.json", _measure(config, open_interactions(store, keys), split))
        return settings

    folder, _ = store.ensure("references", key, build, logger.info)
    return json.loads((folder / "references.json").read_text())


def _measure(config: RunConfig, interactions: Interactions, split: Split) -> dict[str, Any]:
    ks, seen = config.evaluation.ks, config.evaluation.seen
    settings = tune_item_to_item(interactions, seen)
    fitted = evaluate_baselines(interactions, split, ks, seen, "train", settings)
    baselines: dict[str, Any] = {name: metrics | {"fit": "train"} for name, metrics in fitted.items()}
    if split == "test":
        refit = evaluate_baselines(interactions, split, ks, seen, "train+validation", settings)
        baselines["item_to_item_refit"] = refit["item_to_item"] | {"fit": "train+validation"}
    truth = None
    if config.dataset.source == "synthetic":
        truth = oracle(interactions, SyntheticTruth.from_config(config.dataset.synthetic), split, ks, seen)
    return {"baselines": baselines, "oracle": truth}


def measure_bundle(bundle: Path, store: ArtifactStore, split: Split) -> dict[str, Any]:
    """Metrics of a bundle on all users of `split`, beside the references, and the protocol they were taken under."""
    model, facts = open_tiger(bundle, pick_device())
    config = validate_config(facts["config"])
    references = measure_references(config, store, split)
    interactions = open_interactions(store, stage_keys(config))
    trie = Trie(model.codes_NC)
    metrics = evaluate(model, trie, interactions, split, config.evaluation, facts["tuple_levels"])
    rows = {"tiger": metrics}
    rows |= {f"{name} (fit: {row.pop('fit')})": row for name, row in references["baselines"].items()}
    if references["oracle"]:
        rows["oracle"] = references["oracle"]
    return {"rows": rows, "protocol": protocol(config, interactions, split)}


def protocol(config: RunConfig, interactions: Interactions, split: Split) -> dict[str, Any]:
    """What every number must carry."""
    return {
        "split": split,
        "hit": "item",
        "beam": config.evaluation.beam_size,
        "seen": config.evaluation.seen,
        "users": len(interactions),
        "catalogue": interactions.catalogue.hash,
    }
