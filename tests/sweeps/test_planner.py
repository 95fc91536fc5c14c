"""The plan: sizes as the model has them, time as a clock would tell, nothing that cannot run."""

from __future__ import annotations

import dataclasses
import json
import statistics
import time
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from torch.utils.flop_counter import FlopCounterMode

from genrec.artifacts import ArtifactStore
from genrec.config import RunConfig, load_config, validate_config, with_values
from genrec.decoding import beam_search
from genrec.errors import InputError
from genrec.models.tiger import Tiger, Window
from genrec.trainers.tiger_trainer import tiger_batches
from genrec.trie import Trie
from sweeps.budget import Budget
from sweeps.cli import main
from sweeps.costs import COLLISION_CODES, Shape, decoding_flops, memory_bytes, parameters, training_flops
from sweeps.ledger import Ledger
from sweeps.measured_speed import measure_speed
from sweeps.phase_times import search_time
from sweeps.plan import read_plan
from sweeps.plan_outcome import planned_against_actual
from sweeps.plan_text import plan_lines
from sweeps.planner import (
    local_slots,
    make_plan,
    num_trials,
    plan_sweep,
    planned_configs,
    planned_points,
    probe_configs,
)
from sweeps.recorded_speed import recorded_speed
from sweeps.rehearsal import Clock, Played, rehearse
from sweeps.spec import SchedulerSpec, SweepSpec
from sweeps.spec_file import load_spec
from sweeps.speed import GROUP_START, Pace, Sample, Samples, Speed
from sweeps.stopping import Rule, rule_of
from sweeps.work import Workbench

TINY = Path(__file__).parent / "tiny.yaml"
VARIANTS: list[dict[str, Any]] = [
    {},
    {"tiger.encoder_tokens": "codes", "tiger.num_user_embeddings": 50},
    {"tiger.encoder": "bidirectional", "tiger.positions": "learned", "tiger.encoder_tokens": "codes"},
    {"tiger.attn_dim": 96, "tiger.num_heads": 6, "tiger.feedforward_dim": 200, "tiger.n_layers": 6},
    {"tokenizer.collisions": "none", "tokenizer.sem_id_dim": 2, "tokenizer.num_item_embeddings": 32},
]


def model_of(config: RunConfig, num_items: int = 40) -> Tiger:
    shape = Shape.of(config.to_dict())
    generator = torch.Generator().manual_seed(0)
    columns = [torch.randint(0, size, (num_items,), generator=generator) for size in shape.level_sizes]
    return Tiger(config.tiger, torch.stack(columns, 1), shape.level_sizes)


def window_of(config: RunConfig, rows: int, items: int, targets: int) -> Window:
    user_B = torch.arange(rows) if config.tiger.num_user_embeddings else None
    return Window(torch.arange(rows * (items + 1)).view(rows, -1) % 40, items + 1 - targets, user_B)


def targets_of(config: RunConfig, items: int) -> int:
    return items if config.tiger.encoder == "item_causal" else 1


# -- sizes ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("settings", VARIANTS, ids=str)
def test_parameters_are_those_of_the_model(settings: dict[str, Any]):
    config = load_config(None, settings)
    model = model_of(config)
    assert parameters(Shape.of(config.to_dict())) == sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("settings", VARIANTS, ids=str)
def test_operations_of_training_and_decoding_are_those_that_torch_counts(settings: dict[str, Any]):
    config = load_config(None, settings)
    model, shape, items = model_of(config).train(), Shape.of(config.to_dict()), 12
    window = window_of(config, 5, items, targets_of(config, items))
    with FlopCounterMode(display=False) as counted:
        model.loss(window, 0.1).backward()
    expected = 5 * training_flops(shape, items, targets_of(config, items))
    assert counted.get_total_flops() == pytest.approx(expected, rel=0.12)
    model.eval().requires_grad_(False)
    trie = Trie(model.codes_NC)
    with FlopCounterMode(display=False) as counted:
        beam_search(model, trie, window.items_BL[:, :-1], 10, user_B=window.user_B)
    assert counted.get_total_flops() == pytest.approx(5 * decoding_flops(shape, items, 10), rel=0.25)


