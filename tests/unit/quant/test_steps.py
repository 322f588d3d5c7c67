"""Steps by reverse water-filling: the law, the constant, the terms."""

import math

import pytest
import torch

from qpack.quant.factor import factor_hessian
from qpack.quant.grid import step_values
from qpack.quant.steps import (
    COLUMN_GRID,
    OCTAVE,
    REFERENCE,
    ROW_GRID,
    LogSteps,
    StepModel,
    log_steps,
)
from qpack.rule import TERMS, Rule

from .reference import correlated_inputs


def rule(c: float = 1.0, terms: tuple[str, ...] = TERMS, trellis: int = 0) -> Rule:
    return Rule(match=("x",), scale="rd", c=c, terms=terms, trellis=trellis)


def logs_of(seed: int, rows: int = 20, cols: int = 16) -> LogSteps:
    generator = torch.Generator().manual_seed(seed)
    X = correlated_inputs(200, cols, seed)
    factor = factor_hessian(X.T @ X / 200)
    assert factor.U is not None
    g = torch.exp(torch.randn(rows, generator=generator))
    return log_steps(g, factor.U, factor.scale, factor.dead[factor.order])


def model(*seeds: int) -> StepModel:
    names = [f"w{seed}" for seed in seeds]
    logs = {name: logs_of(seed) for name, seed in zip(names, seeds, strict=True)}
    sigmas = {name: 0.1 * 2.0**seed for name, seed in zip(names, seeds, strict=True)}
    return StepModel(logs, sigmas, dict.fromkeys(names, 320))


def test_steps_make_every_weight_cost_the_same() -> None:
    """g_r step^2 / U_jj^2 is one constant, whatever H's scale and order."""
    X = correlated_inputs(200, 16, seed=3)
    H = X.T @ X / 200
    factor = factor_hessian(H, damping=0.0)
    assert factor.U is not None
    g = torch.linspace(0.1, 2, 20)
    logs = log_steps(g, factor.U, factor.scale, factor.dead)
    log_step = logs.mean + logs.rows[:, None] + logs.cols[None, :]
    order = factor.order
    U = torch.linalg.cholesky(torch.linalg.inv(H.double()[order][:, order]), upper=True)
    cost = g.double()[:, None] * torch.exp2(2 * log_step) / U.diagonal().square()[None, :]
    assert torch.allclose(cost, torch.ones_like(cost), rtol=1e-3)


def test_c_is_relative_to_the_reference_step() -> None:
    """The mean over weights of log2(step / sigma), up to the grids of codes."""
    steps = model(0, 1, 2)
    total = 0.0
    for seed in range(3):
        rows = steps.row_codes(f"w{seed}", rule()).double() / OCTAVE
        cols = steps.col_codes(f"w{seed}", rule()).double() / OCTAVE
        total += float(rows.mean() + cols.mean()) - math.log2(0.1 * 2.0**seed)
    assert total / 3 == pytest.approx(math.log2(REFERENCE), abs=0.05)


def test_codes_lie_on_their_grids() -> None:
    steps = model(0)
    assert not (steps.row_codes("w0", rule()) % (OCTAVE // ROW_GRID)).any()
    assert not (steps.col_codes("w0", rule()) % (OCTAVE // COLUMN_GRID)).any()


def test_twice_c_is_an_octave_and_a_trellis_half_a_step() -> None:
    steps = model(0, 1)
    base = steps.row_codes("w0", rule())
    assert torch.equal(steps.row_codes("w0", rule(2.0)), base + OCTAVE)
    assert torch.equal(steps.row_codes("w0", rule(trellis=8)), base - OCTAVE)
    assert torch.equal(steps.col_codes("w0", rule(2.0)), steps.col_codes("w0", rule()))


def test_a_term_that_is_left_out_is_replaced_by_its_mean() -> None:
    steps = model(0, 1)
    full = steps.row_codes("w0", rule()).double()
    flat = steps.row_codes("w0", rule(terms=("tensor", "column"))).double()
    assert len(set(flat.tolist())) == 1
    assert flat[0] == pytest.approx(float(full.mean()), abs=1)
    assert not steps.col_codes("w0", rule(terms=("tensor", "row"))).any()
    for name, sigma in (("w0", 0.1), ("w1", 0.2)):
        codes = steps.row_codes(name, rule(terms=()))
        assert len(set(codes.tolist())) == 1
        step = float(step_values(codes, OCTAVE)[0])
        assert step == pytest.approx(REFERENCE * sigma, rel=0.01)
        assert steps.plain_code(name, rule(terms=())) == int(codes[0])


def test_extremes_stay_numbers() -> None:
    logs = LogSteps(mean=0.0, rows=torch.tensor([-300.0, 300.0]), cols=torch.tensor([-99.0, 99.0]))
    steps = StepModel({"w": logs}, {"w": 1.0}, {"w": 4})
    rows = step_values(steps.row_codes("w", rule()), OCTAVE)
    cols = step_values(steps.col_codes("w", rule()), OCTAVE)
    products = rows[:, None] * cols[None, :]
    assert torch.isfinite(products).all() and (products >= torch.finfo(torch.float32).tiny).all()


def test_zeros_have_steps_too() -> None:
    steps = StepModel({"w": logs_of(0)}, {"w": 0.0}, {"w": 320})
    assert steps.log_kappa == 0.0
    assert torch.isfinite(step_values(steps.row_codes("w", rule()), OCTAVE)).all()
    assert steps.plain_code("w", rule()) == 0
