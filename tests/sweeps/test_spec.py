"""One YAML = one sweep: defaults, faults all at once, and a stored copy that needs no file."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any, get_args

import jsonschema
import pytest

from genrec.config import ConfigError, RunConfig, config_keys, validate_config, with_values
from genrec.pipeline import stage_keys
from genrec.strict_yaml import parse_yaml
from sweeps.finalists import plan_finalists
from sweeps.schema import schema_text, sweep_schema
from sweeps.space import value_at
from sweeps.spec import SweepSpec
from sweeps.spec_file import load_spec
from sweeps.unread_settings import UNREAD, faults_of_path

ROOT = Path(__file__).parents[2]

GRID = "space: {train.batch_size: {type: grid, values: [32, 64, 128]}}\n"
SAMPLED = "space: {train.learning_rate: {type: float, low: 1e-4, high: 1e-2, log: true}}\n"


def write(folder: Path, text: str, name: str = "my sweep.yaml") -> Path:
    path = folder / name
    path.write_text(text)
    return path


def faults_of(folder: Path, text: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load_spec(write(folder, text, "sweep.yaml"))
    return [fault.removeprefix(f"{folder}/") for fault in caught.value.faults]


def test_a_pure_grid_needs_nothing_but_its_space(tmp_path: Path):
    spec = load_spec(write(tmp_path, GRID))
    assert spec.name == "my-sweep"
    assert (spec.metric, spec.mode, spec.budget.trials, spec.max_failures, spec.seed) == ("ndcg@10", "max", 3, 2, 0)
    assert (spec.sampler.type, spec.scheduler.type, spec.resources.workers) == ("tpe", "none", 1)
    assert spec.base_config() == RunConfig()
    assert len(spec.search_space.grid_points()) == 3


def test_the_stored_copy_needs_no_file(tmp_path: Path):
    write(tmp_path, "train: {epochs: 7}\n", "base.yaml")
    path = write(tmp_path, f"{SAMPLED}base: base.yaml\nset: {{tiger.num_heads: 2}}\nbudget: {{time: 90m}}\n")
    spec = load_spec(path, config_overrides={"train.batch_size": 32})
    for file in tmp_path.iterdir():
        file.unlink()
    stored = SweepSpec.from_dict(json.loads(json.dumps(spec.to_dict())))
    assert stored == spec
    assert stored.hash == spec.hash
    config = stored.base_config()
    assert (config.train.epochs, config.tiger.num_heads, config.train.batch_size) == (7, 2, 32)
    assert stored.budget.time == 5400.0
    assert stored.budget.trials is None


@pytest.mark.parametrize(
    ("text", "seconds"), [("45s", 45), ("90m", 5400), ("2h", 7200), ("1h30m", 5400), ("12.5", 12.5)]
)
def test_durations(tmp_path: Path, text: str, seconds: float):
    assert load_spec(write(tmp_path, f"{SAMPLED}budget: {{time: {text}}}\n")).budget.time == seconds


def test_overrides_replace_values_of_the_spec(tmp_path: Path):
    path = write(tmp_path, SAMPLED)
    spec = load_spec(path, overrides={"budget.trials": 5, "set.train.epochs": 3, "name": "other"})
    assert (spec.budget.trials, spec.base_config().train.epochs, spec.name) == (5, 3, "other")


def test_the_metric_is_what_a_trial_keeps_its_epoch_by(tmp_path: Path):
    spec = load_spec(write(tmp_path, f"{GRID}set: {{evaluation.ks: [1, 5]}}\nmetric: recall@1\n"))
    assert spec.base_config().evaluation.monitor == "recall@1"
    spec = load_spec(write(tmp_path, f"{GRID}set: {{evaluation.monitor: recall@5}}\n"))
    assert spec.metric == "recall@5"


def test_loss_is_minimised(tmp_path: Path):
    assert load_spec(write(tmp_path, f"{GRID}metric: loss\n")).mode == "min"
    assert "fix: mode: min" in faults_of(tmp_path, f"{GRID}metric: loss\nmode: max\n")[0]


def test_finalists_get_settings_of_their_own(tmp_path: Path):
    spec = load_spec(write(tmp_path, f"{GRID}finalists: {{seeds: 2, set: {{train.epochs: 30}}}}\n"))
    assert spec.finalist_config(spec.base_config()).train.epochs == 30
    assert spec.base_config().train.epochs == 10


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (f"name: ../x\n{GRID}", "1: name: got '../x'; expected 1 to 63 letters"),
        (f"name: -rf\n{GRID}", "1: name: got '-rf'"),
        (f"budgets: 3\n{GRID}", "1: budgets: unknown key; did you mean 'budget'?"),
        (f"budget: {{trails: 3}}\n{GRID}", "1: budget.trails: unknown key; did you mean 'trials'?"),
        (f"budget: {{trials: 0}}\n{GRID}", "1: budget.trials: got 0; input should be greater than or equal to 1"),
        (f"budget: {{trials: 1.5}}\n{GRID}", "1: budget.trials: got 1.5"),
        (f"budget: {{trials: 1000000000}}\n{GRID}", "less than or equal to 100000"),
        (f"budget: {{time: soon}}\n{GRID}", "1: budget.time: got 'soon'; expected a duration such as 45s"),
        (f"budget: 3\n{GRID}", "1: budget: got 3"),
        (f"mode: minimise\n{GRID}", "1: mode: got 'minimise'; input should be 'max' or 'min'; fix: min"),
        (f"sampler: {{type: tpee}}\n{GRID}", "fix: tpe"),
        (f"scheduler: {{type: ASHA, reduction_factor: 4}}\n{GRID}", "fix: asha"),
        (f"scheduler: {{type: asha, reduction_factor: 1}}\n{GRID}", "reduction_factor: got 1"),
        (
            f"scheduler: {{type: median, reduction_factor: 2}}\n{GRID}",
            "1: scheduler.reduction_factor: scheduler median",
        ),
        (
            f"scheduler: {{type: asha, grace_epochs: 2, grace_steps: 300}}\n{GRID}",
            "1: scheduler.grace_steps: a scheduler counts epochs or steps, not both",
        ),
        (f"scheduler: {{type: promote, min_trials: 2}}\n{GRID}", "1: scheduler.min_trials: scheduler promote does not"),
        (f"budget: {{cost: 3}}\n{GRID}", "1: budget.cost: means nothing without price_per_hour"),
        (f"budget: {{price_per_hour: 3}}\n{GRID}", "1: budget.price_per_hour: means nothing without cost"),
        (f"budget: {{gpu_hours: 3}}\n{GRID}", "1: budget.gpu_hours: no trial has a GPU"),
        (f"budget: {{cpu_hours: 0}}\n{GRID}", "1: budget.cpu_hours: got 0"),
        (f"budget: {{target: .nan}}\n{GRID}", "1: budget.target: got nan"),
        (f"resources: {{max_concurrent: 0}}\n{GRID}", "resources.max_concurrent: got 0"),
        (f"resources: {{memory_per_worker: -1}}\n{GRID}", "resources.memory_per_worker: got -1"),
        (f"resources: {{accelerator_type: A100}}\n{GRID}", "1: resources.accelerator_type: no trial has a GPU"),
        (
            f"resources: {{gpus_per_worker: 1.5}}\n{GRID}",
            "1: resources.gpus_per_worker: got 1.5; above 1 a worker gets whole GPUs; fix: gpus_per_worker: 2",
        ),
        (
            f"resources: {{workers: 2, gpus_per_worker: 0.5}}\n{GRID}",
            "1: resources.gpus_per_worker: got 0.5; several workers of a trial cannot share a GPU",
        ),
        (f"resources: {{workers: {{max: 2}}, gpus_per_worker: 0.5}}\n{GRID}", "cannot share a GPU"),
        (f"resources: {{workers: 0}}\n{GRID}", "1: resources.workers: got 0; input should be greater than 0"),
        (f"resources: {{workers: two}}\n{GRID}", "1: resources.workers: got 'two'; input should be a valid integer"),
        (f"resources: {{workers: {{min: 4, max: 2}}}}\n{GRID}", "min 4 is above max 2"),
        (f"resources: {{workers: {{min: 0, max: 2}}}}\n{GRID}", "1: resources.workers.min: got 0; input should be"),
        (f"resources: {{workers: {{min: 1}}}}\n{GRID}", "resources.workers.max: got nothing; a required key"),
        (f"resources: {{workers: {{max: 2, mim: 1}}}}\n{GRID}", "mim: unknown key; did you mean 'min'?"),
        (
            f"metric: ndgc@10\n{GRID}",
            "1: metric: got 'ndgc@10'; expected one of recall@5, ndcg@5, mrr@5, coverage@5, recall@10",
        ),
        (f"metric: ndcg@7\n{GRID}", "fix: set evaluation.ks to [5, 7, 10]"),
        (f"base: quickstrt\n{GRID}", "1: base: quickstrt: neither a recipe nor a file; did you mean 'quickstart'?"),
        (f"set: {{train.epoch: 3}}\n{GRID}", "1: set.train.epoch: unknown setting; did you mean 'train.epochs'?"),
        (f"set: {{train.epochs: '3'}}\n{GRID}", "1: set.train.epochs: got '3'; input should be a valid integer"),
        (f"set: {{tiger.num_heads: 5}}\n{GRID}", "multiple of num_heads (5)"),
        (
            f"set: {{train.fit_on: train+validation}}\n{GRID}",
            "1: set.train.fit_on: got train+validation; a sweep chooses",
        ),
        (f"finalists: {{set: {{train.fit_on: train+validation}}}}\n{GRID}", "1: finalists.set.train.fit_on: a sweep"),
        ("space: {train.fit_on: {type: grid, values: [train, train+validation]}}\n", "1: space.train.fit_on: a sweep"),
        (f"finalists: {{set: {{train.epochs: 0}}}}\n{GRID}", "1: finalists.set.train.epochs: got 0"),
        (f"finalists: {{set: {{tiger.num_heads: 5}}}}\n{GRID}", "multiple of num_heads (5)"),
        (f"constraints: [train.batch_size > 1000]\n{GRID}", "none of 3 points is feasible"),
        (f"constraints: train.batch_size > 10\n{GRID}", "1: constraints: got"),
        (f"base_values: {{}}\n{GRID}", "base_values: unknown key"),
        (
            "space: {evaluation.monitor: {type: grid, values: [loss]}}\n",
            "1: space.evaluation.monitor: the sweep's metric",
        ),
        (f"derive: {{evaluation.monitor: train.epochs}}\n{GRID}", "1: derive.evaluation.monitor: the sweep's metric"),
        (
            "space: {lr: {type: grid, values: [1]}}\n",
            "1: space.lr: unknown setting; did you mean 'train.learning_rate'?",
        ),
        (f"set: {{train.bs: 3}}\n{GRID}", "1: set.train.bs: unknown setting; did you mean 'train.batch_size'?"),
        (
            f"finalists: {{set: {{train.batch_size: 512}}}}\n{GRID}",
            "1: finalists.set.train.batch_size: got 512; was chosen by",
        ),
        (
            f"finalists: {{set: {{train.warmup_steps: 5}}}}\nderive: {{train.warmup_steps: train.batch_size}}\n{GRID}",
            "1: finalists.set.train.warmup_steps: got 5; was chosen by the search",
        ),
        (
            "space: {tiger.attn_dim: {type: grid, values: [64, 96]}}\nfinalists: {set: {tiger.num_heads: 6}}\n"
            "set: {tiger.attn_dim: 96}\n",
            "2: finalists.set: a trial with {'tiger.attn_dim': 64} could be no finalist: tiger: attn_dim (64) must be",
        ),
        (
            "space: {tiger.attn_dim: {type: int, low: 48, high: 96000, step: 48}}\nset: {tiger.attn_dim: 48}\n"
            "finalists: {set: {tiger.num_heads: 5}}\nbudget: {trials: 3}\n",
            "3: finalists.set: tiger: attn_dim (48)",
        ),
        (
            f"{GRID}derive: {{train.warmup_steps: 100 // train.epochs - 2}}\n"
            "finalists: {set: {train.epochs: 90}}\n",
            "could be no finalist: derive.train.warmup_steps: '100 // train.epochs - 2'",
        ),
        (
            f"scheduler: {{type: asha, grace_epochs: 500}}\n{GRID}",
            "1: scheduler.grace_epochs: got 500; no trial has more than 10",
        ),
        (
            f"sampler: {{type: gp, grid: shuffled}}\nbudget: {{trials: 3}}\n{SAMPLED}",
            "1: sampler.grid: the space has no grid",
        ),
        (
            "space: {tracking.tensorboard: {type: grid, values: [true, false]}}\n",
            "1: space.tracking.tensorboard: no trial's result",
        ),
        (
            "space: {save_dir_root: {type: grid, values: [a, b]}}\n",
            "1: space.save_dir_root: no trial's result depends on it",
        ),
        (
            f"derive: {{evaluation.batch_size: train.batch_size}}\n{GRID}",
            "1: derive.evaluation.batch_size: no trial's result",
        ),
        (
            "space: {evaluation.seen: {type: grid, values: [keep, exclude]}}\n",
            "1: space.evaluation.seen: decides on what",
        ),
        (
            "space: {evaluation.max_users: {type: grid, values: [50, 100]}}\n",
            "1: space.evaluation.max_users: decides on what",
        ),
        (
            "space: {dataset.k_core: {type: grid, values: [0, 5]}}\n",
            "1: space.dataset.k_core: decides on what and how a trial",
        ),
        (
            "space: {tokenizer.rqvae.epochs: {type: grid, values: [5, 10]}}\nset: {tokenizer.kind: rkmeans}\n",
            "1: space.tokenizer.rqvae.epochs: no trial reads it while tokenizer.kind is rkmeans",
        ),
        (
            "space: {train.crop_probability: {type: grid, values: [0.1, 0.2]}}\n",
            "1: space.train.crop_probability: no trial reads it while train.augmentation is false",
        ),
        ("space: {train.batch_size: 3}\n", "1: space.train.batch_size: got 3; expected a mapping with a type"),
        ("space: 3\n", "1: space: got 3"),
        ("name: x\n", "space: got nothing; a sweep needs a search space"),
        (SAMPLED, "budget: got no limit"),
        (f"{SAMPLED}budget: {{target: 0.1}}\n", "budget: got no limit"),
        ("- 1\n", "expected a mapping"),
        ("", "the file is empty"),
    ],
)
def test_a_wrong_file_is_refused_with_line_key_value_and_rule(tmp_path: Path, text: str, words: str):
    faults = faults_of(tmp_path, text)
    assert any(words in fault for fault in faults), faults
    assert all(fault.startswith("sweep.yaml") for fault in faults)


@pytest.mark.parametrize(
    "space",
    [
        "train.augmentation: {type: grid, values: [true, false]}, train.crop_probability: {type: int, low: 0, high: 1}",
        "data: {type: choice, zip: {train.epochs: [5, 10], tracking.tensorboard: [true, false]}}",
        "dataset.table.text_columns: {type: choice, values: [[], [brand]]}",
    ],
)
def test_a_setting_that_some_trial_reads_may_be_searched(tmp_path: Path, space: str):
    load_spec(write(tmp_path, f"space: {{{space}}}\nbudget: {{trials: 3}}\n"))


def test_every_setting_that_no_stage_reads_is_known_and_no_other():
    files = ("embeddings.path", "tokenizer.pretrained_rqvae_path")
    known = [key for key in config_keys() if not key.startswith("dataset.") and key not in files]
    bases = [
        {"train.augmentation": True, "tokenizer.pca_dim": 4, "embeddings.cooccurrence_dim": 4},
        {"tokenizer.rqvae.gradient": "gumbel", "tokenizer.rqvae.sinkhorn_levels": [1]},
        {"embeddings.encoder": "sentence_transformer", "tiger.encoder": "bidirectional"},
    ]
    tried = [
        0,
        1,
        2,
        3,
        7,
        0.5,
        12,
        64,
        True,
        False,
        "x",
        [],
        [2],
        ["x"],
        [1, 10],
        "loss",
        "exclude",
        "train+validation",
    ]
    tried += [word for key in known for word in get_args(config_keys()[key].annotation) if isinstance(word, str)]
    for key in known:
        keys = set()
        for base in bases:
            values = RunConfig().to_dict()
            for value in [value_at(values, key), *tried]:
                try:
                    config = validate_config(with_values(with_values(values, base), {key: value}))
                except ConfigError:
                    continue
                keys.add((str(base), stage_keys(config)["tiger"]))
        no_stage_reads_it = len(keys) == len(bases)
        assert no_stage_reads_it == any(key == name or key.startswith(f"{name}.") for name in UNREAD), key


@pytest.mark.parametrize(
    ("path", "base", "words"),
    [
        ("tokenizer.rqvae.epochs", {"tokenizer.kind": "rkmeans"}, "tokenizer.kind is rkmeans"),
        ("tokenizer.rqvae.gumbel_temperature", {}, "tokenizer.rqvae.gradient is straight_through"),
        ("tokenizer.rqvae.sinkhorn_epsilon", {}, "tokenizer.rqvae.sinkhorn_levels is []"),
        ("tokenizer.pca_whitening", {}, "tokenizer.pca_dim is null"),
        ("tokenizer.seed", {"tokenizer.pretrained_rqvae_path": "x"}, "tokenizer.pretrained_rqvae_path is x"),
        ("train.mask_probability", {}, "train.augmentation is false"),
        ("embeddings.dim", {"embeddings.encoder": "npy"}, "embeddings.encoder is npy"),
        ("embeddings.model", {}, "embeddings.encoder is lsa"),
        ("embeddings.cooccurrence_weight", {}, "embeddings.cooccurrence_dim is 0"),
    ],
)
def test_a_setting_that_needs_another_is_not_read_without_it(path: str, base: dict[str, Any], words: str):
    config = with_values(RunConfig().to_dict(), base)
    values = {key: value_at(config, key) for key in config_keys()}
    assert [fault.partition(" while ")[2] for fault in faults_of_path(path, [], values)] == [words]
    assert list(faults_of_path(path, [words.partition(" is ")[0]], values)) == []  # where that varies too


def test_the_command_line_may_not_set_what_is_searched(tmp_path: Path):
    path = write(tmp_path, f"{GRID}derive: {{train.warmup_steps: train.batch_size}}\n", "sweep.yaml")
    with pytest.raises(ConfigError) as caught:
        load_spec(path, config_overrides={"train.batch_size": 7, "train.warmup_steps": 3, "train.epochs": 2})
    assert caught.value.faults == [
        "--set train.batch_size: is searched by space.train.batch_size, so no trial would have this value; "
        "fix: take it out of the space",
        "--set train.warmup_steps: is computed by derive.train.warmup_steps, so no trial would have this value",
    ]
    conditional = """
