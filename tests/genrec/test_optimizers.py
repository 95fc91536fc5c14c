"""Schedules by hand, optimizers against obvious ones, their state there and back."""

from __future__ import annotations

import math
import subprocess
import sys
from typing import Any, get_args

import pytest
import torch
from torch import Tensor, nn

from genrec.config import TigerConfig, TrainConfig
from genrec.models.tiger import Tiger, Window
from genrec.modules.eager_optimizer import AdamW
from genrec.modules.muon import COEFFICIENTS, STEPS, Muon, newton_schulz, orthogonalized
from genrec.modules.optimizers import (
    SCHEDULES,
    build_optimizers,
    optimizer_tensors,
    rate_factor,
    restore_optimizers,
)


def make_model(seed: int = 0) -> Tiger:
    sizes = {"embedding_dim": 8, "attn_dim": 8, "num_heads": 2, "feedforward_dim": 16, "n_layers": 2, "max_seq_len": 5}
    codes = torch.stack(torch.unravel_index(torch.arange(20), (4, 5)), dim=1)
    torch.manual_seed(seed)
    return Tiger(TigerConfig(**sizes, dropout=0.0), codes, (4, 5))


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize(
    ("step", "total", "warmup", "schedule", "factor"),
    [
        (0, 1000, 10, "constant", 0.1),
        (4, 1000, 10, "constant", 0.5),
        (9, 1000, 10, "constant", 1.0),
        (500, 1000, 10, "constant", 1.0),
        (0, 1000, 0, "constant", 1.0),
        (0, 1000, 0, "cosine", 1.0),
        (500, 1000, 0, "cosine", 0.5),
        (250, 1000, 0, "cosine", 0.5 * (1 + math.cos(math.pi / 4))),
        (1000, 1000, 0, "cosine", 0.0),
        (1200, 1000, 0, "cosine", 0.0),  # a later epoch may have a few steps more than the first
        (10, 110, 10, "cosine", 1.0),
        (60, 110, 10, "cosine", 0.5),
        (0, 50, 100, "constant", 0.2),  # a warm-up of 100 is cut to a tenth of the run
        (5, 50, 100, "constant", 1.0),
        (0, 1, 100, "cosine", 1.0),
        (10, 110, 10, "linear", 1.0),
        (60, 110, 10, "linear", 0.5),
        (110, 110, 10, "linear", 0.0),
        (150, 110, 10, "linear", 0.0),
        (4, 1000, 10, "inverse_sqrt", 0.5),
        (9, 1000, 10, "inverse_sqrt", 1.0),
        (39, 1000, 10, "inverse_sqrt", 0.5),
        (999, 1000, 10, "inverse_sqrt", 0.1),
        (3, 1000, 0, "inverse_sqrt", 0.5),
    ],
)
def test_the_rate_follows_the_schedule(step, total, warmup, schedule, factor):
    assert rate_factor(step, total, warmup, schedule) == pytest.approx(factor)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_no_schedule_ever_rises_after_warm_up_or_jumps(schedule):
    factors = [rate_factor(step, 500, 20, schedule) for step in range(520)]
    assert factors[:20] == pytest.approx([(step + 1) / 20 for step in range(20)])
    falls = [before - after for before, after in zip(factors[19:], factors[20:], strict=False)]
    assert min(falls) >= 0
    assert max(falls) < 0.03


def test_an_unknown_schedule_is_refused():
    with pytest.raises(ValueError, match="'step'; known: constant, cosine, linear, inverse_sqrt"):
        rate_factor(50, 100, 0, "step")


def test_every_setting_of_the_schedule_is_known():
    assert get_args(TrainConfig.model_fields["schedule"].annotation) == SCHEDULES


def test_muon_takes_the_matrices_of_the_blocks_and_adamw_the_rest():
    model = make_model()
    adamw, muon = build_optimizers(model, "muon", 1e-3, 0.1)
    names = {id(parameter): name for name, parameter in model.named_parameters()}

    def of(group: dict[str, Any]) -> set[str]:
        return {names[id(parameter)] for parameter in group["params"]}

    matrices, decayed, plain = of(muon.param_groups[0]), of(adamw.param_groups[0]), of(adamw.param_groups[1])
    assert matrices | decayed | plain == set(names.values())
    blocks = {name for name in names.values() if "encoder" in name or "decoder" in name}
    assert matrices == {name for name in blocks if "norm" not in name}
    assert "item_embedding.table.weight" in decayed
    assert {"start"} | (blocks - matrices) <= plain
    assert adamw.param_groups[1]["weight_decay"] == 0.0
    assert len(build_optimizers(model, "adamw", 1e-3, 0.1)) == 1


