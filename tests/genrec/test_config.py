"""Configs are typed and strict; a bad one is refused at once, with every fault and its place."""

from __future__ import annotations

import functools
import json
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import jsonschema
import pytest

import genrec.config
from genrec.config import (
    ConfigError,
    RunConfig,
    config_keys,
    create_config,
    load_config,
    parse_overrides,
    recipe_files,
    schema_text,
    setting_path,
    validate_config,
    with_values,
)
from genrec.strict_yaml import YamlError, load_yaml, parse_yaml


def faults_of(text: str) -> list[str]:
    document = parse_yaml(text, "run.yaml")
    with pytest.raises(ConfigError) as caught:
        validate_config(document.data, document)
    return caught.value.faults


def test_a_key_like_no_other_gets_no_suggestion():
    assert faults_of("qqqqqq: 1") == ["run.yaml:1: qqqqqq: unknown key"]


@pytest.mark.parametrize(
    ("key", "text"),
    [
        ("train.epochs", "true"),
        ("train.epochs", "1.5"),
        ("train.epochs", "'3'"),
        ("train.epochs", "[1]"),
        ("train.epochs", "null"),
        ("train.learning_rate", "abc"),
        ("train.learning_rate", "true"),
        ("train.optimizer", "adam"),
        ("train.optimizer", "1"),
        ("tiger.dropout", "1.0"),
        ("tiger.dropout", "-0.1"),
        ("train.learning_rate", "0"),
        ("train.learning_rate", "-1e-3"),
        ("train.learning_rate", ".nan"),
        ("train.learning_rate", ".inf"),
        ("train.learning_rate", "1e400"),
        ("train.epochs", "0"),
        ("train.batch_size", "0"),
        ("train.batch_size", "1000000000"),
        ("tiger.max_seq_len", "1025"),
        ("tokenizer.sem_id_dim", "9"),
        ("evaluation.ks", "5"),
        ("evaluation.ks", "[0]"),
        ("dataset.dataset_folder", "3"),
        ("train", "5"),
        ("train", "null"),
    ],
)
def test_a_wrong_type_or_range_is_refused_with_place_and_value(key, text):
    section, _, name = key.partition(".")
    body = f"{section}:\n  {name}: {text}\n" if name else f"\n{section}: {text}\n"
    faults = faults_of(body)
    assert len(faults) == 1
    assert faults[0].startswith(f"run.yaml:2: {key}")
    assert " got " in faults[0]


def test_whole_numbers_are_accepted_for_fractions():
    assert validate_config({"train": {"learning_rate": 1}}).train.learning_rate == 1.0


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("tiger: {attn_dim: 30, num_heads: 4}", ["attn_dim (30)", "num_heads (4)", "multiple"]),
        ("tiger: {n_layers: 3}", ["n_layers (3)", "even"]),
        ("evaluation: {ks: [5, 50], beam_size: 20}", ["beam_size (20)", "50"]),
        ("evaluation: {monitor: ndgc@10}", ["'ndgc@10'", "did you mean 'ndcg@10'?"]),
        ("evaluation: {ks: [5]}", ["'ndcg@10' is not measured"]),
        ("dataset: {source: sequential}", ["'sequential'", "needs a dataset_folder"]),
        ("embeddings: {encoder: npy}", ["needs a path"]),
        ("dataset: {synthetic: {num_items: 10}}", ["num_categories (20)", "num_items (10)"]),
    ],
)
def test_rules_between_settings_name_both(text, words):
    (fault,) = faults_of(text)
    assert fault.startswith("run.yaml:1: ")
    assert all(word in fault for word in words)


def test_all_faults_are_told_at_once():
    text = "train:\n  epochs: 0\n  learning_rte: 1\ntiger:\n  dropout: 2\nseed: x\n"
    faults = sorted(faults_of(text))
    assert [fault.split(": ")[:2] for fault in faults] == [
        ["run.yaml:2", "train.epochs"],
        ["run.yaml:3", "train.learning_rte"],
        ["run.yaml:5", "tiger.dropout"],
        ["run.yaml:6", "seed"],
    ]


def test_assignments_are_read_as_yaml_scalars():
    assert parse_overrides(
        ["train.learning_rate=1e-4", "evaluation.ks=[1, 5]", " seed = 3", "dataset.dataset_folder=a=b"]
    ) == {
        "train.learning_rate": 1e-4,
        "evaluation.ks": [1, 5],
        "seed": 3,
        "dataset.dataset_folder": "a=b",
    }


@pytest.mark.parametrize("assignment", ["train.epochs", "train.epochs=", "train.epochs= ", "train.epochs=[1,2", "x=\0"])
def test_assignments_without_a_value_are_refused(assignment):
    with pytest.raises(ConfigError, match=f"--set {assignment.split('=')[0]}"):
        parse_overrides([assignment])


