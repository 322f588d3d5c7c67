"""The column loop with feedback on both sides: from columns to columns and from rows to rows.

Rows stand in blocks (`qpack.quant.rowwise`). A block of rows goes through the columns as in
`qpack.quant.gptq`; what it loses in a column, f = error / U_jj, also moves the targets of the
blocks after it in the same column, by U_jj M f. So a block may take a group of columns once the
blocks that it waits for have done them: blocks follow each other through the columns like carriages
of a train, and all blocks on the way are rounded as one batch. Blocks with equally many to wait
for, of other weights or runs, are a level and move together. That takes (groups + levels - 1)
rounds of a group, where block after block would take groups * blocks. Rows without feedback are
blocks of one level.

The path of a trellis runs through all blocks of a weight: each starts a column in the state in
which the block before it ended. Only the end of a block is not chosen with regard to what follows.

Cost beside GPTQ's: for each weight half a run's rows of multiply-adds, in matrix products.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from qpack.quant.columns import BlockSteps
from qpack.quant.gptq import INNER
from qpack.quant.group import Group, round_group

GPU_COLUMNS = 128
"""Columns of a group on a GPU without a trellis. There a pass takes as long as the start of its
thousands of kernels, and wider groups start fewer. Paths of a trellis take their columns one after
the other, and in wider groups the last blocks of a weight wait longer for the first."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class RowBlock:
    """Rows of every matrix of a batch that are rounded together."""

    rows: slice
    """in the stack"""
    level: int
    """blocks before it that it must wait for: those of its run, or with a trellis of its weight"""
    carry: Tensor | None
    """M (batch, later, rows) float32, onto the rows that follow; None: onto none"""


def quantize_blocks(
    WT: Tensor,  # (batch, cols, rows) float32, columns in solver order
    U: Tensor,  # (batch, cols, cols) float32, upper triangular
    blocks: Sequence[RowBlock],
    steps: BlockSteps,
) -> Tensor:
    """Integers (batch, cols, rows) as float32. `blocks` cover all rows, in order; those with a
    carry are followed by the blocks it goes to."""
    train = _Train(WT, U, blocks, steps)
    for turn in range(train.groups + train.levels - 1):
        train.advance(turn)
    return train.integers()


