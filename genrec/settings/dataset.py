"""`dataset:` where interactions and item texts come from, and how they are filtered and split (`genrec.data`)."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from genrec.settings.base import Fraction, NonNegativeInt, PositiveInt, Probability, Section


class SyntheticConfig(Section):
    """Size of the made-up catalogue with a known truth (`genrec.data.synthetic`)."""

    num_users: PositiveInt = 1500
    num_items: Annotated[int, Field(ge=10, le=1_000_000)] = 300
    num_categories: Annotated[int, Field(ge=2)] = 20
    "leaves of the taxonomy; items are spread over them by a Zipf law"
    mean_length: Annotated[float, Field(ge=5)] = 9.0
    "mean number of interactions of a user; the shortest has 5"
    zipf: Annotated[float, Field(ge=0)] = 0.8
    "exponent of item popularity inside a category"
    stay: Probability = 0.5
    "probability that the next item is of the same category as the last"
    category_fanout: PositiveInt = 4
    "other categories that may follow a category"
    successors: PositiveInt = 4
    "items that follow an item in particular, in each category that may come next"
    successor_share: Probability = 0.5
    "probability that the next item is such a successor; else it is drawn by popularity in its category"
    seed: int = 0

    @model_validator(mode="after")
    def _enough_items(self) -> SyntheticConfig:
        if self.num_categories > self.num_items:
            raise ValueError(f"num_categories ({self.num_categories}) must be at most num_items ({self.num_items})")
        return self


class AmazonConfig(Section):
    """Amazon 2014 5-core reviews (`genrec.data.amazon`): `reviews_X_5.json.gz` and `meta_X.json.gz`."""

    category: str = "Beauty"
    "X in the files' names, such as Beauty, Sports_and_Outdoors, Toys_and_Games"
    download: bool = False
    "fetch missing files over https into `dataset_folder`; off, they must be there"


class MovieLensConfig(Section):
    """A MovieLens folder (`genrec.data.movielens`)."""

    edition: Literal["100k", "latest-small", "1m", "32m"] = "latest-small"
    download: bool = False
    "fetch and unpack the archive into `dataset_folder` when it is not there"


class TableConfig(Section):
    """Any CSV or Parquet table of interactions and one of items (`genrec.data.tables`)."""

    interactions: str = "interactions.csv"
    "file with a row an interaction; relative to `dataset_folder`"
    items: str | None = None
    "file with a row an item; without one the catalogue is the items of the interactions, their ids their texts"
    user_column: str = "user"
    item_column: str = "item"
    "in both files"
    timestamp_column: str | None = "timestamp"
    "null: rows are in time order already"
    title_column: str = "title"
    text_columns: list[str] = []
    "columns whose values make the item's text after its title; all other columns of the item table when empty"


class DatasetConfig(Section):
    """Where interactions and item texts come from, and how they are filtered and split."""

    source: Literal["synthetic", "sequential", "amazon", "movielens", "table"] = "synthetic"
    "`sequential` reads `sequential_data.txt` and `items.jsonl`"
    dataset_folder: str | None = None
    "folder of the source's files; `synthetic` needs none"
    synthetic: SyntheticConfig = SyntheticConfig()
    amazon: AmazonConfig = AmazonConfig()
    movielens: MovieLensConfig = MovieLensConfig()
    table: TableConfig = TableConfig()
    k_core: NonNegativeInt = 0
    "keep users and items with at least this many interactions, repeated until stable; 0 keeps all"
    min_history: Annotated[int, Field(ge=3)] = 3
    "users with fewer interactions are left out and counted"
    max_bad_lines: NonNegativeInt = 0
    "lines of a raw file that may be unreadable before it is refused; they are always counted"
    split: Literal["leave_one_out", "temporal"] = "leave_one_out"
    "`temporal`: one moment for everybody; targets are each user's first item after it"
    validation_share: Fraction = 0.1
    "share of all interactions in the validation period (`temporal` only)"
    test_share: Fraction = 0.1
    "share of all interactions in the test period, the last (`temporal` only)"

    @model_validator(mode="after")
    def _consistent(self) -> DatasetConfig:
        if self.source != "synthetic" and not self.dataset_folder:
            raise ValueError(f"source {self.source!r} needs a dataset_folder: the folder with its files")
        if self.split == "temporal" and not (
            self.validation_share > 0 and self.test_share > 0 and self.validation_share + self.test_share < 1
        ):
            raise ValueError("validation_share and test_share must be above 0 and their sum below 1")
        return self
