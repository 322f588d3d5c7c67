"""Rounding a group of columns of many blocks of rows: the inner loop of `qpack.quant.blockwise`.

Within a group the error of a column moves the columns after it at once, as in `qpack.quant.gptq`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from qpack.quant import grid
from qpack.quant.columns import LARGEST
from qpack.quant.tcq import round_column


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Group:
    """Blocks of rows (batch, n, size), each at a group of columns of its own, of `width` columns.

    All float32 and contiguous but for the states.
    """

    w: Tensor
    """(batch, n, width, size): weights as the columns before have left them; used as workspace"""
    moved: Tensor
    """(batch, n, width, size): what rows before add to the targets, before the factor U_jj"""
    U: Tensor
    """(batch, n, width, width), upper triangular"""
    rows: Tensor
    """(batch, n, size): row steps"""
    shrink: Tensor
    """(batch, n, size): weights of m^2 at a column step of 1"""
    cols: Tensor
    """(batch, n, width): column steps"""
    states: Tensor
    """(batch, n, width) int32: where paths start; on return where they end"""
    trellis: int


def round_group(group: Group) -> tuple[Tensor, Tensor]:
    """Integers and errors over U_jj, both like `w`."""
    integers, errors = torch.empty_like(group.w), torch.empty_like(group.w)
    width = group.w.shape[2]
    for j in range(width):
        diagonal, col = group.U[:, :, j, j, None], group.cols[:, :, j, None]
        target = torch.addcmul(group.w[:, :, j], group.moved[:, :, j], diagonal)
        m = _round(group, j, target / (group.rows * col), col)
        e = errors[:, :, j]
        torch.sub(group.w[:, :, j], (m * group.rows).mul_(col), out=e).div_(diagonal)
        integers[:, :, j] = m
        if j + 1 < width:
            after = group.U[:, :, j, j + 1 :, None]
            group.w[:, :, j + 1 :].addcmul_(after, e[:, :, None], value=-1.0)
    return integers, errors


def _round(group: Group, j: int, u: Tensor, col: Tensor) -> Tensor:
    """Integers of targets `u` (batch, n, size) in steps, in column j of the group."""
    if not group.trellis:
        return u.round_().clamp_(-grid.UNCLIPPED_MAX, grid.UNCLIPPED_MAX)
    u.clamp_(-LARGEST, LARGEST)
    size = u.shape[2]
    bounds = tuple(range(0, u.shape[1] * size, size))
    at = group.states[:, :, j].contiguous()
    shrink = (group.shrink * col.square()).flatten(1)
    m = round_column(u.flatten(1), shrink, bounds, group.trellis, at)
    group.states[:, :, j] = at
    return m.view_as(u)
