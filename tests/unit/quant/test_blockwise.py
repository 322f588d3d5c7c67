"""The column loop with feedback on both sides, against plain loops in float64."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from qpack.quant.blockwise import RowBlock, quantize_blocks
from qpack.quant.columns import BlockSteps, ColumnSteps
from qpack.quant.factor import factor_hessian
from qpack.quant.gptq import quantize_columns
from qpack.quant.grid import decode_steps
from qpack.quant.rowwise import factor_rows
from qpack.trellis import obeys

from .reference import correlated_inputs

STEP = 0.3


def problem(
    *sizes: int, cols: int = 40, batch: int = 2, block: int = 8
) -> tuple[Tensor, Tensor, list[RowBlock], list[Tensor], list[Tensor]]:
    """WT, U, blocks of weights of `sizes` rows that stand in one stack; H and G of each matrix."""
    generator = torch.Generator().manual_seed(len(sizes) + cols)
    rows = sum(sizes)
    WT = torch.randn(batch, cols, rows, generator=generator)
    inputs = [correlated_inputs(200, cols, seed) for seed in range(batch)]
    Hs = [x.T @ x / len(x) for x in inputs]
    factors = [factor_hessian(H, damping=0.01, act_order=False) for H in Hs]
    U = torch.stack([factor.U for factor in factors if factor.U is not None])
    blocks: list[RowBlock] = []
    Gs = [torch.zeros(rows, rows) for _ in range(batch)]
    start = 0
    for size in sizes:
        carries: list[tuple[Tensor, ...]] = []
        for G in Gs:
            g = torch.randn(300, size, generator=generator)
            g += 1.5 * torch.randn(300, 1, generator=generator)
            G[start : start + size, start : start + size] = g.T @ g / 300
            found = factor_rows((g.T @ g / 300)[None], size, block)
            assert found is not None
            carries.append(found.carry)
        for level, parts in enumerate(zip(*carries, strict=True)):
            stop = start + parts[0].shape[1]
            carry = torch.stack(parts) if len(parts[0]) else None
            blocks.append(RowBlock(rows=slice(start, stop), level=level, carry=carry))
            start = stop
    return WT, U, blocks, Hs, Gs


def steps_of(WT: Tensor) -> tuple[Tensor, Tensor]:
    batch, cols, rows = WT.shape
    codes = torch.arange(batch * cols, dtype=torch.int16).reshape(batch, cols) % 64 - 32
    return torch.full((batch, rows), STEP), codes


def plain(WT: Tensor, U: Tensor, blocks: Sequence[RowBlock], codes: Tensor) -> Tensor:
    """One matrix, block by block, column by column, in float64, to the nearest integer."""
    W, U = WT.double().clone(), U.double()
    moved, out = torch.zeros_like(W), torch.zeros_like(W)
    cols = torch.from_numpy(decode_steps(codes.numpy(), 64)).double()
    for block in blocks:
        for j in range(len(W)):
            target = W[j, block.rows] + U[j, j] * moved[j, block.rows]
            out[j, block.rows] = torch.round(target / (STEP * cols[j]))
            f = (W[j, block.rows] - out[j, block.rows] * STEP * cols[j]) / U[j, j]
            W[j + 1 :, block.rows] -= U[j, j + 1 :, None] * f
            if block.carry is not None:
                later = slice(block.rows.stop, block.rows.stop + block.carry.shape[1])
                moved[j, later] += block.carry[0].double() @ f
    return out


@pytest.mark.parametrize("sizes", [(32,), (20,), (8, 24, 8), (5, 13), (3,)])
@pytest.mark.parametrize("cols", [1, 32, 40, 100, 300])
@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_integers_are_those_of_the_plain_loops(
    sizes: tuple[int, ...], cols: int, device: str
) -> None:
    WT, U, blocks, _, _ = problem(*sizes, cols=cols, batch=1)
    steps, codes = steps_of(WT)
    there = [replace(b, carry=None if b.carry is None else b.carry.to(device)) for b in blocks]
    given = BlockSteps.of(steps.to(device), codes.to(device))
    found = quantize_blocks(WT.to(device), U.to(device), there, given).cpu()
    expected = plain(WT[0], U[0], blocks, codes[0])
    # A tie in float32 may fall the other way, and move what follows in its row.
    assert (found[0].double() != expected).double().mean() < 0.01


def test_matrices_of_a_batch_do_not_touch_each_other() -> None:
    WT, U, blocks, _, _ = problem(20, 8, batch=3)
    steps, codes = steps_of(WT)
    together = quantize_blocks(
        WT, U, blocks, BlockSteps.of(steps, codes, trellis=8, spreads=steps * 3)
    )
    for i in range(3):
        mine = [
            RowBlock(
                rows=b.rows, level=b.level, carry=None if b.carry is None else b.carry[i : i + 1]
            )
            for b in blocks
        ]
        rounder = BlockSteps.of(
            steps[i : i + 1], codes[i : i + 1], trellis=8, spreads=steps[:1] * 3
        )
        alone = quantize_blocks(WT[i : i + 1], U[i : i + 1], mine, rounder)
        assert (alone[0] != together[i]).float().mean() < 0.01


@pytest.mark.parametrize("trellis", [0, 8])
def test_one_block_without_a_carry_is_the_plain_column_loop(trellis: int) -> None:
    WT, U, _, _, _ = problem(24)
    steps, codes = steps_of(WT)
    blocks = [RowBlock(rows=slice(0, 24), level=0, carry=None)]
    spreads = torch.full_like(steps, 3 * STEP)
    found = quantize_blocks(
        WT, U, blocks, BlockSteps.of(steps, codes, trellis=trellis, spreads=spreads)
    )
    rounder = ColumnSteps(steps, codes, trellis=trellis, spreads=spreads)
    assert (found != quantize_columns(WT.clone(), U, rounder)).float().mean() < 0.01


@pytest.mark.parametrize("states", [4, 8, 32])
def test_rows_that_fill_up_a_short_block_do_not_steer_its_path(states: int) -> None:
    WT, U, _, _, _ = problem(24)
    steps, codes = steps_of(WT)
    rounder = BlockSteps.of(steps, codes, trellis=states, spreads=steps * 3)
    rows = (slice(0, 16), slice(16, 19), slice(19, 24))  # three weights of one stack
    blocks = [RowBlock(rows=at, level=0, carry=None) for at in rows]
    found = quantize_blocks(WT, U, blocks, rounder)
    for at in rows:
        alone = ColumnSteps(steps[:, at], codes, trellis=states, spreads=steps[:, at] * 3)
        expected = quantize_columns(WT[:, :, at].clone(), U, alone)
        assert (found[:, :, at] != expected).float().mean() < 0.01


@pytest.mark.parametrize("states", [4, 8, 32])
def test_paths_run_through_all_blocks_of_a_weight_and_start_anew_in_the_next(states: int) -> None:
    sizes = (20, 8, 17)
    WT, U, blocks, _, _ = problem(*sizes)
    steps, codes = steps_of(WT)
    rounder = BlockSteps.of(steps, codes, trellis=states, spreads=steps * 3)
    found = quantize_blocks(WT, U, blocks, rounder).to(torch.int16)
    start = 0
    for size in sizes:
        for matrix in found:
            assert obeys(matrix[:, start : start + size].T.numpy(), states)
        start += size


def test_blocks_may_wait_for_more_than_they_must() -> None:
    WT, U, blocks, _, _ = problem(24, 16, 20)
    steps, codes = steps_of(WT)
    later = [replace(block, level=level) for level, block in enumerate(blocks)]
    one, other = (
        quantize_blocks(WT, U, given, BlockSteps.of(steps, codes)) for given in (blocks, later)
    )
    assert (one != other).float().mean() < 0.01


@pytest.mark.parametrize("trellis", [0, 8])
def test_feedback_lowers_what_errors_cost(trellis: int) -> None:
    WT, U, blocks, Hs, Gs = problem(128, 64, batch=1, cols=64)
    steps, codes = steps_of(WT)
    none = [RowBlock(rows=block.rows, level=block.level, carry=None) for block in blocks]
    costs = []
    for given in (blocks, none):
        rounder = BlockSteps.of(steps, codes * 0, trellis=trellis, spreads=steps * 3)
        E = (WT - quantize_blocks(WT, U, given, rounder) * STEP)[0].T
        costs.append(float(((E @ Hs[0] @ E.T) * Gs[0]).sum()))
    assert costs[0] < 0.8 * costs[1]


def test_the_weights_given_stay_as_they_are() -> None:
    WT, U, blocks, _, _ = problem(20)
    before, factor = WT.clone(), U.clone()
    steps, codes = steps_of(WT)
    quantize_blocks(WT, U, blocks, BlockSteps.of(steps, codes))
    assert torch.equal(WT, before) and torch.equal(U, factor)
