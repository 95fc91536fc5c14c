"""TIGER: an encoder-decoder that generates the semantic ID of a user's next item (Rajput et al. 2023, section 3.2).

Two forms of the encoder share everything else. `bidirectional` reads one history and gives one target, as in the
paper. `item_causal` lets an item see only itself and earlier items, so that one pass over a user's sequence gives every
position its target; the decoder's attention to the encoder stops before the target. With `encoder_tokens: item` an item
enters the encoder as the sum of its codes' embeddings instead of one token a code.

Positions are relative: a learned bias by the number of items between two tokens, and by the age of a history item.
Weights start as torch starts them, embeddings with unit variance: small embeddings are drowned by the blocks' random
output and learn more slowly.

Letters: B batch, L items of a window, I items of a history, S targets a row, C codes an item, M encoder tokens (I or
I*C), D width, H heads, W beams, N items of the catalogue, K codebook size.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from genrec.config import TigerConfig
from genrec.modules.embeddings import SemIdEmbedding
from genrec.modules.transformer import DecoderLayer, EncoderLayer, KeyValue


class Window(NamedTuple):
    """Equally long runs of items: every position from `first_target` on is a target, its history what stands before."""

    items_BL: Tensor
    first_target: int


class Memory(NamedTuple):
    """What the decoder needs of a history: keys and values per layer, and the bias by the items' age."""

    layers: list[KeyValue]
    bias_1HTM: Tensor


