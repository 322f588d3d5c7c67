"""Decoding of a segment. Everything that is read is bounded and checked before it is believed.

Any input gives integers of the shapes that the caller names, or `CorruptError`. Memory is bounded
by those shapes, the segment and the format's limits; time by the steps that the shapes take.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import DTypeLike, NDArray

from qpack.codec.base import damaged
from qpack.codec.rans.lanes import STATE_LOW, Lanes, start_node
from qpack.codec.rans.schedule import (
    LANES_LOG_MAX,
    STEPS_MAX,
    Block,
    Span,
    batches,
    blocks,
    classes,
    code_steps,
    num_steps,
)
from qpack.codec.rans.side import CLASSES_MAX, HEAD, NAME, Side, unpack
from qpack.codec.rans.tables import SCALE_BITS, decode_arrays

Codes = list[NDArray[np.int64]]


def decode(
    data: bytes, shapes: Sequence[tuple[int, int]], dtype: DTypeLike
) -> tuple[list[NDArray[np.signedinteger]], list[int]]:
    """Integers (rows, cols) of each of `shapes`, in `dtype` (int8 or int16), and their trellises.

    A trellis is its number of states, 0 for none. Raises `CorruptError`.
    """
    return _Decoder(data, shapes, np.dtype(dtype)).run()


class _Decoder:
    """One segment on its way: lanes, tables and how many escapes have been used."""

    def __init__(self, data: bytes, shapes: Sequence[tuple[int, int]], dtype: np.dtype) -> None:
        self.shapes, self.limit = shapes, int(np.iinfo(dtype).max)
        states, words, self.side, self.classes = _parse(data, len(shapes), self.limit)
        entries, self.values = decode_arrays(self.side.tables, dtype)
        self.lanes = Lanes(states, words, entries)
        self.escaped = 0
        self.matrices = [np.empty(shape, dtype) for shape in shapes]

    def run(self) -> tuple[list[NDArray[np.signedinteger]], list[int]]:
        if num_steps(self.shapes, len(self.lanes.states)) > STEPS_MAX:
            raise damaged(NAME, "it has too few lanes for its symbols")
        rows, cols = (self._codes(axis) for axis in (0, 1))
        for down, across in zip(rows, cols, strict=True):
            if len(down) and int(down.max()) + int(across.max()) >= self.classes:
                raise damaged(NAME, "a class is out of bounds")
            down *= 3 << SCALE_BITS
            across *= 3 << SCALE_BITS
        for spans in batches(self.shapes, len(self.lanes.states)):
            nodes = self._nodes(spans)
            for block in blocks(spans, self.shapes):
                index = classes(block, rows, cols)
                self.lanes.run(index, None if nodes is None else nodes[: block.lanes])
                self._place(block, index)
        self.lanes.finish()
        if self.escaped != len(self.side.escapes):
            raise damaged(NAME, "it lists escapes that do not occur")
        return self.matrices, list(self.side.trellis)

    def _codes(self, axis: int) -> Codes:
        """Class codes of the rows (axis 0) or columns of each member; none without elements."""
        counts = [shape[axis] if shape[0] and shape[1] else 0 for shape in self.shapes]
        table, total = 3 * self.classes + axis, sum(counts)
        codes = np.empty(total, np.int64)
        for step in code_steps(total, len(self.lanes.states)):
            index = np.full((1, step.stop - step.start), table << SCALE_BITS, np.int64)
            self.lanes.run(index)
            codes[step] = self.values[index[0]]
        if (codes < 0).any():
            raise damaged(NAME, "a table that is needed is empty")
        return np.split(codes, np.cumsum(counts)[:-1]) if counts else []

    def _nodes(self, spans: tuple[Span, ...]) -> NDArray[np.int64] | None:
        """Where the lanes of a batch start in their trellises; None if none of them has one."""
        if not any(self.side.trellis[span.member] for span in spans):
            return None
        starts = [start_node(self.side.trellis[span.member]) for span in spans]
        return np.repeat(starts, [span.last - span.first for span in spans])

    def _place(self, block: Block, index: NDArray[np.int64]) -> None:
        """Look up what was decoded, `index` (steps, lanes), and put it into the matrices."""
        found = self.values.take(index, mode="clip")
        marked = np.flatnonzero(found == np.iinfo(found.dtype).min)
        if len(marked):
            found.reshape(-1)[marked] = self._escapes(index.reshape(-1)[marked])
        for span in block.spans:
            self.matrices[span.member][block.steps, span.columns] = found[:, span.lanes]

    def _escapes(self, index: NDArray[np.int64]) -> NDArray[np.int64]:
        """The next escapes, which were decoded from these slots."""
        entry = self.lanes.entries[index]
        if (entry == 0).any():
            raise damaged(NAME, "a table that is needed is empty")
        listed = self.side.escapes[self.escaped : self.escaped + len(index)]
        if len(listed) < len(index):
            raise damaged(NAME, "it lists fewer escapes than occur")
        self.escaped += len(index)
        kind = (index >> SCALE_BITS) % 3
        symbol = 2 * listed + (entry & 1)
        m = np.where(kind == 0, symbol, 2 * symbol + kind - 1)
        if (np.abs(m) > self.limit).any():
            raise damaged(NAME, "an escape is out of bounds")
        return m


def _parse(
    data: bytes, members: int, limit: int
) -> tuple[NDArray[np.uint32], NDArray[np.uint32], Side, int]:
    """States, words, side block and number of classes."""
    if len(data) < HEAD.size:
        raise damaged(NAME, "it ends in its head")
    lanes_log, num_classes, stored_bytes, decoded_bytes = HEAD.unpack_from(data)
    if lanes_log > LANES_LOG_MAX or not 1 <= num_classes <= CLASSES_MAX:
        raise damaged(NAME, "its lanes or classes are out of bounds")
    states_at = HEAD.size + stored_bytes
    words_at = states_at + (4 << lanes_log)
    if words_at > len(data) or (len(data) - words_at) % 2:
        raise damaged(NAME, "it ends before its words, or in one")
    side = unpack(
        data[HEAD.size : states_at],
        decoded_bytes=decoded_bytes,
        members=members,
        classes=num_classes,
        limit=limit,
    )
    states = np.frombuffer(data[states_at:words_at], "<u4").astype(np.uint32)
    if (states < STATE_LOW).any():
        raise damaged(NAME, "a state is out of bounds")
    return states, np.frombuffer(data[words_at:], "<u2").astype(np.uint32), side, num_classes
