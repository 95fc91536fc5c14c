"""TIGER: what an item may see, and that every fast way gives what the plain way gives."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from genrec.config import TigerConfig
from genrec.models.tiger import Tiger, Window
from genrec.modules.transformer import KeyValue

SIZES = (5, 4, 3)
LONGEST = 6
TOKENS = ["item", "codes"]
ENCODERS = ["bidirectional", "item_causal"]


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
def test_a_target_inside_a_sequence_is_scored_as_its_history_alone(build, tokens):
    model = build(encoder="item_causal", encoder_tokens=tokens)
    items = sequences(3, LONGEST + 1)
    together = [logits.view(3, LONGEST, -1) for logits in model.target_logits(Window(items, 1))]
    total = 0.0
    for target in range(1, LONGEST + 1):
        window = Window(items[:, : target + 1], target)
        for level, alone in enumerate(model.target_logits(window)):
            torch.testing.assert_close(together[level][:, target - 1], alone, rtol=1e-10, atol=1e-10)
        total += loss_of(model, window)
    assert loss_of(model, Window(items, 1)) == pytest.approx(total, rel=1e-10)
    later = loss_of(model, Window(items, 4))
    assert later == pytest.approx(sum(loss_of(model, Window(items[:, : t + 1], t)) for t in range(4, 7)), rel=1e-10)


@pytest.mark.parametrize("tokens", TOKENS)
def test_a_later_item_does_not_change_an_earlier_target(build, tokens):
    model = build(encoder="item_causal", encoder_tokens=tokens)
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


@pytest.mark.parametrize("encoder", ENCODERS)
@pytest.mark.parametrize("tokens", TOKENS)
def test_decoding_with_a_cache_equals_teacher_forcing(build, encoder, tokens):
    model = build(encoder=encoder, encoder_tokens=tokens)
    history, candidates = sequences(2, LONGEST), sequences(2, 3, seed=1)
    memory = model.remember(model.encode(history))
    expected = [
        model.target_logits(Window(torch.cat([history, candidates[:, w : w + 1]], dim=1), LONGEST)) for w in range(3)
    ]
    codes_BWC = model.codes_NC[candidates]
    logp, past = model.decode_step(None, 0, None, memory, 2)
    for level in range(len(SIZES)):
        if level:
            logp, past = model.decode_step(codes_BWC[:, :, level - 1], level, past, memory, 2)
        for w in range(3):
            plain = expected[w][level].log_softmax(-1)
            torch.testing.assert_close(logp[:, min(w, logp.shape[1] - 1)], plain, rtol=1e-10, atol=1e-10)
        if level == 0:
            past = [KeyValue(*(part.repeat_interleave(3, dim=0) for part in kv)) for kv in past]


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
    attention = model.encoder[0].attention
    assert attention.query.weight.shape == (28, 10)
    assert attention.output.weight.shape == (10, 28)


def test_blocks_have_no_biases(build):
    names = [name for name, _ in build().named_parameters()]
    assert [name for name in names if name.endswith(".bias")] == []


def test_layers_are_split_between_encoder_and_decoder(build):
    model = build(n_layers=6)
    assert len(model.encoder) == len(model.decoder) == 3
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


def test_every_parameter_gets_a_gradient(build):
    model = build(encoder="item_causal", encoder_tokens="codes")
    model(Window(sequences(4, LONGEST + 1), 1)).backward()
    idle = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert idle == []
