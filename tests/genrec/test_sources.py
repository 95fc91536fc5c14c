"""The one entry to data: filters and splits of every source, what they log, and what a dataset's key is made of."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest

from genrec.data.interactions import DataError
from genrec.data.sources import SOURCES, dataset_identity, load_dataset
from genrec.data.synthetic import make_synthetic
from genrec.settings import DatasetConfig, SyntheticConfig

SMALL = {"num_users": 60, "num_items": 30, "num_categories": 3, "category_fanout": 1}


def config(**settings: Any) -> DatasetConfig:
    return DatasetConfig.model_validate({"synthetic": SMALL} | settings)


def write_table(folder: Path) -> Path:
    rows = [f"u{u},i{(u * 7 + n * n) % 12},{1_400_000_000 + 1000 * n + u}" for u in range(20) for n in range(6)]
    (folder / "interactions.csv").write_text("user,item,timestamp\n" + "\n".join(rows) + "\n")
    return folder


def test_every_source_of_the_settings_is_there():
    assert set(SOURCES) == set(DatasetConfig.model_fields["source"].annotation.__args__)


def test_synthetic_is_unchanged_by_the_way_through_rows():
    data, plain = load_dataset(config()), make_synthetic(SyntheticConfig(**SMALL))
    assert data.data_hash == plain.data_hash
    assert load_dataset(config(min_history=8)).lengths.min() >= 8


def test_filters_and_temporal_split_follow_one_another(tmp_path):
    table = {"source": "table", "dataset_folder": str(write_table(tmp_path))}
    data = load_dataset(config(**table, k_core=6, split="temporal", validation_share=0.2, test_share=0.2))
    assert data.lengths.min() >= 6
    assert data.periods.validation < data.periods.test
    assert data.dropped["core_items"] + len(data.catalogue) == len(load_dataset(config(**table)).catalogue)
    assert 0 < len(data.users_of("test")) <= len(data)


def test_statistics_and_what_was_dropped_are_logged(caplog):
    with caplog.at_level(logging.INFO, "genrec.data.sources"):
        load_dataset(config(min_history=9))
    assert "users " in caplog.text
    assert "interactions " in caplog.text
    assert "dropped_short_users " in caplog.text


def test_a_filter_that_leaves_nothing_is_named_with_its_source(tmp_path):
    table = {"source": "table", "dataset_folder": str(write_table(tmp_path))}
    with pytest.raises(DataError, match=r"source 'table' in .*: k_core 50 leaves no interactions of 120 \(20 users"):
        load_dataset(config(**table, k_core=50))
    with pytest.raises(DataError, match=r"source 'table' in .*: no user has 7 items or more \(20 users dropped\)"):
        load_dataset(config(**table, min_history=7))


# ------------------------------------------------------------------- identity


def content(path: Path) -> str:
    return path.read_text()


def identity(**settings: Any) -> str:
    return json.dumps(dataset_identity(config(**settings), content), sort_keys=True)


def test_only_what_the_source_reads_is_part_of_the_identity(tmp_path):
    table = {"source": "table", "dataset_folder": str(write_table(tmp_path))}
    plain = identity(**table)
    assert identity(**table, synthetic=SMALL | {"seed": 5}, amazon={"category": "Toys"}) == plain
    assert identity(**table, test_share=0.2) == plain
    for other in ({"k_core": 5}, {"min_history": 4}, {"max_bad_lines": 3}, {"split": "temporal"}):
        assert identity(**table, **other) != plain
    assert identity(**table, table={"timestamp_column": None}) != plain
    assert identity(max_bad_lines=3) == identity()
    assert identity(synthetic=SMALL | {"seed": 5}) != identity()


def test_a_file_counts_by_content_and_not_by_place(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    first = {"source": "table", "dataset_folder": str(write_table(tmp_path / "a"))}
    second = {"source": "table", "dataset_folder": str(write_table(tmp_path / "b"))}
    assert identity(**first) == identity(**second)
    with open(tmp_path / "b" / "interactions.csv", "a") as file:
        file.write("u1,i1,5\n")
    assert identity(**first) != identity(**second)


@pytest.mark.parametrize("source", ["sequential", "amazon", "movielens", "table"])
def test_missing_files_are_told_before_any_key_is_made(tmp_path, source):
    with pytest.raises(DataError, match=str(tmp_path)):
        identity(source=source, dataset_folder=str(tmp_path / "nowhere"))
