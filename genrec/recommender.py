"""A trained bundle -> recommendations, also of items that came after the training.

A bundle is a folder that needs nothing else:

    model/         TIGER with the catalogue's semantic IDs, and the config that trained it
    items.jsonl    the items' ids and titles
    tokenizer/     gives new items their semantic IDs
    encoder/       gives new texts their vectors (encoder `lsa`; a sentence encoder is known by its name)
    item_to_item/  counts, settings and weight, where `evaluation.blend` asks for it

Letters: N items, M new items, E width of an item's vector.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy import sparse

from genrec.artifacts import ArtifactStore
from genrec.baselines import ItemToItem, ItemToItemSettings
from genrec.blending import Blend
from genrec.checkpoint import CheckpointError, load_checkpoint, save_checkpoint
from genrec.comparison import blend_weight, ensemble_of, tuned_item_to_item
from genrec.config import RunConfig, validate_config
from genrec.data.cooccurrence import pad_vectors
from genrec.data.interactions import Histories, Items
from genrec.data.lsa import Lsa
from genrec.data.text import embed_items
from genrec.durable import put_folder
from genrec.errors import InputError, nearest
from genrec.evaluation import BeamRanker
from genrec.models.tiger import Tiger
from genrec.models.tokenizers import load_tokenizer, save_tokenizer
from genrec.pipeline import open_interactions, open_tiger, open_tokenizer, pick_device, stage_keys
from genrec.ranking import Ranker, WithNewItems, best_items
from genrec.semantic_ids import SemanticIds, extend_ids, measure_health
from genrec.trie import Trie

MIN_BEAM = 50
NEW_ITEM_KEYS = ("item", "title", "text")


@dataclass(frozen=True)
class Recommendation:
    """One item of a list: its id, its title, and the logarithm of its probability: the model's, or the blend's."""

    item: str
    title: str
    score: float


def export_bundle(config: RunConfig, store: ArtifactStore, folder: Path) -> Path:
    """Put the trained model of `config` into `folder`. A bundle that is there stays until the new one is complete."""
    keys = stage_keys(config)
    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    tensors, facts = load_checkpoint(store.path("tiger", keys["tiger"]) / "model")
    # Runs that differ in what is no part of the stage's key share its model; the bundle is of this one.
    save_checkpoint(partial / "model", tensors, facts | {"config": config.to_dict()})
    items = open_interactions(store, keys).catalogue
    with open(partial / "items.jsonl", "w", encoding="utf-8") as file:
        for item, title in zip(items.ids, items.titles, strict=True):
            file.write(json.dumps({"item": item, "title": title}) + "\n")
    save_tokenizer(partial / "tokenizer", open_tokenizer(config, store, keys))
    if config.embeddings.encoder == "lsa":
        Lsa.fit(items.texts, config.embeddings.dim)[0].save(partial / "encoder")
    if config.evaluation.blend == "item_to_item":
        _save_blend(config, store, partial)
    put_folder(partial, folder)
    return folder


def _save_blend(config: RunConfig, store: ArtifactStore, folder: Path) -> None:
    """Item-to-item counts of what `evaluation.blend_fit` says, and the model's weight that validation chose."""
    keys = stage_keys(config)
    interactions, settings = open_interactions(store, keys), tuned_item_to_item(config, store)
    fit = config.train.fit_on if config.train.refit else config.evaluation.blend_fit
    offsets, items = interactions.fit_sequences(fit)
    baseline = ItemToItem.fit(offsets, items, len(interactions.catalogue), settings)
    model, _ = open_tiger(folder, pick_device())
    blend = blend_weight(config, store, model)
    arrays = {name: getattr(baseline.counts_NN, name) for name in ("data", "indices", "indptr")}
    tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
    tensors["discount_N"] = torch.from_numpy(baseline.discount_N)
    facts = {"settings": asdict(settings), "fit": fit, **blend}
    save_checkpoint(folder / "item_to_item", tensors, facts)


def _load_blend(folder: Path) -> tuple[ItemToItem, float]:
    tensors, facts = load_checkpoint(folder / "item_to_item")
    data, indices, indptr, discount_N = (tensors[n].numpy() for n in ("data", "indices", "indptr", "discount_N"))
    counts_NN = sparse.csr_array((data, indices, indptr), shape=(len(discount_N),) * 2)
    return ItemToItem(counts_NN, discount_N, ItemToItemSettings(**facts["settings"])), facts["weight"]


