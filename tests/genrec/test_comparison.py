"""What stands beside a model's numbers, and that it is measured once a dataset."""

from __future__ import annotations

from pathlib import Path

import pytest

from genrec.artifacts import ArtifactStore
from genrec.baselines import evaluate_baselines
from genrec.comparison import measure_references, protocol
from genrec.config import RunConfig, load_config
from genrec.pipeline import make_dataset


@pytest.fixture
def config() -> RunConfig:
    sizes = {"num_users": 60, "num_items": 30, "num_categories": 4}
    return load_config(None, {f"dataset.synthetic.{name}": size for name, size in sizes.items()})


def test_both_footings_and_the_oracle_stand_beside_a_test_number(config: RunConfig, tmp_path: Path) -> None:
    references = measure_references(config, ArtifactStore(tmp_path), "test")
    fits = {name: row["fit"] for name, row in references["baselines"].items()}
    assert fits == {"most_popular": "train", "item_to_item": "train", "item_to_item_refit": "train+validation"}
    assert references["oracle"]["recall@10"] >= references["baselines"]["most_popular"]["recall@10"]
    found = evaluate_baselines(make_dataset(config), "test", [5, 10])
    assert references["baselines"]["most_popular"]["ndcg@10"] == found["most_popular"]["ndcg@10"]


def test_no_baseline_has_counted_the_targets_of_the_validation_split(config: RunConfig, tmp_path: Path) -> None:
    references = measure_references(config, ArtifactStore(tmp_path), "validation")
    assert {row["fit"] for row in references["baselines"].values()} == {"train"}


def test_references_are_measured_once_and_again_under_another_protocol(config: RunConfig, tmp_path: Path) -> None:
    store = ArtifactStore(tmp_path)
    first = measure_references(config, store, "test")
    assert measure_references(config, store, "test") == first
    assert len(list(tmp_path.glob("references-*"))) == 1
    excluding = load_config(None, {"evaluation.seen": "exclude", "dataset.synthetic.num_users": 60})
    measure_references(excluding, store, "test")
    assert len(list(tmp_path.glob("references-*"))) == 2


def test_the_protocol_names_everything_a_number_depends_on(config: RunConfig) -> None:
    facts = protocol(config, make_dataset(config), "test")
    assert facts.keys() == {"split", "hit", "beam", "seen", "users", "catalogue"}
    assert facts["users"] == 60
