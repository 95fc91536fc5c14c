"""Nearest codes, the residual loop, balance, rotation, dead codes and k-means against plain Python."""

from __future__ import annotations

import math

import pytest
import torch

from genrec.modules import quantizer
from genrec.modules.quantizer import (
    balanced_code,
    kmeans,
    move_dead_codes,
    nearest_code,
    residual_codes,
    residual_kmeans,
    rotate_to,
)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=generator(seed), dtype=torch.float64)


def plain_nearest(row: list[float], codebook: list[list[float]]) -> int:
    distances = [sum((a - b) ** 2 for a, b in zip(row, code, strict=True)) for code in codebook]
    return distances.index(min(distances))


def test_the_nearest_code_is_that_of_a_loop():
    x, codebook = normal(50, 6), normal(9, 6, seed=1)
    assert nearest_code(x, codebook).tolist() == [plain_nearest(row, codebook.tolist()) for row in x.tolist()]


def test_of_equally_near_codes_the_lowest_index_wins():
    codebook = torch.tensor([[4.0, 0.0], [1.0, 0.0], [-1.0, 0.0], [1.0, 0.0]])
    assert nearest_code(torch.tensor([[0.0, 3.0], [1.0, 0.0]]), codebook).tolist() == [1, 1]


def test_residual_codes_are_those_of_a_loop():
    x, codebooks = normal(40, 5), [normal(7, 5, seed=s) * 0.5**s for s in (1, 2, 3)]
    expected = []
    for row in x.tolist():
        codes = []
        for codebook in codebooks:
            codes.append(plain_nearest(row, codebook.tolist()))
            row = [a - b for a, b in zip(row, codebook[codes[-1]].tolist(), strict=True)]
        expected.append(codes)
    assert residual_codes(x, codebooks).tolist() == expected


def test_codes_found_in_chunks_are_those_found_at_once(monkeypatch):
    x, codebook = normal(50, 6), normal(9, 6, seed=1)
    expected = nearest_code(x, codebook)
    monkeypatch.setattr(quantizer, "MAX_DISTANCES", 9 * 7)
    assert torch.equal(nearest_code(x, codebook), expected)


# ------------------------------------------------------------- balanced codes


def plain_sinkhorn(distances: list[list[float]], epsilon: float, rounds: int) -> list[int]:
    """Rows and columns normalised in turn, as it stands in the textbook; ends with the columns, like the fast one."""
    flat = [d for row in distances for d in row]
    half = (max(flat) - min(flat)) / 2
    plan = [[math.exp(-(d - min(flat)) / half / epsilon) for d in row] for row in distances]
    for _ in range(rounds):
        plan = [[value / sum(row) for value in row] for row in plan]
        columns = [sum(row[k] for row in plan) for k in range(len(plan[0]))]
        share = len(plan) / len(columns)
        plan = [[value * share / columns[k] for k, value in enumerate(row)] for row in plan]
    return [row.index(max(row)) for row in plan]


@pytest.mark.parametrize("epsilon", [0.02, 0.1, 1.0])
def test_balanced_codes_are_those_of_textbook_sinkhorn(epsilon):
    x, codebook = normal(40, 3), normal(5, 3, seed=1)
    distances = [[sum((a - b) ** 2 for a, b in zip(r, c, strict=True)) for c in codebook.tolist()] for r in x.tolist()]
    assert balanced_code(x, codebook, epsilon, 30).tolist() == plain_sinkhorn(distances, epsilon, 30)


@pytest.mark.parametrize("scale", [1e-4, 1.0, 1e4])
def test_balanced_codes_are_used_about_equally_where_the_nearest_are_not(scale):
    x = (normal(256, 4) + 5) * scale
    codebook = normal(16, 4, seed=1) * scale
    nearest, balanced = nearest_code(x, codebook), balanced_code(x, codebook, 0.003, 50)
    assert len(nearest.unique()) < 8
    sizes = torch.bincount(balanced, minlength=16)
    assert sizes.min() >= 8
    assert sizes.max() <= 32


@pytest.mark.parametrize("x", [torch.ones(8, 2), torch.zeros(8, 2), torch.eye(2).repeat(4, 1), torch.ones(1, 2)])
@pytest.mark.parametrize("epsilon", [1e-6, 0.003, 10.0])
def test_balanced_codes_exist_for_equal_rows(x, epsilon):
    codes = balanced_code(x, torch.tensor([[1.0, 0.0], [0.0, 0.0], [0.0, 1.0]]), epsilon, 50)
    assert codes.shape == (len(x),)
    assert 0 <= int(codes.min()) <= int(codes.max()) < 3


# ------------------------------------------------------------------ rotation


