"""The search space: what a file may say, in which order a grid runs, which points are infeasible."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from pathlib import Path

import pytest
from click.testing import CliRunner

import sweeps.space as space_module
from genrec.config import ConfigError, RunConfig
from genrec.strict_yaml import parse_yaml
from sweeps.cli import main
from sweeps.constraints import ConstraintError, parse_constraint
from sweeps.parameters import Choice, Float, Grid, Int
from sweeps.space import Space, setting_value
from sweeps.space_file import parse_space

BASE = RunConfig().to_dict()


def space_of(text: str):
    document = parse_yaml(text, "sweep.yaml")
    data = document.data
    return parse_space(data["space"], data.get("constraints", []), document, data.get("derive"))


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
        ("max(train.batch_size, 300) - min(tiger.n_layers, 3) == 297", True),
        ("round(train.batch_size / 100) == 3", True),
        ("train.batch_size ** 0.5 == 16", True),
        ("cost.parameters < 1_000_000", False),
        ("cost.memory_gb < 1 and cost.parameters > 1_000_000", True),
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
        ("cost.parameter > 3", "did you mean 'cost.parameters'?"),
        ("max(*train.epochs) > 1", "is not allowed"),
        ("max(train.epochs, key=1) > 1", "is not allowed"),
        ("max() > train.epochs", "max takes two numbers or more"),
        ("min(train.batch_size) > 1", "min takes two numbers or more"),
        ("round(train.learning_rate, 1, 2) > 1", "round takes one number, or a number and its digits"),
        ("lr > 1", "unknown setting 'lr'; did you mean 'train.learning_rate'?"),
        ("sum(train.epochs) > 1", "is not allowed"),
        ("train.epochs ** -1 > 1", "an exponent must be a number from 0 to 8"),
        ("train.epochs ** True > 1", "an exponent must be a number from 0 to 8"),
        ("train.batch_size", "not a condition"),
        ("train.batch_size and train.epochs > 1", "not a condition"),
        ("1 < 2", "names no setting"),
        ("train.batch_size <", "cannot be read"),
        ("", "cannot be read"),
        ("train.batch_size = 3", "cannot be read"),
        ("train.batch_size ** train.epochs > 1", "an exponent must be a number from 0 to 8"),
        ("train.batch_size ** 99 > 1", "an exponent must be a number from 0 to 8"),
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


@pytest.mark.parametrize(
    "text",
    [
        "train.max_users <= 500",
        "'a' * 10 == train.epochs",
        "1 / seed > train.epochs",
        "(seed - 1) ** 0.5 > train.epochs",
        "max(train.optimizer, 1) == train.epochs",
        "(((train.batch_size ** 8) ** 8) ** 8) ** 8 > 1",
    ],
)
def test_a_constraint_that_cannot_be_evaluated_makes_the_point_infeasible(text: str):
    assert "cannot be evaluated" in parse_constraint(text).violation(BASE)


# -- conditions, pairs, derived settings -----------------------------------------------------------------------------


CONDITIONAL = """
space:
  tokenizer.kind: {type: choice, values: [rkmeans, rqvae]}
  tokenizer.rqvae.gradient: {type: choice, values: [rotation, gumbel], when: {tokenizer.kind: rqvae}}
  tokenizer.rqvae.gumbel_temperature: {type: choice, values: [0.1, 0.2], when: {tokenizer.rqvae.gradient: gumbel}}
  tokenizer.rqvae.epochs: {type: choice, values: [1, 2], when: {tokenizer.kind: [rqvae]}}
