"""`evaluation:` how a model is measured (`genrec.evaluation`)."""

from __future__ import annotations

from typing import Literal

from pydantic import model_validator

from genrec.errors import nearest
from genrec.settings.base import PositiveInt, Section

METRICS = ("recall", "ndcg", "mrr", "coverage")


class EvaluationConfig(Section):
    """How a model is measured."""

    ks: list[PositiveInt] = [5, 10]
    beam_size: PositiveInt = 20
    monitor: str = "ndcg@10"
    "the validation metric that decides: which epoch is kept, which trial is best"
    seen: Literal["keep", "exclude"] = "keep"
    "whether items of the history may be recommended"
    blend: Literal["none", "item_to_item"] = "none"
    "`item_to_item` adds its scores to the model's probabilities; the weight is chosen on validation"
    blend_fit: Literal["train", "train+validation"] = "train"
    "what item-to-item counts when it is blended in recommend; `train.fit_on` of the model says it where that is set"
    max_users: PositiveInt | None = None
    "validate on this many users, drawn by seed 0; the test split always uses all"
    batch_size: PositiveInt = 256

    @model_validator(mode="after")
    def _beam_covers_k(self) -> EvaluationConfig:
        if not self.ks or max(self.ks) > self.beam_size:
            raise ValueError(f"beam_size ({self.beam_size}) must be at least the largest of ks ({self.ks})")
        known = [f"{name}@{k}" for name in METRICS for k in self.ks] + ["loss", "validation_loss"]
        if self.monitor not in known:
            raise ValueError(f"monitor {self.monitor!r} is not measured{nearest(self.monitor, known)}")
        return self
