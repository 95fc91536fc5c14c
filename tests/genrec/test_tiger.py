"""TIGER: what an item may see, and that every fast way gives what the plain way gives."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from genrec.checkpoint import CheckpointError, save_checkpoint
from genrec.config import RunConfig, TigerConfig, validate_config
from genrec.decoding import beam_search, score_catalogue
from genrec.errors import InputError
from genrec.models.tiger import EncodedHistory, Tiger, Window, build_trie, load_tiger
from genrec.modules.embeddings import SemIdEmbedding, UserIdEmbedding, user_bucket
from genrec.modules.transformer import TransformerEncoderDecoder
from genrec.trie import Trie

SIZES = (5, 4, 3)
LONGEST = 6
TOKENS = ["item", "codes"]
ENCODERS = ["bidirectional", "item_causal"]
USERS = [0, 5]


def sequences(rows: int, length: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(40, (rows, length), generator=torch.Generator().manual_seed(seed))


def loss_of(model: Tiger, window: Window, **settings: float) -> float:
    return (model.loss(window, **settings) if settings else model(window)).item()


@pytest.fixture
def build(make_codes, make_tiger):
    def make(**settings) -> Tiger:
        return make_tiger(make_codes(40, SIZES), SIZES, max_seq_len=LONGEST, **settings)

    return make


@pytest.mark.parametrize("tokens", TOKENS)
@pytest.mark.parametrize("users", USERS)
def test_a_target_inside_a_sequence_is_scored_as_its_history_alone(build, tokens, users):
    model = build(encoder="item_causal", encoder_tokens=tokens, num_user_embeddings=users)
    items, user_B = sequences(3, LONGEST + 1), torch.tensor([0, 4, 2])
    together = [logits.view(3, LONGEST, -1) for logits in model.target_logits(Window(items, 1, user_B))]
    total = 0.0
    for target in range(1, LONGEST + 1):
        window = Window(items[:, : target + 1], target, user_B)
        for level, alone in enumerate(model.target_logits(window)):
            torch.testing.assert_close(together[level][:, target - 1], alone, rtol=1e-10, atol=1e-10)
        total += loss_of(model, window)
    assert loss_of(model, Window(items, 1, user_B)) == pytest.approx(total, rel=1e-10)
    later = loss_of(model, Window(items, 4, user_B))
    alone = sum(loss_of(model, Window(items[:, : t + 1], t, user_B)) for t in range(4, 7))
    assert later == pytest.approx(alone, rel=1e-10)


@pytest.mark.parametrize("tokens", TOKENS)
@pytest.mark.parametrize("users", USERS)
def test_a_later_item_does_not_change_an_earlier_target(build, tokens, users):
    model = build(encoder="item_causal", encoder_tokens=tokens, num_user_embeddings=users)
    items = sequences(2, LONGEST + 1)
    changed = items.clone()
    changed[:, 4] = (changed[:, 4] + 1) % 40
    for before, after in zip(
        model.target_logits(Window(items, 1)), model.target_logits(Window(changed, 1)), strict=True
    ):
        before, after = before.view(2, LONGEST, -1), after.view(2, LONGEST, -1)
        assert torch.equal(before[:, :3], after[:, :3])
        assert not torch.allclose(before[:, 4:], after[:, 4:])


@pytest.mark.parametrize("tokens", TOKENS)
def test_a_bidirectional_encoder_lets_earlier_items_see_later_ones(build, tokens):
    """The two encoders differ in more than name: the first item's encoding depends on the last item."""
    items = sequences(1, 4)
    changed = items.clone()
    changed[:, -1] = (changed[:, -1] + 1) % 40
    for encoder, differs in (("bidirectional", True), ("item_causal", False)):
        model = build(encoder=encoder, encoder_tokens=tokens)
        first = slice(0, model.tokens_per_item)
        assert torch.equal(model.encode(items)[:, first], model.encode(changed)[:, first]) is not differs


def test_a_bidirectional_encoder_refuses_several_targets(build):
    model = build(encoder="bidirectional")
    with pytest.raises(ValueError, match="one target a row"):
        model(Window(sequences(2, 4), 1))
    model(Window(sequences(2, 4), 3))


