"""`train:` how TIGER is trained (`genrec.trainers`)."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from genrec.settings.base import (
    Fraction,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    Probability,
    Section,
)


class TrainConfig(Section):
    """How TIGER is trained."""

    epochs: PositiveInt = 10
    learning_rate: PositiveFloat = 1e-3
    batch_size: Annotated[int, Field(gt=0, le=1_000_000)] = 256
    "targets (history, next item) that one backward pass holds, over all workers"
    gradient_accumulate_every: PositiveInt = 1
    "batches whose gradients are added up before the optimizer steps"
    weight_decay: NonNegativeFloat = 0.05
    optimizer: Literal["adamw", "muon"] = "adamw"
    "`muon`: orthogonalised momentum for the blocks' matrices, AdamW for the rest"
    schedule: Literal["constant", "cosine", "linear", "inverse_sqrt"] = "cosine"
    "of the learning rate after warm-up; cosine and linear end at zero"
    warmup_steps: NonNegativeInt = 100
    label_smoothing: Fraction = 0.1
    clip_norm: PositiveFloat = 1.0
    mixed_precision_type: Literal["no", "bf16", "fp16"] = "no"
    "autocast of the forward pass; `fp16` scales the loss"
    compile: bool = False
    "torch.compile the model: slow to start, for long runs on a GPU"
    subsample: bool = False
    "one target a user and epoch, drawn anew, instead of all of them"
    augmentation: bool = False
    "change training histories at random, by the three probabilities below; targets stay"
    crop_probability: Probability = 0.2
    "keep only a random run of recent items"
    mask_probability: Probability = 0.1
    "hide each history item with this probability"
    reorder_probability: Probability = 0.1
    "shuffle a short random run of the history"
    fit_on: Literal["train", "train+validation"] = "train"
    "`train+validation`: the last training of a config that was chosen without; keeps its last epoch, chooses nothing"
    max_users: PositiveInt | None = None
    "train on this many users, drawn by seed 0; all when null"
    eval_every: PositiveInt = 1
    "epochs between two validations; the last epoch is always validated"
    patience: PositiveInt | None = None
    "stop after this many validations without a better one; null trains all epochs"
    checkpoint_interval: NonNegativeFloat = 20.0
    "seconds that must pass before the next checkpoint is written at the end of an epoch"

    @model_validator(mode="after")
    def _augmentation_does_something(self) -> TrainConfig:
        if self.augmentation and not (self.crop_probability or self.mask_probability or self.reorder_probability):
            raise ValueError("augmentation is on, but crop_, mask_ and reorder_probability are all 0")
        return self

    @model_validator(mode="after")
    def _nothing_is_chosen_by_what_was_learnt(self) -> TrainConfig:
        if self.refit and self.patience is not None:
            raise ValueError("patience goes by validation, which fit_on: train+validation trains on; set epochs")
        return self

    @property
    def refit(self) -> bool:
        """Whether validation items are learnt, so that only the test split says how good the model is."""
        return self.fit_on != "train"
