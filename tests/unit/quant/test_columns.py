"""Column steps, gains and the trellis inside the column loop."""

import pytest
import torch
from torch import Tensor

from qpack.quant.columns import GAIN_CODES, ColumnSteps
from qpack.quant.factor import factor_hessian
from qpack.quant.gptq import Nearest, quantize_columns
from qpack.quant.grid import step_values
from qpack.quant.steps import OCTAVE
from qpack.trellis import obeys

from .reference import correlated_inputs, output_error


def case(rows: int = 24, cols: int = 40) -> tuple[Tensor, Tensor, Tensor]:
    """(WT, U, H), in solver order."""
    generator = torch.Generator().manual_seed(0)
    W = torch.randn(rows, cols, generator=generator) * 0.05
    X = correlated_inputs(4 * cols, cols, 0)
    H = X.T @ X
    factor = factor_hessian(H)
    assert factor.U is not None
    order = factor.order
    return W.T[order][None].clone(), factor.U[None], H[order][:, order]


def codes(*shape: int, spread: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(-spread, spread + 1, shape, generator=generator).to(torch.int16)


def decoded(integers: Tensor, rows: Tensor, col_codes: Tensor) -> Tensor:
    return integers * rows[:, None, :] * step_values(col_codes, OCTAVE)[:, :, None]


def test_column_steps_of_one_are_plain_row_steps() -> None:
    WT, U, _ = case()
    rows = torch.full((1, 24), 0.02)
    zero = torch.zeros(1, 40, dtype=torch.int16)
    plain = quantize_columns(WT.clone(), U, Nearest(rows, torch.full((1, 24), 32767.0)))
    assert torch.equal(plain, quantize_columns(WT.clone(), U, ColumnSteps(rows, zero)))


def test_column_steps_scale_the_problem() -> None:
    """A column with half the step and half the weights has the same integers."""
    WT, U, _ = case()
    diagonal = torch.diag_embed(U.diagonal(dim1=1, dim2=2))  # no feedback
    rows, cols = torch.full((1, 24), 0.02), codes(1, 40, spread=96, seed=1)
    base = quantize_columns(WT.clone(), diagonal, ColumnSteps(rows, torch.zeros_like(cols)))
    scaled = WT * step_values(cols, OCTAVE)[:, :, None]
    found = quantize_columns(scaled, diagonal, ColumnSteps(rows, cols))
    assert (found != base).double().mean() < 1e-3


def test_gains_lower_the_error_where_steps_are_large() -> None:
    WT, U, H = case(rows=64)
    rows = torch.full((1, 64), 0.12)
    cols = torch.zeros(1, 40, dtype=torch.int16)
    costs = []
    for weights in (None, torch.ones(1, 64)):
        rounder = ColumnSteps(rows, cols, gain_weights=weights)
        integers = quantize_columns(WT.clone(), U, rounder)
        values = decoded(integers, rows, rounder.col_codes)[0].T
        costs.append(output_error(WT[0].T, values, torch.ones(64), H))
    assert costs[1] < 0.9 * costs[0]


def test_gains_are_regressions_weighted_by_rows() -> None:
    generator = torch.Generator().manual_seed(0)
    w, g = torch.randn(1, 50, generator=generator), torch.rand(1, 50, generator=generator)
    rounder = ColumnSteps(torch.ones(1, 50), torch.zeros(1, 1, dtype=torch.int16), gain_weights=g)
    m, values = rounder(0, w)
    best = float((g * m * w).sum() / (g * m * m).sum())
    gain = float(step_values(rounder.col_codes, OCTAVE))
    assert gain == pytest.approx(best, rel=2 ** (0.5 / OCTAVE) - 1 + 1e-6)
    assert torch.equal(values, m * gain)


@pytest.mark.parametrize("w", [torch.zeros(1, 4), torch.full((1, 4), 0.1), torch.full((1, 4), 1e9)])
def test_gains_of_odd_columns_are_bounded(w: Tensor) -> None:
    zero = torch.zeros(1, 1, dtype=torch.int16)
    rounder = ColumnSteps(torch.ones(1, 4), zero, gain_weights=torch.ones(1, 4))
    _, values = rounder(0, w)
    assert torch.isfinite(values).all()
    assert abs(int(rounder.col_codes)) <= GAIN_CODES


@pytest.mark.parametrize("states", [4, 8, 64])
def test_a_trellis_is_obeyed_and_pays(states: int) -> None:
    """Each tensor of a stack from state 0; less error than scalar rounding at the same step."""
    WT, U, H = case(rows=64)
    rows = torch.full((1, 64), 0.012)
    cols = codes(1, 40, spread=16, seed=2)
    spreads = WT.square().mean(dim=1).sqrt()
    rounder = ColumnSteps(rows, cols, trellis=states, spreads=spreads, bounds=(0, 40))
    integers = quantize_columns(WT.clone(), U, rounder)
    whole = integers[0].T.to(torch.int16).numpy()
    assert obeys(whole[:40], states) and obeys(whole[40:], states)
    scalar = ColumnSteps(rows * 2, cols)
    coarse = quantize_columns(WT.clone(), U, scalar)
    ones = torch.ones(64)
    ours = output_error(WT[0].T, decoded(integers, rows, cols)[0].T, ones, H)
    assert ours < 0.9 * output_error(WT[0].T, decoded(coarse, rows * 2, cols)[0].T, ones, H)


def test_a_trellis_keeps_zeros_and_the_range_of_int16() -> None:
    zero = torch.zeros(1, 2, dtype=torch.int16)
    w = torch.tensor([[0.0, 1e9, -1e9, 0.0]])
    rounder = ColumnSteps(torch.ones(1, 4), zero, trellis=8, spreads=torch.zeros(1, 4))
    m, _ = rounder(0, torch.zeros(1, 4))
    assert not m.any()
    m, _ = ColumnSteps(torch.ones(1, 4), zero, trellis=8, spreads=w.abs())(0, w)
    assert float(m.abs().max()) <= 32_767
