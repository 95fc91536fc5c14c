"""Beam search against scoring every item, and against a beam search over dictionaries."""

from __future__ import annotations

import itertools

import pytest
import torch

from genrec.decoding import beam_search
from genrec.models.tiger import Tiger, Window
from genrec.trie import Trie

CATALOGUES = [(40, (5, 4, 3)), (30, (4, 4, 4)), (9, (30,)), (50, (2, 5, 3, 4)), (1, (3, 2))]
FORMS = [{"encoder": e, "encoder_tokens": t} for e in ("bidirectional", "item_causal") for t in ("item", "codes")]


def histories(rows: int, length: int, num_items: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(num_items, (rows, length), generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def code_scores(model: Tiger, history: torch.Tensor) -> list[list[list[float]]]:
    """Log-probabilities [item][level][code] of one history (I,), teacher-forced: no trie, no cache, no beams."""
    num_items = len(model.codes_NC)
    rows = torch.cat([history.expand(num_items, -1), torch.arange(num_items).unsqueeze(1)], dim=1)
    logits = model.target_logits(Window(rows, len(history)))
    return [list(levels) for levels in zip(*(scores.log_softmax(-1).tolist() for scores in logits), strict=True)]


def item_scores(model: Tiger, history: torch.Tensor) -> list[float]:
    codes, scores = model.codes_NC.tolist(), code_scores(model, history)
    return [sum(level[code] for level, code in zip(scores[i], codes[i], strict=True)) for i in range(len(codes))]


def best_items(scores: list[float], count: int, forbidden: set[int] = frozenset()) -> list[int]:
    return sorted((i for i in range(len(scores)) if i not in forbidden), key=lambda i: (-scores[i], i))[:count]


def padded(items: list[int], count: int) -> list[int]:
    return items + [-1] * (count - len(items))


def plain_beam_search(model: Tiger, history: torch.Tensor, width: int, forbidden: set[int] = frozenset()) -> list[int]:
    """Beams as a dictionary of prefixes; equal scores by the smallest item below a prefix."""
    codes, scores = model.codes_NC.tolist(), code_scores(model, history)
    beams: dict[tuple[int, ...], float] = {(): 0.0}
    for level in range(len(codes[0])):
        grown: dict[tuple[int, ...], tuple[float, int]] = {}
        for item, path in enumerate(codes):
            above, prefix = tuple(path[:level]), tuple(path[: level + 1])
            last = level == len(path) - 1
            if above in beams and prefix not in grown and not (last and item in forbidden):
                grown[prefix] = (beams[above] + scores[item][level][path[level]], item)
        kept = sorted(grown, key=lambda prefix: (-grown[prefix][0], grown[prefix][1]))[:width]
        beams = {prefix: grown[prefix][0] for prefix in kept}
    return [codes.index(list(prefix)) for prefix in beams]


@pytest.mark.parametrize("form", FORMS, ids=lambda form: "-".join(form.values()))
@pytest.mark.parametrize(("num_items", "sizes"), CATALOGUES)
def test_a_beam_as_wide_as_the_catalogue_ranks_all_items_exactly(make_codes, make_tiger, form, num_items, sizes):
    model = make_tiger(make_codes(num_items, sizes, seed=num_items), sizes, **form)
    trie = Trie(model.codes_NC)
    history_BI = histories(3, 4, num_items)
    beams = beam_search(model, trie, history_BI, trie.widest_level)
    for row, history in enumerate(history_BI):
        scores = item_scores(model, history)
        expected = best_items(scores, num_items)
        assert beams.item_BW[row].tolist() == expected
        assert beams.score_BW[row].tolist() == pytest.approx([scores[i] for i in expected], abs=1e-5)
    assert torch.logsumexp(beams.score_BW, 1).le(1e-9).all()  # probabilities of real items sum to one at most


@pytest.mark.parametrize("width", [1, 2, 3, 7, 20])
@pytest.mark.parametrize("form", FORMS[:3], ids=lambda form: "-".join(form.values()))
def test_a_narrow_beam_equals_the_one_over_dictionaries(make_codes, make_tiger, form, width):
    model = make_tiger(make_codes(40, (5, 4, 3)), (5, 4, 3), seed=width, **form)
    history_BI = histories(4, 5, 40)
    beams = beam_search(model, Trie(model.codes_NC), history_BI, width)
    for row, history in enumerate(history_BI):
        assert beams.item_BW[row].tolist() == plain_beam_search(model, history, width)


def test_a_narrow_beam_does_lose_items(make_codes, make_tiger):
    """Else the test above would prove little."""
    model = make_tiger(make_codes(40, (5, 4, 3)), (5, 4, 3), seed=1)
    history_BI = histories(8, 5, 40)
    narrow = beam_search(model, Trie(model.codes_NC), history_BI, 3).item_BW
    wide = beam_search(model, Trie(model.codes_NC), history_BI, 40).item_BW[:, :3]
    assert not torch.equal(narrow, wide)


@pytest.mark.parametrize("width", [1, 4, 40])
def test_equal_scores_are_resolved_by_item_id(make_codes, make_tiger, width):
    model = make_tiger(make_codes(40, (5, 4, 3)), (5, 4, 3))
    with torch.no_grad():
        for head in model.heads:
            head.weight.zero_()
    history_BI = histories(2, 3, 40)
    beams = beam_search(model, Trie(model.codes_NC), history_BI, width)
    for row, history in enumerate(history_BI):
        assert beams.item_BW[row].tolist() == plain_beam_search(model, history, width)
    if width == 40:
        assert beams.item_BW.tolist() == [list(range(40))] * 2


def test_excluded_items_never_appear_and_the_rest_keeps_its_order(make_codes, make_tiger):
    model = make_tiger(make_codes(40, (5, 4, 3)), (5, 4, 3))
    trie, history_BI = Trie(model.codes_NC), histories(2, 4, 40)
    exclude = [list(range(0, 40, 2)), [*range(10), *[-1] * 10]]
    wide = beam_search(model, trie, history_BI, 40, torch.tensor(exclude))
    narrow = beam_search(model, trie, history_BI, 5, torch.tensor(exclude))
    for row, history in enumerate(history_BI):
        forbidden = set(exclude[row]) - {-1}
        expected = best_items(item_scores(model, history), 40, forbidden)
        assert wide.item_BW[row].tolist() == padded(expected, 40)
        assert wide.score_BW[row, len(expected) :].isneginf().all()
        assert narrow.item_BW[row].tolist() == padded(plain_beam_search(model, history, 5, forbidden), 5)


def test_a_history_whose_every_item_is_excluded_gets_nothing(make_codes, make_tiger):
    model = make_tiger(make_codes(9, (5, 4)), (5, 4))
    beams = beam_search(model, Trie(model.codes_NC), histories(1, 2, 9), 9, torch.arange(9).unsqueeze(0))
    assert beams.item_BW.tolist() == [[-1] * 9]


@pytest.mark.parametrize("width", [5, 40, 400])
def test_lists_are_sorted_and_without_repetition(make_codes, make_tiger, width):
    model = make_tiger(make_codes(40, (5, 4, 3)), (5, 4, 3))
    beams = beam_search(model, Trie(model.codes_NC), histories(5, 6, 40), width)
    count = min(width, 40)
    for items, scores in zip(beams.item_BW.tolist(), beams.score_BW.tolist(), strict=True):
        assert len(set(items[:count])) == count
        assert set(items[count:]) <= {-1}
        assert scores == sorted(scores, reverse=True)


@pytest.mark.parametrize("form", FORMS, ids=lambda form: "-".join(form.values()))
def test_the_company_of_other_rows_does_not_matter(make_codes, make_tiger, form):
    model = make_tiger(make_codes(40, (5, 4, 3)), (5, 4, 3), **form)
    trie, history_BI = Trie(model.codes_NC), histories(6, 4, 40)
    together = beam_search(model, trie, history_BI, 10)
    for rows in itertools.chain(([row] for row in range(6)), [[5, 0, 3]]):
        some = beam_search(model, trie, history_BI[rows], 10)
        assert torch.equal(some.item_BW, together.item_BW[rows])
        torch.testing.assert_close(some.score_BW, together.score_BW[rows])


def test_float32_models_rank_alike(make_codes, make_tiger):
    model = make_tiger(make_codes(40, (5, 4, 3)), (5, 4, 3))
    trie, history_BI = Trie(model.codes_NC), histories(3, 4, 40)
    exact = beam_search(model, trie, history_BI, 40)
    rounded = beam_search(model.float(), trie, history_BI, 40)
    torch.testing.assert_close(rounded.score_BW.double(), exact.score_BW, rtol=1e-4, atol=1e-4)
