"""A grid on the command line is the YAML file that it prints."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

from genrec.config import ConfigError
from sweeps.cli import main
from sweeps.quick_grid import grid_yaml
from sweeps.spec_file import load_spec, parse_spec

WORDS = ["--recipe", "paper", "--grid", "train.learning_rate=1e-4,3e-4", "--grid", "tiger.n_layers=6,8"]


def test_the_printed_file_is_kept_with_the_sweep_and_says_the_same(tmp_path: Path) -> None:
    """The address is dead: what is looked at is what stands there before anything runs."""
    words = ["run", *WORDS, "--set", "train.epochs=2", "--storage", str(tmp_path), "--address", "127.0.0.1:9"]
    result = CliRunner().invoke(main, words)
    assert result.exit_code == 4
    path = tmp_path / "paper-grid" / "sweep.yaml"
    assert path.read_text() in result.output
    spec = load_spec(path)
    assert spec.search_space.grid_points() == [
        {"train.learning_rate": rate, "tiger.n_layers": layers} for rate in (1e-4, 3e-4) for layers in (6, 8)
    ]
    assert (spec.name, spec.base, spec.set, spec.budget.trials) == ("paper-grid", "paper", {"train.epochs": 2}, 4)
    assert spec.hash == parse_spec(path.read_text(), "grid").hash


def test_lists_are_values_too() -> None:
    text = grid_yaml(None, None, ["tokenizer.rqvae.hidden_dims=[256, 128],[512]"], [], None)
    points = parse_spec(text, "grid").search_space.grid_points()
    assert points == [{"tokenizer.rqvae.hidden_dims": dims} for dims in ([256, 128], [512])]


def test_faults_are_those_of_a_file_all_at_once() -> None:
    words = ["run", "--grid", "train.learning_rte=1e-4", "--grid", "tiger.n_layers=6,x"]
    result = CliRunner().invoke(main, words)
    assert result.exit_code == 2
    assert "grid:3: space.train.learning_rte: unknown setting; did you mean 'train.learning_rate'?" in result.output
    assert "grid:4: space.tiger.n_layers.values: got 'x'; input should be a valid integer" in result.output


@pytest.mark.parametrize("text", ["train.epochs", "train.epochs=", "=1", "a=1], x: [", "a: 1, b=2", "a=1\nb"])
def test_a_word_of_another_form_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="--grid"):
        grid_yaml("name", None, [text], [], None)


@pytest.mark.parametrize("words", [[], ["file.yaml", "--grid", "train.epochs=1"], ["file.yaml", "--recipe", "paper"]])
def test_a_file_and_a_grid_exclude_each_other(words: list[str]) -> None:
    assert CliRunner().invoke(main, ["run", *words]).exit_code == 2
