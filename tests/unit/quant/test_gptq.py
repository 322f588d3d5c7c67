"""The blocked, batched, transposed loop gives what the plain float64 loop gives."""

import pytest
import torch
from torch import Tensor

from qpack.quant.factor import Factor, factor_hessian
from qpack.quant.gptq import Nearest, quantize_columns
from qpack.quant.grid import round_to_nearest, sigma_steps

from .reference import correlated_inputs, gptq, output_error


def solve(W: Tensor, factor: Factor, steps: Tensor, limit: float, **blocks: int) -> Tensor:
    """Integers (rows, cols) of one matrix through the batched loop."""
    assert factor.U is not None
    WT = W.T.clone()
    WT[factor.dead] = 0
    WT = WT[factor.order]
    limits = torch.full((1, W.shape[0]), limit)
    rounder = Nearest(steps[None], limits)
    solved = quantize_columns(WT[None], factor.U[None], rounder, **blocks)[0]
    restored = torch.empty_like(solved)
    restored[factor.order] = solved
    return restored.T


def case(rows: int, cols: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    W = torch.randn(rows, cols, generator=generator) * 0.05
    X = correlated_inputs(4 * cols, cols, seed)
    steps = sigma_steps(W, 31, 12.85)
    return W, X.T @ X, steps


@pytest.mark.parametrize(
    ("rows", "cols"), [(1, 1), (1, 40), (40, 1), (24, 33), (64, 200), (7, 300)]
)
def test_same_integers_as_the_plain_loop(rows: int, cols: int) -> None:
    W, H, steps = case(rows, cols, seed=rows * 1000 + cols)
    expected = gptq(W, H, steps, 31, damping=0.01)
    found = solve(W, factor_hessian(H), steps, 31)
    # float32 against float64: a weight on the very edge between two integers may fall either way.
    assert (found != expected).double().mean() <= 1e-3
    ours, theirs = (output_error(W, q, steps, H) for q in (found, expected))
    assert ours == pytest.approx(theirs, rel=1e-3)


@pytest.mark.parametrize("blocks", [(1, 1), (8, 32), (32, 128), (64, 64), (512, 512)])
def test_block_sizes_change_speed_only(blocks: tuple[int, int]) -> None:
    W, H, steps = case(32, 160, seed=3)
    factor = factor_hessian(H)
    base = solve(W, factor, steps, 31)
    other = solve(W, factor, steps, 31, inner=blocks[0], outer=blocks[1])
    assert (base != other).double().mean() <= 1e-3


def test_output_error_is_far_below_rounding() -> None:
    W, H, steps = case(64, 128, seed=5)
    limits = torch.full((64,), 31.0)
    rtn = output_error(W, round_to_nearest(W, steps, limits), steps, H)
    ours = output_error(W, solve(W, factor_hessian(H), steps, 31), steps, H)
    assert ours < 0.6 * rtn


def test_scale_of_the_hessian_does_not_matter() -> None:
    W, H, steps = case(16, 64, seed=7)
    base = solve(W, factor_hessian(H), steps, 31)
    for scale in (2.0**-30, 1024.0, 2.0**60):
        assert torch.equal(base, solve(W, factor_hessian(H * scale), steps, 31))


def test_batch_equals_one_by_one() -> None:
    cases = [case(16, 64, seed=s) for s in range(3)]
    factors = [factor_hessian(H) for _, H, _ in cases]
    WT = torch.stack([W.T[f.order] for (W, _, _), f in zip(cases, factors, strict=True)])
    U = torch.stack([f.U for f in factors if f.U is not None])
    steps = torch.stack([s for _, _, s in cases])
    together = quantize_columns(WT, U, Nearest(steps, torch.full((3, 16), 31.0)))
    for b, ((W, _, s), factor) in enumerate(zip(cases, factors, strict=True)):
        alone = torch.empty_like(together[b])
        alone[factor.order] = together[b]
        # Batched and single matrix products may differ in the last bit.
        assert (solve(W, factor, s, 31) != alone.T).double().mean() <= 1e-3


@pytest.mark.parametrize("limit", [1, 15, 31, 127])
def test_integers_stay_inside_the_grid(limit: int) -> None:
    W, H, steps = case(16, 64, seed=11)
    found = solve(W, factor_hessian(H), steps * (1 / limit), limit)
    assert int(found.abs().max()) == limit
