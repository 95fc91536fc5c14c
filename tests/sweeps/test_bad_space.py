"""Bad search spaces, B10 (second half) and B11: refused by the command, with a sentence, before anything is made."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from sweeps.cli import main


def validate(folder: Path, text: str) -> Result:
    path = folder / "sweep.yaml"
    path.write_text(text)
    result = CliRunner().invoke(main, ["validate", str(path)])
    assert "Traceback" not in result.output
    assert [found.name for found in folder.iterdir()] == ["sweep.yaml"]
    return result


def refused(folder: Path, text: str) -> str:
    result = validate(folder, text)
    assert result.exit_code == 2, result.output
    assert result.stdout == ""
    return result.stderr


def test_b10_the_share_of_points_whose_settings_do_not_go_together_is_told(tmp_path):
    result = validate(tmp_path, "space: {tiger.num_heads: {type: grid, values: [4, 5, 8, 7]}}\n")
    assert result.exit_code == 0, result.output
    assert "50%" in result.stdout
    assert "num_heads (5)" in result.stdout


def test_b10_a_space_of_which_no_point_can_run_is_refused_with_both_keys(tmp_path):
    said = refused(tmp_path, "space: {tiger.num_heads: {type: grid, values: [5, 7]}}\n")
    assert "none of 2 points is feasible" in said
    assert "attn_dim (128) must be a multiple of num_heads (5)" in said


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        ("train.batch_size: {type: int, low: 64, high: 32}", "low must be at most high (32)"),
        ("train.learning_rate: {type: float, low: 0, high: 1, log: true}", "a log range must start above 0"),
        ("train.learning_rate: {type: float, low: -1, high: 1, log: true}", "a log range must start above 0"),
        ("train.epochs: {type: int, low: 1, high: 8, step: 0}", "step must be above 0"),
        ("tiger.dropout: {type: float, low: 0, high: 0.4, step: 0}", "step must be above 0"),
        ("train.optimizer: {type: choice, values: []}", "expected a list of 1 to 1000 values"),
        ("train.optimizer: {type: choice, values: [[adamw]]}", "got ['adamw']"),
        ("train.optimizer: {type: choice, values: [{type: choice, values: [adamw]}]}", "input should be"),
        ("tokenizer.rqvae.hidden_dims: {type: choice, values: [[[64]]]}", "got [[64]]"),
    ],
)
def test_b11_a_range_or_choice_that_holds_nothing_is_refused(tmp_path, entry, words):
    said = refused(tmp_path, f"budget: {{trials: 2}}\nspace:\n  {entry}\n")
    assert said.startswith(f"error: {tmp_path / 'sweep.yaml'}:3: space.")
    assert words in said


@pytest.mark.parametrize(
    "entry",
    [
        "train.optimizer: {type: choice, values: [muon]}",
        "train.optimizer: {type: grid, values: [muon]}",
        "train.epochs: {type: int, low: 3, high: 3}",
        "tokenizer.rqvae.hidden_dims: {type: choice, values: [[64, 32]]}",
    ],
)
def test_b11_one_value_is_a_space(tmp_path, entry):
    result = validate(tmp_path, f"budget: {{trials: 2}}\nspace:\n  {entry}\n")
    assert result.exit_code == 0, result.output
