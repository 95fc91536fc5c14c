"""The collision code and the health of a catalogue's IDs, worked by hand."""

from __future__ import annotations

import math
from collections import Counter

import pytest
import torch

from genrec.semantic_ids import assign_ids

CODES = torch.tensor([[1, 1], [0, 2], [1, 1], [3, 0], [1, 1], [0, 2]])


def test_items_of_one_tuple_are_numbered_by_item_id():
    ids = assign_ids(CODES, num_codes=4)
    assert ids.codes_NC.tolist() == [[1, 1, 0], [0, 2, 0], [1, 1, 1], [3, 0, 0], [1, 1, 2], [0, 2, 1]]
    assert ids.level_sizes == (4, 4, 3)
    assert ids.tuple_levels == 2


def test_health_is_that_worked_by_hand():
    health = assign_ids(CODES, num_codes=4).health
    assert health.usage == [0.75, 0.75]
    entropy = -(3 / 6 * math.log(3 / 6) + 2 / 6 * math.log(2 / 6) + 1 / 6 * math.log(1 / 6))
    assert health.perplexity == pytest.approx([math.exp(entropy)] * 2, abs=1e-3)
    assert health.collision_rate == pytest.approx(5 / 6, abs=1e-6)
    assert health.largest_group == 3
    assert health.distinct == 3


def test_distinct_tuples_get_no_further_level():
    codes = torch.tensor([[0, 1], [1, 0], [1, 1]])
    ids = assign_ids(codes, num_codes=2)
    assert torch.equal(ids.codes_NC, codes)
    assert ids.level_sizes == (2, 2)
    assert ids.health.collision_rate == 0.0


@pytest.mark.parametrize("seed", range(5))
def test_rows_are_distinct_and_codes_count_from_zero(seed):
    codes = torch.randint(3, (60, 3), generator=torch.Generator().manual_seed(seed))
    ids = assign_ids(codes, num_codes=3)
    rows = [tuple(row) for row in ids.codes_NC.tolist()]
    assert len(set(rows)) == 60
    assert torch.equal(ids.codes_NC[:, :3], codes)
    seen: Counter[tuple[int, ...]] = Counter()
    for *tokens, collision in rows:
        assert collision == seen[tuple(tokens)]
        seen[tuple(tokens)] += 1
    assert ids.level_sizes == (3, 3, 3, max(seen.values()))
    assert ids.health.distinct == len(seen)


def test_a_collapsed_tokenizer_is_told_by_its_health():
    health = assign_ids(torch.zeros(5, 2, dtype=torch.int64), num_codes=4).health
    assert health.to_dict() == {
        "usage": [0.25, 0.25],
        "perplexity": [1.0, 1.0],
        "collision_rate": 1.0,
        "largest_group": 5,
        "distinct": 1,
    }
