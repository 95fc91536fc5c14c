"""Bad configs, B01 to B10: refused by the command, with a sentence that names the place, before anything is made.

The second half of B10, and B11, are about search spaces: `tests/sweeps/test_bad_space.py`.
"""

from __future__ import annotations

import random
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner

from genrec.cli import main
from genrec.config import ConfigError, config_keys, load_config, validate_config


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a refused command left behind would be found here."""
    monkeypatch.chdir(tmp_path)


def refused(text: str | bytes, name: str = "run.yaml") -> list[str]:
    """The lines of `genrec train` about a file of this content, which must be refused with nothing made."""
    Path(name).write_bytes(text if isinstance(text, bytes) else text.encode())
    result = CliRunner().invoke(main, ["train", name])
    assert result.exit_code == 2, result.output
    assert result.stdout == ""
    assert "Traceback" not in result.stderr
    assert [path.name for path in Path().iterdir()] == [name]
    lines = result.stderr.splitlines()
    assert all(line.startswith(f"error: {name}") for line in lines), lines
    return [line.removeprefix("error: ") for line in lines]


@pytest.mark.parametrize("text", ["", "\n", "# only a comment\n", "---\n"])
def test_b01_an_empty_file(text):
    assert re.search("empty|expected a mapping", refused(text)[0])


@pytest.mark.parametrize("text", ["- a\n- b\n", "text\n", "3\n"])
def test_b01_a_file_that_is_a_list_or_a_scalar(text):
    assert refused(text) == ["run.yaml:1: expected a mapping of keys to values at the top"]


def test_b02_a_file_that_is_not_utf_8_is_refused_with_the_byte():
    assert refused(b"seed: 1\n# caf\xe9\n") == ["run.yaml: not UTF-8 at byte 13"]


def test_b02_a_byte_order_mark_and_windows_line_ends_are_accepted(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_bytes(b"\xef\xbb\xbfseed: 3\r\ntrain:\r\n  epochs: 2\r\n")
    config = load_config(path)
    assert (config.seed, config.train.epochs) == (3, 2)


@pytest.mark.parametrize(
    ("text", "place"), [("train:\n\tepochs: 1\n", "run.yaml:2:1"), ("evaluation: {ks: [1, 2}\n", "run.yaml:1:23")]
)
def test_b03_faults_of_syntax_have_line_and_column(text, place):
    assert refused(text)[0].startswith(f"{place}: ")


def test_b04_a_duplicate_key_names_both_lines():
    text = "train:\n  epochs: 1\n  batch_size: 8\n  epochs: 2\n"
    assert refused(text) == ["run.yaml:4: key 'epochs' stands already on line 2"]


def test_b05_an_unknown_key_gets_the_nearest_name():
    text = "train:\n  learning_rte: 1e-3\n"
    assert refused(text) == ["run.yaml:2: train.learning_rte: unknown key; did you mean 'train.learning_rate'?"]


def typos(name: str, rng: random.Random) -> Iterator[str]:
    """A letter left out, doubled, two swapped, the underscore forgotten or another, a plural."""
    place = rng.randrange(1, len(name))
    yield name[:place] + name[place + 1 :]
    yield name[:place] + name[place - 1] + name[place:]
    yield name[: place - 1] + name[place] + name[place - 1] + name[place + 1 :]
    yield name.replace("_", "", 1)
    yield name.replace("_", "-")
    yield f"{name}s"


def test_b05_the_suggestion_is_right_for_nine_of_ten_typos_of_every_key():
    rng, known, right, total = random.Random(0), set(config_keys()), 0, 0
    for key in sorted(known):
        *sections, name = key.split(".")
        for typo in sorted(set(typos(name, rng)) - {name}):
            data: dict = {typo: 1}
            for section in reversed(sections):
                data = {section: data}
            if ".".join([*sections, typo]) not in known:
                with pytest.raises(ConfigError) as caught:
                    validate_config(data)
                right += any(f"did you mean {key!r}?" in fault for fault in caught.value.faults)
                total += 1
    assert total > 400
    assert right >= 0.9 * total


def test_b06_a_number_with_an_exponent_is_a_number_and_a_word_is_not(tmp_path):
    path = tmp_path / "good.yaml"
    path.write_text("train: {learning_rate: 1e-3}\n")
    assert load_config(path).train.learning_rate == 0.001
    path.unlink()
    assert refused("train: {learning_rate: abc}\n")[0].startswith("run.yaml:1: train.learning_rate: got 'abc'; ")


@pytest.mark.parametrize(
    ("setting", "read_as", "fix"),
    [
        ("train: {compile: yes}", "'yes'", "fix: write true or false"),
        ("train: {compile: on}", "'on'", "fix: write true or false"),
        ("train: {epochs: no}", "'no'", ""),
        ("dataset: {dataset_folder: 012}", "12", "fix: quote it"),
        ("dataset: {dataset_folder: 3.10}", "3.1", "fix: quote it"),
        ("train: {epochs: 1:30}", "'1:30'", ""),
        ("train: {epochs: 2026-01-31}", "'2026-01-31'", ""),
        ("save_dir_root: true", "True", "fix: quote it"),
    ],
)
def test_b07_a_value_of_another_kind_than_meant_is_shown_as_it_was_read(setting, read_as, fix):
    (line,) = refused(setting)
    assert f": got {read_as}; " in line
    assert line.endswith(fix)


@pytest.mark.parametrize(
    ("setting", "kind"),
    [
        ("train: {epochs: true}", "integer"),
        ("save_dir_root: 3", "string"),
        ("train: {epochs: [1]}", "integer"),
        ("train: {epochs: null}", "integer"),
        ("train: null", "dictionary"),
        ("train: 3", "dictionary"),
        ("evaluation: {ks: 5}", "list"),
        ("tracking: {tensorboard: 1}", "boolean"),
    ],
)
def test_b08_a_wrong_type_is_refused_by_name(setting, kind):
    (line,) = refused(setting)
    assert " got " in line
    assert kind in line


@pytest.mark.parametrize(
    ("setting", "rule"),
    [
        ("train: {learning_rate: 0}", "greater than 0"),
        ("train: {learning_rate: -1e-3}", "greater than 0"),
        ("train: {learning_rate: .nan}", "finite"),
        ("train: {learning_rate: .inf}", "finite"),
        ("tiger: {dropout: 1.0}", "less than 1"),
        ("tiger: {dropout: -0.1}", "greater than or equal to 0"),
        ("train: {epochs: 0}", "greater than 0"),
        ("train: {batch_size: 0}", "greater than 0"),
        ("train: {batch_size: 1000000000}", "less than or equal to 1000000"),
        ("train: {mask_probability: 1.5}", "less than or equal to 1"),
        ("tokenizer: {num_item_embeddings: 1}", "greater than or equal to 2"),
        ("dataset: {test_share: 1.0}", "less than 1"),
    ],
)
def test_b09_a_value_out_of_range_is_refused_with_the_range(setting, rule):
    (line,) = refused(setting)
    assert " got " in line
    assert rule in line


@pytest.mark.parametrize(
    ("setting", "both"),
    [
        ("tiger: {attn_dim: 30, num_heads: 4}", ["attn_dim (30)", "num_heads (4)"]),
        ("tiger: {n_layers: 3}", ["n_layers (3)", "even"]),
        ("tiger: {positions: learned}", ["positions 'learned'", "encoder 'bidirectional'"]),
        ("tokenizer: {sem_id_dim: 2, rqvae: {sinkhorn_levels: [3]}}", ["level 3", "sem_id_dim is 2"]),
        ("evaluation: {ks: [5, 50]}", ["beam_size (20)", "50"]),
        ("dataset: {source: amazon}", ["source 'amazon'", "dataset_folder"]),
        ("dataset: {split: temporal, test_share: 0.0}", ["validation_share", "test_share"]),
    ],
)
def test_b10_settings_that_do_not_go_together_are_both_named(setting, both):
    (line,) = refused(setting)
    assert all(words in line for words in both)


def test_all_faults_are_told_at_once_with_their_lines():
    text = "train:\n  epochs: 0\n  learning_rte: 1\n\ntiger: {dropout: 2}\nsede: 1\n"
    places = [line.split(": ")[:2] for line in refused(text)]
    assert sorted(places) == [
        ["run.yaml:2", "train.epochs"],
        ["run.yaml:3", "train.learning_rte"],
        ["run.yaml:5", "tiger.dropout"],
        ["run.yaml:6", "sede"],
    ]


PROGRAM = (
    "import sys\nfrom genrec.cli import main\n"
    "try:\n    main(sys.argv[1:])\n"
    "except SystemExit as end:\n    print(end.code, [m for m in ('torch', 'numpy', 'ray') if m in sys.modules])\n"
)


@pytest.mark.parametrize(
    ("command", "name", "text"),
    [
        ("train", "run.yaml", "train:\n  epochs: 0\n  learning_rte: 1\n"),
        ("prepare", "run.yaml", "train:\n  epochs: 0\n  learning_rte: 1\n"),
        ("tokenize", "run.yaml", "train:\n  epochs: 0\n  learning_rte: 1\n"),
        ("inspect", "run.yaml", "train:\n  epochs: 0\n  learning_rte: 1\n"),
        ("train", "run.gin", "train.epochs=0\ntrain.learning_rte=1\n"),
    ],
)
def test_a_bad_config_is_refused_before_torch_is_loaded(command, name, text):
    Path(name).write_text(text)
    ended = subprocess.run([sys.executable, "-c", PROGRAM, command, name], capture_output=True, text=True, timeout=60)
    assert ended.stdout.strip() == "2 []"
    lines = ended.stderr.strip().splitlines()
    assert len(lines) == 2
    assert all(line.startswith(f"error: {name}:") for line in lines)