def test_the_loss_is_the_mean_over_levels_and_the_sum_over_targets(build):
    model = build(encoder="item_causal")
    window = Window(sequences(2, 5), 2)
    logits = [scores.detach() for scores in model.target_logits(window)]
    codes = model.codes_NC[window.items_BL[:, 2:]].view(-1, len(SIZES))
    expected = smoothed = 0.0
    for row in range(6):
        for level, size in enumerate(SIZES):
            logp = F.log_softmax(logits[level][row], -1)
            own = -float(logp[codes[row, level]])
            expected += own / len(SIZES)
            smoothed += (0.8 * own + 0.2 * -float(logp.sum()) / size) / len(SIZES)
    assert loss_of(model, window) == pytest.approx(expected)
    assert loss_of(model, window, label_smoothing=0.2) == pytest.approx(smoothed)


@pytest.mark.parametrize("tokens", TOKENS)
@pytest.mark.parametrize(
    "form",
    [
        {"encoder": "bidirectional"},
        {"encoder": "bidirectional", "positions": "learned"},
        {"encoder": "item_causal"},
        {"encoder": "item_causal", "num_user_embeddings": 5},
    ],
    ids=str,
)
def test_decoding_with_a_cache_equals_teacher_forcing(build, form, tokens):
    model = build(encoder_tokens=tokens, **form)
    history, candidates = sequences(2, LONGEST), sequences(2, 3, seed=1)
    memory = model.remember(model.encode(history))
    expected = [
        model.target_logits(Window(torch.cat([history, candidates[:, w : w + 1]], dim=1), LONGEST)) for w in range(3)
    ]
    codes_BWC = model.codes_NC[candidates]
    past = []
    for level in range(len(SIZES)):
        logits, entries = model.decode_step(codes_BWC[:, :, level - 1] if level else None, level, past, memory, 2)
        past.append(entries)  # of the first level one for all beams, then one a beam
        for w in range(3):
            torch.testing.assert_close(
                logits[:, min(w, logits.shape[1] - 1)], expected[w][level], rtol=1e-10, atol=1e-10
            )


@pytest.mark.parametrize("tokens", TOKENS)
def test_the_age_of_an_item_matters_and_so_does_its_order(build, tokens):
    model = build(encoder="item_causal", encoder_tokens=tokens)
    target = sequences(1, 1, seed=2)
    there = model(Window(torch.cat([torch.tensor([[1, 2, 3]]), target], 1), 3))
    back = model(Window(torch.cat([torch.tensor([[3, 2, 1]]), target], 1), 3))
    assert not torch.isclose(there, back)


def test_the_width_of_attention_is_independent_of_the_embedding(build):
    model = build(embedding_dim=10, attn_dim=28, num_heads=7)
    assert model.encode(sequences(2, 3)).shape == (2, 3, 10)
    attention = model.transformer.encoder[0].attention
    assert attention.query.weight.shape == (28, 10)
    assert attention.output.weight.shape == (10, 28)


def test_blocks_have_no_biases(build):
    names = [name for name, _ in build().named_parameters()]
    assert [name for name in names if name.endswith(".bias")] == []


def test_layers_are_split_between_encoder_and_decoder(build):
    model = build(n_layers=6)
    assert len(model.transformer.encoder) == len(model.transformer.decoder) == 3
    with pytest.raises(ValueError, match="must be even"):
        TigerConfig(n_layers=3)


@pytest.mark.parametrize("length", [0, LONGEST + 1])
@pytest.mark.parametrize("encoder", ENCODERS)
def test_a_history_that_is_empty_or_too_long_is_an_error(build, encoder, length):
    with pytest.raises(ValueError, match=f"a history of {length} items; expected 1 to max_seq_len={LONGEST}"):
        build(encoder=encoder).encode(sequences(2, length))


def test_codes_and_level_sizes_must_agree(make_codes):
    with pytest.raises(ValueError, match="codes have 3 levels, level_sizes 2"):
        Tiger(TigerConfig(), make_codes(40, SIZES), SIZES[:2])


