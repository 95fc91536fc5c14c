"""The `genrec` command: thin, scriptable, and bad input ends with a sentence."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner, Result

from genrec.checkpoint import CheckpointError
from genrec.cli import main, printable
from genrec.config import recipe_names
from genrec.pipeline import stage_keys
from genrec.recommender import Recommender


def call(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


@pytest.fixture
def config_file(trained, tmp_path) -> Path:
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(trained.config.to_dict()))
    return path


def test_prepare_prints_the_statistics(trained, config_file):
    result = call("prepare", config_file, "--store", trained.store.root)
    assert result.exit_code == 0, result.output
    found = dict(line.split() for line in result.stdout.splitlines())
    assert found["users"] == "400"
    assert found["items"] == "40"


def test_tokenize_prints_the_health_of_the_ids(trained, config_file):
    result = call("tokenize", config_file, "--store", trained.store.root)
    assert result.exit_code == 0, result.output
    for name in ("usage", "perplexity", "collision_rate", "largest_group", "distinct"):
        assert name in result.stdout


def test_train_leaves_a_bundle_and_says_what_comes_next(trained, config_file, tmp_path):
    result = call("train", config_file, "--store", trained.store.root, "--out", tmp_path / "bundle")
    assert result.exit_code == 0, result.output
    assert f"next:   genrec evaluate {tmp_path / 'bundle'}" in result.stdout
    assert "recall@5" in result.stdout
    assert Recommender.load(tmp_path / "bundle").ids == Recommender.load(trained.bundle).ids


def test_settings_override_the_file(trained, config_file, tmp_path):
    assignments = ["--set", "train.epochs=1", "--set", "evaluation.max_users=10"]
    arguments = ("--store", trained.store.root, "--out", tmp_path / "bundle", *assignments)
    result = call("train", config_file, *arguments)
    assert result.exit_code == 0, result.output
    assert "best epoch 1 of 1" in result.stdout


@pytest.mark.parametrize("split", ["validation", "test"])
def test_evaluate_sets_the_model_beside_baselines_and_oracle(trained, split):
    result = call("evaluate", trained.bundle, "--store", trained.store.root, "--split", split, "--format", "json")
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    expected = {"tiger", "most_popular (fit: train)", "item_to_item (fit: train)", "oracle"}
    if split == "test":
        expected.add("item_to_item_refit (fit: train+validation)")
    assert found["rows"].keys() == expected
    assert found["protocol"]["split"] == split
    assert found["protocol"]["users"] == found["rows"]["tiger"]["users"] == 400
    assert found["rows"]["tiger"]["recall@5"] <= found["rows"]["oracle"]["recall@5"] + 0.03
    table = call("evaluate", trained.bundle, "--store", trained.store.root, "--split", split)
    assert table.exit_code == 0, table.output
    for name, row in found["rows"].items():
        (line,) = [line for line in table.stdout.splitlines() if line.startswith(name + " ")]
        assert f"{row['recall@5']:.4f}" in line


def test_validation_numbers_are_those_of_training(trained):
    result = call(
        "evaluate", trained.bundle, "--store", trained.store.root, "--split", "validation", "--format", "json"
    )
    best = max(trained.rows, key=lambda row: (row["ndcg@5"], -row["epoch"]))
    found = json.loads(result.stdout)["rows"]["tiger"]
    assert found == pytest.approx({name: best[name] for name in found})


def test_recommend_prints_items_with_scores_and_titles(trained):
    recommender = Recommender.load(trained.bundle)
    history = recommender.ids[:3]
    (expected,) = recommender.recommend([history], k=4)
    result = call("recommend", trained.bundle, "--history", ", ".join(history), "-k", 4, "--format", "json")
    assert result.exit_code == 0, result.output
    assert [r["item"] for r in json.loads(result.stdout)] == [r.item for r in expected]
    table = call("recommend", trained.bundle, "--history", ",".join(history), "-k", 4)
    lines = table.stdout.splitlines()
    assert len(lines) == 3 + 4
    for line, r in zip(lines[3:], expected, strict=True):
        assert r.item in line
        assert r.title in line


def test_hostile_titles_and_ids_do_not_drive_the_terminal(trained, tmp_path):
    bundle = shutil.copytree(trained.bundle, tmp_path / "bundle")
    rows = [json.loads(line) for line in (bundle / "items.jsonl").read_text().splitlines()]
    for row in rows:
        row["title"] = "\x1b[2J\x1b]0;owned\x07\u202e\x9b31m\r\n" + row["title"]
        row["item"] += "\x1b[1A"
    (bundle / "items.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    result = call("recommend", bundle, "--history", rows[0]["item"])
    assert result.exit_code == 0, result.output
    assert len(result.stdout.splitlines()) == 1 + 10
    assert all(character.isprintable() for character in result.stdout.replace("\n", ""))


def test_printable_keeps_letters_of_all_languages():
    assert printable("Crème 香水 🌸 'x'") == "Crème 香水 🌸 'x'"
    assert printable("a\x00b\x1b") == "a\N{REPLACEMENT CHARACTER}b\N{REPLACEMENT CHARACTER}"


def test_recipes_are_listed():
    assert call("recipes").stdout.split() == recipe_names()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("train", "quikstart"), "did you mean 'quickstart'"),
        (("train", "quickstart", "--set", "train.epoch=3"), "did you mean 'train.epochs'"),
        (("train", "quickstart", "--set", "train.epochs="), "expected KEY=VALUE"),
        (("train", "missing.yaml"), "missing.yaml: no such file"),
        (("prepare", "--set", "train.epochs=0"), "train.epochs: got 0"),
        (("trian",), "did you mean 'train'"),
        (("train", "--stroe", "x"), "--store"),
        (("train", "--threads", "0"), "--threads"),
        (("recommend", "nowhere", "--history", "S1"), "nowhere"),
    ],
)
def test_bad_input_ends_with_a_sentence_and_code_2(arguments, words):
    result = call(*arguments)
    assert result.exit_code == 2
    assert words in result.stderr
    assert "Traceback" not in result.stderr


def test_faults_of_the_model_or_data_end_with_a_sentence(trained, tmp_path):
    for arguments, words in (
        (("recommend", trained.bundle, "--history", "S1x"), "error: item 'S1x' is not in the catalogue of 40 items"),
        (("recommend", trained.bundle, "--history", " , "), "error: an empty history"),
        (
            ("recommend", trained.bundle, "--history", Recommender.load(trained.bundle).ids[0], "-k", 41),
            "error: k must",
        ),
        (("evaluate", tmp_path), f"error: {tmp_path / 'model'}: no such folder"),
    ):
        result = call(*arguments)
        assert result.exit_code == 2
        assert words in result.stderr


def test_debug_shows_the_traceback(tmp_path):
    result = call("--debug", "evaluate", tmp_path)
    assert isinstance(result.exception, CheckpointError)


def test_the_store_is_where_it_was_asked_for(trained, config_file, tmp_path):
    result = call("prepare", config_file, "--store", tmp_path / "elsewhere")
    assert result.exit_code == 0, result.output
    keys = stage_keys(trained.config)
    found = {path.name for path in (tmp_path / "elsewhere").iterdir() if path.is_dir()}
    assert found == {f"dataset-{keys['dataset']}", f"embeddings-{keys['embeddings']}"}
