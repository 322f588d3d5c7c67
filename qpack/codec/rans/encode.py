"""Encoding of a segment: interleaved rANS backwards, so that decoding runs forwards.

A state above freq * 2^18 first gives off its low 16 bits; then the symbol takes it to
(x // freq) * 2^14 + x % freq + start (Duda 2013). Steps come last to first, and the words of a step
in the order of the lanes, as the decoder takes them.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from qpack.codec.rans.classes import choose
from qpack.codec.rans.lanes import STATE_LOW, WORD_BITS
from qpack.codec.rans.model import Coding, Matrix, slots
from qpack.codec.rans.schedule import (
    Block,
    batches,
    blocks,
    classes,
    code_steps,
    num_lanes,
)
from qpack.codec.rans.side import HEAD, Side, pack
from qpack.codec.rans.tables import SCALE_BITS, Table

_TOP, _WORD = np.array(32 - SCALE_BITS, np.uint32), np.array(STATE_LOW - 1, np.uint32)
_WORD_BITS, _SCALE_BITS = np.array(WORD_BITS, np.uint32), np.array(SCALE_BITS, np.uint32)
NONE = np.empty(0, np.int64)


def encode(matrices: Sequence[Matrix], trellis: Sequence[int]) -> bytes:
    """The segment of integer matrices (rows, cols), int8 or int16, none of them at its minimum.

    `trellis` has the states of each matrix's trellis, which its integers obey; 0 for none. Raises
    `TooLargeError` for integers that are spread too widely for tables.
    """
    lanes = num_lanes([matrix.shape for matrix in matrices])
    plan = choose(matrices, trellis)
    coder = _Encoder(plan, lanes)
    coder.run()
    escapes = np.concatenate([*reversed(coder.escapes), NONE])
    side, decoded_bytes = pack(Side(tuple(trellis), plan.tables, escapes))
    words = np.concatenate([*reversed(coder.words), np.empty(0, np.uint32)])
    head = HEAD.pack(lanes.bit_length() - 1, plan.classes, len(side), decoded_bytes)
    return head + side + coder.states.astype("<u4").tobytes() + words.astype("<u2").tobytes()


class _Encoder:
    """States, and what they gave off, the last first."""

    def __init__(self, plan: Coding, lanes: int) -> None:
        self.plan = plan
        self.states = np.full(lanes, STATE_LOW, np.uint32)
        self.words: list[NDArray[np.uint32]] = []
        self.escapes: list[NDArray[np.int64]] = []

    def run(self) -> None:
        """Encode everything: batches from the last to the first, then the codes."""
        shapes = [matrix.shape for matrix in self.plan.matrices]
        spans = list(batches(shapes, len(self.states)))
        frequency, start, escaped = slots(self.plan)
        for batch in reversed(spans):
            for block in reversed(list(blocks(batch, shapes))):
                place = self._gather(block)
                if escaped.any():
                    self._escape(place, escaped)
                self._push(frequency.take(place), start.take(place))
        for axis, codes in ((1, self.plan.cols), (0, self.plan.rows)):
            self._push_codes(np.concatenate([*codes, NONE]), self.plan.tables[axis - 2])

    def _gather(self, block: Block) -> NDArray[np.int64]:
        """Where the symbols of a block (steps, lanes) are in the arrays of `slots`."""
        width = self.plan.counts.shape[1]
        place = classes(block, self.plan.rows, self.plan.cols)
        place *= 2 * width
        for span in block.spans:
            part = place[:, span.lanes]
            part += self.plan.matrices[span.member][block.steps, span.columns]
            part += bool(self.plan.trellis[span.member]) * width - self.plan.lowest
        return place

    def _escape(self, place: NDArray[np.int64], escaped: NDArray[np.bool_]) -> None:
        """Note the values of a block's escapes: half of the symbol."""
        found = place.reshape(-1)[escaped.take(place).reshape(-1)]
        row, column = np.divmod(found, self.plan.counts.shape[1])
        m = column + self.plan.lowest
        self.escapes.append(np.where(row & 1, m >> 1, m) >> 1)

    def _push(self, frequency: NDArray[np.uint32], start: NDArray[np.uint32]) -> None:
        """Encode steps (steps, lanes), the last first."""
        x = self.states[: frequency.shape[1]]
        for f, s in zip(frequency[::-1], start[::-1], strict=True):
            over = (x >> _TOP >= f).nonzero()[0]
            full = x[over]
            self.words.append(full & _WORD)
            x[over] = full >> _WORD_BITS
            quotient, rest = np.divmod(x, f)
            np.left_shift(quotient, _SCALE_BITS, out=x)
            x += rest
            x += s

    def _push_codes(self, codes: NDArray[np.int64], table: Table) -> None:
        """Encode the codes of one axis of all members."""
        start = np.cumsum(table.frequencies) - table.frequencies
        for step in reversed(list(code_steps(len(codes), len(self.states)))):
            place = codes[step][None, :] - table.lowest
            frequency = table.frequencies[place].astype(np.uint32)
            self._push(frequency, start[place].astype(np.uint32))