def test_equal_seeds_start_with_the_same_bits(make_codes):
    def weights(seed: int) -> list[torch.Tensor]:
        torch.manual_seed(seed)
        model = Tiger(TigerConfig(embedding_dim=8, attn_dim=8, feedforward_dim=8), make_codes(40, SIZES), SIZES)
        return list(model.state_dict().values())

    assert all(torch.equal(a, b) for a, b in zip(weights(0), weights(0), strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(weights(0), weights(1), strict=True))


def test_a_fresh_model_is_finite_and_close_to_a_uniform_guess(make_codes):
    torch.manual_seed(0)
    model = Tiger(TigerConfig(dropout=0.0), make_codes(40, SIZES), SIZES)
    loss = loss_of(model, Window(sequences(8, 5), 1)) / (8 * 4)
    uniform = float(torch.tensor(SIZES).double().log().mean())
    assert loss == pytest.approx(uniform, abs=0.5)


@pytest.mark.parametrize(
    ("form", "first_target"),
    [
        ({"encoder": "item_causal", "num_user_embeddings": 3}, 1),
        ({"encoder": "bidirectional", "positions": "learned", "num_user_embeddings": 3}, LONGEST),
    ],
    ids=["item_causal", "learned"],
)
def test_every_parameter_gets_a_gradient(build, form, first_target):
    model = build(encoder_tokens="codes", **form)
    model(Window(sequences(4, LONGEST + 1), first_target, torch.tensor([0, 1, 2, 0]))).backward()
    idle = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert idle == []


# ------------------------------------------------------- users, positions, hidden items


@pytest.mark.parametrize("encoder", ENCODERS)
@pytest.mark.parametrize("tokens", TOKENS)
def test_the_user_is_one_token_that_every_position_sees(build, encoder, tokens):
    model = build(encoder=encoder, encoder_tokens=tokens, num_user_embeddings=5)
    items = sequences(1, 4).expand(2, -1)
    encoded = model.encode(items, torch.tensor([1, 2]))
    assert encoded.shape[1] == 1 + 4 * model.tokens_per_item
    differs = (encoded[0] - encoded[1]).abs().amax(1) > 1e-6
    assert differs.all()
    logits = model.target_logits(Window(sequences(1, 4).expand(2, -1), 3, torch.tensor([1, 2])))
    assert all(not torch.allclose(level[0], level[1]) for level in logits)


def test_there_is_no_user_token_by_default(build):
    model = build()
    assert model.user_embedding is None
    items = sequences(2, 4)
    assert model.encode(items).shape[1] == 4
    assert torch.equal(model.encode(items), model.encode(items, torch.tensor([0, 1])))


@pytest.mark.parametrize("tokens", TOKENS)
def test_learned_positions_tell_the_order_and_count_from_the_end(build, tokens):
    model = build(encoder="bidirectional", positions="learned", encoder_tokens=tokens)
    assert {"age_bias", "distance_bias"}.isdisjoint(dict(model.named_parameters()))
    target = torch.tensor([[7]])
    there = model(Window(torch.cat([torch.tensor([[1, 2, 3]]), target], 1), 3))
    back = model(Window(torch.cat([torch.tensor([[3, 2, 1]]), target], 1), 3))
    assert not torch.isclose(there, back)
    with torch.no_grad():
        model.age_embedding[3:] += 100.0
    assert torch.equal(there, model(Window(torch.cat([torch.tensor([[1, 2, 3]]), target], 1), 3)))


@pytest.mark.parametrize("encoder", ENCODERS)
@pytest.mark.parametrize("tokens", TOKENS)
def test_a_hidden_item_is_not_read_but_stays_a_target(build, encoder, tokens):
    model = build(encoder=encoder, encoder_tokens=tokens)
    items = sequences(2, 5)
    first_target = 1 if encoder == "item_causal" else 4
    hidden = torch.zeros(2, 5, dtype=torch.bool)
    hidden[0, 2] = True
    changed = items.clone()
    changed[:, 2] = (changed[:, 2] + 1) % 40

    def logits(of: torch.Tensor, hide: torch.Tensor | None) -> torch.Tensor:
        """Of the last target's first code: (B, K)."""
        return model.target_logits(Window(of, first_target, hidden_BL=hide))[0].view(2, 5 - first_target, -1)[:, -1]

    assert torch.equal(logits(items, hidden)[0], logits(changed, hidden)[0])
    assert not torch.allclose(logits(items, hidden)[1], logits(changed, hidden)[1])
    assert not torch.allclose(logits(items, hidden)[0], logits(items, None)[0])
    assert torch.equal(logits(items, torch.zeros_like(hidden)), logits(items, None))
    if encoder == "item_causal":
        assert loss_of(model, Window(items, 1, hidden_BL=hidden)) != loss_of(
            model, Window(changed, 1, hidden_BL=hidden)
        )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    "form",
    [
        {"encoder": "item_causal", "num_user_embeddings": 5},
        {"encoder": "bidirectional"},
        {"encoder": "bidirectional", "positions": "learned"},
    ],
    ids=str,
)
def test_autocast_changes_loss_and_gradients_by_rounding_only(build, form, dtype):
    model = build(encoder_tokens="codes", dropout=0.2, **form).float()
    window = Window(sequences(8, LONGEST + 1), LONGEST, torch.arange(8) % 5)
    losses, gradients = [], []
    for enabled in (False, True):
        with torch.autocast("cpu", dtype, enabled=enabled):
            loss = model.eval().loss(window, 0.1)
        model.zero_grad()
        loss.backward()
        losses.append(loss.item())
        gradients.append(torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]))
    assert losses[1] == pytest.approx(losses[0], rel=0.02)
    assert F.cosine_similarity(*gradients, dim=0) > 0.97
    with torch.autocast("cpu", dtype):
        assert torch.isfinite(model.train().loss(window, 0.1))


