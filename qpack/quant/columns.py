"""Rounding a column with a step of its own: along a trellis, with a gain fitted afterwards.

Legend: w a weight as the column loop left it, s a row's step, t the column's step, m integers.

    gain       once m is known, the column step that fits best is the regression
               t' = sum_r g_r w_r (m_r s_r) / sum_r g_r (m_r s_r)^2
               (linear least squares, as in any LMMSE receiver); rounded to its code. Large steps
               gain most: there the mean of what is rounded to m is well below m.
    trellis    the integers of a column are chosen together, `qpack.quant.tcq`. An integer costs
               bits: `shrink` (m s t)^2 / sigma^2 is added to its squared error, in units of s t.

The gain is applied before the error is fed on, so that later columns make up for what it leaves.
It pays in squared error alone. On golf27m, at c of 1.1 and 1.5, scalar and with a trellis at a
RATE_SHARE of 1, gains lowered the loss that the quadratic form predicts, by up to 2 % at equal
bits, yet raised the KL by 1 to 8 %: they shrink all weights together. The default recipe has none.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from qpack.quant import grid
from qpack.quant.steps import OCTAVE
from qpack.quant.tcq import round_column

SHRINK = {4: 0.267, 8: 0.261, 16: 0.257, 32: 0.254, 64: 0.252}
"""Mean squared error of a trellis in squared fine steps (`rate-distortion` at high rate): with a
Gaussian's code length, the slope of rate against distortion makes it the weight of m^2."""

RATE_SHARE = 0.5
"""Of that weight, what is used. All of it is best for samples of one scale; in a model, shrinking
weights moves it further from the float one than the squared error says. On golf27m, at equal
bits, half left less KL than all or none of it."""

MOST_SHRINK = 1e6
"""Rows of zeros have no spread."""

GAIN_CODES = 64
"""A gain is at most an octave, either way."""

TOGETHER = 32
"""Columns whose steps are made at a time: on a GPU an operation on one costs only its start."""

LARGEST = float(grid.UNCLIPPED_MAX - 16)
"""What a trellis rounds stays inside int16 whatever branch it takes."""


def shrink_of(row_steps: Tensor, spreads: Tensor | None, trellis: int) -> Tensor:
    """Weights of m^2 at a column step of 1, like `row_steps`; zero without a trellis."""
    if not trellis:
        return torch.zeros_like(row_steps)
    assert spreads is not None, "a trellis weighs integers by the spread of their row"
    ratio = row_steps / spreads.clamp_min(torch.finfo(torch.float32).tiny)
    return ratio.square().mul_(RATE_SHARE * SHRINK[trellis]).clamp_max_(MOST_SHRINK)


class ColumnSteps:
    """A rounder (`qpack.quant.gptq`) with a step for each row and for each column."""

    def __init__(
        self,
        row_steps: Tensor,  # (batch, rows) float32
        col_codes: Tensor,  # (batch, cols) int16, octave 64
        *,
        gain_weights: Tensor | None = None,  # (batch, rows) float32; None: no gains
        trellis: int = 0,
        spreads: Tensor | None = None,  # (batch, rows) float32: RMS of each row, for the trellis
        bounds: tuple[int, ...] = (0,),
    ) -> None:
        self._rows = row_steps
        self.col_codes = col_codes.clone()
        """what the file stores: changed by gains as columns are rounded"""
        self._table = grid.step_table(OCTAVE, row_steps.device)
        self._cols = grid.look_up(self._table, col_codes, OCTAVE)
        self._block, self._steps = -1, row_steps
        self._weights = gain_weights
        self._trellis, self._bounds = trellis, bounds
        self._shrink = shrink_of(row_steps, spreads, trellis)

    def __call__(self, j: int, w: Tensor) -> tuple[Tensor, Tensor]:
        """Round column j of every matrix; `w` is (batch, rows)."""
        col = self._cols[:, j, None]
        u = w / self._steps_of(j)
        if self._trellis:
            u.clamp_(-LARGEST, LARGEST)
            m = round_column(u, self._shrink * col.square(), self._bounds, self._trellis)
        else:
            m = u.round_().clamp_(-grid.UNCLIPPED_MAX, grid.UNCLIPPED_MAX)
        decoded = m * self._rows
        if self._weights is not None:
            col = self._refit(j, w, decoded)
        return m, decoded.mul_(col)

    def _steps_of(self, j: int) -> Tensor:
        """The steps (batch, rows) of column j."""
        block, place = divmod(j, TOGETHER)
        if block != self._block:
            cols = self._cols[:, block * TOGETHER : (block + 1) * TOGETHER, None]
            self._block, self._steps = block, self._rows[:, None, :] * cols
        return self._steps[:, place]

    def _refit(self, j: int, w: Tensor, decoded: Tensor) -> Tensor:
        """The column step (batch, 1) that fits best, as its code gives it."""
        assert self._weights is not None
        weighed = self._weights * decoded
        fit = (weighed * w).sum(1)
        power = (weighed * decoded).sum(1)
        codes = self.col_codes[:, j]
        wanted = torch.round(torch.log2(fit / power) * OCTAVE)
        usable = (fit > 0) & (power > 0) & torch.isfinite(wanted)
        base = codes.to(wanted.dtype)
        moved = torch.where(usable, wanted, base)
        moved = torch.minimum(torch.maximum(moved, base - GAIN_CODES), base + GAIN_CODES)
        self.col_codes[:, j] = moved.to(codes.dtype)
        return grid.look_up(self._table, self.col_codes[:, j], OCTAVE)[:, None]


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class BlockSteps:
    """The same steps for the solver that takes rows by blocks (`qpack.quant.blockwise`)."""

    rows: Tensor
    """(batch, rows) float32"""
    shrink: Tensor
    """(batch, rows) float32: weights of m^2 at a column step of 1"""
    cols: Tensor
    """(batch, cols) float32"""
    trellis: int

    @classmethod
    def of(
        cls,
        row_steps: Tensor,
        col_codes: Tensor,
        *,
        trellis: int = 0,
        spreads: Tensor | None = None,
    ) -> BlockSteps:
        """From what `ColumnSteps` takes; without gains."""
        cols = grid.look_up(grid.step_table(OCTAVE, row_steps.device), col_codes, OCTAVE)
        shrink = shrink_of(row_steps, spreads, trellis)
        return cls(rows=row_steps, shrink=shrink, cols=cols, trellis=trellis)
