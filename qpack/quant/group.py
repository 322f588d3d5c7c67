"""Rounding a group of columns of many blocks of rows: the inner loop of `qpack.quant.blockwise`.

Within a group the error of a column moves the columns after it at once, as in `qpack.quant.gptq`. A
GPU does a whole group in one kernel (`qpack.quant.group_cuda`): column by column it would wait for
the starts of a dozen kernels each.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor

from qpack.quant import grid
from qpack.quant.columns import LARGEST
from qpack.quant.tcq import round_column


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Group:
    """Blocks of rows (batch, n, size), each at a group of columns of its own, of `width` columns.

    All float32 but for the states.
    """

    w: Tensor
    """(batch, width, n, size): weights as the columns before have left them; used as workspace"""
    moved: Tensor
    """(batch, width, n, size): what rows before add to the targets, before the factor U_jj"""
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
    lengths: tuple[int, ...]
    """rows of each block; those after them fill it up, and no path runs through them"""


def round_group(group: Group) -> tuple[Tensor, Tensor]:
    """Integers and errors over U_jj, both like `w`."""
    if group.w.is_cuda:
        from qpack.quant.group_cuda import round_on_device  # Triton comes with torch for CUDA alone

        done: tuple[Tensor, Tensor] = round_on_device(group)
        return done
    integers, errors = torch.empty_like(group.w), torch.empty_like(group.w)
    width = group.w.shape[1]
    for j in range(width):
        diagonal, col = group.U[:, :, j, j, None], group.cols[:, :, j, None]
        target = torch.addcmul(group.w[:, j], group.moved[:, j], diagonal)
        m = _round(group, j, target / (group.rows * col), col)
        e = errors[:, j]
        torch.sub(group.w[:, j], (m * group.rows).mul_(col), out=e).div_(diagonal)
        integers[:, j] = m
        if j + 1 < width:
            after = group.U[:, :, j, j + 1 :, None].transpose(1, 2)
            group.w[:, j + 1 :].addcmul_(after, e[:, None], value=-1.0)
    return integers, errors


def _round(group: Group, j: int, u: Tensor, col: Tensor) -> Tensor:
    """Integers of targets `u` (batch, n, size) in steps, in column j of the group."""
    if not group.trellis:
        return u.round_().clamp_(-grid.UNCLIPPED_MAX, grid.UNCLIPPED_MAX)
    u.clamp_(-LARGEST, LARGEST)
    size, flat = u.shape[2], u.flatten(1)
    shrink = (group.shrink * col.square()).flatten(1)
    bounds = tuple(accumulate(group.lengths[:-1], initial=0))
    at = group.states[:, :, j].contiguous()
    if set(group.lengths) == {size}:
        m = round_column(flat, shrink, bounds, group.trellis, at)
    else:
        real = [n * size + r for n, length in enumerate(group.lengths) for r in range(length)]
        there = torch.tensor(real, device=u.device)
        m = torch.zeros_like(flat)
        m[:, there] = round_column(flat[:, there], shrink[:, there], bounds, group.trellis, at)
    group.states[:, :, j] = at
    return m.view_as(u)
