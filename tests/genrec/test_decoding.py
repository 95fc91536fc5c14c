"""Beam search against scoring every item, and against a beam search over dictionaries."""

from __future__ import annotations

import itertools

import pytest
import torch

from genrec import decoding
from genrec.decoding import beam_search, score_catalogue, unconstrained_beams
from genrec.models.tiger import Tiger, Window
from genrec.trie import Trie

CATALOGUES = [(40, (5, 4, 3)), (30, (4, 4, 4)), (9, (30,)), (50, (2, 5, 3, 4)), (1, (3, 2))]
FORMS = [
    {"encoder": e, "encoder_tokens": t, **more}
    for e in ("bidirectional", "item_causal")
    for t in ("item", "codes")
    for more in ({}, {"num_user_embeddings": 5}, {"positions": "learned"})
    if e == "bidirectional" or "positions" not in more
]
PLAIN = [form for form in FORMS if len(form) == 2]


def name_of(form: dict[str, object]) -> str:
    return "-".join(str(value) for value in form.values())


def histories(rows: int, length: int, num_items: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(num_items, (rows, length), generator=torch.Generator().manual_seed(seed))


def users_of(model: Tiger, rows: int) -> torch.Tensor | None:
    return torch.arange(rows) % 5 if model.user_tokens else None


@torch.no_grad()
def code_scores(model: Tiger, history: torch.Tensor, user: int | None = None) -> list[list[list[float]]]:
    """Log-probabilities [item][level][code] of one history (I,), teacher-forced: no trie, no cache, no beams."""
    num_items = len(model.codes_NC)
    rows = torch.cat([history.expand(num_items, -1), torch.arange(num_items).unsqueeze(1)], dim=1)
    user_B = None if user is None else torch.full((num_items,), user)
    logits = model.target_logits(Window(rows, len(history), user_B))
    return [list(levels) for levels in zip(*(scores.log_softmax(-1).tolist() for scores in logits), strict=True)]


def item_scores(model: Tiger, history: torch.Tensor, user: int | None = None) -> list[float]:
    codes, scores = model.codes_NC.tolist(), code_scores(model, history, user)
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


@pytest.mark.parametrize("form", FORMS, ids=name_of)
@pytest.mark.parametrize(("num_items", "sizes"), CATALOGUES)
def test_a_beam_as_wide_as_the_catalogue_ranks_all_items_exactly(make_codes, make_tiger, form, num_items, sizes):
    model = make_tiger(make_codes(num_items, sizes, seed=num_items), sizes, **form)
    trie = Trie(model.codes_NC)
    history_BI = histories(3, 4, num_items)
    user_B = users_of(model, 3)
    beams = beam_search(model, trie, history_BI, trie.widest_level, user_B=user_B)
    every_BN = score_catalogue(model, trie, history_BI, user_B)
    for row, history in enumerate(history_BI):
        scores = item_scores(model, history, None if user_B is None else int(user_B[row]))
        assert every_BN[row].tolist() == pytest.approx(scores, abs=1e-9)
        expected = best_items(scores, num_items)
        assert beams.item_BW[row].tolist() == expected
        assert beams.score_BW[row].tolist() == pytest.approx([scores[i] for i in expected], abs=1e-5)
    assert torch.logsumexp(beams.score_BW, 1).le(1e-9).all()  # probabilities of real items sum to one at most


@pytest.mark.parametrize("width", [1, 2, 3, 7, 20])
@pytest.mark.parametrize("form", PLAIN[:3], ids=name_of)
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
        model.output_projection.weight.zero_()
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


@pytest.mark.parametrize("form", FORMS, ids=name_of)
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


@pytest.mark.parametrize("tokens", [1, 7, 10_000])
@pytest.mark.parametrize("repeated", [False, True])
def test_the_walk_through_the_catalogue_does_not_depend_on_its_stride(
    make_codes, make_tiger, monkeypatch, tokens, repeated
):
    codes_NC = make_codes(40, (5, 4, 3))
    codes_NC = torch.cat([codes_NC, codes_NC[10:30]]) if repeated else codes_NC
    model = make_tiger(codes_NC, (5, 4, 3))
    history_BI = histories(3, 5, len(codes_NC))
    monkeypatch.setattr(decoding, "TOKENS", tokens)
    every_BN = score_catalogue(model, Trie(codes_NC), history_BI)
    assert every_BN.shape == (3, len(codes_NC))
    for row, history in enumerate(history_BI):
        assert every_BN[row].tolist() == pytest.approx(item_scores(model, history), abs=1e-9)


def test_without_its_user_a_history_is_read_as_that_of_the_average_user(make_codes, make_tiger):
    model = make_tiger(make_codes(40, (5, 4, 3)), (5, 4, 3), num_user_embeddings=5)
    trie, history_BI = Trie(model.codes_NC), histories(5, 4, 40)
    one, other = (score_catalogue(model, trie, history_BI[:1], torch.tensor([user])) for user in (0, 1))
    assert not torch.allclose(one, other)
    unknown = score_catalogue(model, trie, history_BI[:1])
    with torch.no_grad():
        model.user_embedding.table.weight[:] = model.user_embedding.table.weight.mean(0)
    torch.testing.assert_close(unknown, score_catalogue(model, trie, history_BI[:1], torch.tensor([3])))


@pytest.mark.parametrize("width", [1, 3, 8, 25, 60])
@pytest.mark.parametrize("excluding", [False, True])
def test_items_that_share_an_id_are_listed_side_by_side(make_codes, make_tiger, width, excluding):
    distinct_NC = make_codes(20, (5, 4, 3))
    codes_NC = torch.cat([distinct_NC[5:], distinct_NC, distinct_NC[:12], distinct_NC[7:8]])
    model = make_tiger(codes_NC, (5, 4, 3))
    trie, history_BI = Trie(codes_NC), histories(3, 4, len(codes_NC))
    exclude = [[0, 15, 3, 47], [*range(20, 24)], [5, -1, -1, -1]]
    # As wide as all tuples, so that the beam itself loses nothing; the list is what is cut.
    beams = beam_search(model, trie, history_BI, 20 + width, torch.tensor(exclude) if excluding else None)
    for row, history in enumerate(history_BI):
        scores = [round(score, 9) for score in item_scores(model, history)]
        expected = best_items(scores, 20 + width, set(exclude[row]) if excluding else frozenset())
        assert beams.item_BW[row, : len(expected)].tolist() == expected
        assert set(beams.item_BW[row, len(expected) :].tolist()) <= {-1}


def test_excluded_items_take_no_places_of_others_that_share_ids(make_codes, make_tiger):
    """Beams are tuples; a tuple that turns out to be excluded must not have pushed out a good one."""
    codes_NC = torch.cat([make_codes(20, (5, 4, 3)), make_codes(20, (5, 4, 3))[:1]])
    model = make_tiger(codes_NC, (5, 4, 3))
    trie, history_BI = Trie(codes_NC), histories(1, 4, 20)
    best = beam_search(model, trie, history_BI, 30).item_BW
    rest = beam_search(model, trie, history_BI, 12, best[:, :9])
    assert rest.item_BW[0].tolist() == best[0, 9:21].tolist()


@pytest.mark.parametrize("candidates", [1, 30, 200])
def test_rows_taken_in_turns_give_what_they_give_together(make_codes, make_tiger, monkeypatch, candidates):
    model = make_tiger(make_codes(40, (5, 4, 3)), (5, 4, 3))
    trie, history_BI = Trie(model.codes_NC), histories(6, 4, 40)
    exclude_BX = torch.stack([torch.arange(row, row + 30) for row in range(6)])
    for width in (4, 40):
        together = beam_search(model, trie, history_BI, width, exclude_BX)
        with monkeypatch.context() as patch:
            patch.setattr(decoding, "CANDIDATES", candidates)
            in_turns = beam_search(model, trie, history_BI, width, exclude_BX)
        assert torch.equal(in_turns.item_BW, together.item_BW)
        assert torch.equal(in_turns.score_BW, together.score_BW)


@pytest.mark.parametrize("form", FORMS, ids=name_of)
def test_beams_without_a_trie_are_the_best_tuples_of_all(make_codes, make_tiger, form):
    sizes = (4, 3, 2)
    model = make_tiger(make_codes(20, sizes), sizes, **form)
    every_tuple = torch.tensor(list(itertools.product(*(range(size) for size in sizes))))
    history_BI, user_B = histories(3, 4, 20), users_of(model, 3)
    codes_BWC, score_BW = unconstrained_beams(model, history_BI, 24, user_B)
    expected = score_catalogue(model, Trie(every_tuple), history_BI, user_B)
    for row in range(3):
        order = expected[row].argsort(descending=True)
        assert torch.equal(codes_BWC[row], every_tuple[order])
        torch.testing.assert_close(score_BW[row], expected[row, order])
    assert score_BW.exp().sum(1).tolist() == pytest.approx([1.0] * 3)


def test_narrow_beams_without_a_trie_reach_what_no_item_has(make_codes, make_tiger):
    model = make_tiger(make_codes(5, (4, 3, 2)), (4, 3, 2))
    codes_BWC, score_BW = unconstrained_beams(model, histories(4, 4, 5), 6)
    assert codes_BWC.shape == (4, 6, 3)
    assert (score_BW.diff(dim=1) <= 0).all()
    valid = {tuple(codes) for codes in model.codes_NC.tolist()}
    found = {tuple(codes) for codes in codes_BWC.flatten(0, 1).tolist()}
    assert found - valid
    assert len({tuple(codes) for codes in codes_BWC[0].tolist()}) == 6


def test_one_very_wide_node_costs_no_more_than_its_children(make_codes, make_tiger):
    """300 items below one prefix, one below every other: a beam's candidates are the real ones."""
    codes_NC = torch.cat(
        [torch.tensor([[0, code] for code in range(300)]), torch.tensor([[c, 0] for c in range(1, 50)])]
    )
    trie = Trie(codes_NC)
    children = trie.children(1, torch.arange(50).unsqueeze(0))
    assert children.index_BY.shape == (1, 349)
    model = make_tiger(codes_NC, (50, 300))
    history_BI = histories(2, 4, 349)
    beams = beam_search(model, trie, history_BI, 349)
    for row, history in enumerate(history_BI):
        assert beams.item_BW[row].tolist() == best_items(item_scores(model, history), 349)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("form", PLAIN, ids=name_of)
def test_autocast_changes_scores_by_rounding_only(make_codes, make_tiger, form, dtype):
    model = make_tiger(make_codes(40, (5, 4, 3)), (5, 4, 3), num_user_embeddings=5, **form).float()
    trie, history_BI = Trie(model.codes_NC), histories(3, 4, 40)
    exact = score_catalogue(model, trie, history_BI)
    with torch.autocast("cpu", dtype):
        rounded = score_catalogue(model, trie, history_BI)
        beams = beam_search(model, trie, history_BI, 40)
    assert rounded.dtype == beams.score_BW.dtype == torch.float32
    torch.testing.assert_close(rounded, exact, rtol=0.1, atol=0.1)
    torch.testing.assert_close(beams.score_BW, rounded.gather(1, beams.item_BW), rtol=0.1, atol=0.1)
