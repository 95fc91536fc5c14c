"""The sections of a RunConfig, one file for each part of the library that they configure.

They stand apart from the code they configure so that a bad config is refused before torch or NumPy is imported.
"""

from genrec.settings.base import Section
from genrec.settings.dataset import (
    AmazonConfig,
    DatasetConfig,
    MovieLensConfig,
    SyntheticConfig,
    TableConfig,
)
from genrec.settings.evaluation import EvaluationConfig
from genrec.settings.tiger import TigerConfig
from genrec.settings.tokenizer import EmbeddingsConfig, RqVaeConfig, TokenizerConfig
from genrec.settings.tracking import TrackingConfig
from genrec.settings.training import TrainConfig

__all__ = [
    "AmazonConfig",
    "DatasetConfig",
    "EmbeddingsConfig",
    "EvaluationConfig",
    "MovieLensConfig",
    "RqVaeConfig",
    "Section",
    "SyntheticConfig",
    "TableConfig",
    "TigerConfig",
    "TokenizerConfig",
    "TrackingConfig",
    "TrainConfig",
]