# ----------------------------------------------------------------- the guide's calls


@pytest.fixture(
    params=[("item_causal", "item", 0), ("item_causal", "codes", 5), ("bidirectional", "codes", 0)], ids=str
)
def any_model(request, build):
    encoder, tokens, users = request.param
    return build(encoder=encoder, encoder_tokens=tokens, num_user_embeddings=users)


def test_the_guide_names_the_parts(build):
    model = build(num_user_embeddings=5)
    assert isinstance(model.user_embedding, UserIdEmbedding)
    assert isinstance(model.item_embedding, SemIdEmbedding)
    assert isinstance(model.transformer, TransformerEncoderDecoder)
    assert isinstance(model.output_projection, torch.nn.Linear)
    assert model.output_projection.weight.shape[0] == sum(SIZES)


def test_a_model_is_made_of_a_config_alone():
    settings = {"tiger": {"embedding_dim": 8, "attn_dim": 8, "feedforward_dim": 8, "num_heads": 2}}
    config = validate_config(settings | {"tokenizer": {"num_item_embeddings": 9, "sem_id_dim": 3}})
    model = Tiger(config).eval()
    assert model.level_sizes == (9, 9, 9)
    history = [[1, 2, 3], [4, 5, 6]]
    trie = build_trie(torch.tensor([[1, 2, 3], [4, 5, 6], [7, 8, 0]]))
    assert sorted(model.generate_with_trie(history, trie=trie).item_BW[0].tolist()) == [0, 1, 2]
    with pytest.raises(InputError, match="no catalogue to score"):
        model.generate(model.encode_sequence(history))
    with pytest.raises(InputError, match="no catalogue: give histories as semantic IDs"):
        model.encode_sequence([1, 2, 3, 4])
    for wrong in (config.tiger, RunConfig()):
        with pytest.raises(InputError, match="level_sizes is missing"):
            Tiger(wrong, None if wrong is config.tiger else torch.zeros(4, 3))


def recommend(model: Tiger, user_sequence: list, top_k: int = 10) -> list[list[int]]:
    """As the guide does it."""
    model.eval()
    with torch.no_grad():
        sequence_embedding = model.encode_sequence(user_sequence)
        logits = model.generate(sequence_embedding, max_length=top_k)
        recommendations = torch.topk(logits, top_k).indices
    return recommendations.tolist()


