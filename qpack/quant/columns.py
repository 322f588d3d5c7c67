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

from collections.abc import Callable

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


class BlockSteps:
    """The same for blocks of rows that are each at a column of their own
    (`qpack.quant.blockwise`); without gains."""

    def __init__(
        self,
        row_steps: Tensor,  # (batch, rows) float32
        col_codes: Tensor,  # (batch, cols) int16, octave 64
        *,
        trellis: int = 0,
        spreads: Tensor | None = None,  # (batch, rows) float32: RMS of each row, for the trellis
    ) -> None:
        self.col_codes = col_codes
        self._rows, self._shrink = row_steps, shrink_of(row_steps, spreads, trellis)
        self._cols = grid.look_up(grid.step_table(OCTAVE, row_steps.device), col_codes, OCTAVE)
        self._trellis = trellis

    def arrange(self, spread: Callable[[Tensor, float], Tensor], groups: int, columns: int) -> None:
        """Take the layout of the solver: `spread` makes (batch, blocks, size) of (batch, rows),
        filled up with a value; columns come in `groups` of `columns`."""
        self._rows, self._shrink = spread(self._rows, 1.0), spread(self._shrink, 0.0)
        spare = groups * columns - self._cols.shape[1]
        filled = torch.nn.functional.pad(self._cols, (0, spare), value=1.0)
        self._cols = filled.view(len(filled), groups, columns)

    def at(
        self, block: Tensor, group: Tensor
    ) -> Callable[[int, Tensor, Tensor], tuple[Tensor, Tensor]]:
        """A rounder of `block`s (n,), each in its `group` (n,) of columns.

        It takes a column of the group, targets (batch, n, size) and states (batch, n, columns)
        int32, which it leaves as the paths end, and gives (integers, decoded) like the targets.
        """
        rows, shrink = self._rows[:, block], self._shrink[:, block]
        cols = self._cols[:, group]
        bounds = tuple(range(0, rows.shape[1] * rows.shape[2], rows.shape[2]))

        def round_at(i: int, target: Tensor, states: Tensor) -> tuple[Tensor, Tensor]:
            col = cols[:, :, i, None]
            u = target / (rows * col)
            if self._trellis:
                u.clamp_(-LARGEST, LARGEST)
                weights, at = (shrink * col.square()).flatten(1), states[:, :, i].contiguous()
                m = round_column(u.flatten(1), weights, bounds, self._trellis, at).view_as(u)
                states[:, :, i] = at
            else:
                m = u.round_().clamp_(-grid.UNCLIPPED_MAX, grid.UNCLIPPED_MAX)
            return m, (m * rows).mul_(col)

        return round_at