space:
  train.optimizer: {type: grid, values: [adamw, muon]}
  train.batch_size: {type: grid, values: [32, 64], when: {train.optimizer: muon}}
"""
    spec = load_spec(write(tmp_path, conditional), config_overrides={"train.batch_size": 7})
    assert spec.base_config().train.batch_size == 7  # of trials with adamw


def test_what_is_derived_from_a_setting_of_the_finalists_follows_it_but_in_the_base(tmp_path: Path):
    text = f"{GRID}derive: {{train.warmup_steps: 10 * train.epochs}}\nfinalists: {{set: {{train.epochs: 30}}}}\n"
    spec = load_spec(write(tmp_path, text))
    config = spec.search_space.build(spec.base_values, {"train.batch_size": 32})
    assert config.train.warmup_steps == 100
    runs = plan_finalists(spec, [(0, config)])
    steps = {run.finalist: run.config["train"]["warmup_steps"] for run in runs}
    assert steps == {0: 300, "base": spec.base_config().train.warmup_steps}


def test_one_mistake_gives_one_line_and_many_give_all(tmp_path: Path):
    text = f"name: ../x\nbase: nowhere\nset: {{train.epoch: 1}}\nmode: minimise\nbudget: {{trails: 3}}\n{GRID}"
    assert len(faults_of(tmp_path, text)) == 5


def test_a_missing_file_is_named(tmp_path: Path):
    with pytest.raises(ConfigError, match=r"gone\.yaml: no such file"):
        load_spec(tmp_path / "gone.yaml")
    with pytest.raises(ConfigError, match="is a folder; expected a file"):
        load_spec(tmp_path)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("sampler: {type: random, startup_trials: 3}", "1: sampler.startup_trials: sampler random does not read it"),
        ("sampler: {population: 1}", "sampler.population: got 1"),
        ("sampler: {type: cma-es}", "cma-es needs a float or int setting without `when`"),
        (
            "sampler: {type: gp}\nscheduler: {type: asha}",
            "1: sampler.type: got 'gp'; gp learns from trials",
        ),
        ("sampler: {type: nsga2}\nscheduler: {type: asha}", "fix: scheduler: {type: none}"),
        ("against: {parameters: max}", "parameters is minimised; fix: parameters: min"),
        ("against: {parameter: min}", "1: against.parameter: expected one of parameters, recall@5"),
        ("against: {parameters: least}", "1: against.parameters: got 'least'"),
        ("against: {ndcg@10: max}", "against.ndcg@10: expected one of"),
        ("against: {parameters: min}\nscheduler: {type: asha}", "no trial can be stopped early by one of them"),
        ("against: {parameters: min}\nscheduler: {type: promote}", "no trial can be stopped early by one of them"),
        ("against: {parameters: min}\nsampler: {type: cma-es}", "takes one objective; fix: sampler: {type: nsga2}"),
        ("derive: {train.epochs: 3}", "1: derive.train.epochs: got 3; expected an expression as text"),
        ("derive: 3", "1: derive: got 3"),
        ("derive: {evaluation.monitor: train.optimizer}", "the sweep's metric decides"),
    ],
)
def test_a_sampler_or_objective_that_cannot_work_is_refused(tmp_path: Path, text: str, words: str):
    faults = faults_of(tmp_path, f"{text}\n{GRID}")
    assert any(words in fault for fault in faults), faults


def test_objectives_are_the_metric_and_what_it_stands_against(tmp_path: Path):
    spec = load_spec(write(tmp_path, f"{GRID}metric: validation_loss\nagainst: {{parameters: min, mrr@5: max}}\n"))
    assert spec.objectives == {"validation_loss": "min", "parameters": "min", "mrr@5": "max"}
    assert list(SweepSpec.from_dict(spec.to_dict()).objectives) == list(spec.objectives)


def test_a_sampler_whose_package_is_missing_is_refused_with_its_install_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    text = f"{SAMPLED}budget: {{trials: 3}}\nsampler: {{type: cma-es}}\n"
    stored = load_spec(write(tmp_path, text))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert any("fix: pip install 'genrec-sweeps[search]'" in fault for fault in faults_of(tmp_path, text))
    assert SweepSpec.from_dict(stored.to_dict()) == stored  # a record can be read without it


def test_conditions_pairs_and_derived_settings_survive_the_record(tmp_path: Path):
    text = """
