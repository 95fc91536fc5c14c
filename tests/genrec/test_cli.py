"""The `genrec` command: thin, scriptable, and bad input ends with a sentence."""

from __future__ import annotations

import base64
import html
import json
import re
import shutil
import signal
import subprocess
import sys
import time
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import click
import pytest
import yaml
from click.testing import CliRunner, Result

from genrec.checkpoint import CheckpointError
from genrec.cli import main, train_from_file
from genrec.config import recipe_files, schema_text
from genrec.errors import InputError
from genrec.inspection_page import write_page
from genrec.pipeline import stage_keys
from genrec.recommender import Recommender
from genrec.terminal import Commands, printable
from genrec.trainers.fit import NonFiniteLoss


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


def test_tokenize_prints_the_health_of_the_ids_and_leaves_the_tokenizer(trained, config_file, tmp_path):
    result = call("tokenize", config_file, "--store", trained.store.root, "--set", f"save_dir_root={tmp_path}")
    assert result.exit_code == 0, result.output
    for words in ("usage", "perplexity", "collision rate", "largest group", "distinct tuples"):
        assert words in result.stdout
    (folder,) = (tmp_path / "tokenizers").iterdir()
    assert f"tokenizer: {folder}" in result.stdout


def test_train_rqvae_trains_the_tokenizer_alone(trained, config_file, tmp_path):
    arguments = ("train", "rqvae", config_file, "--store", trained.store.root, "--out", tmp_path / "tokenizer")
    result = call(*arguments, "--set", "tokenizer.kind=rqvae")
    assert result.exit_code == 0, result.output
    assert f"tokenizer: {tmp_path / 'tokenizer'}" in result.stdout
    assert "best epoch" not in result.stdout
    refused = call(*arguments)
    assert refused.exit_code == 2
    assert "tokenizer.kind is 'rkmeans'; fix: --set tokenizer.kind=rqvae" in refused.stderr


def test_train_leaves_a_bundle_and_says_what_comes_next(trained, config_file, tmp_path):
    result = call("train", "tiger", config_file, "--store", trained.store.root, "--out", tmp_path / "bundle")
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
def test_evaluate_sets_the_model_beside_blends_baselines_and_oracle(trained, split):
    result = call("evaluate", trained.bundle, "--store", trained.store.root, "--split", split, "--format", "json")
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    expected = {"tiger", "blend (fit: train)", "most_popular (fit: train)", "item_to_item (fit: train)", "oracle"}
    if split == "test":
        expected |= {"blend (fit: train+validation)", "item_to_item_refit (fit: train+validation)"}
    assert found["rows"].keys() == expected
    assert found["protocol"]["split"] == split
    assert found["protocol"]["users"] == found["rows"]["tiger"]["users"] == 400
    assert found["rows"]["tiger"]["recall@5"] <= found["rows"]["oracle"]["recall@5"] + 0.03
    table = call("evaluate", trained.bundle, "--store", trained.store.root, "--split", split)
    assert table.exit_code == 0, table.output
    for name, row in found["rows"].items():
        line = next(line for line in table.stdout.splitlines() if line.startswith(name + " "))
        assert f"{row['recall@5']:.4f}" in line


def test_the_two_protocols_of_seen_items_get_a_table_each(trained):
    arguments = ("evaluate", trained.bundle, "--store", trained.store.root, "--seen")
    both = call(*arguments, "both", "--format", "json")
    assert both.exit_code == 0, both.output
    found = json.loads(both.stdout)
    assert found.keys() == {"keep", "exclude"}
    for seen in ("keep", "exclude"):
        assert json.loads(call(*arguments, seen, "--format", "json").stdout) == found[seen]
    table = call(*arguments, "both").stdout
    assert table.index("seen: keep") < table.index("seen: exclude")


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


def test_b35_hostile_titles_and_ids_do_not_drive_the_terminal(trained, tmp_path):
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
    history = [f"{row['item']}" for row in rows[:2]]
    looked = call("inspect", bundle, "--attention", tmp_path / "a.png", "--history", ",".join(history))
    assert looked.exit_code == 0, looked.output
    assert all(character.isprintable() for character in (looked.stdout + looked.stderr).replace("\n", ""))
    unknown = call("recommend", bundle, "--history", "\x1b[2J")
    assert unknown.exit_code == 2
    assert "\x1b" not in unknown.stderr


