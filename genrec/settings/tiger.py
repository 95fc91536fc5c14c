"""`tiger:` the encoder-decoder over semantic IDs (`genrec.models.tiger`)."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from genrec.settings.base import Fraction, NonNegativeInt, PositiveInt, Section


class TigerConfig(Section):
    """The encoder-decoder over semantic IDs."""

    embedding_dim: PositiveInt = 128
    attn_dim: PositiveInt = 128
    "width of all heads together; need not equal `embedding_dim`"
    num_heads: PositiveInt = 4
    feedforward_dim: PositiveInt = 512
    n_layers: Annotated[int, Field(ge=2)] = 4
    "encoder and decoder layers together; half each"
    dropout: Fraction = 0.1
    max_seq_len: Annotated[int, Field(ge=1, le=1024)] = 20
    "most recent items of a history that the encoder reads"
    encoder: Literal["bidirectional", "item_causal"] = "item_causal"
    "`item_causal` trains every position of a user in one pass"
    encoder_tokens: Literal["codes", "item"] = "item"
    "`codes`: one encoder token a code, as in the paper; `item`: their sum, one token an item"
    positions: Literal["relative", "learned"] = "relative"
    "`relative`: a learned bias by distance, as in T5; `learned`: a vector a position, added to the input"
    num_user_embeddings: NonNegativeInt = 0
    "buckets that user ids are hashed into, one token before the history; 0: no user token"

    @model_validator(mode="after")
    def _consistent(self) -> TigerConfig:
        if self.attn_dim % self.num_heads:
            raise ValueError(f"attn_dim ({self.attn_dim}) must be a multiple of num_heads ({self.num_heads})")
        if self.n_layers % 2:
            raise ValueError(f"n_layers ({self.n_layers}) is split between encoder and decoder and must be even")
        if self.positions == "learned" and self.encoder == "item_causal":
            raise ValueError("positions 'learned' needs encoder 'bidirectional': item_causal reads relative distances")
        return self
