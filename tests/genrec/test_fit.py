"""The training loop: equal seeds give equal bits, and a killed run ends with the bits of one that was not."""

from __future__ import annotations

import hashlib
import itertools
import json
import logging
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file

from genrec.checkpoint import generations, load_checkpoint
from genrec.config import TigerConfig
from genrec.data.augmentation import Augmentation
from genrec.data.batches import WindowBatches
from genrec.models.tiger import Tiger, Window
from genrec.progress import OnStep, TrainingStep
from genrec.ranks import sum_over_ranks
from genrec.trainers.fit import FitSettings, Fitted, NonFiniteLoss, fit
from genrec.trainers.run_folder import METRICS

EPOCHS = 4


class Stopped(Exception):
    """A run that ends before its time."""


def make_model(seed: int = 0, **settings: Any) -> Tiger:
    base = {"embedding_dim": 8, "attn_dim": 8, "num_heads": 2, "feedforward_dim": 16, "n_layers": 2, "max_seq_len": 5}
    codes = torch.stack(torch.unravel_index(torch.arange(20), (4, 5)), dim=1)
    torch.manual_seed(seed)
    return Tiger(TigerConfig(**(base | {"dropout": 0.2} | settings)), codes, (4, 5))


def make_batches(seed: int = 0, batch_size: int = 16, **settings: Any) -> WindowBatches:
    rng = np.random.default_rng(0)
    offsets = np.concatenate([[0], np.cumsum(rng.integers(2, 10, 12))])
    items = rng.integers(0, 20, offsets[-1])
    return WindowBatches(offsets, items, causal=True, max_items=5, batch_size=batch_size, seed=seed, **settings)


def make_settings(**settings: Any) -> FitSettings:
    base = {"epochs": EPOCHS, "learning_rate": 1e-2, "weight_decay": 0.1, "seed": 0, "checkpoint_interval": 0.0}
    return FitSettings(**(base | {"schedule": "cosine", "warmup_steps": 3, "clip_norm": 1.0} | settings))


def train(
    model: Tiger | None = None,
    folder: Path | None = None,
    report: Callable[[dict], None] | None = None,
    validate: Callable[[], dict[str, float]] | None = None,
    loss_of: Callable[[Window], torch.Tensor] | None = None,
    batches: WindowBatches | None = None,
    on_step: OnStep | None = None,
    **settings: Any,
) -> tuple[Tiger, Fitted]:
    model = model or make_model()
    fitted = fit(
        model,
        loss_of or (lambda window: model.loss(window, 0.1)),
        batches or make_batches(),
        make_settings(**settings),
        validate=validate,
        report=report,
        on_step=on_step,
        folder=folder,
    )
    return model, fitted


def without_time(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{key: value for key, value in row.items() if key != "targets_per_second"} for row in rows]


def digest(tensors: dict[str, torch.Tensor], rows: list[dict[str, Any]]) -> str:
    """Bits of all tensors and of all metric rows but the speed."""
    found = hashlib.sha256()
    for name in sorted(tensors):
        found.update(name.encode() + tensors[name].detach().numpy().tobytes())
    for row in without_time(rows):
        for name, value in sorted(row.items()):
            found.update(f"{name}={float(value).hex()}".encode())
    return found.hexdigest()


def final_digest(folder: Path) -> str:
    """Of the last checkpoint: parameters, best weights, optimizer state, rows."""
    tensors, facts = load_checkpoint(generations(folder)[-1])
    assert any(name.startswith("optimizer:") for name in tensors)
    assert facts["epoch"] == EPOCHS
    assert read_metrics(folder) == facts["rows"]
    return digest(tensors, facts["rows"])


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / METRICS).read_text().splitlines()]


def stop_after(epoch: int) -> Callable[[dict], None]:
    def report(row: dict[str, Any]) -> None:
        if row["epoch"] == epoch:
            raise Stopped

    return report


def exit_after(epoch: int) -> Callable[[dict], None]:
    """As Ray Tune ends a training: at a report."""

    def report(row: dict[str, Any]) -> None:
        if row["epoch"] == epoch:
            raise SystemExit(0)

    return report


def dying_loss(model: Tiger, calls: int, die: Callable[[], None]) -> Callable[[Window], torch.Tensor]:
    """The loss, which dies at the given call."""
    counter = itertools.count(1)

    def loss_of(window: Window) -> torch.Tensor:
        if next(counter) == calls:
            die()
        return model.loss(window, 0.1)

    return loss_of


