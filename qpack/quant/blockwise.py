"""The column loop with feedback on both sides: from columns to columns and from rows to rows.

Rows stand in blocks (`qpack.quant.rowwise`). A block of rows goes through the columns as in
`qpack.quant.gptq`; what it loses in a column, f = error / U_jj, also moves the targets of the
blocks after it in the same column, by U_jj M f. So a block may take a group of `INNER` columns once
the block before it has done them: blocks follow each other through the columns like carriages of a
train, and all blocks on the way are rounded as one batch. That takes (groups + blocks - 1) rounds
of `INNER` columns, where block after block would take groups * blocks.

The path of a trellis runs through all blocks of a weight: each starts a column in the state in
which the block before it ended. Only the end of a block is not chosen with regard to what follows.

Cost beside GPTQ's: for each weight half a run's rows of multiply-adds, in matrix products.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from qpack.quant.columns import BlockSteps
from qpack.quant.gptq import INNER
from qpack.quant.group import Group, round_group


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class RowBlock:
    """Rows of every matrix of a batch that are rounded together."""

    rows: slice
    """in the stack"""
    level: int
    """blocks of the same weight before it"""
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
    for turn in range(train.groups + max(block.level for block in blocks)):
        train.advance(turn)
    return train.integers()


class _Train:
    """Weights by block and group of columns, (batch, blocks, groups, INNER, size), and what the
    column loop knows of them. Blocks are filled up to one size, columns to whole groups."""

    def __init__(
        self, WT: Tensor, U: Tensor, blocks: Sequence[RowBlock], steps: BlockSteps
    ) -> None:
        self._blocks, self._trellis = blocks, steps.trellis
        self._batch, self._cols, self._num_rows = WT.shape
        self._lengths = [block.rows.stop - block.rows.start for block in blocks]
        self._size = max(self._lengths)
        self.groups = -(-self._cols // INNER)
        self._levels = torch.tensor([block.level for block in blocks])
        self._W = self._by_block(WT)
        self._moved = torch.zeros_like(self._W)
        """what rows before have added to the targets, before the factor U_jj"""
        self._Q = torch.zeros_like(self._W)
        spare = self.groups * INNER - self._cols
        self._U = torch.nn.functional.pad(U, (0, spare, 0, spare))
        self._U.diagonal(dim1=1, dim2=2)[:, self._cols :] = 1.0
        squares = self._U.view(self._batch, self.groups, INNER, self.groups, INNER)
        self._squares = squares.diagonal(dim1=1, dim2=3).permute(0, 3, 1, 2).contiguous()
        """(batch, groups, INNER, INNER): the diagonal blocks of U"""
        self._row_steps, self._shrink = (
            self._spread(steps.rows, 1.0),
            self._spread(steps.shrink, 0.0),
        )
        cols = torch.nn.functional.pad(steps.cols, (0, spare), value=1.0)
        self._cols_of = cols.view(self._batch, self.groups, INNER)
        self._carry = [self._filled(index) for index in range(len(blocks))]
        self._ends = torch.zeros(
            (self._batch, len(blocks) + 1, self.groups, INNER), dtype=torch.int32, device=WT.device
        )
        """states in which paths end; the last entry is the one before every first block"""

    def advance(self, turn: int) -> None:
        """Every block that is on its way rounds its next group of columns."""
        groups = turn - self._levels
        on_way = torch.nonzero((groups >= 0) & (groups < self.groups))[:, 0]
        if not len(on_way):
            return
        device = self._W.device
        group, block = groups[on_way].to(device), on_way.to(device)
        before = torch.where(self._levels[on_way] > 0, on_way - 1, len(self._blocks)).to(device)
        part = Group(
            w=self._W[:, block, group],
            moved=self._moved[:, block, group],
            U=self._squares[:, group],
            rows=self._row_steps[:, block],
            shrink=self._shrink[:, block],
            cols=self._cols_of[:, group],
            states=self._ends[:, before, group],
            trellis=self._trellis,
            lengths=tuple(self._lengths[index] for index in on_way.tolist()),
        )
        integers, errors = round_group(part)
        self._Q[:, block, group], self._ends[:, block, group] = integers, part.states
        for place, (b, g) in enumerate(zip(on_way.tolist(), groups[on_way].tolist(), strict=True)):
            self._feed(b, g, errors[:, place])

    def _feed(self, block: int, group: int, errors: Tensor) -> None:
        """Carry `errors` (batch, INNER, size) to the columns after `group`, and to later rows."""
        begin, end = group * INNER, (group + 1) * INNER
        if group + 1 < self.groups:
            rest = self._W[:, block].flatten(1, 2)[:, end:]
            rest.baddbmm_(self._U[:, begin:end, end:].mT, errors, alpha=-1.0)
        carry = self._carry[block]
        if carry is not None:
            added = errors @ carry.mT
            added = added.view(self._batch, INNER, -1, self._size).transpose(1, 2)
            later = self._moved[:, block + 1 : block + 1 + added.shape[1], group]
            later += added

    def integers(self) -> Tensor:
        """(batch, cols, rows)."""
        out = self._W.new_empty((self._batch, self._cols, self._num_rows))
        for index, block in enumerate(self._blocks):
            size = block.rows.stop - block.rows.start
            out[:, :, block.rows] = self._Q[:, index].flatten(1, 2)[:, : self._cols, :size]
        return out

    def _by_block(self, WT: Tensor) -> Tensor:
        size = self._batch, len(self._blocks), self.groups, INNER, self._size
        out = WT.new_zeros(size)
        columns = out.flatten(2, 3)
        for index, block in enumerate(self._blocks):
            length = block.rows.stop - block.rows.start
            columns[:, index, : self._cols, :length] = WT[:, :, block.rows]
        return out

    def _spread(self, rows: Tensor, fill: float) -> Tensor:
        """(batch, blocks, size) of values (batch, rows)."""
        out = rows.new_full((self._batch, len(self._blocks), self._size), fill)
        for index, block in enumerate(self._blocks):
            out[:, index, : block.rows.stop - block.rows.start] = rows[:, block.rows]
        return out

    def _filled(self, index: int) -> Tensor | None:
        """The carry (batch, later blocks * size, size) of a block, filled up with zeros."""
        carry = self._blocks[index].carry
        if carry is None or not carry.shape[1]:
            return None
        rows = -(-carry.shape[1] // self._size) * self._size
        spare = self._size - carry.shape[2], rows - carry.shape[1]
        return torch.nn.functional.pad(carry, (0, spare[0], 0, spare[1]))
