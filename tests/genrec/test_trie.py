"""The flat trie against a dictionary of prefixes."""

from __future__ import annotations

from collections import defaultdict

import pytest
import torch

from genrec.errors import InputError
from genrec.trie import Trie


def prefixes_of(codes_NC: torch.Tensor) -> dict[tuple[int, ...], list[int]]:
    """Every prefix, the empty one included -> the items below it."""
    below: dict[tuple[int, ...], list[int]] = defaultdict(list)
    for item, codes in enumerate(codes_NC.tolist()):
        for end in range(len(codes) + 1):
            below[tuple(codes[:end])].append(item)
    return below


CATALOGUES = [
    (40, (5, 4, 3)),
    (60, (5, 4, 3)),
    (7, (100, 2)),
    (200, (3, 3, 3, 30)),
    (12, (12,)),
    (1, (5, 4, 3)),
    (1, (4,)),
]


def children_of(trie: Trie, level: int, parent: int) -> dict[int, int]:
    """Code -> node of the children of one node."""
    found = trie.children(level, torch.tensor([[parent]]))
    nodes = found.index_BY[found.allowed_BY]
    return dict(zip(trie.levels[level].code_G[nodes].tolist(), nodes.tolist(), strict=True))


@pytest.mark.parametrize(("num_items", "sizes"), CATALOGUES)
@pytest.mark.parametrize("seed", [0, 1])
def test_children_of_every_prefix_are_those_of_the_catalogue(make_codes, num_items, sizes, seed):
    codes_NC = make_codes(num_items, sizes, seed)
    below, trie = prefixes_of(codes_NC), Trie(codes_NC)
    known: dict[tuple[int, ...], int] = {(): 0}
    for level in range(len(sizes)):
        found = {
            (*prefix, code): child
            for prefix, node in known.items()
            for code, child in children_of(trie, level, node).items()
        }
        assert found.keys() == {prefix for prefix in below if len(prefix) == level + 1}
        assert len(trie.levels[level].code_G) == len(set(found.values())) == len(found)
        for prefix, node in found.items():
            assert int(trie.levels[level].first_item_G[node]) == min(below[prefix])
        known = found
    assert {prefix: [int(trie.item_N[node])] for prefix, node in known.items()} == {
        tuple(codes): [item] for item, codes in enumerate(codes_NC.tolist())
    }


def test_many_parents_of_many_rows_are_answered_at_once(make_codes):
    trie = Trie(make_codes(40, (5, 4, 3)))
    parents = torch.tensor([[0, 3, 1], [2, 2, 4]])
    alive = torch.tensor([[True, True, True], [True, False, True]])
    together = trie.children(1, parents, alive)
    for row in range(2):
        expected = [
            (place, node)
            for place in range(3)
            if alive[row, place]
            for node in children_of(trie, 1, int(parents[row, place])).values()
        ]
        real = together.allowed_BY[row]
        listed = zip(together.parent_BY[row][real].tolist(), together.index_BY[row][real].tolist(), strict=True)
        assert list(listed) == expected


def test_padding_points_at_real_nodes(make_codes):
    """Padded places are gathered from too, so they must not lead outside."""
    trie = Trie(make_codes(30, (5, 4, 3)))
    for level in (1, 2):
        parents = torch.arange(len(trie.levels[level - 1].code_G)).unsqueeze(1)
        children = trie.children(level, parents)
        assert not children.allowed_BY.all()
        assert int(children.index_BY.max()) < len(trie.levels[level].code_G)
        assert int(children.parent_BY.max()) == 0


def test_parents_without_children_do_not_disturb_their_neighbours(make_codes):
    trie = Trie(make_codes(40, (5, 4, 3)))
    nothing = trie.children(1, torch.tensor([[0, 1]]), torch.tensor([[False, False]]))
    assert not nothing.allowed_BY.any()
    last = trie.children(1, torch.tensor([[0, 1]]), torch.tensor([[False, True]]))
    assert set(last.index_BY[last.allowed_BY].tolist()) == set(children_of(trie, 1, 1).values())