def windows_in(epochs: int) -> int:
    """Calls of the loss in the first so many epochs."""
    return sum(len(step.batches) for epoch in range(1, epochs + 1) for step in make_batches().steps(epoch))


def stop() -> None:
    raise Stopped


# ---------------------------------------------------------------- exactness


def test_equal_seeds_give_equal_bits():
    one, two = train(), train()
    assert digest(one[0].state_dict(), one[1].rows) == digest(two[0].state_dict(), two[1].rows)
    other = train(seed=1)
    assert digest(one[0].state_dict(), one[1].rows) != digest(other[0].state_dict(), other[1].rows)


def test_a_run_that_is_told_to_stop_saves_the_epoch_that_it_has_just_reported(tmp_path):
    """Although no checkpoint is due: the next process trains no epoch again, and ends with the same bits."""
    train(folder=tmp_path / "undisturbed")
    with pytest.raises(SystemExit):
        train(folder=tmp_path / "stopped", report=exit_after(2), checkpoint_interval=1e9)
    trained: list[int] = []
    train(folder=tmp_path / "stopped", on_step=lambda told: trained.append(told.epoch), checkpoint_interval=1e9)
    assert set(trained) == {3, 4}
    assert final_digest(tmp_path / "stopped") == final_digest(tmp_path / "undisturbed")


ALL = Augmentation(crop=0.5, mask=0.3, reorder=0.5)


@pytest.mark.parametrize(
    ("settings", "changes"),
    [
        ({}, {}),
        ({"optimizer": "muon"}, {}),
        ({"precision": "bf16"}, {"subsample": True}),
        ({"precision": "fp16"}, {"accumulate": 3}),
        ({"schedule": "linear"}, {"augmentation": ALL}),
    ],
)
def test_a_stopped_run_ends_with_the_bits_of_one_that_was_not(settings, changes, tmp_path):
    batches = make_batches(**changes)
    _, whole = train(folder=tmp_path / "whole", batches=batches, **settings)
    with pytest.raises(Stopped):
        train(folder=tmp_path / "cut", report=stop_after(2), batches=batches, **settings)
    told: list[dict] = []
    _, fitted = train(
        make_model(seed=9), folder=tmp_path / "cut", report=told.append, batches=make_batches(**changes), **settings
    )
    assert final_digest(tmp_path / "cut") == final_digest(tmp_path / "whole")
    assert without_time(fitted.rows) == without_time(whole.rows)
    assert told == fitted.rows  # the rows from before the stop are told again, once each
    assert digest(fitted.best_weights, []) == digest(whole.best_weights, [])


@pytest.mark.parametrize(("epochs", "calls"), [(0, 1), (0, 3), (1, 2), (3, 4)])
def test_a_run_stopped_inside_an_epoch_continues_from_the_one_before(epochs, calls, tmp_path):
    train(folder=tmp_path / "whole")
    model = make_model()
    with pytest.raises(Stopped):
        train(model, folder=tmp_path / "cut", loss_of=dying_loss(model, windows_in(epochs) + calls, stop))
    train(folder=tmp_path / "cut")
    assert final_digest(tmp_path / "cut") == final_digest(tmp_path / "whole")


def test_a_run_killed_by_the_kernel_ends_with_the_bits_of_one_that_was_not(tmp_path):
    train(folder=tmp_path / "whole")
    ended = subprocess.run([sys.executable, __file__, "killed", str(tmp_path / "cut")], timeout=250)
    assert ended.returncode == -signal.SIGKILL
    reached = load_checkpoint(generations(tmp_path / "cut")[-1])[1]["epoch"]
    assert 0 < reached < EPOCHS
    train(folder=tmp_path / "cut")
    assert final_digest(tmp_path / "cut") == final_digest(tmp_path / "whole")


@pytest.mark.slow
def test_a_run_killed_again_and_again_at_any_moment_ends_with_the_same_bits(tmp_path):
    train(folder=tmp_path / "whole", batches=make_batches(augmentation=ALL))
    ended = subprocess.run(
        [sys.executable, __file__, "killed often", str(tmp_path / "cut")], timeout=250, capture_output=True, text=True
    )
    assert ended.returncode == 0, ended.stderr
    assert int(ended.stdout) >= 3
    assert final_digest(tmp_path / "cut") == final_digest(tmp_path / "whole")


def test_a_damaged_checkpoint_costs_one_epoch_and_no_bit(tmp_path, caplog):
    train(folder=tmp_path / "whole")
    with pytest.raises(Stopped):
        train(folder=tmp_path / "cut", report=stop_after(3))
    (generations(tmp_path / "cut")[-1] / "tensors.safetensors").write_bytes(b"half")
    with caplog.at_level(logging.WARNING):
        train(folder=tmp_path / "cut")
    assert "damaged" in caplog.text
    assert final_digest(tmp_path / "cut") == final_digest(tmp_path / "whole")


