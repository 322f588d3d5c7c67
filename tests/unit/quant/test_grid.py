"""Scale rules: exact cases, degenerate rows, and the reference systems' floor."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from qpack.quant import grid
from qpack.quant.candidates import step_candidates
from qpack.rule import RECIPROCAL_FLOOR, Rule
from qpack.tensors import decode_steps

GENERATOR = torch.Generator().manual_seed(0)
W = torch.randn(16, 256, generator=GENERATOR) * 0.05


@given(
    step=st.floats(min_value=2.0**-100, max_value=2.0**100),
    octave=st.sampled_from([1, 2, 4, 8, 16, 32, 64]),
)
@settings(max_examples=500, deadline=None)
def test_steps_are_nearest_on_the_log_grid(step: float, octave: int) -> None:
    value = torch.tensor([step], dtype=torch.float32)
    nearest = grid.step_values(grid.encode_steps(value, octave), octave)
    above = grid.step_values(grid.encode_steps(value, octave, up=True), octave)
    ratio = float(nearest / value)
    assert 2.0 ** (-0.51 / octave) <= ratio <= 2.0 ** (0.51 / octave)
    assert 1.0 - 1e-6 <= float(above / value) <= 2.0 ** (1.01 / octave)


def test_step_values_are_the_decoders() -> None:
    codes = torch.arange(-2000, 2000, dtype=torch.int16)
    ours = grid.step_values(codes, 16).numpy()
    assert ours.tobytes() == decode_steps(codes.numpy(), 16).tobytes()
    assert np.allclose(ours, 2.0 ** (codes.numpy() / 16.0), rtol=1e-6)


@pytest.mark.parametrize("qmax", [1, 3, 15, 31, 42, 127])
def test_absmax_never_clips(qmax: int) -> None:
    (codes,) = step_candidates(W, Rule(match=("x",), qmax=qmax))
    steps = grid.step_values(codes, 64)
    assert (W.abs().amax(dim=1) <= steps * qmax * (1 + 1e-6)).all()
    assert (W.abs().amax(dim=1) >= steps * qmax * 0.98).all()


def test_sigma_depends_on_k_over_qmax_only() -> None:
    one = grid.sigma_steps(W, 31, 12.85)
    assert torch.allclose(one, W.std(dim=1, correction=0) * 12.85 / 31)
    assert torch.allclose(one, grid.sigma_steps(W, 62, 25.7))


def test_rows_ten_times_larger_get_steps_ten_times_larger_unless_floored() -> None:
    rows = torch.stack([W[0], W[0] * 10])
    (codes,) = step_candidates(rows, Rule(match=("x",), scale="absmax"))
    free = grid.step_values(codes, 64)
    assert float(free[1] / free[0]) == pytest.approx(10, rel=0.02)
    small = rows * 0.1  # the floor binds while the largest weight is below 1
    (codes,) = step_candidates(small, Rule(match=("x",), scale_floor=RECIPROCAL_FLOOR))
    floored = grid.step_values(codes, 64)
    assert torch.equal(floored[0], floored[1])
    assert float(floored[0]) == pytest.approx(1 / 31, rel=0.012)


@pytest.mark.parametrize("scale", ["absmax", "percentile", "sigma"])
@pytest.mark.parametrize("clip", [True, False])
def test_degenerate_rows_are_represented(scale: str, clip: bool) -> None:
    rows = torch.stack(
        [torch.zeros(64), torch.full((64,), 0.3), torch.full((64,), -1e-20), torch.eye(64)[5] * 7]
    )
    rule = Rule(match=("x",), scale=scale, clip=clip)
    limits = torch.full((4,), 31.0 if clip else grid.UNCLIPPED_MAX)
    for codes in step_candidates(rows, rule):
        steps = grid.step_values(codes, rule.step_octave)
        assert torch.isfinite(steps).all()
        assert (steps > 0).all()
        decoded = grid.round_to_nearest(rows, steps, limits) * steps[:, None]
        assert torch.isfinite(decoded).all()
        assert (decoded[0] == 0).all()
        assert torch.allclose(decoded[1:3], rows[1:3], rtol=0.05, atol=0)


def test_one_column_uses_the_maximum() -> None:
    column = torch.tensor([[0.5], [-2.0], [0.0]])
    steps = grid.sigma_steps(column, 31, 12.85)
    assert torch.allclose(steps * 31, column.abs().flatten())


def test_unclipped_symbols_fit_int16() -> None:
    row = torch.full((1, 1000), 1e-6)
    row[0, 0] = 1.0
    rule = Rule(match=("x",), scale="sigma", k=0.001, clip=False)
    (codes,) = step_candidates(row, rule)
    symbols = row / grid.step_values(codes, rule.step_octave)[:, None]
    assert float(symbols.abs().max()) < grid.UNCLIPPED_MAX


def test_percentile_steps_cut_the_tail() -> None:
    assert torch.equal(grid.percentile_steps(W, 31, 1.0), grid.absmax_steps(W, 31))
    assert (grid.percentile_steps(W, 31, 0.99) < grid.absmax_steps(W, 31)).all()


def test_row_errors_with_and_without_hessian() -> None:
    E = torch.randn(3, 5, generator=GENERATOR)
    H = torch.diag(torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0]))
    assert torch.allclose(grid.row_errors(E, None), (E * E).sum(1))
    assert torch.allclose(grid.row_errors(E, H), (E * E * H.diagonal()).sum(1))


@pytest.mark.parametrize("octave", [1, 16, 64])
def test_step_table_holds_the_decoders_steps(octave: int) -> None:
    steps = torch.logspace(-45, 45, 999, dtype=torch.float64).float()
    codes = grid.encode_steps(steps, octave)
    ends = torch.tensor([-126 * octave, 128 * octave - 1, 0], dtype=torch.int16)
    codes = torch.cat([codes, ends])
    found = grid.look_up(grid.step_table(octave, "cpu"), codes, octave)
    assert found.numpy().tobytes() == decode_steps(codes.numpy(), octave).tobytes()


@pytest.mark.parametrize("cols", [1, 2, 9, 256, 1000, 4096, 20_001])
def test_chosen_percentiles_are_those_of_the_search(cols: int) -> None:
    rows = torch.randn(40, cols, generator=torch.Generator().manual_seed(cols))
    rows[3] = 0.0
    rows[4, :-1] = 0.0
    choice = torch.arange(40, dtype=torch.int8) % len(grid.PERCENTILES)
    found = grid.chosen_percentile_steps(rows, 15, choice)
    for index, percentile in enumerate(grid.PERCENTILES):
        mine = choice == index
        expected = grid.percentile_steps(rows, 15, percentile)
        assert torch.allclose(found[mine], expected[mine], rtol=1e-6, atol=0)
        codes = [grid.encode_steps(steps[mine], 64, up=True) for steps in (found, expected)]
        assert torch.equal(*codes)
