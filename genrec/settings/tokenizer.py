"""`embeddings:` item text to vector (`genrec.data.text`), `tokenizer:` vector to semantic ID (`genrec.models`)."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from genrec.settings.base import (
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    Probability,
    Section,
)


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
    cooccurrence_dim: NonNegativeInt = 0
    "width of vectors of who is consumed near whom, from training items, set beside those of the texts; 0: texts alone"
    cooccurrence_weight: PositiveFloat = 1.0
    "spread of that part, as a multiple of the texts'"

    @model_validator(mode="after")
    def _path_when_needed(self) -> EmbeddingsConfig:
        if self.encoder == "npy" and not self.path:
            raise ValueError("encoder 'npy' needs a path: the .npy file with one row an item")
        return self


class RqVaeConfig(Section):
    """The residual-quantised autoencoder (`genrec.models.rqvae`); read when `tokenizer.kind` is `rqvae`."""

    hidden_dims: list[PositiveInt] = [256, 128]
    latent_dim: PositiveInt = 64
    commitment_weight: NonNegativeFloat = 1.0
    "how much the latents are drawn to their codes; papers have .25, which leaves more items with one tuple"
    epochs: PositiveInt = 100
    learning_rate: PositiveFloat = 3e-3
    schedule: Literal["constant", "cosine"] = "cosine"
    "of the learning rate; cosine ends at zero"
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
    dead_code_epochs: NonNegativeInt = 10
    "codes that no item had for this many epochs move to badly served items; 0 leaves them"


class TokenizerConfig(Section):
    """Item vector -> semantic ID."""

    kind: Literal["rqvae", "rkmeans"] = "rqvae"
    num_item_embeddings: Annotated[int, Field(ge=2)] = 256
    "codebook size K of every level"
    sem_id_dim: Annotated[int, Field(ge=1, le=8)] = 3
    "number of levels before the collision code"
    standardise: bool = True
    "give every input feature mean 0 and deviation 1 over the catalogue; off, features keep their relative sizes"
    pca_dim: PositiveInt | None = None
    "principal components that are kept of the input; null keeps the features as they are"
    pca_whitening: Probability = 0.5
    "0 keeps the components' variances, 1 makes them equal (`pca_dim` only)"
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