"""


def test_a_conditional_parameter_lives_only_under_its_condition():
    space = space_of(CONDITIONAL)
    points = space.trial_points()
    assert len(points) == space.num_points() == 1 + 2 + 4
    assert len({str(point) for point in points}) == 7
    for point in [*points, *itertools.islice(space.draws(), 100)]:
        rqvae = point["tokenizer.kind"] == "rqvae"
        gumbel = rqvae and point["tokenizer.rqvae.gradient"] == "gumbel"
        assert ("tokenizer.rqvae.epochs" in point) == ("tokenizer.rqvae.gradient" in point) == rqvae
        assert ("tokenizer.rqvae.gumbel_temperature" in point) == gumbel
    assert space.build(BASE, points[0]).tokenizer.rqvae == RunConfig().tokenizer.rqvae


def test_parameters_with_one_condition_are_sampled_together_after_those_above():
    groups = space_of(CONDITIONAL).sampled_groups()
    assert [names for _, names in groups] == [
        ["tokenizer.kind"],
        ["tokenizer.rqvae.gradient", "tokenizer.rqvae.epochs"],
        ["tokenizer.rqvae.gumbel_temperature"],
    ]


def test_a_conditional_grid_lists_only_points_that_differ():
    space = space_of("""
space:
  tokenizer.kind: {type: grid, values: [rkmeans, rqvae]}
  tokenizer.rqvae.epochs: {type: grid, values: [1, 2, 3], when: {tokenizer.kind: rqvae}}
  train.batch_size: {type: grid, values: [32, 64]}
""")
    assert [tuple(point.values()) for point in space.grid_points()] == [
        ("rkmeans", 32),
        ("rkmeans", 64),
        *(("rqvae", epochs, size) for epochs in (1, 2, 3) for size in (32, 64)),
    ]


PAIRS = """
space:
  size: {type: grid, names: [small, large], zip: {tiger.n_layers: [2, 8], tiger.num_heads: [2, 8]}}
  train.learning_rate: {type: float, low: 1e-4, high: 1e-2, log: true, when: {size: small}}
"""


def test_paired_values_set_their_settings_together():
    space = space_of(PAIRS)
    assert space.grid_points() == [{"size": "small"}, {"size": "large"}]
    assert space.paths == {"tiger.n_layers", "tiger.num_heads", "train.learning_rate"}
    small = space.build(BASE, {"size": "small", "train.learning_rate": 2e-4})
    assert (small.tiger.n_layers, small.tiger.num_heads, small.train.learning_rate) == (2, 2, 2e-4)
    large = space.build(BASE, {"size": "large"})
    assert (large.tiger.n_layers, large.tiger.num_heads) == (8, 8)
    assert large.train.learning_rate == RunConfig().train.learning_rate
    assert space.possible_values(BASE, "tiger.n_layers") == [2, 8]
    assert space.possible_values(BASE, "train.epochs") == [RunConfig().train.epochs]


def test_pairs_without_names_are_named_by_their_values():
    space = space_of("space: {x: {type: choice, zip: {train.epochs: [1, 2], train.optimizer: [adamw, muon]}}}")
    assert space.parameters["x"].values == ('epochs=1, optimizer="adamw"', 'epochs=2, optimizer="muon"')


DERIVED = """
space:
  tiger.num_heads: {type: choice, values: [2, 4]}
  train.batch_size: {type: grid, values: [64, 256]}
derive:
  tiger.feedforward_dim: 2 * tiger.attn_dim
  tiger.attn_dim: 16 * tiger.num_heads
  train.warmup_steps: train.batch_size / 2