def plain_rotation(source: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """The matrix that turns `source` onto `target`, from the plane that the two span, times the ratio of lengths."""
    first = source / source.norm()
    side = target - (target @ first) * first
    second = side / side.norm()
    angle = torch.atan2(target @ second, target @ first)
    plane = torch.stack([first, second])
    turn = torch.tensor([[angle.cos(), -angle.sin()], [angle.sin(), angle.cos()]], dtype=source.dtype)
    rotation = torch.eye(len(source), dtype=source.dtype) + plane.T @ (turn - torch.eye(2, dtype=source.dtype)) @ plane
    return rotation * target.norm() / source.norm()


def test_a_rotated_latent_has_the_value_of_its_code_and_the_gradient_of_the_rotation():
    x, target, upstream = normal(6, 5).requires_grad_(), normal(6, 5, seed=1), normal(6, 5, seed=2)
    out = rotate_to(x, target)
    torch.testing.assert_close(out, target)
    out.backward(upstream)
    for row in range(6):
        matrix = plain_rotation(x.detach()[row], target[row])
        torch.testing.assert_close(matrix @ x.detach()[row], target[row])
        torch.testing.assert_close(x.grad[row], matrix.T @ upstream[row])


@pytest.mark.parametrize(
    ("x", "target"), [([0.0, 0.0], [1.0, 2.0]), ([1.0, 2.0], [0.0, 0.0]), ([1.0, 2.0], [-2.0, -4.0])]
)
def test_rotation_of_zero_or_opposite_vectors_is_finite(x, target):
    source = torch.tensor([x], requires_grad=True)
    out = rotate_to(source, torch.tensor([target]))
    torch.testing.assert_close(out, torch.tensor([target]))
    out.sum().backward()
    assert source.grad.isfinite().all()


# ---------------------------------------------------------------- dead codes


def test_dead_codes_move_to_badly_served_rows_and_used_codes_stay():
    x = torch.cat([torch.zeros(30, 2), torch.tensor([[50.0, 0.0], [0.0, 50.0]])])
    codebook = torch.tensor([[0.0, 0.0], [9.0, 9.0], [8.0, 9.0], [1.0, 1.0]])
    moved_book, moved = move_dead_codes(x, codebook, torch.tensor([5, 0, 0, 1]), generator())
    assert moved.tolist() == [False, True, True, False]
    assert sorted(moved_book[1:3].tolist()) == [[0.0, 50.0], [50.0, 0.0]]
    assert torch.equal(moved_book[[0, 3]], codebook[[0, 3]])


def test_dead_codes_stay_where_no_row_is_badly_served():
    x = torch.eye(3).repeat(4, 1)
    codebook = torch.cat([torch.eye(3), torch.full((2, 3), 7.0)])
    moved_book, moved = move_dead_codes(x, codebook, torch.tensor([4, 4, 4, 0, 0]), generator())
    assert not moved.any()
    assert torch.equal(moved_book, codebook)


# ------------------------------------------------------------------- k-means


def test_kmeans_finds_clusters_that_lie_apart():
    centres = torch.tensor([[0.0, 0.0], [100.0, 0.0], [0.0, 100.0], [100.0, 100.0]], dtype=torch.float64)
    x = centres.repeat(20, 1) + normal(80, 2) * 0.1
    found = kmeans(x, 4, generator())
    assert sorted(nearest_code(centres, found).tolist()) == [0, 1, 2, 3]
    for code in range(4):
        torch.testing.assert_close(found[code], x[nearest_code(x, found) == code].mean(0))


@pytest.mark.parametrize(
    ("rows", "num_codes"),
    [
        (torch.ones(10, 3), 4),  # one distinct row
        (torch.eye(3).repeat(5, 1), 8),  # three distinct rows
        (torch.eye(3), 8),  # fewer rows than codes
        (torch.ones(1, 3), 5),
        (torch.zeros(6, 3), 2),
    ],
)
def test_kmeans_ends_when_there_are_fewer_distinct_rows_than_codes(rows, num_codes):
    found = kmeans(rows, num_codes, generator())
    assert found.shape == (num_codes, 3)
    assert found.isfinite().all()
    torch.testing.assert_close(found[nearest_code(rows, found)], rows)  # every row is a centre


def test_kmeans_uses_all_codes_when_there_are_enough_rows():
    x = torch.cat([torch.zeros(50, 2), normal(30, 2).float() * 10])
    assert len(nearest_code(x, kmeans(x, 12, generator())).unique()) == 12


def test_kmeans_is_a_function_of_rows_and_seed():
    x = normal(60, 4)
    torch.manual_seed(5)
    first = kmeans(x, 8, generator())
    torch.rand(3)
    assert torch.equal(kmeans(x, 8, generator()), first)
    assert not torch.equal(kmeans(x, 8, generator(1)), first)


def test_kmeans_does_not_change_its_rows():
    x = normal(20, 4)
    before = x.clone()
    kmeans(x, 8, generator())
    residual_kmeans(x, 4, 2, generator())
    assert torch.equal(x, before)


def test_every_level_of_residual_kmeans_leaves_less_over():
    x = normal(200, 6)
    codebooks = residual_kmeans(x, 8, 4, generator())
    errors = []
    for level in range(1, 5):
        codes = residual_codes(x, codebooks[:level])
        rebuilt = sum(codebooks[i][codes[:, i]] for i in range(level))
        errors.append(float((x - rebuilt).square().mean()))
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 0.5 * errors[0]
