"""Semantic IDs of a catalogue: the tokenizer's tuples, what makes them distinct, and their health.

Letters: N items, M new items, L levels of the tokenizer, C codes an item (L, or L + 1 with the collision code),
K codebook size, G groups of items with one tuple, D latent width.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from genrec.errors import InputError
from genrec.models.tokenizers import Tokenizer

logger = logging.getLogger(__name__)
MIN_USAGE, MAX_COLLISION_RATE = 0.8, 0.1


@dataclass(frozen=True)
class Health:
    """What tells a good set of IDs from a collapsed one: of the tokenizer's tuples, before anything is done about
    collisions."""

    usage: list[float]
    "share of each level's codes that some item has"
    perplexity: list[float]
    "exp of the entropy of each level's codes: how many codes are used, weighted by how often"
    collision_rate: float
    "share of items that share their tuple with another item"
    largest_group: int
    distinct: int
    "number of different tuples"

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def figures(self) -> dict[str, float]:
        """Flat, one number a name: `health/collision_rate`, `health/usage_1` and so on."""
        found: dict[str, float] = {"collision_rate": self.collision_rate, "largest_group": self.largest_group}
        for name, levels in (("usage", self.usage), ("perplexity", self.perplexity)):
            found |= {f"{name}_{level}": value for level, value in enumerate(levels, 1)}
        return {f"health/{name}": value for name, value in found.items()}

    def faults(self, max_collision_rate: float = MAX_COLLISION_RATE, min_usage: float = MIN_USAGE) -> list[str]:
        """Why these IDs are unhealthy, in words; empty when they are not."""
        found = []
        if self.collision_rate > max_collision_rate:
            found.append(
                f"{self.collision_rate:.1%} of the items share their tuple (above {100 * max_collision_rate:.3g}%)"
            )
        for level, usage in enumerate(self.usage, 1):
            if usage < min_usage:
                found.append(f"level {level} uses {100 * usage:.3g}% of its codes (below {100 * min_usage:.3g}%)")
        return found


@dataclass(frozen=True)
class SemanticIds:
    """codes_NC, the number of codes of each level, and how many levels the tokenizer made.

    Rows are distinct unless collisions were left as they are.
    """

    codes_NC: Tensor
    level_sizes: tuple[int, ...]
    tuple_levels: int
    health: Health


def assign_ids(tokenizer: Tokenizer, vectors_NE: Tensor) -> SemanticIds:
    """The IDs of a catalogue, by the tokenizer's `collisions`. Warns when they are unhealthy.

    `append`: one more code, 0, 1, 2 ... in each group of equal tuples by item id; none if all are distinct.
    `reassign`: in each group the best served item keeps the tuple, the others move to the nearest free one, in the
    order of their ids. Raises `InputError` when there are fewer tuples than items.
    """
    codes_NL = tokenizer.codes(vectors_NE).clone()
    num_codes, levels = tokenizer.config.num_item_embeddings, tokenizer.config.sem_id_dim
    _, group_N, size_G = torch.unique(codes_NL, dim=0, return_inverse=True, return_counts=True)
    health = measure_health(codes_NL, num_codes)
    _warn(health, vectors_NE, num_codes)
    sizes, largest = [num_codes] * levels, int(size_G.max())
    if largest > 1 and tokenizer.config.collisions == "append":
        place_N = _place_in_group(torch.arange(len(group_N)), group_N, size_G)
        return SemanticIds(torch.cat([codes_NL, place_N.unsqueeze(1)], dim=1), (*sizes, largest), levels, health)
    if largest > 1 and tokenizer.config.collisions == "reassign":
        latents_ND = tokenizer.latents(vectors_NE)
        error_N = (latents_ND - _rebuilt(tokenizer, codes_NL)).square().sum(1)
        place_N = _place_in_group(error_N.argsort(stable=True), group_N, size_G)
        space = TupleSpace(tokenizer.level_codebooks())
        space.take(codes_NL[place_N == 0])
        for item in (place_N > 0).nonzero().flatten().tolist():
            codes_NL[item] = torch.from_numpy(space.move_in(latents_ND[item].numpy()))
    return SemanticIds(codes_NL, tuple(sizes), levels, health)


def extend_ids(ids: SemanticIds, tokenizer: Tokenizer, vectors_ME: Tensor) -> SemanticIds:
    """`ids` with M new items behind the old, which keep theirs; level sizes and health stay those of the catalogue.

    A model that knows the old IDs can so recommend the new items. One that does not fit in its group, because the
    collision code has no more values or there is no such code, goes to the nearest tuple with room.
    """
    new_ML = tokenizer.codes(vectors_ME).clone()
    if tokenizer.config.collisions == "none":
        return SemanticIds(torch.cat([ids.codes_NC, new_ML]), ids.level_sizes, ids.tuple_levels, ids.health)
    numbered = len(ids.level_sizes) > ids.tuple_levels
    space = TupleSpace(tokenizer.level_codebooks(), ids.level_sizes[-1] if numbered else 1)
    space.take(ids.codes_NC[:, : ids.tuple_levels])
    rows = []
    for latent_D in tokenizer.latents(vectors_ME):
        tuple_L = space.move_in(latent_D.numpy())
        rows.append([*tuple_L.tolist(), space.count(tuple_L) - 1] if numbered else tuple_L.tolist())
    new_MC = torch.tensor(rows, dtype=torch.int64).reshape(len(rows), ids.codes_NC.shape[1])
    return SemanticIds(torch.cat([ids.codes_NC, new_MC]), ids.level_sizes, ids.tuple_levels, ids.health)


class TupleSpace:
    """All tuples of a tokenizer and how many items have each; every tuple has `room` places.

    Items are counted below every prefix, so that a full branch is passed by without a look inside: to place an item
    takes L times K steps, however full the space is.
    """

    def __init__(self, codebooks: Sequence[Tensor], room: int = 1):
        self.codebooks = [book.detach().cpu().double().numpy() for book in codebooks]
        self.norms = [np.square(book).sum(1) for book in self.codebooks]
        self.num_codes, self.levels, self.room = len(self.codebooks[0]), len(self.codebooks), room
        self.items_below: list[Counter[int]] = [Counter() for _ in range(self.levels + 1)]

    def take(self, codes_NL: Tensor) -> None:
        """Count the items that have these tuples."""
        keys = [0] * len(codes_NL)
        for depth, column in enumerate(codes_NL.T.tolist(), 1):
            keys = [key * self.num_codes + code for key, code in zip(keys, column, strict=True)]
            self.items_below[depth].update(keys)
        self.items_below[0][0] += len(codes_NL)

    def count(self, tuple_L: np.ndarray) -> int:
        """How many items have this tuple."""
        key = 0
        for code in tuple_L.tolist():
            key = key * self.num_codes + code
        return self.items_below[self.levels][key]

    def move_in(self, latent_D: np.ndarray) -> np.ndarray:
        """The nearest tuple with room, now taken: at each level the nearest code below which there is some.

        So the last code changes first, and earlier ones only when all tuples that begin like the nearest are full.
        """
        if self._is_full(0, 0):
            space = f"{self.num_codes}^{self.levels} tuples" + (f" of {self.room} places" if self.room > 1 else "")
            raise InputError(
                f"more items than the {space} of the tokenizer: raise tokenizer.num_item_embeddings or "
                "tokenizer.sem_id_dim, or set tokenizer.collisions to append"
            )
        key, codes, residual_D = 0, [], latent_D.astype(np.float64)
        self.items_below[0][0] += 1
        for depth, (book_KD, norm_K) in enumerate(zip(self.codebooks, self.norms, strict=True), 1):
            order = (norm_K - 2 * (book_KD @ residual_D)).argsort(kind="stable").tolist()
            code = next(c for c in order if not self._is_full(depth, key * self.num_codes + c))
            key, residual_D = key * self.num_codes + code, residual_D - book_KD[code]
            self.items_below[depth][key] += 1
            codes.append(code)
        return np.array(codes, dtype=np.int64)

    def _is_full(self, depth: int, key: int) -> bool:
        return self.items_below[depth][key] >= self.room * self.num_codes ** (self.levels - depth)


def measure_health(codes_NL: Tensor, num_codes: int) -> Health:
    """Health of the tuples of all items."""
    _, group_N, size_G = torch.unique(codes_NL, dim=0, return_inverse=True, return_counts=True)
    usage, perplexity = [], []
    for level in range(codes_NL.shape[1]):
        share_K = torch.bincount(codes_NL[:, level], minlength=num_codes).double() / codes_NL.shape[0]
        used = share_K[share_K > 0]
        usage.append(round(len(used) / num_codes, 6))
        perplexity.append(round(float((-(used * used.log()).sum()).exp()), 3))
    collided = float((size_G[group_N] > 1).double().mean())
    return Health(usage, perplexity, round(collided, 6), int(size_G.max()), len(size_G))


def _warn(health: Health, vectors_NE: Tensor, num_codes: int) -> None:
    faults = health.faults()
    if not faults:
        return
    distinct, rows = len(torch.unique(vectors_NE, dim=0)), len(vectors_NE)
    if distinct == 1 < rows:
        faults.append(f"all {rows} item vectors are equal")
    elif distinct < num_codes:
        faults.append(f"there are {distinct} different item vectors for the {num_codes} codes of a level")
    logger.warning("unhealthy semantic IDs, collision rate %.1f%%: %s", 100 * health.collision_rate, "; ".join(faults))


def _place_in_group(order_N: Tensor, group_N: Tensor, size_G: Tensor) -> Tensor:
    """0, 1, 2 ... for the items of each group, in the order in which they stand in `order_N`."""
    order_N = order_N[group_N[order_N].argsort(stable=True)]
    start_G = size_G.cumsum(0) - size_G
    place_N = torch.empty_like(group_N)
    place_N[order_N] = torch.arange(len(group_N)) - start_G[group_N[order_N]]
    return place_N


def _rebuilt(tokenizer: Tokenizer, codes_NL: Tensor) -> Tensor:
    """Sum of the items' codes, (N, D)."""
    return torch.stack([book[codes_NL[:, level]] for level, book in enumerate(tokenizer.level_codebooks())]).sum(0)
