"""What a config costs by arithmetic: parameters, floating-point operations, memory. No torch: constraints ask it too.

The formulas follow `genrec.models.tiger`; the tests hold them against the model itself. A multiply-add counts as two
operations and training as three forward passes. The collision level, which the catalogue decides, is counted with
`COLLISION_CODES` codes.

Letters: D width, A attention width, F feed-forward width, H heads, K codebook size, C codes an item, I items of a
history, M encoder tokens, S targets, T decoder tokens, W beams, N items, E input width.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

COLLISION_CODES = 8
BYTES = 4
QUANTITIES = ("cost.parameters", "cost.memory_gb")
"names that a constraint may use besides settings"


@dataclass(frozen=True)
class Shape:
    """The sizes of a TIGER that its cost depends on."""

    width: int
    attention: int
    feedforward: int
    heads: int
    layers: int
    "of the encoder, and as many of the decoder"
    level_sizes: tuple[int, ...]
    max_items: int
    "the longest history"
    tokens_per_item: int
    user_buckets: int
    causal: bool
    learned_positions: bool

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> Shape:
        """From a config as a nested dict."""
        tiger, tokenizer = config["tiger"], config["tokenizer"]
        levels = [tokenizer["num_item_embeddings"]] * tokenizer["sem_id_dim"]
        if tokenizer["collisions"] == "append":
            levels.append(COLLISION_CODES)
        return cls(
            width=tiger["embedding_dim"],
            attention=tiger["attn_dim"],
            feedforward=tiger["feedforward_dim"],
            heads=tiger["num_heads"],
            layers=tiger["n_layers"] // 2,
            level_sizes=tuple(levels),
            max_items=tiger["max_seq_len"],
            tokens_per_item=len(levels) if tiger["encoder_tokens"] == "codes" else 1,
            user_buckets=tiger["num_user_embeddings"],
            causal=tiger["encoder"] == "item_causal",
            learned_positions=tiger["positions"] == "learned",
        )

    @property
    def codes(self) -> int:
        return len(self.level_sizes)

    def encoder_tokens(self, items: int) -> int:
        return items * self.tokens_per_item + (self.user_buckets > 0)


def parameters(shape: Shape) -> int:
    """Trainable numbers of a TIGER."""
    attention = 4 * shape.width * shape.attention
    feedforward = 2 * shape.width * shape.feedforward
    encoder = shape.layers * (attention + feedforward + 2 * shape.width)
    decoder = shape.layers * (2 * attention + feedforward + 3 * shape.width)
    tables = 2 * sum(shape.level_sizes) * shape.width + shape.user_buckets * shape.width
    return encoder + decoder + tables + 3 * shape.width + _position_parameters(shape)


def _position_parameters(shape: Shape) -> int:
    """A vector an age, or the biases by distance and by age."""
    if shape.learned_positions:
        return shape.max_items * shape.width
    return (3 * shape.max_items + 1) * shape.heads


def training_flops(shape: Shape, items: int, targets: int) -> float:
    """Operations of forward and backward for one window: a history of `items` items with `targets` targets."""
    tokens = targets * shape.codes
    memory = shape.encoder_tokens(items)
    heads = 2 * targets * shape.width * sum(shape.level_sizes)
    return 3.0 * (_encoder_flops(shape, memory) + _decoder_flops(shape, tokens, shape.codes, memory) + heads)


def decoding_flops(shape: Shape, items: int, beams: int) -> float:
    """Operations of one recommendation by beam search: the encoder once, then every level for all beams."""
    memory = shape.encoder_tokens(items)
    total = _encoder_flops(shape, memory) + shape.layers * 4.0 * memory * shape.width * shape.attention
    for level, size in enumerate(shape.level_sizes):
        tokens = beams if level else 1
        total += _decoder_flops(shape, tokens, level + 1, memory, project=False) + 2 * tokens * shape.width * size
    return total


def _encoder_flops(shape: Shape, tokens: int) -> float:
    matrices = 4 * shape.width * shape.attention + 2 * shape.width * shape.feedforward
    return shape.layers * (2.0 * tokens * matrices + 4.0 * tokens * tokens * shape.attention)


def _decoder_flops(shape: Shape, tokens: int, own: int, memory: int, project: bool = True) -> float:
    """`own`: tokens that one token's self-attention sees."""
    matrices = 6 * shape.width * shape.attention + 2 * shape.width * shape.feedforward
    attention = 4.0 * tokens * (own + memory) * shape.attention
    projected = 4.0 * memory * shape.width * shape.attention if project else 0.0
    return shape.layers * (2.0 * tokens * matrices + attention + projected)


def tokenizer_flops(config: Mapping[str, Any], num_items: int, input_dim: int) -> float:
    """Operations of one pass over the catalogue: an epoch of the RQ-VAE, or a round of k-means in every level."""
    tokenizer = config["tokenizer"]
    codebooks = tokenizer["sem_id_dim"] * tokenizer["num_item_embeddings"]
    if tokenizer["kind"] != "rqvae":
        return 2.0 * num_items * codebooks * input_dim
    widths = [input_dim, *tokenizer["rqvae"]["hidden_dims"], tokenizer["rqvae"]["latent_dim"]]
    weights = 2 * sum(a * b for a, b in zip(widths[:-1], widths[1:], strict=True))
    return num_items * (6.0 * weights + 2.0 * codebooks * tokenizer["rqvae"]["latent_dim"])


def memory_bytes(shape: Shape, batch_size: int, half: bool = False) -> float:
    """Weights, gradients, Adam's two moments and the activations of one batch of the longest histories; without the
    process itself."""
    targets = shape.max_items if shape.causal else 1
    rows = max(1.0, batch_size / targets)
    memory, tokens = shape.encoder_tokens(shape.max_items), targets * shape.codes
    encoder = memory * (8 * shape.width + 4 * shape.attention + 2 * shape.feedforward + 2 * shape.heads * memory)
    seen = shape.heads * (shape.codes + memory)
    decoder = tokens * (12 * shape.width + 7 * shape.attention + 2 * shape.feedforward + 2 * seen)
    logits = 3 * targets * sum(shape.level_sizes)
    activations = rows * (shape.layers * (encoder + decoder) + logits)
    return 4.0 * BYTES * parameters(shape) + activations * (BYTES / 2 if half else BYTES)


def checkpoint_bytes(shape: Shape) -> int:
    """Of a checkpoint to go on from: weights and Adam's two moments."""
    return 3 * BYTES * parameters(shape)


def quantity(name: str, config: Mapping[str, Any]) -> float:
    """One of `QUANTITIES` of a config as a nested dict."""
    shape = Shape.of(config)
    if name == "cost.parameters":
        return parameters(shape)
    half = config["train"]["mixed_precision_type"] != "no"
    return memory_bytes(shape, config["train"]["batch_size"], half) / 1e9