def test_recommending_as_in_the_guide_gives_the_best_items(any_model):
    items = torch.tensor([3, 1, 7])
    expected = score_catalogue(any_model, Trie(any_model.codes_NC), items.unsqueeze(0)).topk(10).indices.tolist()
    assert recommend(any_model, [3, 1, 7]) == expected
    assert recommend(any_model, items) == expected
    assert recommend(any_model, list(items)) == expected
    assert recommend(any_model, any_model.codes_NC[items].tolist()) == expected
    assert recommend(any_model, list(any_model.codes_NC[items])) == expected
    assert recommend(any_model, any_model.codes_NC[items].numpy()) == expected


def test_scores_outside_the_beam_are_minus_infinity(make_codes, make_tiger):
    sizes = (5, 5, 5)
    model = make_tiger(make_codes(120, sizes), sizes)
    exact = score_catalogue(model, Trie(model.codes_NC), torch.tensor([[1, 2]]))
    scores = model.generate(model.encode_sequence([1, 2]), max_length=3)
    reached = ~scores.isneginf()
    assert scores.shape == (1, 120)
    assert int(reached.sum()) == 50
    torch.testing.assert_close(scores[reached], exact[reached])
    assert int((~model.generate(model.encode_sequence([1, 2]), max_length=70).isneginf()).sum()) == 70


@pytest.mark.parametrize("form", ["right", "left", "ragged", "semantic", "scattered"])
def test_a_padded_batch_gives_what_its_histories_give_alone(any_model, form):
    alone = [[3, 1, 7, 2], [5], [0, 9]]
    users = ["a", "b", "c"] if any_model.user_tokens else None
    padded = {
        "right": torch.tensor([[3, 1, 7, 2], [5, -1, -1, -1], [0, 9, -1, -1]]),
        "left": torch.tensor([[3, 1, 7, 2], [-1, -1, -1, 5], [-1, -1, 0, 9]]),
        "scattered": torch.tensor([[3, 1, 7, 2, -1], [-1, -1, 5, -1, -1], [-1, 0, -1, -1, 9]]),
        "ragged": alone,
    }
    codes = torch.cat([any_model.codes_NC, torch.full((1, 3), -1)])
    padded["semantic"] = codes[padded["right"]]
    scores = any_model.generate(any_model.encode_sequence(padded[form], users=users), 40)
    for row, items in enumerate(alone):
        user = None if users is None else users[row : row + 1]
        single = any_model.generate(any_model.encode_sequence(items, users=user), 40)
        torch.testing.assert_close(scores[row : row + 1], single, rtol=1e-9, atol=1e-9)
        user_B = None if user is None else torch.tensor([user_bucket(user[0], 5)])
        plain = score_catalogue(any_model, Trie(any_model.codes_NC), torch.tensor([items]), user_B)
        torch.testing.assert_close(single, plain, rtol=1e-9, atol=1e-9)


def test_padding_works_with_learned_positions_too(build):
    model = build(encoder="bidirectional", positions="learned", encoder_tokens="codes")
    scores = model.generate(model.encode_sequence(torch.tensor([[3, 1, 7, 2], [5, 8, -1, -1]])), 40)
    torch.testing.assert_close(scores[1:], model.generate(model.encode_sequence([5, 8]), 40), rtol=1e-9, atol=1e-9)


def test_of_a_long_history_the_last_items_are_read(any_model):
    items = sequences(1, LONGEST + 5)[0].tolist()
    long, short = (any_model.encode_sequence(part) for part in (items, items[-LONGEST:]))
    assert torch.equal(long.embedding_BMD, short.embedding_BMD)
    batch = any_model.encode_sequence([items, items[:2]])
    assert batch.embedding_BMD.shape[0] == 2
    torch.testing.assert_close(batch.embedding_BMD[0], short.embedding_BMD[0], rtol=1e-9, atol=1e-9)