def test_a_finished_run_is_not_trained_again(tmp_path):
    _, first = train(folder=tmp_path)

    def no_more(window: Window) -> torch.Tensor:
        raise AssertionError

    model, second = train(make_model(seed=9), folder=tmp_path, loss_of=no_more)
    assert second.rows == first.rows
    assert digest(model.state_dict(), second.rows) == final_weights_digest(tmp_path, second.rows)


def final_weights_digest(folder: Path, rows: list[dict]) -> str:
    tensors, _ = load_checkpoint(generations(folder)[-1])
    return digest({name.removeprefix("model:"): t for name, t in tensors.items() if name.startswith("model:")}, rows)


def test_another_number_of_threads_is_told_and_recorded(tmp_path, caplog, monkeypatch):
    with pytest.raises(Stopped):
        train(folder=tmp_path, report=stop_after(1))
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    with caplog.at_level(logging.WARNING):
        train(folder=tmp_path)
    assert "not bit-exact: threads 1 -> 2" in caplog.text
    monkeypatch.undo()
    _, fitted = train(folder=tmp_path, epochs=EPOCHS + 1)
    changes = ["after epoch 1: threads 1 -> 2", f"after epoch {EPOCHS}: threads 2 -> 1"]
    assert fitted.changes == load_checkpoint(generations(tmp_path)[-1])[1]["changes"] == changes


def test_checkpoints_wait_for_their_interval_but_for_the_last(tmp_path):
    train(folder=tmp_path, checkpoint_interval=1000.0)
    assert [path.name for path in generations(tmp_path)] == [f"{EPOCHS:08d}"]


# --------------------------------------------------------------- validation


def random_validation() -> dict[str, float]:
    return {"ndcg@5": float(torch.rand(()))}


def test_validation_does_not_move_training():
    often, _ = train(validate=random_validation, eval_every=1, monitor="ndcg@5")
    seldom, fitted = train(validate=random_validation, eval_every=4, monitor="ndcg@5")
    never, _ = train()
    assert digest(often.state_dict(), []) == digest(seldom.state_dict(), []) == digest(never.state_dict(), [])
    assert ["ndcg@5" in row for row in fitted.rows] == [False, False, False, True]


def test_the_last_epoch_is_always_validated():
    _, fitted = train(validate=random_validation, eval_every=3, monitor="ndcg@5")
    assert [row["epoch"] for row in fitted.rows if "ndcg@5" in row] == [3, 4]


def scripted(values: list[float], name: str) -> Callable[[], dict[str, float]]:
    remaining = iter(values)
    return lambda: {name: next(remaining)}


@pytest.mark.parametrize(
    ("name", "values", "best"),
    [
        ("ndcg@5", [0.1, 0.5, 0.3, 0.5], 2),  # of equals the first
        ("ndcg@5", [0.1, 0.2, 0.3, 0.4], 4),
        ("ndcg@5", [0.0, 0.0, 0.0, 0.0], 1),
        ("val_loss", [3.0, 2.0, 1.0, 2.0], 3),
    ],
)
def test_the_weights_of_the_best_epoch_are_kept(name, values, best):
    model, weights = make_model(), {}

    def report(row: dict[str, Any]) -> None:
        weights[row["epoch"]] = digest(model.state_dict(), [])

    _, fitted = train(model, validate=scripted(values, name), report=report, monitor=name)
    assert fitted.best["epoch"] == best
    assert fitted.best[name] == values[best - 1]
    assert digest(fitted.best_weights, []) == weights[best]
    assert digest(model.state_dict(), []) == weights[EPOCHS]


@pytest.mark.parametrize(
    ("values", "patience", "eval_every", "epochs"),
    [
        ([0.3, 0.2, 0.1, 0.4], 2, 1, 3),
        ([0.3, 0.2, 0.4, 0.1], 2, 1, 4),
        ([0.3, 0.3, 0.4, 0.1], 1, 1, 2),  # as good is not better
        ([0.3, 0.2, 0.4, 0.5], None, 1, 4),
        ([0.3, 0.2], 1, 2, 4),
    ],
)
def test_training_stops_after_so_many_validations_without_a_better_one(values, patience, eval_every, epochs):
    settings = {"monitor": "ndcg@5", "patience": patience, "eval_every": eval_every}
    _, fitted = train(validate=scripted(values, "ndcg@5"), **settings)
    assert len(fitted.rows) == epochs
    assert fitted.best["ndcg@5"] == max(row["ndcg@5"] for row in fitted.rows if "ndcg@5" in row)