@pytest.mark.parametrize("kind", ["adamw", "muon"])
def test_the_state_of_optimizers_goes_there_and_back(kind):
    def step(model: Tiger, optimizers: list[torch.optim.Optimizer]) -> None:
        model(Window(torch.arange(12).view(2, 6), 1)).backward()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()

    model = make_model()
    optimizers = build_optimizers(model, kind, 1e-2, 0.1)
    for _ in range(3):
        step(model, optimizers)
    twin = make_model(seed=5)
    twin.load_state_dict(model.state_dict())
    restored = build_optimizers(twin, kind, 1e-2, 0.1)
    kept = {name: tensor.clone() for name, tensor in optimizer_tensors(optimizers).items()}
    restore_optimizers(restored, kept)
    assert same(optimizer_tensors(restored), kept)
    step(model, optimizers)
    step(twin, restored)
    assert same(twin.state_dict(), model.state_dict())


# ---------------------------------------------------------------------- Muon


def slow_orthogonalized(matrix: Tensor) -> Tensor:
    """The same quintics, on the singular values themselves."""
    u, s, v = torch.linalg.svd(matrix.double(), full_matrices=False)
    s = s / s.norm()
    a, b, c = COEFFICIENTS
    for _ in range(STEPS):
        s = a * s + b * s**3 + c * s**5
    return u @ torch.diag(s) @ v


SHAPES = [(8, 8), (8, 20), (20, 8), (3, 7), (1, 5), (5, 1), (32, 33)]


def test_orthogonalising_is_a_polynomial_of_the_singular_values():
    generator = torch.Generator().manual_seed(0)
    matrices = [torch.randn(shape, generator=generator) for shape in SHAPES * 2]
    for matrix, found in zip(matrices, orthogonalized(matrices), strict=True):
        torch.testing.assert_close(found.double(), slow_orthogonalized(matrix), rtol=1e-4, atol=1e-5)


def test_singular_values_end_near_one():
    values = torch.linalg.svdvals(newton_schulz(torch.randn(4, 64, 128, generator=torch.Generator().manual_seed(0))))
    assert float(values.min()) > 0.6
    assert float(values.max()) < 1.3


@pytest.mark.parametrize("columns", [40, 41, 400])
def test_matrices_that_are_nearly_singular_stay_finite_and_exact(columns):
    scale = torch.logspace(0, -12, 40, dtype=torch.float64)
    matrix = torch.linalg.qr(torch.randn(40, 40, dtype=torch.float64))[0] * scale
    matrix = matrix @ torch.linalg.qr(torch.randn(columns, 40, dtype=torch.float64))[0].mT
    found = newton_schulz(matrix.float()[None])[0]
    torch.testing.assert_close(found.double(), slow_orthogonalized(matrix), rtol=0, atol=2e-3)


def test_a_gradient_of_zeros_changes_nothing():
    assert torch.equal(newton_schulz(torch.zeros(2, 3, 9)), torch.zeros(2, 3, 9))


def slow_muon_step(matrix: Tensor, gradient: Tensor, momentum: Tensor, lr: float, decay: float) -> None:
    """One matrix at a time, as in the paper, scaled as AdamW."""
    momentum.mul_(0.95).add_(gradient, alpha=0.05)
    update = slow_orthogonalized(0.05 * gradient + 0.95 * momentum)
    matrix.mul_(1 - lr * decay).sub_(lr * 0.2 * max(matrix.shape) ** 0.5 * update.to(matrix))


def test_muon_takes_the_steps_of_a_slow_one():
    generator = torch.Generator().manual_seed(0)
    fast = [nn.Parameter(torch.randn(shape, generator=generator)) for shape in SHAPES]
    slow = [matrix.detach().clone() for matrix in fast]
    momenta = [torch.zeros_like(matrix) for matrix in slow]
    optimizer = Muon(fast, lr=0.02, weight_decay=0.1)
    for _ in range(4):
        for matrix, twin, momentum in zip(fast, slow, momenta, strict=True):
            matrix.grad = torch.randn(matrix.shape, generator=generator)
            slow_muon_step(twin, matrix.grad, momentum, 0.02, 0.1)
        optimizer.step()
    for matrix, twin in zip(fast, slow, strict=True):
        torch.testing.assert_close(matrix.detach(), twin, rtol=1e-4, atol=1e-5)


