"""A trained config on all users of a split: its metrics and every user's list, kept in the store beside the model.

The lists are what comparisons and ensembles are made from, so nothing is decoded twice. Decoding is constrained to the
catalogue by its trie.

Shape letters: U users, W items of a list.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from genrec.artifacts import ArtifactStore
from genrec.blending import Ensemble
from genrec.config import EvaluationConfig, RunConfig, content_hash
from genrec.data.interactions import Interactions, Split
from genrec.durable import write_json
from genrec.evaluation import evaluate
from genrec.modules.metrics import ranks_in_lists
from genrec.pipeline import open_interactions, open_tiger, pick_device, stage_keys
from genrec.ranking import KnownLists, Ranker, Seen, best_items, measure_rankers, user_batches
from genrec.trie import Trie

logger = logging.getLogger(__name__)
CODE_VERSION = 1
"raise it when the same model would get other lists"


@dataclass(frozen=True, eq=False)
class Measured:
    """What one model, or several together, list for all users of a split."""

    metrics: dict[str, float]
    users: np.ndarray
    "(U,) indices, ascending"
    items_UW: np.ndarray
    "best first; -1 where the list is shorter"
    scores_UW: np.ndarray
    rank_U: np.ndarray
    "0-based places of the targets, -1 where they are not listed"

    @classmethod
    def load(cls, folder: Path) -> Measured:
        with np.load(folder / "lists.npz", allow_pickle=False) as arrays:
            users, items_UW, scores_UW, rank_U = (arrays[name] for name in ("users", "items", "scores", "ranks"))
        return cls(json.loads((folder / "metrics.json").read_text()), users, items_UW, scores_UW, rank_U)

    def save(self, folder: Path) -> None:
        lists = {"users": self.users, "items": self.items_UW, "scores": self.scores_UW, "ranks": self.rank_U}
        np.savez(folder / "lists.npz", **lists)  # type: ignore[arg-type]
        write_json(folder / "metrics.json", self.metrics)


def measure(config: RunConfig, store: ArtifactStore, split: Split) -> Measured:
    """The trained model of `config` on all users of `split`; decoded once, then read from the store."""
    settings = config.evaluation.model_dump(mode="json", exclude={"batch_size", "max_users"})
    return _remember(
        store,
        {"tiger": stage_keys(config)["tiger"], "evaluation": settings, "split": split},
        lambda: _decode(config, store, split),
    )


def measure_ensemble(configs: Sequence[RunConfig], store: ArtifactStore, split: Split) -> Measured:
    """The mean of the item probabilities of the models of `configs`, whose measurements it reads."""
    models = sorted(stage_keys(config)["tiger"] for config in configs)
    settings = configs[0].evaluation.model_dump(mode="json", exclude={"batch_size", "max_users"})
    return _remember(
        store, {"tigers": models, "evaluation": settings, "split": split}, lambda: _mean(configs, store, split)
    )


def _remember(store: ArtifactStore, settings: dict[str, Any], make: Callable[[], Measured]) -> Measured:
    settings = {"code": CODE_VERSION} | settings

    def build(folder: Path) -> dict[str, Any]:
        make().save(folder)
        return settings

    folder, _ = store.ensure("measurement", content_hash(settings), build, logger.info)
    return Measured.load(folder)


def _decode(config: RunConfig, store: ArtifactStore, split: Split) -> Measured:
    keys = stage_keys(config)
    model, facts = open_tiger(store.path("tiger", keys["tiger"]), pick_device())
    interactions = open_interactions(store, keys)
    known = KnownLists(interactions.users, len(interactions.catalogue), config.evaluation.seen)
    trie = Trie(model.codes_NC)
    metrics = evaluate(model, trie, interactions, split, config.evaluation, facts["tuple_levels"], known=known)
    return _listed(known, metrics, interactions, split, config.evaluation)


def _mean(configs: Sequence[RunConfig], store: ArtifactStore, split: Split) -> Measured:
    evaluation = configs[0].evaluation
    interactions = open_interactions(store, stage_keys(configs[0]))
    ensemble = Ensemble([_known(measure(config, store, split), interactions, evaluation.seen) for config in configs])
    found = measure_rankers({"": ensemble}, interactions, split, evaluation.ks, evaluation.seen)
    return _listed(ensemble, found[""], interactions, split, evaluation)


def _known(measured: Measured, interactions: Interactions, seen: Seen) -> KnownLists:
    known = KnownLists(interactions.users, len(interactions.catalogue), seen)
    known.add(measured.users, measured.items_UW, measured.scores_UW)
    return known


def _listed(
    ranker: Ranker, metrics: dict[str, float], interactions: Interactions, split: Split, evaluation: EvaluationConfig
) -> Measured:
    """The lists of all users, as long as the beam is wide."""
    users, width = interactions.users_of(split), evaluation.beam_size
    items, scores, ranks = [], [], []
    for histories, target_B, ids in user_batches(interactions, split, users):
        items_BW, scores_BW = best_items(ranker.scores(histories, width, evaluation.seen, ids), width)
        items.append(items_BW.astype(np.int32))
        scores.append(scores_BW)
        ranks.append(ranks_in_lists(items_BW, target_B))
    return Measured(metrics, users, np.concatenate(items), np.concatenate(scores), np.concatenate(ranks))
