"""`tracking:` where a run's curves go besides its own files (`genrec.tracking`)."""

from __future__ import annotations

from pydantic import Field

from genrec.settings.base import PositiveInt, Section


class TrackingConfig(Section):
    """Experiment trackers; none by default. No key belongs here: it comes from the environment or netrc."""

    wandb_logging: bool = False
    "log to Weights & Biases (extra `wandb`); offline when there is no key or network"
    wandb_project: str = "genrec"
    wandb_tags: list[str] = Field(default_factory=list)
    "tags of every run"
    wandb_artifact: bool = False
    "log the finished bundle, of a sweep that of its winner, as an artifact"
    wandb_log_interval: PositiveInt = 100
    "optimizer steps between two points of the training curve"
    tensorboard: bool = False
    "write TensorBoard event files"
