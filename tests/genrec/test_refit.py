"""The last training of a chosen config, on training and validation items: what it learns, and what it may be asked."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from genrec.artifacts import ArtifactStore
from genrec.comparison import chosen_weight, measure_bundles, table_lines
from genrec.config import ConfigError, RunConfig, validate_config, with_values
from genrec.errors import InputError
from genrec.pipeline import open_interactions, open_tiger, run_pipeline, stage_keys
from genrec.recommender import export_bundle
from genrec.trainers.tiger_trainer import tiger_batches

REFIT = {"train.fit_on": "train+validation", "train.epochs": 4}


def changed(config: RunConfig, values: dict[str, object]) -> RunConfig:
    return validate_config(with_values(config.to_dict(), values))


@pytest.fixture(scope="module")
def refit(trained, tmp_path_factory) -> Path:
    """The bundle of the tiny run after a refit of half its epochs."""
    config = changed(trained.config, REFIT)
    run_pipeline(config, trained.store)
    return export_bundle(config, trained.store, tmp_path_factory.mktemp("refit") / "bundle")


def test_a_refit_learns_one_target_more_of_every_user(trained):
    interactions = open_interactions(trained.store, stage_keys(trained.config))
    before = tiger_batches(trained.config, interactions).num_targets
    assert tiger_batches(changed(trained.config, REFIT), interactions).num_targets == before + len(interactions)


def test_a_refit_keeps_its_last_epoch_and_measures_nothing_on_what_it_learns(refit):
    _, facts = open_tiger(refit)
    assert [row["epoch"] for row in facts["rows"]] == [1, 2, 3, 4]
    assert facts["best"] == facts["rows"][-1]
    assert not any("@" in name for row in facts["rows"] for name in row)


def test_a_refit_is_another_model_and_the_key_of_the_first_is_what_it_was(trained):
    plain = changed(trained.config, {"train.epochs": 4})
    assert stage_keys(changed(plain, REFIT))["tiger"] != stage_keys(plain)["tiger"]
    explicit = changed(trained.config, {"train.fit_on": "train"})
    assert stage_keys(explicit) == stage_keys(trained.config)


def test_a_refit_stands_on_the_second_footing_and_nothing_else_is_mixed_with_it(trained, refit):
    found = measure_bundles([refit], trained.store, "test")
    assert next(iter(found["rows"])) == "tiger (fit: train+validation)"
    with pytest.raises(InputError, match="learnt the validation items"):
        measure_bundles([refit], trained.store, "validation")
    with pytest.raises(InputError, match="two footings"):
        measure_bundles([trained.bundle, refit], trained.store, "test")


def test_the_weight_of_its_blend_was_chosen_before_the_refit(trained, tmp_path):
    config = changed(trained.config, {"train.fit_on": "train+validation", "evaluation.blend": "item_to_item"})
    run_pipeline(config, trained.store)
    bundle = export_bundle(config, trained.store, tmp_path / "bundle")
    found = measure_bundles([bundle], trained.store, "test")
    keys = stage_keys(trained.config)
    model, _ = open_tiger(trained.store.path("tiger", keys["tiger"]))
    assert found["blend"] == chosen_weight(trained.config, trained.store, {keys["tiger"]: model})
    rows = list(found["rows"])
    assert "blend (fit: train+validation)" in rows
    assert "blend (fit: train)" not in rows
    assert '"fit":"train+validation"' in (bundle / "item_to_item" / "manifest.json").read_text().replace(" ", "")


def test_a_refit_of_what_was_never_chosen_has_no_blend(trained, refit, tmp_path):
    found = measure_bundles([refit], trained.store, "test")
    assert found["blend"] is None
    assert not any(name.startswith("blend") for name in found["rows"])
    assert any(line.startswith("no blend") for line in table_lines(found))
    config = changed(trained.config, REFIT | {"evaluation.blend": "item_to_item"})
    with pytest.raises(InputError, match="--set train.fit_on=train"):
        export_bundle(config, trained.store, tmp_path / "bundle")


def test_a_refit_has_no_patience(trained):
    with pytest.raises(ConfigError, match="patience"):
        changed(trained.config, REFIT | {"train.patience": 2})


def test_a_refit_that_is_resumed_ends_with_the_same_weights(trained, tmp_path, monkeypatch):
    config = changed(trained.config, REFIT | {"train.checkpoint_interval": 0.0})
    keys, again = stage_keys(config), ArtifactStore(tmp_path / "store")
    run_pipeline(config, trained.store)
    run_pipeline(config, again, until="semantic_ids")

    class Killed(Exception):
        pass

    def die(row: dict[str, object]) -> None:
        if row["epoch"] == 2:
            raise Killed

    with pytest.raises(Killed):
        run_pipeline(config, again, report=die)
    run_pipeline(config, again)
    first, second = (open_tiger(store.path("tiger", keys["tiger"]))[0] for store in (trained.store, again))
    for name, tensor in first.state_dict().items():
        assert torch.equal(tensor, second.state_dict()[name]), name
