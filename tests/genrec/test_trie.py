"""The flat trie against a dictionary of prefixes."""

from __future__ import annotations

from collections import defaultdict

import pytest
import torch

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


@pytest.mark.parametrize(("num_items", "sizes"), CATALOGUES)
@pytest.mark.parametrize("seed", [0, 1])
def test_children_of_every_prefix_are_those_of_the_catalogue(make_codes, num_items, sizes, seed):
    codes_NC = make_codes(num_items, sizes, seed)
    below, trie = prefixes_of(codes_NC), Trie(codes_NC)
    known: dict[tuple[int, ...], int | None] = {(): None}
    for level in range(len(sizes)):
        found: dict[tuple[int, ...], int | None] = {}
        for prefix, node in known.items():
            parent = None if node is None else torch.tensor([node])
            children = trie.children(level, parent, (1,))
            for child, code, allowed in zip(*(part[0].tolist() for part in children), strict=True):
                if allowed:
                    assert (*prefix, code) not in found
                    found[(*prefix, code)] = child
                    assert int(trie.levels[level].first_item_G[child]) == min(below[(*prefix, code)])
        assert found.keys() == {prefix for prefix in below if len(prefix) == level + 1}
        assert len(trie.levels[level].code_G) == len(found)
        known = found
    assert {prefix: int(trie.item_N[node]) for prefix, node in known.items()} == {
        tuple(codes): item for item, codes in enumerate(codes_NC.tolist())
    }


def test_many_parents_of_any_shape_are_answered_at_once(make_codes):
    trie = Trie(make_codes(40, (5, 4, 3)))
    parents = torch.arange(len(trie.levels[0].code_G))[:4].view(2, 2)
    together = trie.children(1, parents)
    assert together.node_PM.shape == (2, 2, trie.levels[0].max_children)
    for row in range(2):
        for column in range(2):
            alone = trie.children(1, parents[row, column : column + 1])
            assert torch.equal(together.node_PM[row, column], alone.node_PM[0])
            assert torch.equal(together.allowed_PM[row, column], alone.allowed_PM[0])
    assert trie.children(0, None, (2, 1)).node_PM.shape == (2, 1, trie.root_children)


def test_padding_points_at_real_nodes(make_codes):
    """Padded places are gathered from too, so they must not lead outside."""
    trie = Trie(make_codes(30, (5, 4, 3)))
    for level in (1, 2):
        children = trie.children(level, torch.arange(len(trie.levels[level - 1].code_G)))
        assert not children.allowed_PM.all()
        assert int(children.node_PM.max()) < len(trie.levels[level].code_G)


def test_the_widest_level_is_the_number_of_items(make_codes):
    assert Trie(make_codes(40, (5, 4, 3))).widest_level == 40


def test_two_items_of_one_id_are_refused():
    with pytest.raises(ValueError, match="share a semantic ID"):
        Trie(torch.tensor([[0, 1], [2, 3], [0, 1]]))


def test_the_order_of_items_does_not_matter(make_codes):
    codes_NC = make_codes(40, (5, 4, 3))
    order = torch.randperm(40, generator=torch.Generator().manual_seed(1))
    one, other = Trie(codes_NC), Trie(codes_NC[order])
    assert torch.equal(order[other.item_N], one.item_N)
    assert torch.equal(one.levels[1].code_G, other.levels[1].code_G)


def test_moving_keeps_the_tree(make_codes):
    trie = Trie(make_codes(10, (5, 4)))
    before = trie.children(1, torch.tensor([0, 1]))
    after = trie.to("cpu").children(1, torch.tensor([0, 1]))
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
