"""Configs are typed and strict; a bad one is refused at once, with every fault and its place."""

from __future__ import annotations

import subprocess
import sys

import pytest

from genrec.config import (
    ConfigError,
    RunConfig,
    config_keys,
    load_config,
    parse_overrides,
    recipe_names,
    validate_config,
    with_values,
)
from genrec.strict_yaml import YamlError, parse_yaml


def faults_of(text: str) -> list[str]:
    document = parse_yaml(text, "run.yaml")
    with pytest.raises(ConfigError) as caught:
        validate_config(document.data, document)
    return caught.value.faults


TYPOS = [
    ("train.learning_rte", "train.learning_rate"),
    ("train.bacth_size", "train.batch_size"),
    ("train.weight_decy", "train.weight_decay"),
    ("tiger.learning_rate", "train.learning_rate"),
    ("tiger.num_head", "tiger.num_heads"),
    ("tiger.embed_dim", "tiger.embedding_dim"),
    ("tokeniser", "tokenizer"),
    ("trian", "train"),
    ("evaluation.beamsize", "evaluation.beam_size"),
    ("tokenizer.rqvae.latent_dims", "tokenizer.rqvae.latent_dim"),
]


def test_unknown_keys_get_the_nearest_name_for_nine_of_ten_typos():
    right = 0
    for typo, meant in TYPOS:
        *parents, name = typo.split(".")
        data: dict = {name: 1}
        for parent in reversed(parents):
            data = {parent: data}
        with pytest.raises(ConfigError) as caught:
            validate_config(data)
        assert caught.value.faults[0].startswith(f"{typo}: unknown key")
        right += f"did you mean {meant!r}?" in caught.value.faults[0]
    assert right >= 9


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
        ("dataset: {source: sequential}", ["needs a path"]),
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


@pytest.mark.parametrize("name", recipe_names())
def test_every_recipe_is_a_config(name):
    assert load_config(name).hash


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


@pytest.mark.parametrize("command", ["train", "prepare", "tokenize"])
def test_a_bad_config_is_refused_without_loading_torch(command, tmp_path):
    path = tmp_path / "bad.yaml"
    path.write_text("train:\n  epochs: 0\n  learning_rte: 1\n")
    code = (
        "import sys\nfrom genrec.cli import main\n"
        "try:\n    main(sys.argv[1:])\n"
        "except SystemExit as end:\n    print(end.code, 'torch' in sys.modules)\n"
    )
    ended = run_python(code, command, str(path))
    assert ended.stdout.strip() == "2 False"
    lines = ended.stderr.strip().splitlines()
    assert len(lines) == 2
    assert all(line.startswith(f"error: {path}:") for line in lines)
