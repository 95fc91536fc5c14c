"""What stands beside a model's numbers, and that it is measured once a dataset."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from genrec.artifacts import ArtifactStore
from genrec.baselines import evaluate_baselines
from genrec.blending import Ensemble
from genrec.checkpoint import load_checkpoint, save_checkpoint
from genrec.comparison import chosen_weight, measure_bundles, measure_references, protocol, table_lines
from genrec.config import ConfigError, RunConfig, load_config
from genrec.data.sources import load_dataset
from genrec.errors import InputError
from genrec.evaluation import BeamRanker, evaluate
from genrec.pipeline import open_interactions, open_tiger, stage_keys
from genrec.ranking import measure_rankers
from genrec.trie import Trie


@pytest.fixture
def config() -> RunConfig:
    sizes = {"num_users": 60, "num_items": 30, "num_categories": 4}
    return load_config(None, {f"dataset.synthetic.{name}": size for name, size in sizes.items()})


def test_both_footings_and_the_oracle_stand_beside_a_test_number(config: RunConfig, tmp_path: Path) -> None:
    references = measure_references(config, ArtifactStore(tmp_path), "test")
    fits = {name: row["fit"] for name, row in references["baselines"].items()}
    assert fits == {"most_popular": "train", "item_to_item": "train", "item_to_item_refit": "train+validation"}
    assert references["oracle"]["recall@10"] >= references["baselines"]["most_popular"]["recall@10"]
    found = evaluate_baselines(load_dataset(config.dataset), "test", [5, 10])
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
    facts = protocol(config, load_dataset(config.dataset), "test")
    assert facts.keys() == {"split", "divided", "hit", "beam", "seen", "users", "catalogue"}
    assert facts["users"] == 60


def test_a_catalogue_that_was_filtered_has_no_oracle(tmp_path: Path) -> None:
    sizes = {"num_users": 60, "num_items": 60, "num_categories": 4}
    values = {f"dataset.synthetic.{name}": size for name, size in sizes.items()}
    filtered = load_config(None, values | {"dataset.k_core": 5})
    assert len(load_dataset(filtered.dataset).catalogue) < 60
    assert measure_references(filtered, ArtifactStore(tmp_path), "test")["oracle"] is None


@pytest.fixture(scope="module")
def measured(trained):
    """The tiny bundle on the test split, under both protocols."""
    return {seen: measure_bundles([trained.bundle], trained.store, "test", seen) for seen in ("keep", "exclude")}


def test_a_table_has_the_model_its_blends_on_both_footings_the_baselines_and_the_oracle(trained, measured):
    rows = measured["keep"]["rows"]
    assert list(rows) == [
        "tiger",
        "blend (fit: train)",
        "blend (fit: train+validation)",
        "most_popular (fit: train)",
        "item_to_item (fit: train)",
        "item_to_item_refit (fit: train+validation)",
        "oracle",
    ]
    columns = {f"{name}@5" for name in ("recall", "ndcg", "mrr", "coverage")}
    assert all(columns <= row.keys() for name, row in rows.items() if name != "oracle")
    assert {row["users"] for name, row in rows.items() if name != "oracle"} == {400}
    assert 0 < rows["most_popular (fit: train)"]["coverage@5"] < rows["item_to_item (fit: train)"]["coverage@5"] <= 1
    model, facts = open_tiger(trained.bundle)
    interactions = open_interactions(trained.store, stage_keys(trained.config))
    trie, evaluation = Trie(model.codes_NC), trained.config.evaluation
    assert rows["tiger"] == evaluate(model, trie, interactions, "test", evaluation, facts["tuple_levels"])


def test_the_two_protocols_are_two_tables(measured):
    assert [found["protocol"]["seen"] for found in measured.values()] == ["keep", "exclude"]
    for row in ("tiger", "blend (fit: train)", "item_to_item (fit: train)"):
        assert measured["keep"]["rows"][row] != measured["exclude"]["rows"][row]


def test_a_bundle_is_measured_as_it_was_trained_to_be_when_nothing_is_said(trained, measured):
    assert measure_bundles([trained.bundle], trained.store, "test") == measured["keep"]


def test_the_blend_is_at_least_as_good_as_its_parts_where_its_weight_was_chosen(trained):
    found = measure_bundles([trained.bundle], trained.store, "validation")
    rows = found["rows"]
    assert "blend (fit: train+validation)" not in rows
    assert rows["blend (fit: train)"]["ndcg@5"] == pytest.approx(max(found["blend"]["ndcg@5"].values()))
    for part in ("tiger", "item_to_item (fit: train)"):
        assert rows["blend (fit: train)"]["ndcg@5"] >= rows[part]["ndcg@5"]


def test_the_weight_is_chosen_once(trained, measured):
    model, _ = open_tiger(trained.bundle)
    before = sorted(trained.store.root.glob("blend-*"))
    key = stage_keys(trained.config)["tiger"]
    assert chosen_weight(trained.config, trained.store, {key: model}) == measured["keep"]["blend"]
    assert sorted(trained.store.root.glob("blend-*")) == before


def test_the_text_shows_items_and_tuples_apart_and_what_the_numbers_depend_on(measured):
    lines = table_lines(measured["keep"])
    rows = measured["keep"]["rows"]
    tiger, again = [line for line in lines if line.startswith("tiger")]
    assert f"{rows['tiger']['recall@5']:.4f}" in tiger
    assert f"{rows['tiger']['tuple_recall@5']:.4f}" in again
    assert "tuple_" not in lines[0]
    assert sum(line.startswith("blend (fit") for line in lines) == 2
    for fact in ("seen: keep", "beam: 10", "users: 400", "seed: 0", "invalid_id_rate@5", "beam_agreement@5"):
        assert fact in "\n".join(lines)
    assert len({len(line) for line in lines[: len(rows) + 1]}) == 1


def test_several_bundles_are_measured_alone_and_as_an_ensemble_that_is_blended(trained, another_seed, measured):
    found = measure_bundles([trained.bundle, another_seed], trained.store, "test", "exclude")
    rows = found["rows"]
    assert list(rows)[:5] == [
        "tiger bundle",
        "tiger bundle-1",
        "ensemble of 2",
        "blend (fit: train)",
        "blend (fit: train+validation)",
    ]
    assert rows["tiger bundle"] == measured["exclude"]["rows"]["tiger"]
    assert found["protocol"]["seed"] == [0, 1]
    model, _ = open_tiger(trained.bundle)
    second, _ = open_tiger(another_seed)
    interactions = open_interactions(trained.store, stage_keys(trained.config))
    beams = [BeamRanker(m, Trie(m.codes_NC), trained.config.evaluation.beam_size) for m in (model, second)]
    again = measure_rankers({"both": Ensemble(beams)}, interactions, "test", [5], "exclude")["both"]
    assert rows["ensemble of 2"] == pytest.approx(again)
    text = "\n".join(table_lines(found))
    assert "ensemble + " in text
    assert text.count("tiger bundle-1") == 2


def test_bundles_of_one_name_or_of_other_data_are_no_ensemble(trained, another_seed, tmp_path):
    with pytest.raises(InputError, match="distinct folder names"):
        measure_bundles([trained.bundle, trained.bundle], trained.store, "test")
    other = shutil.copytree(another_seed, tmp_path / "other")
    tensors, facts = load_checkpoint(other / "model")
    facts["config"]["dataset"]["synthetic"]["num_users"] = 401
    shutil.rmtree(other / "model")
    save_checkpoint(other / "model", tensors, facts)
    with pytest.raises(InputError, match="another dataset"):
        measure_bundles([trained.bundle, other], trained.store, "test")


def test_a_wider_beam_can_be_asked_for_and_none_that_is_narrower_than_a_list(trained, measured):
    wide = measure_bundles([trained.bundle], trained.store, "test", beam_size=20)
    assert wide["protocol"]["beam"] == 20
    assert wide["rows"]["item_to_item (fit: train)"] == measured["keep"]["rows"]["item_to_item (fit: train)"]
    with pytest.raises(ConfigError, match="beam_size"):
        measure_bundles([trained.bundle], trained.store, "test", beam_size=2)