def test_b35_titles_that_mean_something_elsewhere_are_only_text(trained, tmp_path):
    bundle = shutil.copytree(trained.bundle, tmp_path / "bundle")
    rows = [json.loads(line) for line in (bundle / "items.jsonl").read_text().splitlines()]
    titles = ["<script>alert(1)</script>", "=cmd()|' /C calc'!A0", "../../etc/passwd", "$x_{\\frac$", "%s {0}"]
    for row, title in zip(rows, titles * len(rows), strict=False):
        row["title"] = title
    (bundle / "items.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    before = {path for path in tmp_path.rglob("*")}
    result = call("recommend", bundle, "--history", rows[0]["item"])
    assert result.exit_code == 0, result.output
    assert all(line.endswith(tuple(titles)) for line in result.stdout.splitlines())
    assert call("inspect", bundle, "--picture", tmp_path / "ids.svg").exit_code == 0
    assert "<script>" not in (tmp_path / "ids.svg").read_text()
    assert {path for path in tmp_path.rglob("*")} - before == {tmp_path / "ids.svg"}


def test_printable_keeps_letters_of_all_languages():
    assert printable("Crème 香水 🌸 'x'") == "Crème 香水 🌸 'x'"
    assert printable("a\x00b\x1b") == "a\N{REPLACEMENT CHARACTER}b\N{REPLACEMENT CHARACTER}"


def test_recipes_are_listed_and_shown():
    assert call("recipes").stdout.split() == list(recipe_files())
    for name, path in recipe_files().items():
        assert call("recipes", "--show", name).stdout == path.read_text(encoding="utf-8")


def test_the_schema_is_printed():
    assert call("schema").stdout == schema_text()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("train", "quikstart"), "did you mean 'quickstart'"),
        (("train", "tigre", "quickstart"), "did you mean 'tiger'"),
        (("train", "quickstart", "--set", "train.epoch=3"), "did you mean 'train.epochs'"),
        (("train", "quickstart", "--set", "train.epochs="), "expected KEY=VALUE"),
        (("train", "missing.yaml"), "missing.yaml: no such file"),
        (("train", "missing.gin"), "missing.gin: no such file"),
        (("prepare", "--set", "train.epochs=0"), "--set train.epochs: got 0"),
        (("prepare", "quickstart", "--raw-dir", "x"), "dataset.source is 'synthetic', which reads no files"),
        (("prepare", "seed", "--raw-dir", "x", "--set", "dataset.dataset_folder=y"), "say the same; give one"),
        (("prepare", "seed", "--raw-dir", "no/where"), "error: no/where"),
        (("recipes", "--show", "papre"), "did you mean 'paper'"),
        (("inspect", "--attention", "a.png"), "--attention and --history go together"),
        (("inspect", "quickstart", "--curves", "a.png"), "need the folder of a bundle"),
        (("trian",), "did you mean 'train'"),
        (("train", "--stroe", "x"), "--store"),
        (("train", "--threads", "0"), "--threads"),
        (("evaluate", ".", "--seen", "maybe"), "--seen"),
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
        (("evaluate", tmp_path), f"error: {tmp_path}: no model in it"),
    ):
        result = call(*arguments)
        assert result.exit_code == 2
        assert words in result.stderr


def test_debug_shows_the_traceback(tmp_path):
    result = call("--debug", "evaluate", tmp_path)
    assert isinstance(result.exception, CheckpointError)


def test_the_store_is_where_it_was_asked_for_or_below_the_folder_of_results(trained, config_file, tmp_path):
    keys = stage_keys(trained.config)
    root = f"save_dir_root={tmp_path / 'results'}"
    for arguments, place in ((("--store", tmp_path / "elsewhere"), "elsewhere"), ((), "results/.artifacts")):
        result = call("prepare", config_file, "--set", root, *arguments)
        assert result.exit_code == 0, result.output
        found = {path.name for path in (tmp_path / place).iterdir() if path.is_dir()}
        assert found == {f"dataset-{keys['dataset']}", f"embeddings-{keys['embeddings']}"}


# -------------------------------------------------------------------- inspect


def test_inspect_shows_a_bundle_as_a_table_and_in_pictures(trained, tmp_path):
    pictures = [tmp_path / name for name in ("ids.png", "curves.svg", "attention.png")]
    history = ",".join(Recommender.load(trained.bundle).ids[:3])
    options = ("--picture", pictures[0], "--curves", pictures[1], "--attention", pictures[2], "--history", history)
    result = call("inspect", trained.bundle, *options)
    assert result.exit_code == 0, result.output
    assert "collision rate" in result.stdout
    starts = [path.read_bytes()[:5] for path in pictures]
    assert starts == [b"\x89PNG\r", b"<?xml", b"\x89PNG\r"]


def test_inspect_writes_one_page_that_holds_all_of_it_and_loads_nothing(trained, tmp_path):
    history = ",".join(Recommender.load(trained.bundle).ids[:3])
    looked = call("inspect", trained.bundle, "--html", tmp_path / "page.html", "--history", history)
    assert looked.exit_code == 0, looked.output
    text = (tmp_path / "page.html").read_text()
    assert html.escape(looked.stdout.strip()) in text
    titles = ["Code usage", "Learning curves", "Attention of the history"]
    assert re.findall("<h2>(.*?)</h2>", text) == titles
    pictures = re.findall('<img src="data:image/svg.xml;base64,(.*?)" alt="(.*?)"', text)
    assert [title for _, title in pictures] == titles
    assert all(ElementTree.fromstring(base64.b64decode(data)).tag.endswith("svg") for data, _ in pictures)
    assert set(re.findall("<([a-z0-9]+)", text)) <= {"html", "head", "meta", "title", "body", "h1", "h2", "pre", "img"}
    assert "default-src 'none'" in text