class _Train:
    """Weights by level, (batch, columns, blocks of the level * size), and what the column loop
    knows of them. Blocks are filled up to one size, columns to whole groups. Blocks of a level are
    at the same group in every turn."""

    def __init__(
        self, WT: Tensor, U: Tensor, blocks: Sequence[RowBlock], steps: BlockSteps
    ) -> None:
        self._blocks, self._trellis = blocks, steps.trellis
        self._batch, self._cols, self._num_rows = WT.shape
        self._size = max(_length(block) for block in blocks)
        self._width = GPU_COLUMNS if WT.is_cuda and not self._trellis else INNER
        self.groups = -(-self._cols // self._width)
        self._order = sorted(range(len(blocks)), key=lambda index: blocks[index].level)
        levels = [blocks[index].level for index in self._order]
        self.levels = levels[-1] + 1
        self._starts = [bisect_left(levels, level) for level in range(self.levels + 1)]
        """of each level, in `_order`"""
        device = WT.device
        self._level_of = torch.tensor(levels, device=device)
        self._index = torch.tensor(self._order, device=device)
        before = [i - 1 if blocks[i].level else len(blocks) for i in self._order]
        self._before = torch.tensor(before, device=device)
        self._W = [self._by_level(WT, level) for level in range(self.levels)]
        self._Q = [torch.empty_like(W) for W in self._W]
        self._moved = WT.new_zeros(
            (self._batch, self.groups, self._width, len(blocks) * self._size)
        )
        """what rows before have added to the targets, before the factor U_jj; blocks as given"""
        spare = self.groups * self._width - self._cols
        self._U = torch.nn.functional.pad(U, (0, spare, 0, spare))
        self._U.diagonal(dim1=1, dim2=2)[:, self._cols :] = 1.0
        squares = self._U.view(self._batch, self.groups, self._width, self.groups, self._width)
        self._squares = squares.diagonal(dim1=1, dim2=3).permute(0, 3, 1, 2).contiguous()
        """(batch, groups, width, width): the diagonal blocks of U"""
        self._row_steps = self._spread(steps.rows, 1.0)
        self._shrink = self._spread(steps.shrink, 0.0)
        cols = torch.nn.functional.pad(steps.cols, (0, spare), value=1.0)
        self._cols_of = cols.view(self._batch, self.groups, self._width)
        self._carry = [self._filled(block) for block in blocks]
        self._ends = torch.zeros(
            (self._batch, len(blocks) + 1, self.groups, self._width),
            dtype=torch.int32,
            device=device,
        )
        """states in which paths end; the last entry is the one before every first block"""

    def advance(self, turn: int) -> None:
        """Every block that is on its way rounds its next group of columns."""
        first, last = max(0, turn - self.groups + 1), min(turn, self.levels - 1)
        on_way = slice(self._starts[first], self._starts[last + 1])
        group, block = turn - self._level_of[on_way], self._index[on_way]
        w = [self._W[level][:, self._columns(turn - level)] for level in range(first, last + 1)]
        moved = self._moved.view(self._batch, self.groups, self._width, -1, self._size)
        part = Group(
            w=torch.cat(w, dim=2).view(self._batch, self._width, -1, self._size),
            moved=moved[:, group, :, block].permute(1, 2, 0, 3),
            U=self._squares[:, group],
            rows=self._row_steps[:, on_way],
            shrink=self._shrink[:, on_way],
            cols=self._cols_of[:, group],
            states=self._ends[:, self._before[on_way], group],
            trellis=self._trellis,
            lengths=tuple(_length(self._blocks[index]) for index in self._order[on_way]),
        )
        integers, errors = (x.flatten(2) for x in round_group(part))
        if self._trellis:
            self._ends[:, block, group] = part.states
        for level in range(first, last + 1):
            start, stop = self._starts[level], self._starts[level + 1]
            at = slice((start - on_way.start) * self._size, (stop - on_way.start) * self._size)
            self._Q[level][:, self._columns(turn - level)] = integers[:, :, at]
            self._feed(level, turn - level, errors[:, :, at])

    def _feed(self, level: int, group: int, errors: Tensor) -> None:
        """Carry `errors` (batch, width, rows of the level) to the columns after `group`, and to
        later rows."""
        here, end = self._columns(group), (group + 1) * self._width
        if group + 1 < self.groups:
            self._W[level][:, end:].baddbmm_(self._U[:, here, end:].mT, errors, alpha=-1.0)
        for place, index in enumerate(self._members(level)):
            carry = self._carry[index]
            if carry is not None:
                own = errors[:, :, place * self._size : (place + 1) * self._size]
                start = (index + 1) * self._size
                later = self._moved[:, group, :, start : start + carry.shape[2]]
                later.baddbmm_(own, carry)

    def _columns(self, group: int) -> slice:
        return slice(group * self._width, (group + 1) * self._width)

    def integers(self) -> Tensor:
        """(batch, cols, rows)."""
        out = self._U.new_empty((self._batch, self._cols, self._num_rows))
        for level, Q in enumerate(self._Q):
            for place, index in enumerate(self._members(level)):
                block, start = self._blocks[index], place * self._size
                out[:, :, block.rows] = Q[:, : self._cols, start : start + _length(block)]
        return out

    def _members(self, level: int) -> list[int]:
        return self._order[self._starts[level] : self._starts[level + 1]]

    def _by_level(self, WT: Tensor, level: int) -> Tensor:
        members = self._members(level)
        out = WT.new_zeros((self._batch, self.groups * self._width, len(members) * self._size))
        for place, index in enumerate(members):
            block, start = self._blocks[index], place * self._size
            out[:, : self._cols, start : start + _length(block)] = WT[:, :, block.rows]
        return out

    def _spread(self, rows: Tensor, fill: float) -> Tensor:
        """(batch, blocks in `_order`, size) of values (batch, rows)."""
        out = rows.new_full((self._batch, len(self._blocks), self._size), fill)
        for place, index in enumerate(self._order):
            block = self._blocks[index]
            out[:, place, : _length(block)] = rows[:, block.rows]
        return out

    def _filled(self, block: RowBlock) -> Tensor | None:
        """The carry of a block, transposed and filled up with zeros: (batch, size, later blocks *
        size)."""
        carry = block.carry
        if carry is None or not carry.shape[1]:
            return None
        later = -(-carry.shape[1] // self._size) * self._size
        spare = self._size - carry.shape[2], later - carry.shape[1]
        return torch.nn.functional.pad(carry, (0, spare[0], 0, spare[1])).mT


def _length(block: RowBlock) -> int:
    """Rows of a block."""
    return int(block.rows.stop - block.rows.start)