def test_overrides_go_over_the_file_and_are_checked(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text("train: {epochs: 3, batch_size: 8}\n")
    assert load_config(path, {"train.epochs": 5}).train.epochs == 5
    assert load_config(path, {"train.epochs": 5}).train.batch_size == 8
    with pytest.raises(ConfigError, match=r"did you mean 'train\.epochs'"):
        load_config(path, {"train.epoch": 5})
    with pytest.raises(ConfigError, match=r"train\.epochs: got 0"):
        load_config(path, {"train.epochs": 0})
    with pytest.raises(ConfigError, match="unknown key"):
        load_config(path, {"train": {"epochs": 3}})


def test_with_values_leaves_its_argument_alone():
    base = {"train": {"epochs": 3}}
    assert with_values(base, {"train.epochs": 4, "seed": 1}) == {"train": {"epochs": 4}, "seed": 1}
    assert base == {"train": {"epochs": 3}}


def test_the_hash_depends_on_values_alone():
    written = validate_config({"train": {"epochs": 10, "batch_size": 256}, "seed": 0})
    reordered = validate_config({"seed": 0, "train": {"batch_size": 256, "epochs": 10}})
    assert written.hash == reordered.hash == RunConfig().hash
    assert (
        validate_config({"train": {"learning_rate": 1}}).hash == validate_config({"train": {"learning_rate": 1.0}}).hash
    )
    assert validate_config({"seed": 1}).hash != RunConfig().hash
    assert validate_config(written.to_dict()) == written


def test_keys_are_the_paths_of_single_settings():
    keys = config_keys()
    assert "tokenizer.rqvae.latent_dim" in keys
    assert "tokenizer" not in keys


def test_a_section_that_is_no_section_is_told_when_a_setting_of_it_is_overridden(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text("train: 3\n")
    with pytest.raises(ConfigError, match="train: got 3; expected a mapping"):
        load_config(path, {"train.epochs": 3})


def test_faults_of_overrides_and_of_the_file_are_told_together_each_with_its_place(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text("train:\n  epochs: 0\n  batch_size: 8\n")
    with pytest.raises(ConfigError) as caught:
        load_config(path, {"train.batch_size": 0, "tiger.dropuot": 0.1})
    assert sorted(fault.split(" got")[0] for fault in caught.value.faults) == [
        "--set tiger.dropuot: unknown key; did you mean 'tiger.dropout'?",
        "--set train.batch_size:",
        f"{path}:2: train.epochs:",
    ]


def test_an_override_may_give_what_the_file_lacks(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text("dataset: {source: sequential}\n")
    assert load_config(path, {"dataset.dataset_folder": "x"}).dataset.dataset_folder == "x"


# -------------------------------------------------------------------- recipes

GUIDE = {
    "train.epochs": 5000,
    "train.learning_rate": 3e-4,
    "train.batch_size": 256,
    "train.weight_decay": 0.035,
    "tiger.embedding_dim": 128,
    "tiger.attn_dim": 512,
    "tiger.dropout": 0.3,
    "tiger.num_heads": 8,
    "tiger.n_layers": 8,
    "tiger.max_seq_len": 512,
    "tokenizer.num_item_embeddings": 256,
    "tiger.num_user_embeddings": 2000,
    "tokenizer.sem_id_dim": 3,
    "tiger.encoder": "bidirectional",
    "tiger.encoder_tokens": "codes",
}
PAPER = {
    "tiger.n_layers": 8,
    "tiger.embedding_dim": 128,
    "tiger.num_heads": 6,
    "tiger.attn_dim": 6 * 64,
    "tiger.feedforward_dim": 1024,
    "tiger.dropout": 0.1,
    "tiger.num_user_embeddings": 2000,
    "tiger.max_seq_len": 20,
    "tiger.encoder": "bidirectional",
    "tiger.encoder_tokens": "codes",
    "train.schedule": "inverse_sqrt",
    "train.warmup_steps": 10_000,
    "train.learning_rate": 0.01,
    "train.batch_size": 256,
    "tokenizer.kind": "rqvae",
    "tokenizer.rqvae.hidden_dims": [512, 256, 128],
    "tokenizer.rqvae.latent_dim": 32,
    "tokenizer.num_item_embeddings": 256,
    "tokenizer.sem_id_dim": 3,
    "tokenizer.collisions": "append",
}


def values_of(config: RunConfig, keys: Iterable[str]) -> dict[str, Any]:
    return {key: functools.reduce(getattr, key.split("."), config) for key in keys}


@pytest.mark.parametrize(("recipe", "values"), [("seed", GUIDE), ("p5_amazon", GUIDE), ("paper", PAPER)])
def test_a_recipe_has_the_values_of_its_source(recipe, values):
    assert values_of(load_config(recipe), values) == values


def test_the_recipes_are_those_that_are_promised():
    assert set(recipe_files()) >= {"seed", "paper", "grid", "paischer", "quickstart", "beauty", "p5_amazon"}


@pytest.mark.parametrize("path", recipe_files().values(), ids=lambda path: path.name)
def test_every_recipe_is_a_config_that_says_what_it_is(path):
    assert load_config(path.stem).hash
    lines = path.read_text().splitlines()
    if path.suffix == ".yaml":
        named = lines.pop(0).removeprefix("# yaml-language-server: $schema=")
        assert (path.parent / named).resolve() == SCHEMA.resolve()
    assert lines[0].startswith("# ")


# --------------------------------------------------------------------- schema

SCHEMA = Path(genrec.config.__file__).with_name("config.schema.json")


def test_the_schema_in_the_package_is_up_to_date():
    """If not: genrec schema > genrec/config.schema.json"""
    assert SCHEMA.read_text() == schema_text()


def test_the_schema_describes_every_setting_whose_name_does_not_say_it_all():
    sections = json.loads(SCHEMA.read_text())["$defs"]
    assert "targets" in sections["TrainConfig"]["properties"]["batch_size"]["description"]
    assert all("description" in section for section in sections.values())


def test_the_schema_accepts_recipes_and_refuses_what_the_config_refuses():
    schema = json.loads(SCHEMA.read_text())
    jsonschema.Draft202012Validator.check_schema(schema)
    validator = jsonschema.Draft202012Validator(schema)
    for path in recipe_files().values():
        if path.suffix == ".yaml":
            assert validator.is_valid(load_yaml(path).data), path.name
    assert validator.is_valid(load_config("seed").to_dict())
    for data in (
        {"train": {"learning_rte": 1}},
        {"train": {"epochs": 0}},
        {"train": {"optimizer": "adam"}},
        {"tiger": {"dropout": 1.0}},
        {"seed": "x"},
        {"trian": {}},
    ):
        assert not validator.is_valid(data), data
        with pytest.raises(ConfigError):
            validate_config(data)


# ---------------------------------------------------------------- bare names


@pytest.mark.parametrize(
    ("name", "model", "path"),
    [
        ("lr", "tiger", "train.learning_rate"),
        ("bs", "tiger", "train.batch_size"),
        ("model_dim", "tiger", "tiger.embedding_dim"),
        ("batch_size", "tiger", "train.batch_size"),
        ("epochs", "tiger", "train.epochs"),
        ("n_layers", "tiger", "tiger.n_layers"),
        ("seed", "tiger", "seed"),
        ("wandb_project", "tiger", "tracking.wandb_project"),
        ("tokenizer.rqvae.epochs", "tiger", "tokenizer.rqvae.epochs"),
        ("lr", "rqvae", "tokenizer.rqvae.learning_rate"),
        ("epochs", "rqvae", "tokenizer.rqvae.epochs"),
        ("seed", "rqvae", "tokenizer.seed"),
        ("sem_id_dim", "rqvae", "tokenizer.sem_id_dim"),
        ("dataset_folder", "rqvae", "dataset.dataset_folder"),
    ],
)
def test_a_bare_name_means_one_setting(name, model, path):
    assert setting_path(name, model) == path


def test_a_bare_name_that_could_mean_two_settings_is_refused_with_both():
    with pytest.raises(ConfigError, match=r"encoder: stands for embeddings\.encoder and tiger\.encoder"):
        setting_path("encoder")


def test_create_config_is_the_recipe_with_what_is_given():
    config = create_config(lr=1e-4, batch_size=128)
    assert (config.train.learning_rate, config.train.batch_size) == (1e-4, 128)
    assert config == load_config("seed", {"train.learning_rate": 1e-4, "train.batch_size": 128})
    other = create_config(base="quickstart", model_dim=32, **{"tokenizer.rqvae.epochs": 3})
    assert (other.tiger.embedding_dim, other.tokenizer.rqvae.epochs) == (32, 3)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"learning_rte": 1}, "learning_rte: unknown setting; did you mean 'learning_rate'?"),
        ({"lr": 1e-3, "learning_rate": 1e-3}, "train.learning_rate is given twice"),
        ({"batch_size": 0}, "train.batch_size: got 0"),
        ({"encoder": "item_causal"}, "stands for"),
    ],
)
def test_create_config_refuses_what_it_does_not_know(settings, words):
    with pytest.raises(ConfigError) as caught:
        create_config(**settings)
    assert words in str(caught.value)


def test_create_config_tells_all_faults_at_once():
    with pytest.raises(ConfigError) as caught:
        create_config(learning_rte=1, epoch=2)
    assert len(caught.value.faults) == 2


def test_a_source_that_is_neither_recipe_nor_file_gets_the_nearest_recipe(tmp_path):
    with pytest.raises(ConfigError, match="did you mean 'quickstart'"):
        load_config("quikstart")
    with pytest.raises(YamlError, match="no such file"):
        load_config(tmp_path / "run.yaml")


def test_configs_are_immutable():
    with pytest.raises(ValueError, match="frozen"):
        RunConfig().train.epochs = 3  # type: ignore[misc]


def run_python(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, timeout=60)


def test_importing_the_config_loads_neither_torch_nor_numpy():
    code = "import sys, genrec.config, genrec.cli; print([m for m in ('torch', 'numpy', 'ray') if m in sys.modules])"
    assert run_python(code).stdout.strip() == "[]"