def test_items_that_share_an_id_stand_together_by_their_ids():
    codes_NC = torch.tensor([[2, 3], [0, 1], [2, 3], [0, 2], [0, 1], [2, 3]])
    trie = Trie(codes_NC)
    assert not trie.distinct
    found = trie.items(torch.arange(3).unsqueeze(0))
    assert trie.item_N[found.index_BY[0]].tolist() == [1, 4, 3, 0, 2, 5]
    assert found.parent_BY[0].tolist() == [0, 0, 1, 2, 2, 2]
    few = trie.items(torch.arange(3).unsqueeze(0), at_most=2)
    assert trie.item_N[few.index_BY[0]].tolist() == [1, 4, 3, 0, 2]
    assert trie.levels[0].first_item_G.tolist() == [1, 0]
    assert trie.leaf_N.tolist() == [2, 0, 2, 1, 0, 2]


@pytest.mark.parametrize(("num_items", "sizes"), CATALOGUES)
def test_codes_of_items_come_back(make_codes, num_items, sizes):
    codes_NC = make_codes(num_items, sizes)
    codes_NC = torch.cat([codes_NC, codes_NC[: num_items // 2]])
    items = torch.tensor([[*range(len(codes_NC)), -1]])
    assert torch.equal(Trie(codes_NC).codes(items)[0, :-1], codes_NC)
    assert Trie(codes_NC).codes(items)[0, -1].tolist() == [-1] * len(sizes)


def test_children_of_a_range_of_nodes_are_a_range(make_codes):
    trie = Trie(make_codes(40, (5, 4, 3)))
    nodes, parents = trie.child_range(2, 3, 9)
    expected = [(node, parent - 3) for parent in range(3, 9) for node in children_of(trie, 2, parent).values()]
    assert list(zip(nodes.tolist(), parents.tolist(), strict=True)) == expected


def test_the_widest_level_is_the_number_of_items(make_codes):
    assert Trie(make_codes(40, (5, 4, 3))).widest_level == 40


def test_the_order_of_items_does_not_matter(make_codes):
    codes_NC = make_codes(40, (5, 4, 3))
    order = torch.randperm(40, generator=torch.Generator().manual_seed(1))
    one, other = Trie(codes_NC), Trie(codes_NC[order])
    assert torch.equal(order[other.item_N.long()].int(), one.item_N)
    assert torch.equal(one.levels[1].code_G, other.levels[1].code_G)


def test_codes_beyond_one_machine_word_are_sorted_too():
    codes_NC = torch.randint(2**20, (200, 9), generator=torch.Generator().manual_seed(0))
    codes_NC[:, :6] %= 2
    expected = sorted(range(200), key=lambda item: codes_NC[item].tolist())
    assert Trie(codes_NC).item_N.tolist() == expected


def test_the_most_candidates_are_an_upper_bound(make_codes):
    trie = Trie(make_codes(40, (5, 4, 3)))
    parents = torch.arange(5).unsqueeze(0)
    for count in range(1, 6):
        found = trie.children(1, parents[:, :count]).allowed_BY.sum()
        assert found <= trie.most_candidates(1, count) <= len(trie.levels[1].code_G)
    assert trie.most_candidates(0, 1) == 5


def test_a_million_items_take_less_than_ten_megabytes():
    generator = torch.Generator().manual_seed(0)
    flat = torch.randperm(256**3, generator=generator)[:1_000_000]
    trie = Trie(torch.stack(torch.unravel_index(flat, (256, 256, 256)), 1))
    assert trie.num_bytes < 10e6
    assert trie.level_sizes == (256, 256, 256)


def test_moving_keeps_the_tree(make_codes):
    trie = Trie(make_codes(10, (5, 4)))
    before = trie.children(1, torch.tensor([[0, 1]]))
    after = trie.to("cpu").children(1, torch.tensor([[0, 1]]))
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


@pytest.mark.parametrize(
    ("codes", "fault"),
    [
        (torch.tensor([1, 2]), r"got torch.int64 \(2,\)"),
        (torch.zeros(0, 3, dtype=torch.int64), r"got torch.int64 \(0, 3\)"),
        (torch.tensor([[0.5, 1.0]]), "got torch.float32"),
        (torch.tensor([[0, -1]]), "some below 0"),
    ],
)
def test_what_is_no_catalogue_is_refused(codes, fault):
    with pytest.raises(InputError, match=fault):
        Trie(codes)
