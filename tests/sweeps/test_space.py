"""The search space: what a file may say, in which order a grid runs, which points are infeasible."""

from __future__ import annotations

import itertools
import math

import pytest

from genrec.config import ConfigError, RunConfig
from genrec.strict_yaml import parse_yaml
from sweeps.constraints import ConstraintError, parse_constraint
from sweeps.space import Choice, Float, Grid, Int, parse_space, setting_value

BASE = RunConfig().to_dict()


def space_of(text: str):
    document = parse_yaml(text, "sweep.yaml")
    return parse_space(document.data["space"], document.data.get("constraints", []), document)


def faults_of(text: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        space_of(text)
    return caught.value.faults


def test_every_type_is_read_with_the_values_as_the_setting_keeps_them():
    space = space_of("""
space:
  train.learning_rate: {type: float, low: 1e-4, high: 1e-2, log: true}
  tiger.dropout: {type: float, low: 0, high: 0.4, step: 0.1}
  tiger.num_heads: {type: int, low: 1, high: 8, step: 1}
  tokenizer.rqvae.hidden_dims: {type: choice, values: [[64], [128, 64]]}
  train.weight_decay: {type: grid, values: [0, 0.1], ordered: true}
""")
    assert dict(space.parameters) == {
        "train.learning_rate": Float(1e-4, 1e-2, log=True),
        "tiger.dropout": Float(0.0, 0.4, step=0.1),
        "tiger.num_heads": Int(1, 8),
        "tokenizer.rqvae.hidden_dims": Choice(([64], [128, 64])),
        "train.weight_decay": Grid((0.0, 0.1), ordered=True),
    }
    assert list(space.sampled) == list(space.parameters)[:4]
    assert not space.pure_grid


def test_grid_points_come_in_the_order_of_the_file_with_the_first_setting_slowest():
    space = space_of("""
space:
  tiger.num_heads: {type: grid, values: [4, 2]}
  tokenizer.kind: {type: grid, values: [rkmeans, rqvae]}
  train.batch_size: {type: grid, values: [64, 32, 128]}
""")
    points = [tuple(point.values()) for point in space.grid_points()]
    assert points == [(h, k, b) for h in (4, 2) for k in ("rkmeans", "rqvae") for b in (64, 32, 128)]
    assert space.pure_grid


def test_a_space_without_a_grid_has_one_empty_grid_point():
    assert space_of("space: {train.epochs: {type: int, low: 1, high: 3}}").grid_points() == [{}]


@pytest.mark.parametrize(
    ("entry", "line", "words"),
    [
        ("train.learning_rte: {type: float, low: 1, high: 2}", 2, "did you mean 'train.learning_rate'?"),
        ("train.batch_size: [32, 64]", 2, "fix: {type: grid, values: [32, 64]}"),
        ("train.batch_size: {type: integer, low: 1, high: 2}", 2, "did you mean 'int'?"),
        ("train.batch_size: {low: 1, high: 2}", 2, "got no type; expected one of float, int, choice, grid"),
        ("train.batch_size: {type: int, low: 1, hihg: 2}", 2, "did you mean 'high'?"),
        ("train.batch_size: {type: int, low: 64, high: 32}", 2, "low must be at most high (32)"),
        ("train.batch_size: {type: int, low: 1, high: 2.5}", 2, "got 2.5; expected a whole number"),
        ("train.batch_size: {type: float, low: 1, high: 64}", 2, "fix: type: int"),
        ("train.learning_rate: {type: float, low: 0, high: 1, log: true}", 2, "a log range must start above 0"),
        ("train.learning_rate: {type: float, low: -1, high: 1}", 2, "got -1.0; input should be greater than 0"),
        ("train.learning_rate: {type: float, low: .nan, high: 1}", 2, "expected a number"),
        ("train.learning_rate: {type: float, low: abc, high: 1}", 2, "got 'abc'; expected a number"),
        ("train.learning_rate: {type: float, low: 1, high: 2, log: 'yes'}", 2, "expected true or false"),
        ("train.learning_rate: {type: float, high: 1}", 2, "low: got nothing; expected a number"),
        ("train.epochs: {type: int, low: 1, high: 8, step: 0}", 2, "step must be above 0"),
        ("train.epochs: {type: int, low: 1, high: 8, step: 2}", 2, "fix: high: 7"),
        ("train.epochs: {type: int, low: 1, high: 8, step: 2, log: true}", 2, "a log range has no step"),
        ("train.optimizer: {type: choice, values: []}", 2, "expected a list of 1 to 1000 values"),
        ("train.optimizer: {type: choice, values: [adam]}", 2, "input should be 'adamw' or 'muon'"),
        ("train.optimizer: {type: grid, values: [muon, muon]}", 2, "a value stands twice"),
        ("train.learning_rate: {type: grid, values: [1, 1.0]}", 2, "a value stands twice"),
        ("train.batch_size: {type: choice, values: [64, true]}", 2, "got True; input should be a valid integer"),
        ("evaluation.ks: {type: choice, values: [5]}", 2, "got 5; input should be a valid list"),
    ],
)
def test_a_wrong_entry_is_refused_with_line_value_rule_and_fix(entry: str, line: int, words: str):
    faults = faults_of(f"space:\n  {entry}\n")
    assert len(faults) == 1
    assert faults[0].startswith(f"sweep.yaml:{line}: space.")
    assert words in faults[0]


def test_all_faults_are_reported_at_once():
    faults = faults_of("""
space:
  train.epoch: {type: int, low: 1, high: 2}
  train.batch_size: {type: int, low: 0, high: -1}
constraints: [tiger.head > 2, 3]
""")
    assert len(faults) == 4


def test_an_empty_space_and_an_endless_grid_are_refused():
    assert "expected at least one setting" in faults_of("space: {}")[0]
    values = list(range(1, 401))
    grid = f"{{type: grid, values: {values}}}"
    assert "160000 grid points" in faults_of(f"space: {{train.epochs: {grid}, train.batch_size: {grid}}}")[0]


def test_values_that_only_fail_together_are_no_fault_but_an_infeasible_point():
    space = space_of("space: {tiger.num_heads: {type: choice, values: [4, 5]}}")
    assert space.infeasible_reason(BASE, {"tiger.num_heads": 4}) is None
    assert "multiple of num_heads (5)" in space.infeasible_reason(BASE, {"tiger.num_heads": 5})
    share, reason = space.infeasible_share(BASE, tries=400)
    assert 0.4 < share < 0.6
    assert "num_heads" in reason


def test_a_grid_point_is_infeasible_by_itself_only_if_nothing_sampled_can_help():
    space = space_of("""
space:
  tiger.attn_dim: {type: grid, values: [96, 100]}
  train.batch_size: {type: grid, values: [64, 1024]}
  tiger.num_heads: {type: choice, values: [3, 10]}
constraints: [train.batch_size <= 512]
""")
    reasons = [space.grid_infeasible_reason(BASE, point) for point in space.grid_points()]
    assert [reason is None for reason in reasons] == [True, False, True, False]
    fixed_heads = space_of("""
space:
  tiger.attn_dim: {type: grid, values: [96, 99]}
  train.batch_size: {type: int, low: 1, high: 9}
""")
    reasons = [fixed_heads.grid_infeasible_reason(BASE, point) for point in fixed_heads.grid_points()]
    assert [reason is None for reason in reasons] == [True, False]


def test_build_puts_the_point_over_the_base():
    space = space_of("space: {train.batch_size: {type: int, low: 1, high: 9}}")
    config = space.build(BASE, {"train.batch_size": 7})
    assert config.train.batch_size == 7
    assert config.train.epochs == RunConfig().train.epochs


def test_trial_points_stay_inside_the_ranges():
    space = space_of("""
space:
  train.learning_rate: {type: float, low: 1e-4, high: 1e-2, log: true}
  tiger.dropout: {type: float, low: 0, high: 0.3, step: 0.1}
  train.batch_size: {type: int, low: 8, high: 64, log: true}
  tiger.n_layers: {type: int, low: 2, high: 6, step: 2}
""")
    for point in itertools.islice(space.draws(), 300):
        assert 1e-4 <= point["train.learning_rate"] <= 1e-2
        assert any(math.isclose(point["tiger.dropout"], step) for step in (0, 0.1, 0.2, 0.3))
        assert 8 <= point["train.batch_size"] <= 64
        assert point["tiger.n_layers"] in (2, 4, 6)


def test_setting_value_follows_the_config():
    assert setting_value("train.max_users", None) is None
    assert setting_value("train.learning_rate", 1) == 1.0
    with pytest.raises(ValueError, match="finite"):
        setting_value("train.learning_rate", math.inf)


@pytest.mark.parametrize(
    ("text", "holds"),
    [
        ("tiger.attn_dim % tiger.num_heads == 0", True),
        ("tiger.attn_dim / tiger.num_heads == 33", False),
        ("train.batch_size <= 128 or train.learning_rate <= 1e-3", True),
        ("train.batch_size <= 128 and train.learning_rate <= 1e-3", False),
        ("not train.batch_size > 512", True),
        ("train.batch_size in (128, 256)", True),
        ("train.optimizer not in ['adamw']", False),
        ("train.max_users == None", True),
        ("train.max_users == null", True),
        ("1 < tiger.n_layers <= 4", True),
        ("2 ** 5 * tiger.num_heads - 1 == 127", True),
        ("-train.batch_size < 0 and train.batch_size // 100 == 2", True),
        ("seed == 0", True),
    ],
)
def test_constraints_mean_what_python_means(text: str, holds: bool):
    assert (parse_constraint(text).violation(BASE) is None) == holds


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("tiger.atn_dim > 3", "did you mean 'tiger.attn_dim'?"),
        ("train > 3", "unknown setting 'train'"),
        ("train.batch_size", "not a condition"),
        ("train.batch_size and train.epochs > 1", "not a condition"),
        ("1 < 2", "names no setting"),
        ("train.batch_size <", "cannot be read"),
        ("", "cannot be read"),
        ("train.batch_size = 3", "cannot be read"),
        ("train.batch_size ** train.epochs > 1", "an exponent must be a whole number"),
        ("train.batch_size ** 99 > 1", "an exponent must be a whole number"),
        ("train.optimizer in train.schedule", "the right side of 'in' must be a list"),
        ("__import__('os').system('true') == train.epochs", "is not allowed"),
        ("(lambda: train.epochs)() > 1", "is not allowed"),
        ("evaluation.ks[0] > 1", "is not allowed"),
        ("[e for e in (1, 2)] == train.epochs", "is not allowed"),
        ("f'{train.epochs}' == 'x'", "is not allowed"),
        ("(train.epochs if 1 else 2) > 1", "is not allowed"),
        ("train.epochs is None", "is not allowed"),
        ("(1).real > train.epochs", "is not allowed"),
        ("train.epochs > 1j", "is not allowed"),
        ("train.epochs\0 > 1", "cannot be read"),
        ("(" * 900 + "train.epochs", "cannot be read"),
        ("train.epochs > 0" + " " * 1000, "at most 1000"),
    ],
)
def test_whatever_is_not_on_the_list_is_refused(text: str, words: str):
    with pytest.raises(ConstraintError) as caught:
        parse_constraint(text)
    assert words in str(caught.value)


@pytest.mark.parametrize("text", ["train.max_users <= 500", "'a' * 10 == train.epochs", "1 / seed > train.epochs"])
def test_a_constraint_that_cannot_be_evaluated_makes_the_point_infeasible(text: str):
    assert "cannot be evaluated" in parse_constraint(text).violation(BASE)