@pytest.mark.parametrize("settings", VARIANTS, ids=str)
def test_memory_is_about_what_autograd_keeps(settings: dict[str, Any]):
    config = load_config(None, settings)
    model, shape, items = model_of(config).train(), Shape.of(config.to_dict()), config.tiger.max_seq_len
    targets = targets_of(config, items)
    kept: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    rows = max(1, 256 // targets)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = model.loss(window_of(config, rows, items, targets), 0.0)
    whole = sum(kept.values()) + 3 * 4 * parameters(shape)  # saved tensors hold the weights themselves
    loss.backward()
    assert 0.6 < memory_bytes(shape, rows * targets) / whole < 1.7


def test_the_collision_level_counts_with_few_codes():
    shape = Shape.of(RunConfig().to_dict())
    assert shape.level_sizes == (256, 256, 256, COLLISION_CODES)


# -- speed ------------------------------------------------------------------------------------------------------------


def test_a_pace_is_found_from_samples_of_different_mixture():
    truth = Pace(2e-4, 3e-10)
    works = [(100, 1e6), (1000, 5e9), (400, 9e9)]
    found = Pace.fitted([Sample(units, flops, truth.seconds(units, flops)) for units, flops in works])
    assert found.per_unit == pytest.approx(truth.per_unit, rel=1e-6)
    assert found.per_flop == pytest.approx(truth.per_flop, rel=1e-6)


def test_a_pace_is_never_negative_and_fits_a_single_sample():
    one = Pace.fitted([Sample(10, 1e6, 2.0)])
    assert one.seconds(10, 1e6) == pytest.approx(2.0)
    slower_when_smaller = Pace.fitted([Sample(10, 1e6, 5.0), Sample(10, 4e6, 4.0)])
    assert min(slower_when_smaller) >= 0


def test_no_speed_without_a_sample_of_training_and_of_evaluating():
    assert Speed.fitted(Samples(train=[Sample(1, 1, 1)]), "x") is None


# -- the clock --------------------------------------------------------------------------------------------------------


def trial(epoch: float = 1.0, epochs: int = 3, tokenizer: str = "a", tokenizer_seconds: float = 0.0) -> Played:
    return Played(epoch, epochs, 0.0, tokenizer, tokenizer_seconds)


def test_trials_fill_the_slots_one_after_the_other():
    outcome = rehearse([trial()] * 5, slots=2)
    assert (outcome.wall_seconds, outcome.busy_seconds, outcome.epochs, outcome.started) == (9.0, 15.0, 15, 5)


def test_a_tokenizer_is_paid_once_and_waited_for():
    outcome = rehearse([trial(tokenizer_seconds=10), trial(tokenizer_seconds=10), trial(tokenizer="b")], slots=2)
    assert outcome.wall_seconds == 16.0
    assert outcome.busy_seconds == 10 + 10 + 3 * 3
    assert outcome.tokenizers == {"a", "b"}


def test_every_slot_starts_its_process_once():
    outcome = rehearse([trial()] * 4, slots=2, start_seconds=7)
    assert (outcome.wall_seconds, outcome.busy_seconds) == (13.0, 2 * 13.0)


def test_running_trials_end_at_their_next_epoch_once_the_budget_is_spent(tmp_path: Path):
    spec = tiny(tmp_path, budget__time=4.5)
    clock = Clock()
    outcome = rehearse([trial()] * 9, slots=1, budget=Budget(spec, elapsed=clock.time), clock=clock)
    assert (outcome.started, outcome.epochs, outcome.wall_seconds) == (2, 5, 5.0)


def test_what_trials_hold_is_counted_over_all_slots(tmp_path: Path):
    spec = tiny(tmp_path, budget__cpu_hours=10 / 3600, resources__cpus_per_worker=2)
    clock = Clock()
    outcome = rehearse([trial()] * 9, slots=2, budget=Budget(spec, elapsed=clock.time), clock=clock)
    assert (outcome.epochs, outcome.wall_seconds) == (6, 3.0)  # 2 slots x 2 CPUs x 2.5 s; the epochs under way end


def rule(kind: str, longest: int) -> Rule:
    return rule_of(SchedulerSpec(type=kind), "max", longest)


def test_early_stopping_saves_most_of_the_epochs_of_a_long_sweep():
    trials = [trial(epochs=27)] * 200
    epochs = [rehearse(trials, 4, rule=rule("asha", 27), seed=seed).epochs for seed in range(5)]
    # Of 27 trials 18 end after 1 epoch, 6 after 3, 2 after 9: 82 of 729 epochs; asynchronous stopping lets more pass.
    assert 82 / 729 < statistics.mean(epochs) / (200 * 27) < 2 * 82 / 729


def test_promotion_trains_hardly_more_than_successive_halving_would():
    trials = [trial(epochs=27)] * 81
    outcomes = [rehearse(trials, 4, rule=rule("promote", 27), seed=seed) for seed in range(5)]
    # 81 x 1 + 27 x 2 + 9 x 6 + 3 x 18 epochs; one that leads for a while is promoted, and overtaken.
    assert 243 <= statistics.mean(outcome.epochs for outcome in outcomes) < 1.5 * 243
    assert {outcome.started for outcome in outcomes} == {81}


def test_rungs_in_steps_come_earlier_for_trials_of_small_batches():
    steps = rule_of(SchedulerSpec(type="promote", grace_steps=40), "max", 9)
    small, large = Played(1.0, 9, 0.0, "a", 0.0, epoch_steps=40), Played(1.0, 9, 0.0, "a", 0.0, epoch_steps=10)
    outcome = rehearse([small, large], slots=2, rule=steps)
    # Of each one epoch or four up to the first rung; one of them goes on to its ninth epoch.
    assert outcome.epochs in (1 + 9, 9 + 4)


def test_a_plan_knows_about_how_many_optimizer_steps_an_epoch_has(bench: Workbench):
    base = load_spec(TINY).base_config()
    for settings in ({"train.batch_size": 64}, {"train.batch_size": 32, "train.gradient_accumulate_every": 2}):
        config = validate_config(with_values(base.to_dict(), settings))
        trained = tiger_batches(config, bench.interactions(config)).num_steps(1)
        assert bench.work(config).steps == pytest.approx(trained, rel=0.25)


def test_a_promoted_trial_is_set_up_again_and_trains_no_epoch_twice():
    outcome = rehearse([Played(1.0, 3, 5.0, "a", 0.0)], slots=1, rule=rule("promote", 3))
    assert (outcome.epochs, outcome.wall_seconds) == (3, 2 * 5.0 + 3.0)


# -- plans ------------------------------------------------------------------------------------------------------------


TOKENIZING = {"rqvae": Pace(0.1, 0.0), "rkmeans": Pace(0.0, 1e-9)}
SPEED = Speed(Pace(1e-4, 1e-11), Pace(1e-3, 1e-11), TOKENIZING, setup=0.5, start=0.0, source="made up")


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Workbench:
    return Workbench(ArtifactStore(tmp_path_factory.mktemp("plans") / ".artifacts"))


def tiny(folder: Path, extra: str = "", **overrides: Any) -> SweepSpec:
    path = folder / "tiny.yaml"
    path.write_text(TINY.read_text() + extra)
    return load_spec(path, {key.replace("__", "."): value for key, value in overrides.items()})


def test_a_plan_counts_what_will_run(tmp_path: Path, bench: Workbench):
    spec = tiny(tmp_path, "constraints: [train.learning_rate < 5e-3 or tokenizer.kind == 'rqvae']\n")
    plan = make_plan(spec, bench, slots=2)
    assert (plan.trials, plan.space_points, plan.grid_points, plan.tokenizers, plan.slots) == (6, None, 2, 2, 2)
    assert 0.05 < plan.infeasible_share < 0.3  # half of the log-uniform rates above 5e-3 (30 %)
    assert "train.learning_rate < 5e-3" in str(plan.infeasible_example)
    assert plan.parameters.low == plan.parameters.high == parameters(Shape.of(spec.base_values))
    assert plan.epochs_without_stopping == 18
    assert plan.seconds is None
    assert "not known" in "\n".join(plan_lines(plan))


def test_the_targets_of_an_epoch_are_those_that_training_counts(bench: Workbench):
    spec = load_spec(TINY)
    config = spec.base_config()
    interactions = bench.interactions(config)
    offsets, _ = interactions.training_sequences()
    work = bench.work(config)
    assert work.targets == int((offsets[1:] - offsets[:-1] - 1).clip(0).sum())
    assert work.users == len(interactions.users_of("validation"))
    assert work.evaluations == 3


def test_time_is_priced_with_stopping_tokenizers_and_finalists(tmp_path: Path, bench: Workbench):
    whole = make_plan(tiny(tmp_path), bench, 2, SPEED)
    work = bench.work(load_spec(TINY).base_config())
    assert whole.search is not None
    assert whole.finalists is not None
    assert whole.search.epochs == 18
    assert whole.finalists.runs == 4  # the best and the base, two seeds each
    assert whole.seconds == whole.search.seconds + whole.finalists.seconds + whole.conclusion_seconds
    assert whole.conclusion_seconds > 0
    expected = 6 * (3 * work.epoch_seconds(SPEED) + SPEED.setup) + 5 * 0.1
    assert whole.search.busy_seconds == pytest.approx(expected, rel=0.1)
    assert whole.hours(2.0) == pytest.approx(2 * whole.hours(1.0))
    stopped = make_plan(tiny(tmp_path, "scheduler: {type: asha, reduction_factor: 3}\n"), bench, 2, SPEED)
    assert stopped.search is not None
    assert stopped.search.seconds < whole.search.seconds
    assert stopped.trained_share is not None
    assert stopped.trained_share < 0.9
    assert "early stopping leaves" in "\n".join(plan_lines(stopped))


def test_what_an_earlier_sweep_has_run_takes_no_time(tmp_path: Path, bench: Workbench):
    spec = tiny(tmp_path)
    whole = make_plan(spec, bench, 2, SPEED)
    known = {config.hash for config in planned_configs(spec)[:3]}
    half = make_plan(spec, bench, 2, SPEED, taken_over=lambda config: config.hash in known)
    assert whole.search is not None
    assert half.search is not None
    assert (whole.taken_over, half.taken_over) == (0.0, 0.5)
    assert (half.trials, half.search.runs, half.search.epochs, half.epochs_without_stopping) == (6, 3, 9, 9)
    assert half.search.busy_seconds == pytest.approx(whole.search.busy_seconds / 2, rel=0.1)
    assert "50% of the trials" in "\n".join(plan_lines(half))
    nothing = make_plan(spec, bench, 2, SPEED, taken_over=lambda config: True)
    assert nothing.search is not None
    assert (nothing.trials, nothing.search.seconds) == (6, 0.0)


def test_a_plan_prices_the_finalists_that_the_search_has_not_trained_to_their_end(tmp_path: Path, bench: Workbench):
    """With one seed a completed trial is measured as it is; a stopped one is trained on from where it was."""

    def finalists(kind: str, **settings: Any) -> Any:
        settings = {"finalists__seeds": 1, "finalists__top_k": 4, "budget__trials": 9, **settings}
        scheduler = {"type": kind} | ({"reduction_factor": 9} if kind == "promote" else {})
        plan = make_plan(tiny(tmp_path, scheduler=scheduler, **settings), bench, 2, SPEED)
        assert plan.search is not None
        return plan.finalists, plan.search

    whole, search = finalists("none")
    assert (search.completed, search.left_to_train) == (9, 0)
    assert (whole.runs, whole.epochs) == (5, 4 + 3), "the base alone is trained; the rest is measuring"
    promoted, search = finalists("promote")
    assert (search.completed, search.left_to_train) == (1, pytest.approx(2 / 3)), "the others paused after 1 epoch of 3"
    assert promoted.epochs == 1 + 3 * 2 + 3
    assert promoted.busy_seconds > whole.busy_seconds
    anew, _ = finalists("none", finalists__set={"train.weight_decay": 0.5})
    assert anew.epochs == 5 * 3, "with settings of their own all are trained anew"
    few, _ = finalists("none", budget__trials=2, finalists__seeds=2)
    assert few.runs == 2 * 3, "no more than there are trials"


@pytest.mark.parametrize("kind", ["median", "asha", "promote"])
def test_every_scheduler_is_priced(tmp_path: Path, bench: Workbench, kind: str):
    plan = make_plan(tiny(tmp_path, scheduler__type=kind, budget__trials=30), bench, 2, SPEED)
    assert plan.trained_share is not None
    assert 0.3 < plan.trained_share < 0.95


def test_a_cost_ends_the_search_and_is_named(tmp_path: Path, bench: Workbench):
    whole = make_plan(tiny(tmp_path, budget__trials=30), bench, 2, SPEED)
    assert whole.search is not None
    half = whole.search.busy_seconds / 3600 / 2
    priced = tiny(tmp_path, budget__trials=30, budget__cost=3 * half, budget__price_per_hour=3)
    plan = make_plan(priced, bench, 2, SPEED)
    assert plan.search is not None
    assert plan.search.busy_seconds == pytest.approx(3600 * half, rel=0.1)
    assert plan.cost == pytest.approx(3 * (plan.hours(1.0) or 0))
    assert "the budget ends it after" in "\n".join(plan_lines(plan))


def test_a_sweep_that_only_time_ends_is_planned_by_its_time(tmp_path: Path, bench: Workbench):
    text = TINY.read_text().replace("budget: {trials: 6}", "budget: {time: 30s}")
    (tmp_path / "timed.yaml").write_text(text)
    spec = load_spec(tmp_path / "timed.yaml")
    assert make_plan(spec, bench, 1).trials is None
    plan = make_plan(spec, bench, 1, SPEED)
    assert plan.search is not None
    assert plan.search.seconds == pytest.approx(30, rel=0.2)
    assert plan.trials == plan.search.runs > 10


@pytest.mark.parametrize("kind", ["none", "median"])
@pytest.mark.parametrize(
    "limit", ["time: 24h", "cpu_hours: 192", "gpu_hours: 192", "cost: 384, price_per_hour: 2", "trials: 20000"]
)
def test_a_sweep_of_thousands_of_trials_is_planned_in_full_and_at_once(
    tmp_path: Path, bench: Workbench, limit: str, kind: str
):
    (tmp_path / "long.yaml").write_text(
        TINY.read_text().replace("budget: {trials: 6}", f"budget: {{{limit}}}")
        + f"scheduler: {{type: {kind}}}\nresources: {{gpus_per_worker: 1}}\n"
    )
    spec = load_spec(tmp_path / "long.yaml")
    work = bench.work(spec.base_config())
    minute = dataclasses.replace(SPEED, train=Pace(20 / work.targets, 0.0), evaluate=Pace(0.0, 0.0), setup=0.0)
    works = [work] * 300
    trials = spec.budget.trials
    started = time.process_time()
    found = search_time(spec, works, trials, 8, minute)
    assert time.process_time() - started < 4  # less than one on the core that this was written on
    if trials is None:
        assert found.seconds == pytest.approx(24 * 3600, rel=0.01)
    assert found.busy_seconds == pytest.approx(8 * found.seconds, rel=0.03)
    if kind == "none":
        assert found.runs == pytest.approx(trials or 11_520, rel=0.03)
        assert found.epochs == pytest.approx(3 * found.runs, rel=0.03)
    else:
        assert found.runs > (trials or 12_000) - 1
        assert found.epochs < 2.9 * found.runs


def test_a_part_of_a_search_stands_for_the_whole(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, bench: Workbench):
    """600 trials played in full, and from 300 of them: the same but for chance."""
    for kind in ("asha", "promote"):
        spec = tiny(tmp_path, scheduler__type=kind, budget__trials=600)
        works = [bench.work(config) for config in planned_configs(spec)]
        part = search_time(spec, works, 600, 4, SPEED)
        with monkeypatch.context() as patch:
            patch.setattr("sweeps.phase_times.PLAYED", 600)
            whole = search_time(spec, works, 600, 4, SPEED)
        assert part.runs == whole.runs == 600
        assert part.epochs == pytest.approx(whole.epochs, rel=0.06)
        assert part.seconds == pytest.approx(whole.seconds, rel=0.06)


def test_with_a_single_seed_finalists_are_trained_where_their_settings_are_others(tmp_path: Path, bench: Workbench):
    def epochs(**overrides: Any) -> float:
        plan = make_plan(tiny(tmp_path, finalists__seeds=1, finalists__top_k=3, **overrides), bench, 2, SPEED)
        assert plan.finalists is not None
        return plan.finalists.busy_seconds

    as_they_are, other_beam = epochs(), epochs(finalists__set={"evaluation.beam_size": 20})
    longer = epochs(finalists__set={"train.epochs": 30})
    epoch = bench.work(load_spec(TINY).base_config()).epoch_seconds(SPEED)
    assert other_beam < as_they_are + 3 * epoch
    assert longer > as_they_are + 3 * 30 * epoch


def test_a_plan_is_written_beside_the_sweep_and_read_again(tmp_path: Path, bench: Workbench):
    plan = make_plan(tiny(tmp_path), bench, 2, SPEED)
    assert plan.write(tmp_path / "tiny").name == "plan.json"
    read = read_plan(tmp_path / "tiny")
    assert read == json.loads(json.dumps(plan.to_dict()))
    assert read is not None
    assert read["seconds"] == plan.seconds
    assert read_plan(tmp_path / "elsewhere") is None
    (tmp_path / "tiny" / "plan.json").write_text("[")
    assert read_plan(tmp_path / "tiny") is None


def test_a_space_with_nothing_feasible_is_refused(tmp_path: Path, bench: Workbench):
    spec = tiny(tmp_path)
    object.__setattr__(spec.search_space, "constraints", _never())
    with pytest.raises(InputError, match="no feasible point was found"):
        make_plan(spec, bench, 2)


def _never() -> tuple[Any, ...]:
    from sweeps.constraints import parse_constraint

    return (parse_constraint("train.epochs < 0"),)


def test_planned_points_take_the_grid_in_turn_and_are_feasible(tmp_path: Path):
    spec = tiny(tmp_path, "constraints: [train.learning_rate < 2e-3]\n", budget__trials=10)
    points = planned_points(spec)
    assert [point["tokenizer.kind"] for point in points] == ["rkmeans", "rqvae"] * 5
    assert all(point["train.learning_rate"] < 2e-3 for point in points)
    assert len(planned_points(spec, limit=4)) == 4


def test_trials_are_counted_without_the_infeasible_points_of_a_grid(tmp_path: Path):
    path = tmp_path / "grid.yaml"
    grid = "space: {tiger.num_heads: {type: grid, values: [2, 3, 4]}, train.epochs: {type: grid, values: [1, 2]}}\n"
    path.write_text(grid)
    spec = load_spec(path)
    assert spec.budget.trials == 6
    assert num_trials(spec, 1 / 3) == 4
    assert len(planned_points(spec)) == 4
    path.write_text(grid.replace("grid, values: [1, 2]", "choice, values: [1, 2]") + "budget: {trials: 100}\n")
    assert num_trials(load_spec(path), 1 / 3) == 4


def test_probes_span_the_costs_and_cover_both_tokenizers(tmp_path: Path, bench: Workbench):
    spec = tiny(tmp_path, budget__trials=12)
    configs = planned_configs(spec)
    probes = probe_configs(configs, [bench.work(config) for config in configs])
    assert 2 <= len(probes) <= 5
    assert {config.tokenizer.kind for config in probes} == {"rqvae", "rkmeans"}


def test_planned_stands_against_actual(tmp_path: Path, bench: Workbench):
    spec = tiny(tmp_path)
    plan = make_plan(spec, bench, 2, SPEED)
    with Ledger.create(tmp_path / "x", spec) as ledger:
        while (task := ledger.next()) is not None:
            for epoch in (1, 2, 3):
                row = {"epoch": epoch, "ndcg@10": 0.1, "targets_per_second": 1000.0, "users": 80}
                ledger.report(task.id, row)
            ledger.finish(task.id, "completed", {"duration": 4.0, "trained": ["tiger"]})
        rows = {name: (planned, actual) for name, planned, actual in planned_against_actual(plan.to_dict(), ledger)}
        assert rows["trials"] == (6, 6)
        assert rows["epochs"] == (18, 18)
        assert rows["search slot seconds"][1] == 24.0
        speed = recorded_speed(ledger, bench)
        assert speed is not None
        work = bench.work(spec.base_config())
        assert speed.train.seconds(work.targets, work.train_flops) == pytest.approx(work.targets / 1000, rel=0.05)
        assert 3 * work.epoch_seconds(speed) + speed.setup == pytest.approx(4.0, rel=0.05)


def test_neither_a_night_between_two_drivers_nor_what_was_taken_over_counts_as_work(tmp_path: Path):
    """Two trials of ten seconds side by side in the evening, one of ten in the morning."""
    spec = tiny(tmp_path)
    with Ledger.create(tmp_path / "x", spec) as ledger:
        for _ in range(3):
            task = ledger.next()
            assert task is not None
            ledger.report(task.id, {"epoch": 1, "ndcg@10": 0.1})
            ledger.finish(task.id, "completed", {"duration": 10.0})
        evening = datetime(2026, 1, 1, 22).astimezone()
        ten, night = timedelta(seconds=10), timedelta(hours=9)
        [a, b, c] = ledger.trials()
        a = dataclasses.replace(a, started=evening, finished=evening + ten)
        b = dataclasses.replace(b, started=evening + ten / 2, finished=evening + 1.5 * ten)
        c = dataclasses.replace(c, started=evening + ten, finished=evening + night + ten)  # interrupted, and resumed
        taken = dataclasses.replace(
            c, source={"sweep": "earlier"}, started=evening + night, finished=evening + 2 * night
        )
        sizes = [(evening, 2), (evening + 2 * ten, 0), (evening + night, 2), (evening + night + 2 * ten, 0)]
        ledger.set_fact("cluster_sizes", [[at.timestamp(), cpus, 0, 1 if cpus else 0] for at, cpus in sizes])
        ledger.trials = lambda: [a, b, c, taken]  # type: ignore[method-assign]
        rows = {name: actual for name, _, actual in planned_against_actual({}, ledger)}
    assert rows["search seconds"] == pytest.approx(20 + 10)
    assert rows["trials"] == 4
    assert rows["epochs"] == 3
    assert rows["search slot seconds"] == 30.0


def test_a_measurement_that_does_not_end_is_given_up(bench: Workbench, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("sweeps.measured_speed.PATIENCE", 0.01)
    with pytest.raises(InputError, match=r"took more than 0.01 s; fix: .*--like NAME.*--no-measure"):
        measure_speed([load_spec(TINY).base_config()], bench.store.address)


@pytest.mark.slow
def test_the_measured_speed_predicts_a_training(bench: Workbench):
    """Loosely, because tests share their machine: the real check is a report's planned against actual."""
    from genrec.pipeline import run_pipeline

    config = load_config(None, {**load_spec(TINY).set, "train.epochs": 12, "dataset.synthetic.num_users": 600})
    work = bench.work(config)
    speed = measure_speed([config], str(bench.store.root))
    run_pipeline(config, bench.store, until="semantic_ids")
    started = time.perf_counter()
    run_pipeline(config, bench.store, stages=("tiger",))
    actual = time.perf_counter() - started
    assert 0.3 < (work.epochs * work.epoch_seconds(speed) + speed.setup) / actual < 3


@pytest.mark.slow
def test_a_dry_run_plans_and_starts_nothing(tmp_path: Path):
    words = ["run", str(TINY), "--dry-run", "--trials", "3", "--storage", str(tmp_path)]
    result = CliRunner().invoke(main, words)
    assert result.exit_code == 0, result.output
    assert "3 (" in result.output
    assert "measured here" in result.output
    plan = read_plan(tmp_path / "tiny")
    assert plan is not None
    assert plan["trials"] == 3
    assert plan["seconds"] > 0
    assert not (tmp_path / "tiny" / "ledger.journal").exists()


def test_plan_without_measuring_prints_json(tmp_path: Path):
    words = ["plan", str(TINY), "--no-measure", "--cpus", "8", "--storage", str(tmp_path), "--format", "json"]
    result = CliRunner().invoke(main, words)
    assert result.exit_code == 0, result.output
    plan = json.loads(result.stdout)
    assert (plan["slots"], plan["search"]) == (8, None)
    assert read_plan(tmp_path / "tiny") == plan


def test_an_elastic_sweep_is_priced_with_its_most_and_its_fewest_workers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("sweeps.planner.measure_speed", lambda *_, **__: SPEED)
    plans = {}
    for name, workers in {"one": "1", "four": "4", "elastic": "{min: 1, max: 4}"}.items():
        spec = tiny(tmp_path, f"resources: {{workers: {workers}, max_concurrent: 1}}\n", name=name)
        plans[name] = plan_sweep(spec, tmp_path, cpus=4)
    elastic = plans["elastic"]
    assert elastic.search == plans["four"].search
    single = plans["one"].search.seconds
    assert elastic.search_with_fewest.seconds == pytest.approx(single + 6 * GROUP_START)  # trials one after the other
    assert elastic.search_with_fewest.seconds > elastic.search.seconds > 6 * GROUP_START
    assert "if every trial has only its fewest workers (1)" in "\n".join(plan_lines(elastic))
    assert plans["four"].search_with_fewest is None


@pytest.mark.parametrize(("cpus", "slots"), [(1, 1), (4, 1), (5, 2), (8, 2)])
def test_what_is_left_of_the_cluster_is_one_more_elastic_trial(tmp_path: Path, cpus: int, slots: int):
    assert local_slots(tiny(tmp_path, "resources: {workers: {min: 1, max: 4}}\n"), cpus) == slots


def test_resources_that_are_not_there_are_named(tmp_path: Path):
    (tmp_path / "gpu.yaml").write_text(TINY.read_text() + "resources: {gpus_per_worker: 1, max_concurrent: 4}\n")
    words = ["plan", str(tmp_path / "gpu.yaml"), "--storage", str(tmp_path)]
    result = CliRunner().invoke(main, [*words, "--gpus", "0"])
    assert result.exit_code == 2
    assert "--gpus" in result.output
    result = CliRunner().invoke(main, [*words, "--cpus", "16", "--gpus", "8", "--no-measure"])
    assert "(4 at once)" in result.output
