"""Semantic IDs: collisions in three ways, new items, and health, worked by hand and against exhaustive search."""

from __future__ import annotations

import itertools
import logging
import math
from collections import Counter

import pytest
import torch

from genrec.errors import InputError
from genrec.models.rkmeans import RkMeans
from genrec.semantic_ids import SemanticIds, assign_ids, extend_ids, measure_health
from genrec.settings import TokenizerConfig

CODES = torch.tensor([[1, 1], [0, 2], [1, 1], [3, 0], [1, 1], [0, 2]])


def tokenizer(codebooks: torch.Tensor, collisions: str) -> RkMeans:
    """A tokenizer with these codebooks (L, K, E); its vectors are not standardised."""
    levels, codes, width = codebooks.shape
    config = TokenizerConfig(kind="rkmeans", num_item_embeddings=codes, sem_id_dim=levels, collisions=collisions)
    made = RkMeans(config, width)
    made.codebooks_LKP.copy_(codebooks)
    return made


def digits(collisions: str, codes: int = 4) -> RkMeans:
    """Reads the tuple (a, b) off the vector (a, b): level 1 knows the first feature, level 2 the second."""
    steps = torch.arange(float(codes))
    return tokenizer(torch.stack([torch.stack([steps, 0 * steps], 1), torch.stack([0 * steps, steps], 1)]), collisions)


def random_tokenizer(collisions: str, codes: int = 4, levels: int = 3, seed: int = 0) -> RkMeans:
    generator = torch.Generator().manual_seed(seed)
    books = torch.randn(levels, codes, 5, generator=generator) * torch.tensor([1.0, 0.5, 0.25])[:levels, None, None]
    return tokenizer(books, collisions)


def vectors(rows: int, seed: int = 1) -> torch.Tensor:
    return torch.randn(rows, 5, generator=torch.Generator().manual_seed(seed))


def rows(ids: SemanticIds) -> list[tuple[int, ...]]:
    return [tuple(row) for row in ids.codes_NC.tolist()]


# -------------------------------------------------------------------- append


def test_items_of_one_tuple_are_numbered_by_item_id():
    ids = assign_ids(digits("append"), CODES.float())
    assert ids.codes_NC.tolist() == [[1, 1, 0], [0, 2, 0], [1, 1, 1], [3, 0, 0], [1, 1, 2], [0, 2, 1]]
    assert ids.level_sizes == (4, 4, 3)
    assert ids.tuple_levels == 2


@pytest.mark.parametrize("collisions", ["append", "reassign", "none"])
def test_distinct_tuples_are_left_as_they_are(collisions):
    codes = torch.tensor([[0, 1], [1, 0], [1, 1]])
    ids = assign_ids(digits(collisions), codes.float())
    assert torch.equal(ids.codes_NC, codes)
    assert ids.level_sizes == (4, 4)
    assert ids.health.collision_rate == 0.0


@pytest.mark.parametrize("seed", range(5))
def test_rows_are_distinct_and_codes_count_from_zero(seed):
    made = random_tokenizer("append", codes=3, seed=seed)
    ids = assign_ids(made, vectors(60))
    assert len(set(rows(ids))) == 60
    assert torch.equal(ids.codes_NC[:, :3], made.codes(vectors(60)))
    seen: Counter[tuple[int, ...]] = Counter()
    for *tokens, collision in rows(ids):
        assert collision == seen[tuple(tokens)]
        seen[tuple(tokens)] += 1
    assert ids.level_sizes == (3, 3, 3, max(seen.values()))
    assert ids.health.distinct == len(seen)


# ------------------------------------------------------------------ reassign