def test_titles_on_the_page_are_text(tmp_path, hostile_titles):
    write_page(tmp_path / "page.html", hostile_titles[0], "\n".join(hostile_titles), {})
    text = (tmp_path / "page.html").read_text()
    assert set(re.findall("<([a-z0-9!]+)", text)) <= {"!doctype", "html", "head", "meta", "title", "body", "h1", "pre"}


@pytest.fixture
def hostile_titles():
    return ["</title><script>alert(1)</script>", "</pre><img src=x onerror=alert(2)>", "<svg/onload=alert(3)>", "a & b"]


def test_inspect_of_a_config_shows_what_its_tokenizer_makes(trained, config_file):
    by_config = call("inspect", config_file, "--store", trained.store.root)
    by_bundle = call("inspect", trained.bundle)
    assert by_config.exit_code == by_bundle.exit_code == 0
    assert by_config.stdout == by_bundle.stdout


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--picture", "ids.jpg"), "ids.jpg: a picture's name must end in .png or .svg"),
        (("--curves", "curves"), "curves: a picture's name must end in .png or .svg"),
        (("--attention", "a.png", "--history", "S1x"), "item 'S1x' is not in the catalogue of 40 items"),
        (("--html", "page.png"), "page.png: a page's name must end in .html"),
        (("--html", "page.html", "--history", "S1x"), "item 'S1x' is not in the catalogue of 40 items"),
    ],
)
def test_inspect_refuses_what_it_cannot_draw(trained, options, words):
    result = call("inspect", trained.bundle, *options)
    assert result.exit_code == 2
    assert words in result.stderr


# ------------------------------------------------------- ends that are not good


@pytest.fixture
def failing():
    """`failing(error)`: what a command that raises `error` ends with."""

    def end(error: BaseException) -> Result:
        @click.group(cls=Commands)
        @click.option("--debug", is_flag=True)
        def group(debug: bool) -> None: ...

        @group.command()
        @click.option("--set", "assignment")
        def work(assignment: str) -> None:
            raise error

        return CliRunner().invoke(group, ["work", "--set", "a=b c"], prog_name="genrec")

    return end


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (InputError("one\ntwo"), 2, "error: one\nerror: two\n"),
        (NonFiniteLoss("the loss is nan"), 3, "error: the loss is nan\n"),
        (PermissionError(13, "Permission denied", "x"), 4, "error: [Errno 13] Permission denied: 'x'\n"),
        (
            KeyboardInterrupt(),
            130,
            "interrupted; what is done is kept; continue with: genrec work --set 'a=b c'\n",
        ),
        (InputError("title \x1b[2J"), 2, "error: title \N{REPLACEMENT CHARACTER}[2J\n"),
    ],
)
def test_every_end_has_its_code_and_a_sentence(failing, error, code, line):
    result = failing(error)
    assert (result.exit_code, result.stderr, result.stdout) == (code, line, "")


def test_diverged_training_ends_with_code_3(trained, config_file, tmp_path):
    arguments = ("--store", trained.store.root, "--out", tmp_path / "bundle", "--set", "train.clip_norm=1e30")
    result = call("train", config_file, *arguments, "--set", "train.learning_rate=1e30")
    assert result.exit_code == 3, result.output
    assert "error: the loss is " in result.stderr


@pytest.mark.slow
def test_an_interrupted_run_says_how_to_continue_and_then_does(config_file, tmp_path):
    words = ["train", config_file.name, "--set", "train.epochs=60", "--set", "train.checkpoint_interval=0"]
    command = [sys.executable, "-m", "genrec.cli", *words, "--threads", "1"]
    process = subprocess.Popen(
        command,
        cwd=config_file.parent,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # Tests that are started in the background inherit an ignored SIGINT, and so would the run.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    deadline = time.monotonic() + 120
    while not list(config_file.parent.glob("runs/.artifacts/tiger-*.part/**/manifest.json")):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130, said
    assert said.splitlines()[-1].endswith(f"{' '.join(words)} --threads 1")
    assert "Traceback" not in said
    again = subprocess.run(command, cwd=config_file.parent, capture_output=True, text=True, timeout=150, check=False)
    assert again.returncode == 0, again.stderr
    assert "of 60 by validation ndcg@5" in again.stdout


def test_a_closed_pipe_is_no_traceback(tmp_path):
    ended = subprocess.run(
        f"{sys.executable} -m genrec.cli schema | head -1", shell=True, capture_output=True, text=True, timeout=60
    )
    assert "Traceback" not in ended.stderr
    assert ended.stdout == "{\n"


def test_a_trainer_that_is_run_as_a_program_is_the_command(trained, config_file, tmp_path, capsys):
    overrides = (f"save_dir_root={tmp_path}", "train.epochs=1")
    with pytest.raises(SystemExit) as end:
        train_from_file(config_file, overrides)
    assert end.value.code == 0
    assert "best epoch 1 of 1" in capsys.readouterr().out
    with pytest.raises(SystemExit) as end:
        train_from_file(config_file, ["train.epoch=1"])
    assert end.value.code == 2
    assert "did you mean 'train.epochs'" in capsys.readouterr().err