constraints: [tiger.feedforward_dim >= 64, train.warmup_steps < 100]
"""


def test_derived_settings_are_computed_after_those_they_read():
    space = space_of(DERIVED)
    assert list(space.derived) == ["tiger.attn_dim", "train.warmup_steps", "tiger.feedforward_dim"]
    config = space.build(BASE, {"tiger.num_heads": 4, "train.batch_size": 64})
    assert (config.tiger.attn_dim, config.tiger.feedforward_dim, config.train.warmup_steps) == (64, 128, 32)
    assert space.possible_values(BASE, "tiger.attn_dim") == [32, 64] * 2  # of four points and four corners half


def test_a_grid_point_is_judged_by_what_is_derived_from_the_grid_alone():
    space = space_of(DERIVED)
    reasons = [space.grid_infeasible_reason(BASE, point) for point in space.grid_points()]
    assert reasons[0] is None
    assert "train.warmup_steps=128" in reasons[1]


def test_a_derived_value_that_a_setting_does_not_take_makes_the_point_infeasible():
    space = space_of(
        "space: {tiger.num_heads: {type: choice, values: [2, 3]}}\nderive: {train.epochs: tiger.num_heads / 2}"
    )
    assert space.infeasible_reason(BASE, {"tiger.num_heads": 2}) is None
    reason = space.infeasible_reason(BASE, {"tiger.num_heads": 3})
    assert reason == "derive.train.epochs: 'tiger.num_heads / 2': got 1.5; input should be a valid integer"
    with pytest.raises(ConfigError, match="got 1.5"):
        space.build(BASE, {"tiger.num_heads": 3})


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("train.epochs: {type: grid, values: [1], when: {train.optimizer: muon}}", "is not in the space"),
        ("train.epochs: {type: grid, values: [1], when: {tokenizer.knd: rqvae}}", "did you mean 'tokenizer.kind'?"),
        (
            "train.epochs: {type: grid, values: [1], when: {train.patience: 2}}\n"
            "  train.patience: {type: grid, values: [2]}",
            "fix: move train.patience up",
        ),
        ("train.epochs: {type: grid, values: [1], when: {train.epochs: 1}}", "is not in the space"),
        ("train.epochs: {type: grid, values: [1], when: {tokenizer.kind: rqvea}}", "did you mean 'rqvae'?"),
        ("train.epochs: {type: grid, values: [1], when: {train.batch_size: 32}}", "a grid can only depend on grids"),
        ("train.epochs: {type: choice, values: [1], when: {train.learning_rate: 0.1}}", "listed values"),
        ("train.epochs: {type: int, low: 1, high: 2, when: {train.batch_size: 33}}", "expected one of [32, 64]"),
        ("train.epochs: {type: int, low: 1, high: 2, when: {}}", "expected a mapping"),
        ("train.epochs: {type: int, low: 1, high: 2, when: rqvae}", "expected a mapping; fix: when: {tokenizer.kind"),
        ("tiger.n_layers: {type: grid, zip: {train.epochs: [1]}}", "need a name of their own"),
        ("x: {type: grid, values: [1]}", "unknown setting"),
        ("x: {type: int, zip: {train.epochs: [1]}}", "unknown key of type int"),
        (
            "x: {type: grid, zip: {train.epochs: [1, 2], train.patience: [1]}}",
            "train.epochs has 2, train.pat",
        ),
        ("x: {type: grid, zip: {train.epoch: [1, 2]}}", "space.x.zip.train.epoch: unknown setting; did you mean"),
        ("x: {type: grid, zip: {train.epochs: [1, 0]}}", "space.x.zip.train.epochs: got 0"),
        ("x: {type: grid, zip: {train.epochs: 3}}", "expected a list"),
        ("x: {type: grid, zip: [1]}", "expected settings and their values"),
        ("x: {type: grid, zip: {train.epochs: [1, 1]}}", "a value stands twice"),
        ("x: {type: grid, zip: {train.epochs: [1, 2]}, names: [a]}", "expected a list of 2 texts"),
        ("x: {type: grid, zip: {train.epochs: [1, 2]}, names: [a, a]}", "a value stands twice"),
        ("x: {type: grid, zip: {train.epochs: [1, 2]}, values: [a]}", "exclude each other"),
        ("train.epochs: {type: grid, values: [1, 2], names: [a, b]}", "names belong to a zip"),
        ("x: {type: grid, zip: {train.batch_size: [1, 2]}}", "train.batch_size is set by 'train.batch_size' already"),
    ],
)
def test_a_wrong_condition_or_pair_is_refused(text: str, words: str):
    above = (
        "  tokenizer.kind: {type: grid, values: [rkmeans, rqvae]}\n"
        "  train.batch_size: {type: int, low: 32, high: 64, step: 32}\n"
        "  train.learning_rate: {type: float, low: 0.1, high: 0.2}\n"
    )
    faults = faults_of(f"space:\n{above}  {text}\n")
    assert any(words in fault for fault in faults), faults
    assert faults[0].startswith("sweep.yaml:5: space.")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("train.epoch: 2 * seed", "unknown setting; did you mean 'train.epochs'?"),
        ("train.batch_size: 2 * seed", "is set by space.train.batch_size already"),
        ("train.epochs: 3", "expected an expression as text; fix: set: {train.epochs: 3}"),
        ("train.epochs: 3 * tiger.layers", "unknown setting 'tiger.layers'"),
        ("train.epochs: __import__('os')", "is not allowed"),
        ("train.epochs: 2 * train.epochs", "is computed from itself"),
        ("train.epochs: 2 * train.patience\n  train.patience: train.epochs", "is computed from itself"),
        ("train.epochs: cost.parameters // 1000", "a cost depends on all settings"),
    ],
)
def test_a_wrong_derivation_is_refused(text: str, words: str):
    faults = faults_of(f"space:\n  train.batch_size: {{type: grid, values: [1, 2]}}\nderive:\n  {text}\n")
    assert len(faults) == 1
    assert words in faults[0]
    assert faults[0].startswith("sweep.yaml:4: derive.")


def test_stepped_floats_are_the_decimals_that_they_look_like():
    space = space_of("space: {tiger.dropout: {type: float, low: 0, high: 0.3, step: 0.1}}")
    assert [point["tiger.dropout"] for point in space.trial_points()] == [0.0, 0.1, 0.2, 0.3]


def test_a_range_without_steps_and_a_vast_space_are_not_listed():
    assert space_of("space: {tiger.dropout: {type: float, low: 0, high: 0.3}}").num_points() is None
    vast = "{type: int, low: 1, high: 1000}"
    assert space_of(f"space: {{train.epochs: {vast}, train.patience: {vast}}}").num_points() is None
    assert space_of(f"space: {{train.epochs: {vast}}}").num_points() == 1000


def test_points_are_counted_as_they_are_listed():
    space = space_of(
        """
