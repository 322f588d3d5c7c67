"""GPTQ's column loop on batches of same-shape matrices (Frantar et al. 2022, arXiv:2210.17323).

Column j of every matrix is rounded, and its error, divided by U_jj, is fed forward into the columns
still to come with row j of U (`H^-1 = U^T U`). Everything is kept transposed, `WT` (cols, rows), so
that a column is a contiguous row in memory. Feedback runs on two levels: rank-1 updates reach only
the end of a block of `INNER` columns; matrix products carry a finished inner block to the end of
its block of `OUTER` columns, and a finished outer block to the rest. That moves nearly all
arithmetic into matrix products; the integers do not depend on the block sizes beyond rounding.

Cost for a (rows x cols) matrix: rows * cols^2 multiply-adds in products, and
rows * cols * INNER / 2 in rank-1 updates.

How one column is rounded is the caller's: `Nearest` here, `qpack.quant.columns` for column steps,
gains and the trellis.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

INNER = 32
OUTER = 256


class Rounder(Protocol):
    """Rounds one column of every matrix at a time, first to last."""

    def __call__(self, j: int, w: Tensor) -> tuple[Tensor, Tensor]:
        """(integers, decoded values) of column j, both like `w` (batch, rows) float32."""


class Nearest:
    """Rounds to the nearest multiple of a row's step, inside the row's limit."""

    def __init__(self, steps: Tensor, limits: Tensor) -> None:
        """`steps` and `limits` (largest integer magnitude): (batch, rows) float32."""
        self._steps, self._low, self._high = steps, -limits, limits

    def __call__(self, j: int, w: Tensor) -> tuple[Tensor, Tensor]:
        """Round column j."""
        q = torch.div(w, self._steps).round_().clamp_(self._low, self._high)
        return q, q * self._steps


def quantize_columns(
    WT: Tensor,  # (batch, cols, rows) float32, columns in solver order; overwritten
    U: Tensor,  # (batch, cols, cols) float32, upper triangular
    rounder: Rounder,
    *,
    inner: int = INNER,
    outer: int = OUTER,
) -> Tensor:
    """Integers (batch, cols, rows) as float32; `WT` is used as workspace.

    On return `WT` holds the compensated weights that were rounded.
    """
    batch, cols, rows = WT.shape
    integers = torch.empty_like(WT)
    errors = WT.new_empty((batch, min(outer, cols), rows))
    diagonal = U.diagonal(dim1=1, dim2=2)  # (batch, cols)
    for start in range(0, cols, outer):
        stop = min(start + outer, cols)
        for begin in range(start, stop, inner):
            end = min(begin + inner, stop)
            for j in range(begin, end):
                w = WT[:, j]
                q, decoded = rounder(j, w)
                integers[:, j] = q
                e = errors[:, j - start]
                torch.sub(w, decoded, out=e).div_(diagonal[:, j, None])
                if j + 1 < end:
                    WT[:, j + 1 : end].addcmul_(
                        U[:, j, j + 1 : end, None], e[:, None, :], value=-1.0
                    )
            if end < stop:
                WT[:, end:stop].baddbmm_(
                    U[:, begin:end, end:stop].mT, errors[:, begin - start : end - start], alpha=-1.0
                )
        if stop < cols:
            WT[:, stop:].baddbmm_(U[:, start:stop, stop:].mT, errors[:, : stop - start], alpha=-1.0)
    return integers