def plain_reassign(made: RkMeans, x: torch.Tensor) -> list[tuple[int, ...]]:
    """All tuples by code distance, the first level deciding first; every loser takes the first that is free."""
    books, result, errors = made.level_codebooks(), [tuple(c) for c in made.codes(x).tolist()], []
    for row, found in zip(x, result, strict=True):
        errors.append(float((row - sum(book[c] for book, c in zip(books, found, strict=True))).square().sum()))
    keeper = {t: min((i for i in range(len(x)) if result[i] == t), key=lambda i: (errors[i], i)) for t in set(result)}
    taken = set(keeper)
    for item in range(len(x)):
        if keeper[result[item]] == item:
            continue

        def by_nearness(found: tuple[int, ...], vector: torch.Tensor = x[item]) -> list[tuple[float, int]]:
            key, rest = [], vector.double()
            for book, code in zip(books, found, strict=True):
                key.append((float((rest - book[code].double()).square().sum()), code))
                rest = rest - book[code].double()
            return key

        every = itertools.product(*(range(len(book)) for book in books))
        result[item] = min((t for t in every if t not in taken), key=by_nearness)
        taken.add(result[item])
    return result


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("num_items", [20, 40, 64])  # of 64 tuples
def test_losers_move_to_the_tuple_that_exhaustive_search_finds(seed, num_items):
    made = random_tokenizer("reassign", seed=seed)
    ids = assign_ids(made, vectors(num_items))
    assert rows(ids) == plain_reassign(made, vectors(num_items))
    assert len(set(rows(ids))) == num_items
    assert ids.level_sizes == (4, 4, 4)


def test_the_best_served_item_keeps_its_tuple_and_the_loser_changes_its_last_code():
    x = torch.tensor([[1.0, 1.3], [1.0, 1.1], [3.0, 0.0]])
    assert rows(assign_ids(digits("reassign"), x)) == [(1, 2), (1, 1), (3, 0)]


def test_an_earlier_code_changes_when_all_last_ones_are_taken():
    x = torch.tensor([[1.1, 0.0]]).repeat(6, 1)
    assert rows(assign_ids(digits("reassign"), x)) == [(1, 0), (1, 1), (1, 2), (1, 3), (2, 0), (2, 1)]


def test_health_is_that_before_the_losers_move():
    kept, moved = assign_ids(digits("none"), CODES.float()), assign_ids(digits("reassign"), CODES.float())
    assert moved.health == kept.health
    assert kept.health.collision_rate > 0


def test_a_space_that_is_just_large_enough_is_filled_and_one_too_small_is_refused():
    assert len(set(rows(assign_ids(digits("reassign"), torch.ones(16, 2))))) == 16
    with pytest.raises(InputError, match=r"more items than the 4\^2 tuples.*num_item_embeddings.*sem_id_dim"):
        assign_ids(digits("reassign"), torch.ones(17, 2))


def test_a_group_of_many_thousands_is_spread_quickly():
    ids = assign_ids(random_tokenizer("reassign", codes=30), vectors(1).repeat(9000, 1))
    assert len(set(rows(ids))) == 9000


# ---------------------------------------------------------------------- none


def test_without_a_remedy_items_share_their_tuple():
    ids = assign_ids(digits("none"), CODES.float())
    assert torch.equal(ids.codes_NC, CODES)
    assert ids.level_sizes == (4, 4)


# ----------------------------------------------------------------- new items


def test_new_items_are_numbered_on_in_their_group():
    made = digits("append")
    ids = assign_ids(made, CODES.float())
    longer = extend_ids(ids, made, torch.tensor([[0.0, 2.0], [2.0, 2.0], [2.0, 2.0]]))
    assert torch.equal(longer.codes_NC[:6], ids.codes_NC)
    assert longer.codes_NC[6:].tolist() == [[0, 2, 2], [2, 2, 0], [2, 2, 1]]
    assert (longer.level_sizes, longer.tuple_levels, longer.health) == (ids.level_sizes, 2, ids.health)


def test_a_new_item_whose_group_is_full_goes_to_the_nearest_tuple_with_room():
    made = digits("append")
    ids = assign_ids(made, CODES.float())  # (1, 1) has three items, as many as the collision code has values
    longer = extend_ids(ids, made, torch.tensor([[1.0, 1.1], [1.0, 0.9]]))
    assert longer.codes_NC[6:].tolist() == [[1, 2, 0], [1, 0, 0]]