space:
  tokenizer.kind: {type: choice, values: [rkmeans, rqvae]}
  train.epochs: {type: int, low: 1, high: 5}
  tokenizer.rqvae.epochs: {type: int, low: 10, high: 30, step: 10, when: {tokenizer.kind: rqvae}}
  tiger.n_layers: {type: choice, values: [2, 4], when: {tokenizer.rqvae.epochs: [10, 20], train.epochs: 3}}
"""
    )
    assert space.num_points() == len(space.sampled_points({})) == 5 + 4 * 3 + 2 * 2 + 1
    assert space.num_grid_points() == len(space.grid_points()) == 1


@pytest.mark.parametrize("wanted", [7, "'small'", "[1, true]", "[1.5]"])
def test_a_vast_range_is_not_listed_for_the_sake_of_a_condition(wanted: object):
    text = f"""
space:
  seed: {{type: int, low: 0, high: 1000000000}}
  train.epochs: {{type: int, low: 1, high: 5, when: {{seed: {wanted}}}}}
"""
    if wanted == 7:
        space = space_of(text)
        assert space.num_points() is None
        assert space.sampled_points({}) is None
        assert all(0 <= point["seed"] <= 10**9 for point in space.trial_points(20))
    else:
        assert "expected a whole number from 0 to 1000000000" in faults_of(text)[0]


def test_what_a_check_of_a_vast_grid_does_depends_on_its_settings_and_not_on_its_points(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    values = list(range(1, 301))
    path = tmp_path / "vast.yaml"
    path.write_text(
        f"space: {{seed: {{type: grid, values: {values}}}, tokenizer.seed: {{type: grid, values: {values}}}}}\n"
    )
    done: Counter[str] = Counter()
    listed, validated = Space._points, space_module.validate_config

    def list_points(self, names, given):
        for point in listed(self, names, given):
            done["points"] += 1
            yield point

    def validate(values):
        done["configs"] += 1
        return validated(values)

    monkeypatch.setattr(Space, "_points", list_points)
    monkeypatch.setattr(space_module, "validate_config", validate)
    result = CliRunner().invoke(main, ["validate", str(path)])
    assert "grid points: 90000" in result.output
    assert done["points"] == 0
    assert done["configs"] < 500