def test_patience_survives_an_interruption_and_its_end_is_final(tmp_path):
    settings = {"monitor": "ndcg@5", "patience": 2, "folder": tmp_path}
    with pytest.raises(Stopped):
        train(validate=scripted([0.3, 0.2], "ndcg@5"), report=stop_after(2), **settings)
    _, fitted = train(validate=scripted([0.1, 0.9], "ndcg@5"), **settings)
    assert [row["epoch"] for row in fitted.rows] == [1, 2, 3]
    _, again = train(validate=scripted([], "ndcg@5"), **settings)
    assert again.rows == fitted.rows
    assert generations(tmp_path)[-1].name == f"{3:08d}"


def test_without_validation_the_training_loss_decides():
    _, fitted = train()
    assert fitted.best["loss"] == min(row["loss"] for row in fitted.rows)


def test_the_loss_of_an_epoch_is_a_mean_over_targets():
    model = make_model(dropout=0.0)
    _, fitted = train(model, learning_rate=1e-12, weight_decay=0.0, epochs=1)
    fresh = make_model(dropout=0.0)
    batches = make_batches()
    with torch.no_grad():
        total = sum(fresh.loss(w, 0.1).item() for step in batches.steps(1) for w in step.batches)
    assert fitted.rows[0]["loss"] == pytest.approx(total / batches.num_targets, rel=1e-5)