space:
  size: {type: grid, names: [s, l], zip: {tiger.n_layers: [2, 4], tiger.num_heads: [2, 4]}}
  train.epochs: {type: int, low: 1, high: 9, when: {size: l}}
derive: {train.warmup_steps: 10 * train.epochs}
budget: {trials: 3}
"""
    spec = load_spec(write(tmp_path, text))
    stored = SweepSpec.from_dict(json.loads(json.dumps(spec.to_dict())))
    assert stored.search_space == spec.search_space


README = ROOT / "search_spaces" / "README.md"


@pytest.mark.parametrize("snippet", re.findall(r"```yaml\n(.*?)```", README.read_text(encoding="utf-8"), re.S))
def test_every_snippet_of_the_grammar_is_valid(tmp_path: Path, snippet: str):
    given = parse_yaml(snippet).data
    text = snippet + ("" if "space" in given else SAMPLED) + ("" if "budget" in given else "budget: {trials: 3}\n")
    spec = load_spec(write(tmp_path, text))
    assert {key: value for key, value in spec.to_dict().items() if key in given and key == "space"} == (
        {"space": given["space"]} if "space" in given else {}
    )


@pytest.mark.parametrize("path", sorted((ROOT / "search_spaces").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_shipped_search_space_says_what_it_costs_and_fits_the_schema(path: Path):
    text = path.read_text(encoding="utf-8")
    header = text.split("\nname:")[0]
    assert re.search(r"Cost: |minutes|hour", header), "the header says what the sweep costs"
    spec = load_spec(path)
    assert spec.name == path.stem
    assert spec.search_space.infeasible_share(spec.base_values)[0] < 0.5
    schema = json.loads((ROOT / "search_spaces" / "schema.json").read_text(encoding="utf-8"))
    jsonschema.validate(parse_yaml(text).data, schema)


def test_the_schema_for_editors_is_the_one_that_the_code_writes():
    written = (ROOT / "search_spaces" / "schema.json").read_text(encoding="utf-8")
    assert written == schema_text(), "write it anew: sweeps schema > search_spaces/schema.json"


@pytest.mark.parametrize(
    "sweep",
    [
        {},
        {"space": {"train.epochs": {"type": "float", "low": 1, "high": 2}}},
        {"space": {"train.epochs": {"type": "int", "low": 1}}},
        {"space": {"train.epochs": {"type": "grid", "values": [0]}}},
        {"space": {"train.epoch": {"type": "grid", "values": [1]}}},
        {"space": {"x": {"type": "grid", "zip": {"train.epoch": [1]}}}},
        {"space": {"train.epochs": {"type": "grid", "values": [1]}}, "set": {"train.epoch": 1}},
        {"space": {"train.epochs": {"type": "grid", "values": [1]}}, "budget": {"time": "soon"}},
    ],
)
def test_the_schema_refuses_what_an_editor_should_mark(sweep: dict):
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(sweep, sweep_schema())


def test_what_ends_a_search_is_told_by_its_name(tmp_path: Path):
    def how_many(budget: str) -> str:
        return load_spec(write(tmp_path, f"{SAMPLED}budget: {{{budget}}}\n")).budget.how_many

    assert how_many("trials: 5, time: 1h") == "5"
    assert how_many("cpu_hours: 2") == "until the CPU-hours are spent"
    assert how_many("time: 1h, cost: 3, price_per_hour: 1") == "until the time or money is spent"


def test_reading_a_spec_loads_nothing_heavy(tmp_path: Path):
    path = write(tmp_path, GRID)
    program = (
        "import sys\nfrom sweeps.spec_file import load_spec\nload_spec(sys.argv[1])\n"
        "print(sorted({'torch', 'ray', 'optuna', 'numpy', 'wandb'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", program, str(path)], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