class Recommender:
    """`Recommender.load(folder).recommend([["B004756YJA", ...]], k=10)`."""

    def __init__(
        self,
        model: Tiger,
        config: RunConfig,
        ids: list[str],
        titles: list[str],
        *,
        tuple_levels: int,
        folder: Path | None = None,
        blend: tuple[ItemToItem, float] | None = None,
        others: Sequence[Recommender] = (),
    ):
        """`folder`: the bundle that new items find tokenizer and encoder in. `blend`: and the model's weight in it.
        `others`: models over the same catalogue; the mean of all is what counts."""
        self.model, self.config, self.ids, self.titles = model, config, ids, titles
        self.tuple_levels, self.folder, self.blend, self.others = tuple_levels, folder, blend, others
        self.trained_items = len(ids)
        self._refresh()

    def _refresh(self) -> None:
        self.index = {item: number for number, item in enumerate(self.ids)}
        self.trie = Trie(self.model.codes_NC)
        self.like_NN = _like(self.model.codes_NC[:, : self.tuple_levels].cpu().numpy(), self.trained_items)

    @classmethod
    def load(cls, folder: Path | str, *others: Path | str) -> Recommender:
        """Read a bundle, or an ensemble: further bundles over the same catalogue, as of other seeds; a blend is that of
        the first. Raises `CheckpointError` when one is missing or damaged."""
        folder = Path(folder)
        model, facts = open_tiger(folder, pick_device())
        rows = _read_items(folder / "items.jsonl", len(model.codes_NC))
        config = validate_config(facts["config"])
        return cls(
            model,
            config,
            [row["item"] for row in rows],
            [row["title"] for row in rows],
            tuple_levels=facts["tuple_levels"],
            folder=folder,
            blend=_load_blend(folder) if config.evaluation.blend == "item_to_item" else None,
            others=[_same_catalogue(cls.load(other), rows, folder) for other in others],
        )

    def recommend(
        self,
        histories: Sequence[Sequence[str]],
        k: int = 10,
        exclude_seen: bool | None = None,
        users: Sequence[str] | None = None,
    ) -> list[list[Recommendation]]:
        """The `k` best items for each history of item ids, oldest first. An unknown id raises `InputError`.

        Args:
            exclude_seen: leave out items of the history; by default as the model was evaluated.
            users: ids of the histories' users, for a model with user tokens; without them a user is nobody it knows.
        """
        if not 0 < k <= len(self.ids):
            raise InputError(f"k must be from 1 to the {len(self.ids)} items of the catalogue, got {k}")
        if users is not None and len(users) != len(histories):
            raise InputError(f"one user id a history, got {len(users)} for {len(histories)} histories")
        exclude = self.config.evaluation.seen == "exclude" if exclude_seen is None else exclude_seen
        numbers = Histories.from_lists([self._numbers(history) for history in histories])
        scores_BN = self.ranker(max(k, MIN_BEAM)).scores(numbers, k, "exclude" if exclude else "keep", users)
        items_BK, scores_BK = best_items(scores_BN, k)
        return [
            [self._recommendation(*pair) for pair in zip(items_K, scores_K, strict=True) if pair[0] >= 0]
            for items_K, scores_K in zip(items_BK.tolist(), scores_BK.tolist(), strict=True)
        ]

    def ranker(self, beam_size: int) -> Ranker:
        """The model or ensemble, or its blend where the bundle has one."""
        model = ensemble_of([self._own_ranker(beam_size), *(other._own_ranker(beam_size) for other in self.others)])
        return Blend(model, *self.blend) if self.blend else model

    def _own_ranker(self, beam_size: int) -> Ranker:
        batch_size = self.config.evaluation.batch_size
        model: Ranker = BeamRanker(self.model, self.trie, beam_size, batch_size=batch_size, room_for_seen=True)
        return WithNewItems(model, self.like_NN) if self.trained_items < len(self.ids) else model

    def semantic_ids(self) -> SemanticIds:
        """The catalogue's semantic IDs and their health."""
        codes_NC = self.model.codes_NC.cpu()
        health = measure_health(codes_NC[:, : self.tuple_levels], self.config.tokenizer.num_item_embeddings)
        return SemanticIds(codes_NC, tuple(self.model.level_sizes), self.tuple_levels, health)

    def add_items(self, items: Sequence[dict[str, str]], vectors: np.ndarray | None = None) -> list[str]:
        """Make items that came after the training recommendable, in this process; returns their semantic IDs as text.

        The model has learnt which collision codes follow a tuple, and a new item's was never among them. So it is as
        probable as its tuple's known items are on average; a new item alone in its tuple is scored by the model.

        Args:
            items: `{"item": id, "title": ..., "text": ...}` each; the text is what the encoder reads, made as those of
                the catalogue were. Without a title the id stands for it.
            vectors: (M, E) their vectors, by the encoder of the catalogue. Needed where it is `npy`; the text is not
                read then.
        """
        if self.others:
            raise InputError("new items have no place in an ensemble; load one bundle")
        new = self._check_new(items, needs_text=vectors is None)
        if not new:
            return []
        vectors_ME = self._embed(new) if vectors is None else np.asarray(vectors, dtype=np.float32)
        tokenizer = load_tokenizer(self._part("tokenizer"))
        width = tokenizer.input_dim - self.config.embeddings.cooccurrence_dim
        if vectors_ME.shape != (len(new), width) or not np.isfinite(vectors_ME).all():
            rule = f"({len(new)}, {width}), one finite row an item"
            raise InputError(f"vectors of new items must have the shape {rule}; got {vectors_ME.shape}")
        joined_ME = pad_vectors(vectors_ME, tokenizer.input_dim)
        extended_NC = extend_ids(self.semantic_ids(), tokenizer, torch.from_numpy(joined_ME)).codes_NC
        self.model.codes_NC = extended_NC.to(self.model.codes_NC.device)
        self.ids, self.titles = [*self.ids, *new.ids], [*self.titles, *new.titles]
        if self.blend:
            self.blend = self.blend[0].with_new_items(len(new)), self.blend[1]
        self._refresh()
        return ["-".join(map(str, row)) for row in extended_NC[-len(new) :].tolist()]

    def _check_new(self, items: Sequence[dict[str, str]], needs_text: bool) -> Items:
        needed = ("item", "text") if needs_text else ("item",)
        for row, item in enumerate(items):
            for key in item:
                if key not in NEW_ITEM_KEYS:
                    raise InputError(f"new item {row}: unknown key {key!r}{nearest(key, NEW_ITEM_KEYS)}")
            for key in needed:
                if not isinstance(item.get(key), str) or not item[key].strip():
                    raise InputError(f"new item {row}: {key!r} must be a text that is not empty, got {item.get(key)!r}")
            if item["item"] in self.index:
                raise InputError(f"new item {row}: {item['item']!r} is in the catalogue already")
        ids = [item["item"] for item in items]
        return Items(ids, [item.get("title", item["item"]) for item in items], [item.get("text", "") for item in items])

    def _embed(self, new: Items) -> np.ndarray:
        """Vectors of new texts by the encoder of the catalogue."""
        encoder = self.config.embeddings.encoder
        if encoder == "npy":
            raise InputError(
                "the catalogue's vectors were given as an array (encoder 'npy'): give vectors= for new items"
            )
        if encoder == "lsa":
            return Lsa.load(self._part("encoder")).encode(new.texts)
        return embed_items(new, self.config.embeddings)

    def _part(self, name: str) -> Path:
        if self.folder is None:
            raise InputError("new items need a bundle's tokenizer and encoder: use Recommender.load(folder)")
        return self.folder / name

    def _recommendation(self, item: int, score: float) -> Recommendation:
        return Recommendation(self.ids[item], self.titles[item], math.log(score))

    def number(self, item: str) -> int:
        """The internal number of an item id. An unknown one raises `InputError`."""
        if item not in self.index:
            raise InputError(f"item {item!r} is not in the catalogue of {len(self.ids)} items{nearest(item, self.ids)}")
        return self.index[item]

    def _numbers(self, history: Sequence[str]) -> list[int]:
        if isinstance(history, str):
            raise InputError(f"a history must be a list of item ids, got the text {history!r}")
        if not history:
            raise InputError("an empty history; expected at least one item id")
        return [self.number(item) for item in history]


