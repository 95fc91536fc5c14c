"""Nearest codes, the residual loop and k-means against plain Python."""

from __future__ import annotations

import pytest
import torch

from genrec.modules.quantizer import kmeans, nearest_code, residual_codes, residual_kmeans


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
