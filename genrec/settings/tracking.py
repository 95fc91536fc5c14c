"""`tracking:` where a run's curves go besides its own files (`genrec.tracking`)."""

from __future__ import annotations

from genrec.settings.base import PositiveInt, Section


class TrackingConfig(Section):
    """Experiment trackers; none by default. No key belongs here: it comes from the environment or netrc."""

    wandb_logging: bool = False
    "log to Weights & Biases (extra `wandb`); offline when there is no key or network"
    wandb_project: str = "genrec"
    wandb_log_interval: PositiveInt = 100
    "optimizer steps between two points of the training curve"
    tensorboard: bool = False
    "write TensorBoard event files"
