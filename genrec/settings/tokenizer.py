"""`embeddings:` item text to vector (`genrec.data.text`), `tokenizer:` vector to semantic ID (`genrec.models`)."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from genrec.settings.base import NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, Section


class EmbeddingsConfig(Section):
    """Item text -> vector."""

    encoder: Literal["lsa", "sentence_transformer", "npy"] = "lsa"
    "`lsa`: TF-IDF and truncated SVD, no download; `npy`: a precomputed (num_items, dim) array"
    dim: PositiveInt = 64
    "width of the vectors (`lsa` only)"
    path: str | None = None
    "the array's file (`npy` only); relative to `dataset.dataset_folder`"
    model: str = "sentence-transformers/sentence-t5-base"
    "name or local folder of a sentence-transformers model (`sentence_transformer` only; extra `text`)"
    batch_size: PositiveInt = 64
    "texts encoded at once (`sentence_transformer` only)"

    @model_validator(mode="after")
    def _path_when_needed(self) -> EmbeddingsConfig:
        if self.encoder == "npy" and not self.path:
            raise ValueError("encoder 'npy' needs a path: the .npy file with one row an item")
        return self


class RqVaeConfig(Section):
    """The residual-quantised autoencoder (`genrec.models.rqvae`); read when `tokenizer.kind` is `rqvae`."""

    hidden_dims: list[PositiveInt] = [256, 128]
    latent_dim: PositiveInt = 32
    commitment_weight: NonNegativeFloat = 0.25
    epochs: PositiveInt = 200
    learning_rate: PositiveFloat = 1e-3
    weight_decay: NonNegativeFloat = 1e-4
    batch_size: PositiveInt = 1024
    gradient: Literal["straight_through", "rotation", "gumbel"] = "straight_through"
    "how gradients pass the quantiser"
    gumbel_temperature: PositiveFloat = 0.2
    "of the softmax over codes (`gumbel` only)"
    sinkhorn_levels: list[PositiveInt] = []
    "levels (1 is the first) whose codes are balanced over each batch while training"
    sinkhorn_epsilon: PositiveFloat = 0.003
    sinkhorn_iterations: PositiveInt = 50
    dead_code_epochs: NonNegativeInt = 0
    "codes that no item had for this many epochs move to badly served items; 0 leaves them"


class TokenizerConfig(Section):
    """Item vector -> semantic ID."""

    kind: Literal["rqvae", "rkmeans"] = "rqvae"
    num_item_embeddings: Annotated[int, Field(ge=2)] = 256
    "codebook size K of every level"
    sem_id_dim: Annotated[int, Field(ge=1, le=8)] = 3
    "number of levels before the collision code"
    standardise: bool = True
    "give every input feature mean 0 and deviation 1 over the catalogue"
    collisions: Literal["append", "reassign", "none"] = "append"
    "items with one tuple: one more code, a free tuple near by, or left as they are (hits then count by list place)"
    seed: int = 0
    pretrained_rqvae_path: str | None = None
    "a trained tokenizer to use instead of training one: its checkpoint, stage folder or bundle"
    rqvae: RqVaeConfig = RqVaeConfig()

    @model_validator(mode="after")
    def _levels_exist(self) -> TokenizerConfig:
        beyond = [level for level in self.rqvae.sinkhorn_levels if level > self.sem_id_dim]
        if beyond:
            raise ValueError(f"rqvae.sinkhorn_levels has level {beyond[0]}, but sem_id_dim is {self.sem_id_dim}")
        return self
