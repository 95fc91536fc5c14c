"""Blocks: attention by products against torch's own and against loops, dropout, the two stacks."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from genrec.modules.transformer import Attention, Dropout, KeyValue, RmsNorm, TransformerEncoderDecoder, attend

BATCH, HEADS, TOKENS, KEYS, WIDTH = 3, 4, 5, 6, 8
FEW_AND_MANY = [KEYS, 11]
"the softmax over few keys is laid out differently"


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("keys", FEW_AND_MANY)
@pytest.mark.parametrize("bias_shape", [None, (1, HEADS, TOKENS), (BATCH, 1, 1), (1, 1, TOKENS)])
def test_products_equal_the_fused_kernel(bias_shape, keys):
    query = random(BATCH, HEADS, TOKENS, WIDTH)
    kv = KeyValue(random(BATCH, HEADS, keys, WIDTH, seed=1), random(BATCH, HEADS, keys, WIDTH, seed=2))
    bias = None
    if bias_shape is not None:
        bias = random(*bias_shape, keys, seed=3)
        bias[..., -1] = float("-inf")
    expected = F.scaled_dot_product_attention(query, *kv, attn_mask=bias)
    torch.testing.assert_close(attend(query, kv, bias), expected)


@pytest.mark.parametrize("keys", FEW_AND_MANY)
def test_products_have_the_gradients_of_the_fused_kernel(keys):
    inputs = [random(BATCH, HEADS, n, WIDTH, seed=n).requires_grad_() for n in (TOKENS, keys, keys)]
    bias = random(1, HEADS, TOKENS, keys, seed=3).requires_grad_()
    direction = random(BATCH, HEADS, TOKENS, WIDTH, seed=9)
    ours = torch.autograd.grad((attend(inputs[0], KeyValue(*inputs[1:]), bias) * direction).sum(), [*inputs, bias])
    fused = F.scaled_dot_product_attention(*inputs, attn_mask=bias)
    for got, expected in zip(ours, torch.autograd.grad((fused * direction).sum(), [*inputs, bias]), strict=True):
        torch.testing.assert_close(got, expected)


def test_one_token_at_a_time_equals_all_at_once_under_a_causal_mask():
    attention = Attention(10, HEADS * WIDTH, HEADS).double()
    x = random(BATCH, TOKENS, 10)
    mask = torch.full((TOKENS, TOKENS), float("-inf")).triu(1)
    expected = attention(x, attention.project(x), mask)
    past: list[KeyValue] = []
    for token in range(TOKENS):
        got, entry = attention.step(x[:, token : token + 1], past)
        past.append(entry)
        torch.testing.assert_close(got, expected[:, token : token + 1])


def test_a_shared_token_is_one_for_all_beams():
    attention = Attention(10, HEADS * WIDTH, HEADS).double()
    first, beams = random(BATCH, 1, 10), random(BATCH, 7, 10, seed=1)
    _, shared = attention.step(first, [])
    together, _ = attention.step(beams, [shared])
    for beam in range(7):
        alone, _ = attention.step(beams[:, beam : beam + 1], [shared])
        torch.testing.assert_close(together[:, beam : beam + 1], alone)


def test_the_norm_by_hand_has_torchs_values_and_gradients():
    x, direction = random(BATCH, TOKENS, 10).requires_grad_(), random(BATCH, TOKENS, 10, seed=1)
    norm = RmsNorm(10).double()
    with torch.no_grad():
        norm.weight.copy_(random(10, seed=2))
    ours, plain = norm(x), F.rms_norm(x, (10,), norm.weight)
    torch.testing.assert_close(ours, plain)
    found = torch.autograd.grad((ours * direction).sum(), [x, norm.weight])
    for got, expected in zip(found, torch.autograd.grad((plain * direction).sum(), [x, norm.weight]), strict=True):
        torch.testing.assert_close(got, expected)


@pytest.mark.slow
def test_a_compiled_stack_with_dropout_runs_for_any_length_and_equals_itself_without():
    stacks = TransformerEncoderDecoder(8, attn_dim=8, num_heads=2, feedforward_dim=8, num_layers=1, dropout=0.5)
    # Traced by the compiler; what it makes of that is torch's affair and takes most of a minute.
    compiled = torch.compile(lambda x: stacks.encode(x, None), dynamic=True, backend="eager")
    for length in (3, 5, 9):
        x = torch.randn(2, length, 8, requires_grad=True)
        compiled(x).sum().backward()
        assert x.grad is not None
        assert torch.isfinite(x.grad).all()
    stacks.eval()
    torch.testing.assert_close(compiled(x), stacks.encode(x, None), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("p", [0.1, 0.3, 0.9])
@pytest.mark.parametrize("shape", [(1000, 333), (7,)])
def test_dropout_drops_a_share_p_and_keeps_the_mean(p, shape):
    torch.manual_seed(0)
    dropout = Dropout(p)
    out = torch.cat([dropout(torch.ones(shape)).flatten() for _ in range(1 if len(shape) == 2 else 4000)])
    assert (out == 0).double().mean().item() == pytest.approx(p, abs=0.01)
    assert out.double().mean().item() == pytest.approx(1.0, abs=0.05)
    assert len(out.unique()) == 2
    kept = (out != 0).double()
    assert (kept[1:] * kept[:-1]).mean().item() == pytest.approx((1 - p) ** 2, abs=0.01)  # neighbours are independent


def test_dropout_is_off_in_evaluation_repeatable_by_seed_and_passes_gradients():
    x, y = torch.ones(50, requires_grad=True), torch.full((50,), 2.0, requires_grad=True)
    dropout = Dropout(0.5)
    torch.manual_seed(1)
    added = dropout.add(x, y)
    torch.manual_seed(1)
    mask = dropout(torch.ones(50))
    assert torch.equal(added, x + y * mask)
    grad_x, grad_y = torch.autograd.grad(added.sum(), [x, y])
    assert torch.equal(grad_x, torch.ones(50))
    assert torch.equal(grad_y, mask)
    assert torch.equal(dropout.eval().add(x, y), x + y)
    assert dropout(x) is x
    assert Dropout(0.0)(x) is x


def make_stacks() -> TransformerEncoderDecoder:
    torch.manual_seed(0)
    stacks = TransformerEncoderDecoder(10, attn_dim=16, num_heads=4, feedforward_dim=12, num_layers=2)
    return stacks.double().eval()


def test_each_stack_ends_in_its_norm():
    stacks = make_stacks()
    encoded = stacks.encode(random(BATCH, KEYS, 10), None)
    torch.testing.assert_close(
        encoded.square().mean(-1), torch.ones(BATCH, KEYS, dtype=torch.float64), rtol=1e-3, atol=0
    )
    assert len(stacks.encoder) == len(stacks.decoder) == 2


def test_targets_of_a_row_do_not_see_each_other_and_no_token_sees_a_later_one():
    stacks = make_stacks()
    memory = stacks.memory(stacks.encode(random(BATCH, KEYS, 10), None))
    x = random(BATCH, 4, 3, 10, seed=1)
    before = stacks.decode(x, memory, None)
    changed = x.clone()
    changed[:, 2, 1] += 1.0
    differs = (stacks.decode(changed, memory, None) != before).any(-1)
    assert differs[:, 2, 1:].all()
    assert not differs[:, 2, 0].any()
    assert not differs[:, [0, 1, 3]].any()


def test_steps_equal_decoding_all_tokens_at_once():
    stacks = make_stacks()
    memory = stacks.memory(stacks.encode(random(BATCH, KEYS, 10), None))
    bias = random(1, 4, 1, KEYS, seed=2)
    x = random(BATCH, 5, 3, 10, seed=1)
    expected = stacks.decode(x, memory, bias)
    past: list[list[KeyValue]] = []
    for token in range(3):
        got, entries = stacks.step(x[:, :, token], past, memory, bias)
        past.append(entries)
        torch.testing.assert_close(got, expected[:, :, token])


def test_weights_of_the_encoder_sum_to_one_in_every_layer():
    bias = random(1, 4, KEYS, KEYS, seed=2)
    bias[..., 0] = float("-inf")
    weights = make_stacks().encoder_weights(random(BATCH, KEYS, 10), bias)
    assert weights.shape == (2, BATCH, 4, KEYS, KEYS)
    torch.testing.assert_close(weights.sum(-1), torch.ones_like(weights[..., 0]))
    assert (weights[..., 0] == 0).all()
