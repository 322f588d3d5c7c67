"""Second moments of output gradients, `E[g g^T]`, in runs of rows.

Their diagonals are the output sensitivities of `qpack.quant.fisher`; what is beside them says which
rows can make up for which (`qpack.quant.rowwise`). Only pairs of rows within a run are kept: all
pairs would be as many as there are weights, or more, and take as many tokens to tell from noise.
"""

from __future__ import annotations

import torch
from torch import Tensor

from qpack.quant.grid import precise

RUN_ROWS = 512
"""Rows of a run; the last of a weight may be shorter, its matrix is filled up with zeros."""


def num_runs(rows: int) -> int:
    """Runs that so many rows make."""
    return -(-rows // RUN_ROWS)


def side_of(rows: int) -> int:
    """Rows of the matrices that are kept of a weight with so many rows."""
    return min(rows, RUN_ROWS)


def run_slices(rows: int) -> tuple[slice, ...]:
    """The rows of each run."""
    return tuple(slice(start, min(start + RUN_ROWS, rows)) for start in range(0, rows, RUN_ROWS))


def empty_moments(like: Tensor, rows: int) -> Tensor:
    """Zeros (runs, side, side) float32 on the device of `like`."""
    side = side_of(rows)
    return like.new_zeros((num_runs(rows), side, side), dtype=torch.float32)


def add_moments(moments: Tensor, gradients: Tensor) -> None:
    """Add the moments of `gradients` (inputs, rows), float32, to `moments` (runs, side, side)."""
    for moment, run in zip(moments, run_slices(gradients.shape[1]), strict=True):
        part = gradients[:, run]
        size = part.shape[1]
        moment[:size, :size].addmm_(part.T, part)


def joint_cost(error: Tensor, H: Tensor, moments: Tensor) -> float:
    """`tr(G E H E^T)` of an error E (rows, cols), summed over the runs that have moments G."""
    total = 0.0
    for moment, run in zip(moments, run_slices(len(error)), strict=True):
        part = error[run]
        size = len(part)
        total += float(precise((part @ H @ part.T) * moment[:size, :size]).sum())
    return total