def test_training_learns():
    _, fitted = train(make_model(dropout=0.0), epochs=20)
    assert fitted.rows[-1]["loss"] < 0.9 * fitted.rows[0]["loss"]


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
@pytest.mark.parametrize("batch_size", [4, 16])
def test_accumulated_gradients_are_those_of_the_large_batch(optimizer, batch_size):
    large, one = train(make_model(dropout=0.0).double(), batches=make_batches(batch_size=48), optimizer=optimizer)
    small, many = train(
        make_model(dropout=0.0).double(),
        batches=make_batches(batch_size=batch_size, accumulate=48 // batch_size),
        optimizer=optimizer,
    )
    for name, tensor in large.state_dict().items():
        torch.testing.assert_close(small.state_dict()[name], tensor, rtol=1e-7, atol=1e-9)
    assert [row["loss"] for row in many.rows] == pytest.approx([row["loss"] for row in one.rows], rel=1e-9)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_reduced_precision_trains_float32_weights_to_about_the_same_loss(precision):
    _, exact = train(make_model(dropout=0.0), epochs=8)
    model, reduced = train(make_model(dropout=0.0), epochs=8, precision=precision)
    assert all(p.dtype == torch.float32 for p in model.parameters())
    assert reduced.rows[-1]["loss"] == pytest.approx(exact.rows[-1]["loss"], rel=0.05)
    assert reduced.rows[-1]["loss"] != exact.rows[-1]["loss"]


def test_a_step_that_overflows_float16_is_left_out_and_the_scale_falls(tmp_path):
    model, told = make_model(dropout=0.0), []

    def loss_of(window: Window) -> torch.Tensor:
        factor = 1e30 if len(told) in (1, 2) else 1.0  # times the scale this is more than float32 holds
        return model.loss(window, 0.1) * factor

    weights: list[str] = []

    def on_step(step: TrainingStep) -> None:
        told.append(step)
        weights.append(digest(model.state_dict(), []))

    train(model, loss_of=loss_of, on_step=on_step, precision="fp16", epochs=1, folder=tmp_path)
    assert weights[0] == weights[1] == weights[2] != weights[3]
    _, facts = load_checkpoint(generations(tmp_path)[-1])
    assert facts["scaler"]["scale"] == 65536.0 / 4


def test_every_step_is_told_with_its_rate_and_loss():
    told: list[TrainingStep] = []
    model = make_model(dropout=0.0)
    _, fitted = train(model, on_step=told.append)
    steps = make_batches().num_steps(1)
    assert [(step.epoch, step.step) for step in told] == [(1 + i // steps, i + 1) for i in range(EPOCHS * steps)]
    rates = [step.learning_rate for step in told]
    assert rates[0] == 1e-2
    assert rates == sorted(rates, reverse=True)
    assert rates[-1] < 1e-3
    for row in fitted.rows:
        mine = [step for step in told if step.epoch == row["epoch"]]
        total = sum(step.loss() * step.targets for step in mine)
        assert total / sum(step.targets for step in mine) == pytest.approx(row["loss"])


def test_the_rows_of_epochs_stand_in_a_file_beside_the_checkpoints(tmp_path):
    _, fitted = train(folder=tmp_path, validate=random_validation)
    assert read_metrics(tmp_path) == fitted.rows


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_ends_the_run_and_is_no_checkpoint(value, tmp_path):
    model, counter = make_model(), itertools.count(1)

    def loss_of(window: Window) -> torch.Tensor:
        return model.loss(window, 0.1) * (value if next(counter) > windows_in(2) + 1 else 1.0)

    with pytest.raises(NonFiniteLoss, match=r"the loss is (nan|inf) in epoch 3"):
        train(model, folder=tmp_path, loss_of=loss_of)
    tensors, _ = load_checkpoint(generations(tmp_path)[-1])
    assert all(tensor.isfinite().all() for tensor in tensors.values())


# -------------------------------------------------------------- two workers


TOGETHER = {"accumulate": 2, "augmentation": ALL}


def test_two_workers_take_the_steps_of_one(tmp_path):
    workers = [subprocess.Popen([sys.executable, __file__, "rank", str(tmp_path), str(rank)]) for rank in range(2)]
    try:
        assert [worker.wait(timeout=250) for worker in workers] == [0, 0]
    finally:
        for worker in workers:
            worker.kill()
    model, fitted = train(make_model(dropout=0.0).double(), batches=make_batches(**TOGETHER))
    first, second = (load_file(tmp_path / f"{rank}.safetensors") for rank in range(2))
    for name, tensor in model.state_dict().items():
        assert torch.equal(first[name], second[name])
        torch.testing.assert_close(first[name], tensor, rtol=1e-6, atol=1e-8)
    _, facts = load_checkpoint(generations(tmp_path / "checkpoints")[-1])
    assert [row["loss"] for row in facts["rows"]] == pytest.approx([row["loss"] for row in fitted.rows], rel=1e-8)
    assert (facts["world"], facts["changes"]) == (2, [])
    # Another number of workers goes on from there: the same steps, but for the order of sums, and a note of it.
    shutil.rmtree(generations(tmp_path / "checkpoints")[-1])
    alone, resumed = train(
        make_model(dropout=0.0).double(), folder=tmp_path / "checkpoints", batches=make_batches(**TOGETHER)
    )
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(alone.state_dict()[name], tensor, rtol=1e-6, atol=1e-8)
    assert resumed.changes == [f"after epoch {EPOCHS - 1}: world 2 -> 1"]


# ---------------------------------------------------------- other processes


def killed_run(folder: Path) -> None:
    """Dies by SIGKILL in the middle of its third epoch."""
    model = make_model()
    die = dying_loss(model, windows_in(2) + 4, lambda: os.kill(os.getpid(), signal.SIGKILL))
    train(model, folder=folder, loss_of=die)


def run_killed_often(folder: Path) -> None:
    """Starts the run over and over and kills it a little later each time; prints how often it was killed."""
    train(batches=make_batches(augmentation=ALL))  # what torch loads at its first step is loaded before the forks
    for kills in itertools.count():
        process = os.fork()
        if not process:
            train(folder=folder, batches=make_batches(augmentation=ALL))
            os._exit(0)
        time.sleep(0.1 * kills)
        os.kill(process, signal.SIGKILL)
        if os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) == 0:
            print(kills)
            return


def one_rank(folder: Path, rank: int) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    # The second rank starts from other weights: it must take those of the first. It is on another node, without the
    # first one's folder: what it goes on from comes from the first as well.
    here = folder / ("checkpoints" if rank == 0 else "of-another-node")
    model, _ = train(make_model(seed=rank, dropout=0.0).double(), folder=here, batches=make_batches(**TOGETHER))
    if rank == 0:
        shutil.rmtree(generations(here)[-1])
    assert sum_over_ranks([rank, 1]) == [1, 2]
    again, fitted = train(make_model(seed=rank, dropout=0.0).double(), folder=here, batches=make_batches(**TOGETHER))
    assert [row["epoch"] for row in fitted.rows] == list(range(1, EPOCHS + 1))
    for name, tensor in model.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor), name
    save_file(model.state_dict(), folder / f"{rank}.safetensors")
    dist.destroy_process_group()


if __name__ == "__main__":
    torch.set_num_threads(1)
    if sys.argv[1] == "killed":
        killed_run(Path(sys.argv[2]))
    elif sys.argv[1] == "killed often":
        run_killed_often(Path(sys.argv[2]))
    else:
        one_rank(Path(sys.argv[2]), int(sys.argv[3]))
