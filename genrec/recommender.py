"""A trained bundle -> recommendations.

A bundle is a folder that needs nothing else: the model with the catalogue's semantic IDs, the items' names, and the
config that trained it.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from genrec.artifacts import ArtifactStore
from genrec.checkpoint import flush
from genrec.config import RunConfig, nearest, validate_config
from genrec.decoding import beam_search
from genrec.errors import InputError
from genrec.models.tiger import Tiger
from genrec.pipeline import open_interactions, open_tiger, pick_device, stage_keys
from genrec.trie import Trie

MIN_BEAM = 50


@dataclass(frozen=True)
class Recommendation:
    """One item of a list: its id, its title, and the log-probability of its semantic ID."""

    item: str
    title: str
    score: float


def export_bundle(config: RunConfig, store: ArtifactStore, folder: Path) -> Path:
    """Put the trained model of `config` into `folder`, replacing a bundle that is there."""
    keys = stage_keys(config)
    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    shutil.copytree(store.path("tiger", keys["tiger"]) / "model", partial / "model")
    items = open_interactions(store, keys).catalogue
    with open(partial / "items.jsonl", "w", encoding="utf-8") as file:
        for item, title in zip(items.ids, items.titles, strict=True):
            file.write(json.dumps({"item": item, "title": title}) + "\n")
    flush(partial / "items.jsonl")
    shutil.rmtree(folder, ignore_errors=True)
    partial.rename(folder)
    return folder


class Recommender:
    """`Recommender.load(folder).recommend([["B004756YJA", ...]], k=10)`."""

    def __init__(self, model: Tiger, config: RunConfig, ids: list[str], titles: list[str]):
        self.model, self.config, self.ids, self.titles = model, config, ids, titles
        self.index = {item: number for number, item in enumerate(ids)}
        self.trie = Trie(model.codes_NC)

    @classmethod
    def load(cls, folder: Path | str) -> Recommender:
        """Read a bundle. Raises `CheckpointError` when it is missing or damaged."""
        folder = Path(folder)
        model, facts = open_tiger(folder, pick_device())
        with open(folder / "items.jsonl", encoding="utf-8") as file:
            rows = [json.loads(line) for line in file]
        return cls(model, validate_config(facts["config"]), [r["item"] for r in rows], [r["title"] for r in rows])

    def recommend(
        self, histories: Sequence[Sequence[str]], k: int = 10, exclude_seen: bool | None = None
    ) -> list[list[Recommendation]]:
        """The `k` best items for each history of item ids, oldest first. An unknown id raises `InputError`.

        Items of the history are left out when `exclude_seen`; by default as the model was evaluated.
        """
        if not 0 < k <= len(self.ids):
            raise InputError(f"k must be from 1 to the {len(self.ids)} items of the catalogue, got {k}")
        exclude = self.config.evaluation.seen == "exclude" if exclude_seen is None else exclude_seen
        return [self._one(history, k, exclude) for history in histories]

    def _one(self, history: Sequence[str], k: int, exclude: bool) -> list[Recommendation]:
        numbers = [self._number(item) for item in history]
        if not numbers:
            raise InputError("an empty history; expected at least one item id")
        recent = numbers[-self.config.tiger.max_seq_len :]
        history_BI = torch.tensor([recent], device=self.model.codes_NC.device)
        exclude_BX = torch.tensor([numbers], device=history_BI.device) if exclude else None
        # Items left out take places in the beam: make room for them, so that k others remain.
        beam = max(k, MIN_BEAM) + (len(set(numbers)) if exclude else 0)
        beams = beam_search(self.model, self.trie, history_BI, beam, exclude_BX)
        pairs = zip(beams.item_BW[0, :k].tolist(), beams.score_BW[0, :k].tolist(), strict=True)
        return [Recommendation(self.ids[item], self.titles[item], score) for item, score in pairs if item >= 0]

    def _number(self, item: str) -> int:
        if item not in self.index:
            raise InputError(f"item {item!r} is not in the catalogue of {len(self.ids)} items{nearest(item, self.ids)}")
        return self.index[item]
