"""Hessian torture: every input gives a right factor or says that there is none."""

import pytest
import torch

from qpack.quant.factor import factor_hessian

from .reference import correlated_inputs


def test_u_is_the_factor_of_the_inverse() -> None:
    X = correlated_inputs(200, 48, seed=1)
    H = X.T @ X
    factor = factor_hessian(H, damping=0.01)
    assert factor.U is not None
    assert torch.equal(factor.U, factor.U.triu())
    ordered = (H.double() / H.double().diagonal().mean())[factor.order][:, factor.order]
    damped = ordered + 0.01 * torch.eye(48, dtype=torch.float64)
    U = factor.U.double()
    assert torch.allclose(U.T @ U @ damped, torch.eye(48, dtype=torch.float64), atol=1e-4)


def test_activation_order_is_descending_and_can_be_off() -> None:
    X = correlated_inputs(100, 16, seed=2)
    H = X.T @ X
    diagonal = H.diagonal()[factor_hessian(H).order]
    assert torch.equal(diagonal, diagonal.sort(descending=True).values)
    assert torch.equal(factor_hessian(H, act_order=False).order, torch.arange(16))


def test_dead_columns_are_found_and_harmless() -> None:
    X = correlated_inputs(100, 16, seed=3)
    X[:, [4, 9]] = 0
    factor = factor_hessian(X.T @ X)
    assert factor.dead.nonzero().flatten().tolist() == [4, 9]
    assert factor.num_dead == 2
    assert factor.U is not None
    assert torch.isfinite(factor.U).all()


def test_rank_one_needs_only_damping() -> None:
    x = torch.randn(1, 32, generator=torch.Generator().manual_seed(0))
    factor = factor_hessian(x.T @ x)
    assert factor.U is not None
    assert factor.retries == 0


def test_indefinite_climbs_the_ladder_and_reports_it() -> None:
    H = torch.eye(8)
    H[0, 1] = H[1, 0] = 1.05  # eigenvalue -0.05: a hundredth of damping is not enough
    factor = factor_hessian(H, damping=0.01)
    assert factor.U is not None
    assert factor.retries == 1
    assert factor.damping == pytest.approx(0.1)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_not_finite_gives_no_factor(value: float) -> None:
    H = torch.eye(8)
    H[2, 3] = value
    assert factor_hessian(H).U is None


def test_all_dead_gives_no_factor() -> None:
    assert factor_hessian(torch.zeros(8, 8)).U is None


def test_hopeless_matrix_gives_no_factor() -> None:
    H = torch.eye(4)
    H[0, 1] = H[1, 0] = 1e6
    factor = factor_hessian(H)
    assert factor.U is None
    assert factor.retries == 4


@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_extreme_scales(scale: float) -> None:
    X = correlated_inputs(100, 16, seed=4)
    factor = factor_hessian(X.T @ X * scale)
    assert factor.U is not None
    assert factor.retries == 0


def test_the_ladder_also_rises_from_zero() -> None:
    x = torch.randn(4, 32, generator=torch.Generator().manual_seed(0))
    factor = factor_hessian(x.T @ x, damping=0.0)
    assert factor.U is not None
    assert factor.retries >= 1