def test_muon_agrees_with_that_of_torch_within_the_rounding_of_bfloat16():
    generator = torch.Generator().manual_seed(0)
    ours, theirs = ([nn.Parameter(torch.zeros(16, 48)), nn.Parameter(torch.zeros(48, 16))] for _ in range(2))
    one = Muon(ours, lr=0.02, weight_decay=0.1)
    other = torch.optim.Muon(theirs, lr=0.02, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
    for _ in range(3):
        for mine, twin in zip(ours, theirs, strict=True):
            mine.grad = torch.randn(mine.shape, generator=generator)
            twin.grad = mine.grad.clone()
        one.step()
        other.step()
    for mine, twin in zip(ours, theirs, strict=True):
        assert float((mine - twin).detach().norm()) < 0.02 * float(twin.detach().norm())


def test_an_update_of_muon_is_as_large_as_one_of_adamw():
    def size(kind: type[torch.optim.Optimizer]) -> float:
        matrix = nn.Parameter(torch.zeros(64, 128))
        optimizer = kind([matrix], lr=1.0, weight_decay=0.0)
        generator = torch.Generator().manual_seed(0)
        for _ in range(20):
            before = matrix.detach().clone()
            matrix.grad = torch.randn(matrix.shape, generator=generator)
            optimizer.step()
        return float((matrix.detach() - before).square().mean().sqrt())

    assert size(Muon) / size(torch.optim.AdamW) == pytest.approx(1.0, abs=0.5)


def test_matrices_without_a_gradient_are_left_alone():
    used, idle = nn.Parameter(torch.ones(3, 3)), nn.Parameter(torch.ones(3, 3))
    used.grad = torch.eye(3)
    Muon([used, idle], lr=0.1, weight_decay=0.5).step()
    assert torch.equal(idle, torch.ones(3, 3))
    assert not torch.equal(used, torch.ones(3, 3))


def test_muon_takes_matrices_only():
    with pytest.raises(ValueError, match="matrices only"):
        Muon([nn.Parameter(torch.ones(3))], lr=0.1)


def test_adamw_is_that_of_torch_to_the_bit_there_and_back():
    generator = torch.Generator().manual_seed(0)
    ours, theirs = ([nn.Parameter(torch.ones(5, 7)), nn.Parameter(torch.ones(7))] for _ in range(2))
    settings: dict[str, Any] = {"lr": 0.1, "weight_decay": 0.1, "betas": (0.9, 0.98), "fused": True}
    one, other = AdamW(ours, **settings), torch.optim.AdamW(theirs, **settings)
    for step in range(6):
        if step == 3:
            kept, one = one.state_dict(), AdamW(ours, **settings)
            one.load_state_dict(kept)
        for mine, twin in zip(ours, theirs, strict=True):
            mine.grad = torch.randn(mine.shape, generator=generator)
            twin.grad = mine.grad.clone()
        one.step()
        other.step()
        assert all(torch.equal(mine, twin) for mine, twin in zip(ours, theirs, strict=True))
    one.zero_grad()
    assert all(mine.grad is None for mine in ours)
    assert not any(mine.grad_fn for mine in ours)


@pytest.mark.parametrize("kind", ["adamw", "muon"])
def test_no_optimizer_loads_the_compiler_of_torch(kind: str):
    program = f"""
import sys
import torch
from genrec.modules.optimizers import build_optimizers, optimizer_tensors, restore_optimizers
model = torch.nn.ModuleDict({{"encoder": torch.nn.Linear(3, 3)}})
optimizers = build_optimizers(model, "{kind}", 0.1, 0.1)
model["encoder"](torch.ones(2, 3)).sum().backward()
for optimizer in optimizers:
    optimizer.step()
    optimizer.zero_grad()
restore_optimizers(optimizers, optimizer_tensors(optimizers))
sys.exit("torch._dynamo" in sys.modules)
"""
    assert subprocess.run([sys.executable, "-c", program], timeout=100).returncode == 0
