from __future__ import annotations

from typing import get_args

import numpy as np
import pytest
import torch

from qpack.trainer.optim.newton_schulz import Coefficients, orthogonalize

from .reference import newton_schulz

KINDS = get_args(Coefficients)


def some(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def conditioned(n: int, rows: int, cols: int, lowest: float) -> torch.Tensor:
    """Matrices with singular values from `lowest` to 1."""
    U, _, V = torch.linalg.svd(some(n, rows, cols), full_matrices=False)
    return U @ torch.diag(torch.linspace(lowest, 1.0, min(rows, cols))) @ V


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("steps", [1, 5, 9])
@pytest.mark.parametrize("shape", [(6, 9), (9, 6), (7, 7)])
def test_it_is_the_polynomial_of_the_singular_values(
    kind: Coefficients, steps: int, shape: tuple[int, int]
) -> None:
    G = some(*shape, dtype=torch.float64)
    got = orthogonalize(G, steps=steps, coefficients=kind)
    want = newton_schulz(G.numpy(), steps=steps, coefficients=kind)
    np.testing.assert_allclose(got.numpy(), want, rtol=1e-9, atol=1e-12)


def test_singular_values_come_near_one() -> None:
    G = conditioned(3, 24, 40, 0.1)
    values = torch.linalg.svdvals(orthogonalize(G, steps=5, coefficients="ns5"))
    assert 0.65 < float(values.min()) < float(values.max()) < 1.2
    values = torch.linalg.svdvals(orthogonalize(G, steps=8, coefficients="polar-express"))
    assert float((values - 1).abs().max()) < 1e-4


@pytest.mark.parametrize("kind", KINDS)
def test_transposed_agrees(kind: Coefficients) -> None:
    G = some(2, 12, 5)
    got = orthogonalize(G.mT, steps=5, coefficients=kind)
    torch.testing.assert_close(got, orthogonalize(G, steps=5, coefficients=kind).mT)


@pytest.mark.parametrize("kind", KINDS)
def test_a_batch_equals_its_matrices(kind: Coefficients) -> None:
    G = some(2, 3, 8, 11) * torch.tensor([1e-3, 1.0, 50.0])[:, None, None]
    got = orthogonalize(G, steps=5, coefficients=kind)
    assert got.shape == G.shape
    for i in range(2):
        for j in range(3):
            alone = orthogonalize(G[i, j], steps=5, coefficients=kind)
            torch.testing.assert_close(got[i, j], alone, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_zero_stays_zero(kind: Coefficients) -> None:
    got = orthogonalize(torch.zeros(2, 4, 6), steps=5, coefficients=kind)
    assert torch.equal(got, torch.zeros(2, 4, 6))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("steps", [5, 7, 12])
def test_low_rank_stays_bounded(kind: Coefficients, steps: int) -> None:
    """In bfloat16, as on CUDA; without the safety factor this gives infinities from 7 steps on."""
    thin = some(16, 48, 1, seed=1) @ some(16, 1, 64, seed=2)
    full = some(16, 48, 64, seed=3)
    G = torch.cat((thin, thin + 0.01 * full, full)).bfloat16()
    got = orthogonalize(G, steps=steps, coefficients=kind)
    assert got.dtype == torch.bfloat16
    assert float(torch.linalg.svdvals(got.double()).max()) < 1.3


@pytest.mark.gpu
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", [(22, 256, 512), (11, 1536, 512)])
def test_bfloat16_on_cuda(kind: Coefficients, shape: tuple[int, int, int]) -> None:
    G = some(*shape)
    got = orthogonalize(G.cuda(), steps=5, coefficients=kind)
    assert got.dtype == torch.bfloat16
    want = orthogonalize(G.double(), steps=5, coefficients=kind)
    error = (got.cpu().double() - want).norm() / want.norm()
    assert float(error) < 0.03