@pytest.mark.parametrize("collisions", ["append", "reassign"])
def test_new_items_of_a_catalogue_without_collisions_take_free_tuples(collisions):
    made = digits(collisions)
    ids = assign_ids(made, torch.tensor([[0.0, 1.0], [1.0, 1.0]]))
    longer = extend_ids(ids, made, torch.tensor([[1.0, 1.2], [1.0, 1.0], [3.0, 3.0]]))
    assert longer.codes_NC.tolist() == [[0, 1], [1, 1], [1, 2], [1, 0], [3, 3]]


def test_new_items_share_tuples_where_nothing_is_done_about_it():
    made = digits("none")
    longer = extend_ids(assign_ids(made, CODES.float()), made, torch.tensor([[1.0, 1.0]]))
    assert longer.codes_NC[-1].tolist() == [1, 1]


@pytest.mark.parametrize("collisions", ["append", "reassign", "none"])
def test_no_new_items_change_nothing(collisions):
    made = digits(collisions)
    ids = assign_ids(made, CODES.float())
    assert torch.equal(extend_ids(ids, made, torch.empty(0, 2)).codes_NC, ids.codes_NC)


def test_new_items_for_which_there_is_no_room_are_refused():
    made = digits("append", codes=2)
    ids = assign_ids(made, torch.tensor([[0.0, 0.0], [0.0, 0.0]]))  # 4 tuples of 2 places, 2 taken
    assert len(set(rows(extend_ids(ids, made, torch.ones(6, 2))))) == 8
    with pytest.raises(InputError, match=r"2\^2 tuples of 2 places"):
        extend_ids(ids, made, torch.ones(7, 2))


# -------------------------------------------------------------------- health


def test_health_is_that_worked_by_hand():
    health = measure_health(CODES, num_codes=4)
    assert health.usage == [0.75, 0.75]
    entropy = -(3 / 6 * math.log(3 / 6) + 2 / 6 * math.log(2 / 6) + 1 / 6 * math.log(1 / 6))
    assert health.perplexity == pytest.approx([math.exp(entropy)] * 2, abs=1e-3)
    assert health.collision_rate == pytest.approx(5 / 6, abs=1e-6)
    assert health.largest_group == 3
    assert health.distinct == 3


def test_a_collapsed_tokenizer_is_told_by_its_health():
    health = measure_health(torch.zeros(5, 2, dtype=torch.int64), num_codes=4)
    assert health.to_dict() == {
        "usage": [0.25, 0.25],
        "perplexity": [1.0, 1.0],
        "collision_rate": 1.0,
        "largest_group": 5,
        "distinct": 1,
    }
    assert health.faults() == [
        "100.0% of the items share their tuple (above 10%)",
        "level 1 uses 25% of its codes (below 80%)",
        "level 2 uses 25% of its codes (below 80%)",
    ]


def test_health_at_the_limits_is_good():
    codes = torch.tensor([[i % 4, i // 4] for i in range(20)])  # level 1 uses 4 of 5 codes
    assert measure_health(codes, num_codes=5).faults() == []
    codes[1] = codes[0]  # 2 of 20 items collide
    assert measure_health(codes, num_codes=5).collision_rate == 0.1
    assert measure_health(codes, num_codes=5).faults() == []


@pytest.mark.parametrize(
    ("x", "reason"),
    [
        (torch.ones(12, 2), "all 12 item vectors are equal"),
        (torch.tensor([[1.0, 2.0], [3.0, 0.0], [1.0, 2.0]]), "there are 2 different item vectors for the 4 codes"),
    ],
)
def test_unhealthy_ids_are_warned_of_with_collision_rate_and_reason(caplog, x, reason):
    with caplog.at_level(logging.WARNING):
        ids = assign_ids(digits("append"), x)
    assert len(caplog.records) == 1
    assert f"collision rate {100 * ids.health.collision_rate:.1f}%" in caplog.text
    assert reason in caplog.text


def test_healthy_ids_are_not_warned_of(caplog):
    every = torch.tensor([[a, b] for a in range(4) for b in range(4)])
    assign_ids(digits("append"), every.float())
    assert not caplog.records
