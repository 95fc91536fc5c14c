"""Transformer blocks: pre-norm, RMSNorm, no biases, a width of attention independent of the width of the residual.

After T5 (Raffel et al. 2020, section 2.1), with positions as a learned bias by relative distance. The blocks know
nothing of items: masks and distances come in as one additive bias.

Letters: B batch, T query tokens, S key tokens, D width, H heads, A attention width (all heads), F feed-forward width.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class KeyValue(NamedTuple):
    """Projected keys and values, each (B, H, S, A/H)."""

    key_BHSA: Tensor
    value_BHSA: Tensor


class Attention(nn.Module):
    """Multi-head scaled-dot-product attention; keys and values are projected apart so that they can be cached."""

    def __init__(self, embedding_dim: int, attn_dim: int, num_heads: int):
        super().__init__()
        self.num_heads = num_heads
        self.query = nn.Linear(embedding_dim, attn_dim, bias=False)
        self.key_value = nn.Linear(embedding_dim, 2 * attn_dim, bias=False)
        self.output = nn.Linear(attn_dim, embedding_dim, bias=False)

    def project(self, x_BSD: Tensor) -> KeyValue:
        """Keys and values of `x_BSD`."""
        key, value = self.key_value(x_BSD).chunk(2, dim=-1)
        return KeyValue(self._split(key), self._split(value))

    def forward(self, x_BTD: Tensor, kv: KeyValue, bias: Tensor | None = None, is_causal: bool = False) -> Tensor:
        """Attend from `x_BTD` to `kv`; `bias` is added to the scores and broadcasts to (B, H, T, S)."""
        query_BHTA = self._split(self.query(x_BTD))
        mixed = F.scaled_dot_product_attention(query_BHTA, *kv, attn_mask=bias, is_causal=is_causal)
        return self.output(mixed.transpose(1, 2).flatten(2))

    def weights(self, x_BTD: Tensor, kv: KeyValue, bias: Tensor | None = None) -> Tensor:
        """The attention weights (B, H, T, S) themselves; rows sum to one."""
        query_BHTA = self._split(self.query(x_BTD))
        scores = query_BHTA @ kv.key_BHSA.transpose(-1, -2) * query_BHTA.shape[-1] ** -0.5
        return (scores if bias is None else scores + bias).softmax(-1)

    def _split(self, x_BTA: Tensor) -> Tensor:
        return x_BTA.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)


class FeedForward(nn.Sequential):
    """Two matrices with a ReLU between them."""

    def __init__(self, embedding_dim: int, feedforward_dim: int):
        super().__init__(
            nn.Linear(embedding_dim, feedforward_dim, bias=False),
            nn.ReLU(),
            nn.Linear(feedforward_dim, embedding_dim, bias=False),
        )


class EncoderLayer(nn.Module):
    """Self-attention and feed-forward, each behind a norm and added to the residual."""

    def __init__(self, embedding_dim: int, attn_dim: int, num_heads: int, feedforward_dim: int, dropout: float):
        super().__init__()
        self.attention_norm = nn.RMSNorm(embedding_dim)
        self.attention = Attention(embedding_dim, attn_dim, num_heads)
        self.feedforward_norm = nn.RMSNorm(embedding_dim)
        self.feedforward = FeedForward(embedding_dim, feedforward_dim)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x_BTD: Tensor, bias: Tensor | None) -> Tensor:
        normed = self.attention_norm(x_BTD)
        x_BTD = x_BTD + self.dropout(self.attention(normed, self.attention.project(normed), bias))
        return x_BTD + self.dropout(self.feedforward(self.feedforward_norm(x_BTD)))


class DecoderLayer(nn.Module):
    """Causal self-attention, attention to the encoder, feed-forward."""

    def __init__(self, embedding_dim: int, attn_dim: int, num_heads: int, feedforward_dim: int, dropout: float):
        super().__init__()
        self.self_norm = nn.RMSNorm(embedding_dim)
        self.self_attention = Attention(embedding_dim, attn_dim, num_heads)
        self.cross_norm = nn.RMSNorm(embedding_dim)
        self.cross_attention = Attention(embedding_dim, attn_dim, num_heads)
        self.feedforward_norm = nn.RMSNorm(embedding_dim)
        self.feedforward = FeedForward(embedding_dim, feedforward_dim)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x_BSCD: Tensor, memory: KeyValue, cross_bias: Tensor | None) -> Tensor:
        """All C tokens of S independent targets a row: (B, S, C, D) -> (B, S, C, D).

        Self-attention stays inside a target; attention to the encoder is one product over all S*C tokens, so that
        `cross_bias` broadcasts to (B, H, S*C, M).
        """
        shape = x_BSCD.shape
        x = x_BSCD.flatten(0, 1)
        normed = self.self_norm(x)
        x = x + self.dropout(self.self_attention(normed, self.self_attention.project(normed), is_causal=True))
        x = x.view(shape[0], shape[1] * shape[2], shape[3])
        x = x + self.dropout(self.cross_attention(self.cross_norm(x), memory, cross_bias))
        x = x + self.dropout(self.feedforward(self.feedforward_norm(x)))
        return x.view(shape)

    def step(
        self, x_BWD: Tensor, past: KeyValue | None, memory: KeyValue, cross_bias: Tensor | None
    ) -> tuple[Tensor, KeyValue]:
        """One new token for each of W beams: (B, W, D) -> (B, W, D) and the keys and values so far.

        `past` holds (B*W, H, steps, A/H). All beams of a row share the `memory` of their row.
        """
        batch, beams, width = x_BWD.shape
        x = x_BWD.reshape(batch * beams, 1, width)
        normed = self.self_norm(x)
        new = self.self_attention.project(normed)
        if past is not None:
            new = KeyValue(*(torch.cat([old, one], dim=2) for old, one in zip(past, new, strict=True)))
        x = (x + self.self_attention(normed, new)).view(batch, beams, width)
        x = x + self.cross_attention(self.cross_norm(x), memory, cross_bias)
        x = x + self.feedforward(self.feedforward_norm(x))
        return x, new