class Tiger(nn.Module):
    """`config`, the catalogue's codes (N, C) and the number of codes of each level."""

    codes_NC: Tensor

    def __init__(self, config: TigerConfig, codes_NC: Tensor, level_sizes: Sequence[int]):
        super().__init__()
        if codes_NC.shape[1] != len(level_sizes):
            raise ValueError(f"codes have {codes_NC.shape[1]} levels, level_sizes {len(level_sizes)}")
        self.config = config
        self.level_sizes = tuple(level_sizes)
        self.register_buffer("codes_NC", codes_NC.long())
        width, heads, half = config.embedding_dim, config.num_heads, config.n_layers // 2
        block = (width, config.attn_dim, heads, config.feedforward_dim, config.dropout)
        self.item_embedding = SemIdEmbedding(level_sizes, width)
        self.start = nn.Parameter(torch.randn(width))
        self.dropout = nn.Dropout(config.dropout)
        self.encoder = nn.ModuleList(EncoderLayer(*block) for _ in range(half))
        self.encoder_norm = nn.RMSNorm(width)
        self.decoder = nn.ModuleList(DecoderLayer(*block) for _ in range(half))
        self.decoder_norm = nn.RMSNorm(width)
        self.heads = nn.ModuleList(nn.Linear(width, size, bias=False) for size in level_sizes)
        self.encoder_bias = nn.Parameter(torch.zeros(2 * config.max_seq_len + 1, heads))
        self.age_bias = nn.Parameter(torch.zeros(config.max_seq_len + 1, heads))

    # ---------------------------------------------------------------- encoder

    @property
    def tokens_per_item(self) -> int:
        return len(self.level_sizes) if self.config.encoder_tokens == "codes" else 1

    def encode(self, history_BI: Tensor) -> Tensor:
        """Items (B, I), oldest first -> encoder output (B, M, D). More than `max_seq_len` items are an error."""
        items = history_BI.shape[1]
        if not 0 < items <= self.config.max_seq_len:
            raise ValueError(f"a history of {items} items; expected 1 to max_seq_len={self.config.max_seq_len}")
        x_BICD = self.item_embedding(self.codes_NC[history_BI])
        if self.config.encoder_tokens == "item":
            x_BMD = x_BICD.sum(2) * len(self.level_sizes) ** -0.5
        else:
            x_BMD = x_BICD.flatten(1, 2)
        x_BMD = self.dropout(x_BMD)
        bias = self._encoder_bias(items)
        for layer in self.encoder:
            x_BMD = layer(x_BMD, bias)
        return self.encoder_norm(x_BMD)

    def _encoder_bias(self, items: int) -> Tensor:
        """(1, H, M, M): the bias by distance in items; minus infinity where `item_causal` forbids to look."""
        position = torch.arange(items, device=self.encoder_bias.device)
        distance_II = position[:, None] - position[None, :]
        bias_HII = self.encoder_bias[distance_II + self.config.max_seq_len].permute(2, 0, 1)
        if self.config.encoder == "item_causal":
            bias_HII = bias_HII.masked_fill(distance_II < 0, float("-inf"))
        per_item = self.tokens_per_item
        return bias_HII.repeat_interleave(per_item, 1).repeat_interleave(per_item, 2).unsqueeze(0)

    def _age_bias(self, items: int, first_target: int, tokens: int) -> Tensor:
        """(1, H, S*tokens, M): by the age of each history item as seen from targets `first_target` .. `items`."""
        target_S = torch.arange(first_target, items + 1, device=self.age_bias.device)
        age_SI = target_S[:, None] - torch.arange(items, device=self.age_bias.device)[None, :]
        bias_HSI = self.age_bias[age_SI.clamp(min=0)].permute(2, 0, 1).masked_fill(age_SI < 1, float("-inf"))
        return bias_HSI.repeat_interleave(tokens, 1).repeat_interleave(self.tokens_per_item, 2).unsqueeze(0)

    # ---------------------------------------------------------------- training

    def forward(self, window: Window) -> Tensor:
        """Cross-entropy of the targets' codes: the mean over the C levels, the sum over the targets."""
        return self.loss(window, label_smoothing=0.0)

    def loss(self, window: Window, label_smoothing: float) -> Tensor:
        """As `forward`, with label smoothing. A sum, so that batches and ranks of any size add up."""
        logits = self.target_logits(window)
        target_RC = self._target_codes(window).flatten(0, 1)
        losses = [
            F.cross_entropy(scores, target_RC[:, level], reduction="sum", label_smoothing=label_smoothing)
            for level, scores in enumerate(logits)
        ]
        return torch.stack(losses).sum() / len(losses)

    def target_logits(self, window: Window) -> list[Tensor]:
        """Teacher-forced logits of every target: a list over levels of (B*S, K of the level)."""
        if self.config.encoder == "bidirectional" and window.first_target != window.items_BL.shape[1] - 1:
            raise ValueError("a bidirectional encoder gives one target a row: the last item of the window")
        history_BI = window.items_BL[:, :-1]
        memory = self.remember(self.encode(history_BI), window.first_target, len(self.level_sizes))
        hidden_BSCD = self._decode(self._target_codes(window), memory)
        return [head(hidden_BSCD[:, :, level].flatten(0, 1)) for level, head in enumerate(self.heads)]

    def _target_codes(self, window: Window) -> Tensor:
        return self.codes_NC[window.items_BL[:, window.first_target :]]

    def _decode(self, codes_BSC: Tensor, memory: Memory) -> Tensor:
        embedded_BSCD = self.item_embedding(codes_BSC)[:, :, :-1]
        start = self.start.expand(*codes_BSC.shape[:2], 1, -1)
        x_BSCD = self.dropout(torch.cat([start, embedded_BSCD], dim=2))
        for layer, kv in zip(self.decoder, memory.layers, strict=True):
            x_BSCD = layer(x_BSCD, kv, memory.bias_1HTM)
        return self.decoder_norm(x_BSCD)

    def _decoder_layers(self) -> list[DecoderLayer]:
        return [layer for layer in self.decoder if isinstance(layer, DecoderLayer)]

    # ---------------------------------------------------------------- decoding

    def remember(self, encoded_BMD: Tensor, first_target: int | None = None, tokens: int = 1) -> Memory:
        """Keys, values and bias of an encoded history, computed once; by default for the item after the last."""
        items = encoded_BMD.shape[1] // self.tokens_per_item
        layers = [layer.cross_attention.project(encoded_BMD) for layer in self._decoder_layers()]
        return Memory(layers, self._age_bias(items, items if first_target is None else first_target, tokens))

    def decode_step(
        self, code_BW: Tensor | None, level: int, past: list[KeyValue] | None, memory: Memory, batch: int
    ) -> tuple[Tensor, list[KeyValue]]:
        """Log-probabilities (B, W, K) of the codes of `level`, given the code of the level before (None at level 0)."""
        x_BWD = self.start.expand(batch, 1, -1) if code_BW is None else self.item_embedding.level(code_BW, level - 1)
        cache: list[KeyValue] = []
        for index, (layer, kv) in enumerate(zip(self._decoder_layers(), memory.layers, strict=True)):
            x_BWD, new = layer.step(x_BWD, past[index] if past else None, kv, memory.bias_1HTM)
            cache.append(new)
        logits = self.heads[level](self.decoder_norm(x_BWD))
        return logits.log_softmax(-1), cache