def _same_catalogue(other: Recommender, rows: Sequence[dict[str, Any]], folder: Path) -> Recommender:
    if other.ids != [row["item"] for row in rows]:
        raise InputError(f"{other.folder} ranks other items than {folder}: no ensemble can be made of them")
    return other


def _like(tuple_NL: np.ndarray, known: int) -> sparse.csr_array:
    """(N, N) whose columns from `known` on weigh the known items of the new item's tuple, equally, in sum 1."""
    _, group_N = np.unique(tuple_NL, axis=0, return_inverse=True)
    group_N, size = group_N.reshape(-1), len(tuple_NL)
    members = sparse.csr_array((np.ones(known), (np.arange(known), group_N[:known])), shape=(size, group_N.max() + 1))
    count_G = np.maximum(np.bincount(group_N[:known], minlength=group_N.max() + 1), 1)
    new = np.arange(known, size)
    shares = sparse.csr_array((1 / count_G[group_N[new]], (group_N[new], new)), shape=(group_N.max() + 1, size))
    return sparse.csr_array(members @ shares)


def _read_items(path: Path, count: int) -> list[dict[str, Any]]:
    try:
        with open(path, encoding="utf-8") as file:
            rows = [json.loads(line) for line in file]
        if len(rows) == count and all(isinstance(row["item"], str) and "title" in row for row in rows):
            return rows
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path}: cannot be read as the items of a bundle ({error})") from None
    raise CheckpointError(f"{path}: {len(rows)} rows do not fit a model of {count} items; export the bundle again")