def test_generating_under_a_trie_as_in_the_guide(any_model):
    valid_items = any_model.codes_NC[10:30]
    trie = build_trie(valid_items)
    user_sequence = any_model.codes_NC[[3, 1, 7]]
    constrained = any_model.generate_with_trie(user_sequence, trie=trie, max_length=10)
    exact = score_catalogue(any_model, trie, torch.tensor([[3, 1, 7]]))
    assert constrained.item_BW.tolist() == exact.topk(10).indices.tolist()
    assert torch.equal(constrained.semantic_ids_BWC, valid_items[constrained.item_BW])
    torch.testing.assert_close(constrained.score_BW, exact.topk(10).values, rtol=1e-9, atol=1e-9)
    again = any_model.generate_with_trie(any_model.encode_sequence(user_sequence), trie=trie, max_length=10)
    assert torch.equal(again.item_BW, constrained.item_BW)
    assert build_trie(valid_items.tolist()).num_items == 20


def test_asking_for_more_than_the_trie_holds_gives_what_there_is(any_model):
    trie = build_trie(any_model.codes_NC[:3])
    found = any_model.generate_with_trie([4, 5], trie=trie, max_length=10)
    assert sorted(found.item_BW[found.item_BW >= 0].tolist()) == [0, 1, 2]
    assert (found.semantic_ids_BWC[found.item_BW < 0] == -1).all()
    assert found.score_BW[found.item_BW < 0].isneginf().all()


def test_a_new_catalogue_is_used_at_once(any_model):
    before = any_model.generate(any_model.encode_sequence([1, 2]), 40)
    any_model.codes_NC.copy_(any_model.codes_NC.flip(0))
    after = any_model.generate(any_model.encode_sequence([38, 37]), 40)
    torch.testing.assert_close(after.flip(1), before)


@pytest.mark.parametrize("form", ["alone", "padded", "semantic"])
def test_attention_weights_sum_to_one_and_padding_gets_none(any_model, form):
    histories = {
        "alone": [3, 1, 7],
        "padded": torch.tensor([[3, 1, 7], [5, -1, -1], [-1, 0, 9]]),
        "semantic": any_model.codes_NC[[3, 1, 7]],
    }
    weights = any_model.get_attention_weights(histories[form], items=form == "padded")
    rows = 3 if form == "padded" else 1
    tokens = any_model.user_tokens + 3 * any_model.tokens_per_item
    assert weights.shape == (2, rows, 4, tokens, tokens)
    torch.testing.assert_close(weights.sum(-1), torch.ones_like(weights[..., 0]))
    if form == "padded":
        padding = (histories["padded"] < 0).repeat_interleave(any_model.tokens_per_item, 1)
        padding = F.pad(padding, (any_model.user_tokens, 0), value=False)
        assert (weights.permute(1, 4, 0, 2, 3)[padding] == 0).all()
        assert (weights.permute(1, 4, 0, 2, 3)[~padding] > 0).any(dim=(1, 2, 3)).all()
    if any_model.config.encoder == "item_causal" and form != "padded":
        start, own = any_model.user_tokens, any_model.tokens_per_item
        assert (weights[..., start : start + own, start + own :] == 0).all()


def test_attention_weights_are_those_that_the_encoder_uses(build):
    """Weights of the first layer, applied to its values by hand, give what the layer gives."""
    model = build()
    items = torch.tensor([[3, 1, 7]])
    weights = model.get_attention_weights(items, items=True)
    layer = model.transformer.encoder[0]
    x = model._encoder_input(model.item_embedding(model.codes_NC[items]))
    normed = layer.attention_norm(x)
    value = layer.attention.project(normed).value
    mixed = layer.attention.output((weights[0] @ value).transpose(1, 2).flatten(2))
    y = x + mixed
    y = y + layer.feedforward(layer.feedforward_norm(y))
    torch.testing.assert_close(y, layer(x, model._encoder_bias(3)))


