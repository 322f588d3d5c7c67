"""The factor of moments: a product that is the moment again, weights, what cannot be factored."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from qpack.quant import rowwise
from qpack.quant.fisher import FLOOR
from qpack.quant.moments import RUN_ROWS
from qpack.quant.rowwise import BLOCK_ROWS, factor_rows
from qpack.rule import TRELLISES


def moment(rows: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    g = torch.randn(4 * rows, rows, generator=generator) @ torch.randn(
        rows, rows, generator=generator
    )
    return g.T @ g / len(g)


@pytest.mark.parametrize(("rows", "block"), [(12, 4), (11, 4), (5, 8), (6, 1)])
def test_the_factors_make_the_moment_again(
    rows: int, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """G = M^T D M with M unit lower triangular by blocks; the weights are D's diagonal."""
    monkeypatch.setattr(rowwise, "INDEPENDENCE", 0.0)
    G = moment(rows).double()
    found = factor_rows(G[None].float(), rows, block)
    assert found is not None
    M = torch.eye(rows, dtype=torch.float64)
    for index, carry in enumerate(found.carry):
        start = index * block
        M[start + carry.shape[1] :, start : start + carry.shape[1]] = carry
    D = torch.linalg.inv(M).T @ G @ torch.linalg.inv(M)
    for start in range(0, rows, block):
        at = slice(start, start + block)
        beside = D[at].clone()
        beside[:, at] = 0
        assert beside.abs().max() < 1e-4 * D.abs().max()
    torch.testing.assert_close(found.weights.double(), D.diagonal(), rtol=1e-3, atol=0)


def test_later_rows_make_earlier_ones_cheaper_and_never_dearer() -> None:
    G = moment(40)
    found = factor_rows(G[None], 40, 8)
    assert found is not None
    assert (found.weights <= G.diagonal() * 1.0001).all()
    assert found.weights[:8].sum() < 0.8 * G.diagonal()[:8].sum()
    torch.testing.assert_close(found.weights[-8:], G.diagonal()[-8:])  # none come after these


def test_rows_that_have_nothing_in_common_do_nothing_for_each_other() -> None:
    G = torch.diag(torch.linspace(1, 3, 10))
    found = factor_rows(G[None], 10, 4)
    assert found is not None
    torch.testing.assert_close(found.weights, G.diagonal())
    assert all(not carry.any() for carry in found.carry)


def test_blocks_of_every_trellis_divide_a_run() -> None:
    assert tuple(BLOCK_ROWS) == TRELLISES
    assert all(RUN_ROWS % block == 0 for block in BLOCK_ROWS.values())


def test_runs_are_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    from qpack.quant import moments

    monkeypatch.setattr(moments, "RUN_ROWS", 8)
    first, second = moment(8, 1), torch.zeros(8, 8)
    second[:5, :5] = moment(5, 2)
    found = factor_rows(torch.stack([first, second]), 13, 4)
    assert found is not None
    assert [tuple(carry.shape) for carry in found.carry] == [(4, 4), (0, 4), (1, 4), (0, 1)]
    assert len(found.weights) == 13


def test_a_dead_row_weighs_the_floor() -> None:
    G = moment(6)
    G[2] = 0
    G[:, 2] = 0
    found = factor_rows(G[None], 6, 2)
    assert found is not None
    assert float(found.weights[2]) == pytest.approx(FLOOR * float(G.diagonal().mean()), rel=1e-5)


@pytest.mark.parametrize("kind", ["nan", "zero", "indefinite"])
def test_what_cannot_be_factored_is_none(kind: str) -> None:
    G = moment(6)
    if kind == "nan":
        G[1, 2] = float("nan")
    elif kind == "zero":
        G.zero_()
    else:
        G[0, 1] = G[1, 0] = 10 * G.diagonal().max()
    assert factor_rows(G[None], 6, 2) is None
