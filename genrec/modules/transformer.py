"""Transformer blocks: pre-norm, RMSNorm, no biases, a width of attention independent of the width of the residual.

After T5 (Raffel et al. 2020, section 2.1). The blocks know nothing of items: masks and distances come in as one
additive bias. Where a model of this size spends its time on a CPU is small operations, so attention there is plain
products, and dropout draws four masks from one random word.

Letters: B batch, S targets a row, C tokens a target, W beams, T query tokens, M key tokens, D width, H heads,
A attention width of one head, P attention width of all heads.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class KeyValue(NamedTuple):
    """Projected keys and values: (B, H, M, A), or (B, W, P) for one token of each beam."""

    key: Tensor
    value: Tensor


def by_hand(x: Tensor) -> bool:
    """Whether to do without torch's own kernel: on the CPU, unless a compiler looks at the code."""
    return x.device.type == "cpu" and not torch.compiler.is_compiling()


class Dropout(nn.Module):
    """Dropout of `p`, rounded to a 65536th on the CPU, where torch's own takes longer than a matrix product."""

    def __init__(self, p: float):
        super().__init__()
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        if not by_hand(x):
            return F.dropout(x, self.p, self.training)
        return x * self._mask(x) if self._active else x

    def add(self, x: Tensor, update: Tensor) -> Tensor:
        """`x` plus what dropout leaves of `update`."""
        if by_hand(update) and self._active and x.dtype == update.dtype:
            return torch.addcmul(x, update, self._mask(update))
        return x + self(update)

    @property
    def _active(self) -> bool:
        return self.training and self.p > 0.0

    def _mask(self, x: Tensor) -> Tensor:
        """Zeros and 1/(1-p): sixteen random bits an element, compared with p."""
        dropped = min(round(self.p * 65536), 65535)
        words = torch.empty(-(-x.numel() // 4), dtype=torch.int64).random_(-(2**63), None)
        kept = words.view(torch.int16)[: x.numel()].view(x.shape).ge_(dropped - 32768)
        return kept.to(x.dtype).mul_(65536 / (65536 - dropped))


class RmsNorm(nn.Module):
    """x / rms(x) times a weight, over the last dimension."""

    def __init__(self, embedding_dim: int):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(embedding_dim))

    def forward(self, x: Tensor) -> Tensor:
        if by_hand(x):
            return _RmsNormByHand.apply(x, self.weight)
        return F.rms_norm(x, self.weight.shape, self.weight)


class _RmsNormByHand(torch.autograd.Function):
    """Forward and backward take a third of the time that torch's own, which is not fused on the CPU, takes there."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        mean_square = torch.linalg.vector_norm(x, dim=-1, keepdim=True).square_().mul_(1 / x.shape[-1])
        inverse = mean_square.add_(torch.finfo(x.dtype).eps).rsqrt_()
        unit = x * inverse
        ctx.save_for_backward(unit, inverse, weight)
        return unit * weight

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:
        unit, inverse, weight = ctx.saved_tensors
        into_weight = (gradient * unit).flatten(0, -2).sum(0)
        into_unit = gradient * weight
        along = torch.linalg.vecdot(into_unit, unit).unsqueeze(-1).mul_(-1 / unit.shape[-1])
        return torch.addcmul(into_unit, unit, along).mul_(inverse), into_weight


class Attention(nn.Module):
    """Multi-head scaled-dot-product attention; keys and values are projected apart so that they can be kept."""

    def __init__(self, embedding_dim: int, attn_dim: int, num_heads: int):
        super().__init__()
        self.num_heads = num_heads
        self.query = nn.Linear(embedding_dim, attn_dim, bias=False)
        self.key_value = nn.Linear(embedding_dim, 2 * attn_dim, bias=False)
        self.output = nn.Linear(attn_dim, embedding_dim, bias=False)

    def project(self, x_BMD: Tensor) -> KeyValue:
        """Keys and values (B, H, M, A) of `x_BMD`."""
        key, value = self.key_value(x_BMD).chunk(2, dim=-1)
        return KeyValue(self._split(key), self._split(value))

    def forward(self, x_BTD: Tensor, kv: KeyValue, bias: Tensor | None = None) -> Tensor:
        """Attend from `x_BTD` to `kv`; `bias` is added to the scores and broadcasts to (B, H, T, M)."""
        mixed_BHTA = attend(self._split(self.query(x_BTD)), kv, bias)
        return self.output(mixed_BHTA.transpose(1, 2).flatten(2))

    def weights(self, x_BTD: Tensor, kv: KeyValue, bias: Tensor | None = None) -> Tensor:
        """The attention weights (B, H, T, M) themselves; rows sum to one."""
        query_BHTA = self._split(self.query(x_BTD))
        scores = query_BHTA @ kv.key.transpose(-1, -2) * query_BHTA.shape[-1] ** -0.5
        return (scores if bias is None else scores + bias).softmax(-1)

    def step(self, x_BWD: Tensor, past: Sequence[KeyValue]) -> tuple[Tensor, KeyValue]:
        """Attend from the newest token of each beam to itself and to the beam's tokens before it.

        `past` has an entry for each of those: (B, W, P), or (B, 1, P) where all beams of a row share the token. With
        so few keys, sums of products are faster than matrices. Also returns the newest token's own entry.
        """
        new = KeyValue(*self.key_value(x_BWD).chunk(2, dim=-1))
        heads = (self.num_heads, -1)
        entries = [KeyValue(*(part.unflatten(-1, heads) for part in entry)) for entry in (*past, new)]
        query_BWHA = self.query(x_BWD).unflatten(-1, heads)
        score_BWHT = torch.stack([(query_BWHA * entry.key).sum(-1) for entry in entries], -1)
        weight_BWHT = (score_BWHT * query_BWHA.shape[-1] ** -0.5).softmax(-1).to(new.value.dtype)
        parts = [weight_BWHT[..., index, None] * entry.value for index, entry in enumerate(entries)]
        return self.output(sum(parts[1:], parts[0]).flatten(2)), new

    def _split(self, x_BTP: Tensor) -> Tensor:
        return x_BTP.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)


def attend(query_BHTA: Tensor, kv: KeyValue, bias: Tensor | None) -> Tensor:
    """Scaled-dot-product attention (B, H, T, A): torch's fused kernel where it is the faster one, else products."""
    bias = None if bias is None else bias.to(query_BHTA.dtype)
    if not by_hand(query_BHTA):
        return F.scaled_dot_product_attention(query_BHTA, *kv, attn_mask=bias)
    batch, heads, tokens, width = query_BHTA.shape
    query, key, value = (part.flatten(0, 1) for part in (query_BHTA, *kv))
    # A softmax over the last dimension is slow where that is shorter than a vector of the processor.
    few = key.shape[1] < 8
    left, right = (key, query) if few else (query, key)
    if bias is None:
        scores = (left * width**-0.5) @ right.transpose(1, 2)
    else:
        bias = bias.expand(batch, heads, tokens, key.shape[1])
        full_bias = (bias.transpose(2, 3) if few else bias).flatten(0, 1)
        scores = torch.baddbmm(full_bias, left, right.transpose(1, 2), alpha=width**-0.5)
    weights = scores.softmax(1).transpose(1, 2) if few else scores.softmax(2)
    return (weights.to(value.dtype) @ value).unflatten(0, (batch, heads))


class FeedForward(nn.Sequential):
    """Two matrices with a ReLU between them."""

    def __init__(self, embedding_dim: int, feedforward_dim: int):
        super().__init__(
            nn.Linear(embedding_dim, feedforward_dim, bias=False),
            nn.ReLU(inplace=True),
            nn.Linear(feedforward_dim, embedding_dim, bias=False),
        )


class EncoderLayer(nn.Module):
    """Self-attention and feed-forward, each behind a norm and added to the residual."""

    def __init__(self, embedding_dim: int, attn_dim: int, num_heads: int, feedforward_dim: int, dropout: float):
        super().__init__()
        self.attention_norm = RmsNorm(embedding_dim)
        self.attention = Attention(embedding_dim, attn_dim, num_heads)
        self.feedforward_norm = RmsNorm(embedding_dim)
        self.feedforward = FeedForward(embedding_dim, feedforward_dim)
        self.dropout = Dropout(dropout)

    def forward(self, x_BMD: Tensor, bias: Tensor | None) -> Tensor:
        normed = self.attention_norm(x_BMD)
        x_BMD = self.dropout.add(x_BMD, self.attention(normed, self.attention.project(normed), bias))
        return self.dropout.add(x_BMD, self.feedforward(self.feedforward_norm(x_BMD)))

    def weights(self, x_BMD: Tensor, bias: Tensor | None) -> Tensor:
        """The attention weights (B, H, M, M) of this layer for its input."""
        normed = self.attention_norm(x_BMD)
        return self.attention.weights(normed, self.attention.project(normed), bias)


class DecoderLayer(nn.Module):
    """Causal self-attention, attention to the encoder, feed-forward."""

    def __init__(self, embedding_dim: int, attn_dim: int, num_heads: int, feedforward_dim: int, dropout: float):
        super().__init__()
        self.self_norm = RmsNorm(embedding_dim)
        self.self_attention = Attention(embedding_dim, attn_dim, num_heads)
        self.cross_norm = RmsNorm(embedding_dim)
        self.cross_attention = Attention(embedding_dim, attn_dim, num_heads)
        self.feedforward_norm = RmsNorm(embedding_dim)
        self.feedforward = FeedForward(embedding_dim, feedforward_dim)
        self.dropout = Dropout(dropout)

    def forward(self, x_BSCD: Tensor, causal_CC: Tensor, memory: KeyValue, cross_bias: Tensor | None) -> Tensor:
        """All C tokens of S independent targets a row: (B, S, C, D) -> (B, S, C, D).

        Self-attention stays inside a target; attention to the encoder is one product over all S*C tokens, so that
        `cross_bias` broadcasts to (B, H, S*C, M).
        """
        shape = x_BSCD.shape
        x = x_BSCD.flatten(0, 1)
        normed = self.self_norm(x)
        x = self.dropout.add(x, self.self_attention(normed, self.self_attention.project(normed), causal_CC))
        x = x.view(shape[0], shape[1] * shape[2], shape[3])
        x = self.dropout.add(x, self.cross_attention(self.cross_norm(x), memory, cross_bias))
        x = self.dropout.add(x, self.feedforward(self.feedforward_norm(x)))
        return x.view(shape)

    def step(
        self, x_BWD: Tensor, past: Sequence[KeyValue], memory: KeyValue, cross_bias: Tensor | None
    ) -> tuple[Tensor, KeyValue]:
        """One new token for each of W beams, which share the `memory` of their row: (B, W, D), and its own entry."""
        mixed, new = self.self_attention.step(self.self_norm(x_BWD), past)
        x_BWD = x_BWD + mixed
        x_BWD = x_BWD + self.cross_attention(self.cross_norm(x_BWD), memory, cross_bias)
        return x_BWD + self.feedforward(self.feedforward_norm(x_BWD)), new


class TransformerEncoderDecoder(nn.Module):
    """`num_layers` encoder and as many decoder layers, a norm after each stack."""

    def __init__(
        self,
        embedding_dim: int,
        *,
        attn_dim: int,
        num_heads: int,
        feedforward_dim: int,
        num_layers: int,
        dropout: float = 0.0,
    ):
        super().__init__()
        block = (embedding_dim, attn_dim, num_heads, feedforward_dim, dropout)
        self.encoder = nn.ModuleList(EncoderLayer(*block) for _ in range(num_layers))
        self.encoder_norm = RmsNorm(embedding_dim)
        self.decoder = nn.ModuleList(DecoderLayer(*block) for _ in range(num_layers))
        self.decoder_norm = RmsNorm(embedding_dim)
        self.dropout = Dropout(dropout)

    def encode(self, x_BMD: Tensor, bias: Tensor | None) -> Tensor:
        """The encoder's output (B, M, D); `bias` broadcasts to (B, H, M, M)."""
        x_BMD = self.dropout(x_BMD)
        for layer in self._encoder_layers():
            x_BMD = layer(x_BMD, bias)
        return self.encoder_norm(x_BMD)

    def encoder_weights(self, x_BMD: Tensor, bias: Tensor | None) -> Tensor:
        """The attention weights of every encoder layer, (layers, B, H, M, M)."""
        weights = []
        for layer in self._encoder_layers():
            weights.append(layer.weights(x_BMD, bias))
            x_BMD = layer(x_BMD, bias)
        return torch.stack(weights)

    def memory(self, encoded_BMD: Tensor) -> list[KeyValue]:
        """For every decoder layer the keys and values of the encoder's output, once for all that is decoded from it."""
        projected = [layer.cross_attention.project(encoded_BMD) for layer in self._decoder_layers()]
        return [KeyValue(kv.key.contiguous(), kv.value.contiguous()) for kv in projected]

    def decode(self, x_BSCD: Tensor, memory: list[KeyValue], cross_bias: Tensor | None) -> Tensor:
        """All tokens of all targets at once, each seeing those before it in its target: (B, S, C, D)."""
        tokens = x_BSCD.shape[2]
        causal_CC = x_BSCD.new_full((tokens, tokens), float("-inf")).triu(1)
        x_BSCD = self.dropout(x_BSCD)
        for layer, kv in zip(self._decoder_layers(), memory, strict=True):
            x_BSCD = layer(x_BSCD, causal_CC, kv, cross_bias)
        return self.decoder_norm(x_BSCD)

    def step(
        self, x_BWD: Tensor, past: list[list[KeyValue]], memory: list[KeyValue], cross_bias: Tensor | None
    ) -> tuple[Tensor, list[KeyValue]]:
        """The next token of each beam; `past` has for each token before it the entries of all layers."""
        entries = []
        for index, (layer, kv) in enumerate(zip(self._decoder_layers(), memory, strict=True)):
            x_BWD, new = layer.step(x_BWD, [token[index] for token in past], kv, cross_bias)
            entries.append(new)
        return self.decoder_norm(x_BWD), entries

    def _encoder_layers(self) -> list[EncoderLayer]:
        return [layer for layer in self.encoder if isinstance(layer, EncoderLayer)]

    def _decoder_layers(self) -> list[DecoderLayer]:
        return [layer for layer in self.decoder if isinstance(layer, DecoderLayer)]