@pytest.mark.parametrize(
    ("history", "fault"),
    [
        ([], "empty"),
        (torch.tensor([[1, 2], [-1, -1]]), "history 1 is empty"),
        ([1, 40], "item 40 is not in the catalogue: items are 0 to 39"),
        ([[1, 2, 3], [1, 4, 0]], "code 4 of level 2 of a semantic ID: codes there are 0 to 3"),
        ([[[1, 2, 3]], [[1, 2]]], r"history 1: a semantic ID of this model has 3 codes, got \[1, 2\]"),
        ([1.5, 2.0], "whole numbers, got 1.5"),
        (["B00"], "whole numbers, got 'B00'"),
        ([True], "whole numbers, got True"),
        ([1, [2]], "must not mix"),
        ("B00", "must be a list, array or tensor of whole numbers, got str"),
        ([[[[1]]]], r"item numbers \(I,\) or semantic IDs"),
    ],
)
def test_a_history_that_cannot_be_read_is_refused(build, history, fault):
    with pytest.raises(InputError, match=fault):
        build().encode_sequence(history)


def test_two_dimensions_are_semantic_ids_unless_they_are_said_to_be_items(build):
    model = build()
    rows = [[1, 2, 0], [3, 1, 2]]
    assert model.encode_sequence(rows).embedding_BMD.shape[:2] == (1, 2)
    batch = model.encode_sequence(rows, items=True).embedding_BMD
    torch.testing.assert_close(batch, model.encode(torch.tensor(rows)))


def test_wrong_companions_of_a_history_are_refused(build):
    model = build(num_user_embeddings=5)
    with pytest.raises(InputError, match="2 users for 1 histories"):
        model.encode_sequence([1, 2], users=["a", "b"])
    with pytest.raises(InputError, match="at least 1, got 0"):
        model.generate(model.encode_sequence([1, 2]), max_length=0)
    for codes in ([[0, 0]], [[0, 9, 0]]):
        with pytest.raises(InputError, match=r"do not fit the model.*\[5, 4, 3\]"):
            model.generate_with_trie([1, 2], trie=build_trie(codes))


def saved(model: Tiger, folder: Path) -> Path:
    config = {"tiger": model.config.model_dump(mode="json")}
    save_checkpoint(folder, model.state_dict(), {"config": config, "level_sizes": list(SIZES), "tuple_levels": 2})
    return folder


def test_a_model_loads_from_its_checkpoint_its_stage_or_a_bundle(build, tmp_path):
    model = build(num_user_embeddings=5).float()
    saved(model, tmp_path / "stage" / "model")
    expected = beam_search(model, Trie(model.codes_NC), torch.tensor([[1, 2]]), 10)
    for path in (tmp_path / "stage" / "model", tmp_path / "stage", str(tmp_path / "stage")):
        loaded = Tiger.load_from_checkpoint(path)
        assert not loaded.training
        found = beam_search(loaded, Trie(loaded.codes_NC), torch.tensor([[1, 2]]), 10)
        assert torch.equal(found.score_BW, expected.score_BW)
    assert load_tiger(tmp_path / "stage")[1]["tuple_levels"] == 2


def test_what_is_no_model_is_named(build, tmp_path):
    with pytest.raises(CheckpointError, match="nowhere: no such file or folder; expected a checkpoint"):
        Tiger.load_from_checkpoint(tmp_path / "nowhere")
    with pytest.raises(CheckpointError, match="no model in it"):
        Tiger.load_from_checkpoint(tmp_path)
    save_checkpoint(tmp_path / "other", {"x": torch.zeros(2)}, {"input_dim": 3})
    with pytest.raises(CheckpointError, match="something else than a TIGER"):
        Tiger.load_from_checkpoint(tmp_path / "other")
    model = build().float()
    config = {"tiger": model.config.model_dump(mode="json") | {"embedding_dim": 24}}
    save_checkpoint(tmp_path / "wrong", model.state_dict(), {"config": config, "level_sizes": list(SIZES)})
    with pytest.raises(CheckpointError, match="do not fit the config"):
        Tiger.load_from_checkpoint(tmp_path / "wrong")


def test_an_encoded_history_is_a_tensor_and_its_places(build):
    encoded = build().encode_sequence([1, 2, 3, 4])
    assert isinstance(encoded, EncodedHistory)
    assert encoded.place_BI is None
    padded = build().encode_sequence(torch.tensor([[1, 2], [-1, 4]]))
    assert padded.place_BI is not None
    assert padded.place_BI.tolist() == [[0, 1], [-1, 0]]
