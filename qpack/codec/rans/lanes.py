"""The lanes of a decoder: interleaved rANS states, advanced together, one step at a time.

A state x is in [2^16, 2^32) between steps. Its low 14 bits are a slot of a table; the symbol that
holds the slot takes the state to freq * (x >> 14) + slot - start, and a state below 2^16 takes 16
more bits (Duda 2013; Giesen 2014 for the interleaving). The loop only finds which slot of which
table each symbol is; what that stands for is looked up for a block of steps at once.

A lane carries a node, `number << 1 | shift << 14`. The numbers run over the states of all
trellises; the shift is 1 + parity and moves the slot on to the table of this parity. A lane without
a trellis rests in node 0, whose shift is 0.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from qpack.codec.base import damaged
from qpack.codec.rans.side import NAME
from qpack.codec.rans.tables import SCALE, SCALE_BITS
from qpack.trellis import STATES, next_states

STATE_LOW = 1 << 16
WORD_BITS = 16

# 0-d arrays: a Python number costs numpy a conversion in every step.
_SLOT, _SCALE_BITS = np.array(SCALE - 1, np.uint32), np.array(SCALE_BITS, np.uint32)
_ONE, _BIAS_BITS = np.array(1, np.uint32), np.array(SCALE_BITS + 1, np.uint32)
_LOW, _WORD_BITS = np.array(STATE_LOW, np.uint32), np.array(WORD_BITS, np.uint32)
_SHIFT = np.array(3 << SCALE_BITS, np.int64)


class Lanes:
    """States of all lanes, and the words that they have still to read."""

    def __init__(
        self, states: NDArray[np.uint32], words: NDArray[np.uint32], entries: NDArray[np.uint32]
    ) -> None:
        self.states, self.words, self.entries = states, words, entries
        self.read = 0
        lanes = len(states)
        self._slot, self._entry = np.empty(lanes, np.uint32), np.empty(lanes, np.uint32)
        self._branch, self._near = np.empty(lanes, np.int64), np.empty(lanes, np.bool_)

    def run(self, index: NDArray[np.int64], nodes: NDArray[np.int64] | None = None) -> None:
        """Decode some steps of the first lanes.

        `index` (steps, lanes) holds table << 14 and gets table << 14 | slot. `nodes` (lanes,) are
        followed; None where no lane has a trellis. Raises `CorruptError` where words are missing.
        """
        n = index.shape[1]
        x, slot, entry, near = self.states[:n], self._slot[:n], self._entry[:n], self._near[:n]
        branch, follow = self._branch[:n], _following()
        take, words, read = self.entries.take, self.words, self.read
        for step in index:
            np.bitwise_and(x, _SLOT, out=slot)
            np.add(step, slot, out=step)
            if nodes is not None:
                np.bitwise_and(nodes, _SHIFT, out=branch)
                np.add(step, branch, out=step)
            take(step, out=entry, mode="clip")
            if nodes is not None:
                np.bitwise_and(entry, _ONE, out=slot)
                np.add(nodes, slot, out=branch)
                follow.take(branch, out=nodes, mode="clip")
            np.right_shift(x, _SCALE_BITS, out=x)
            np.right_shift(entry, _BIAS_BITS, out=slot)
            np.multiply(x, slot, out=x)
            np.right_shift(entry, _ONE, out=entry)
            np.bitwise_and(entry, _SLOT, out=entry)
            np.add(x, entry, out=x)
            np.less(x, _LOW, out=near)
            short = near.nonzero()[0]
            end = read + len(short)
            if end > len(words):
                raise damaged(NAME, "it ends before its symbols do")
            refilled = x[short]
            np.left_shift(refilled, _WORD_BITS, out=refilled)
            np.bitwise_or(refilled, words[read:end], out=refilled)
            x[short] = refilled
            read = end
        self.read = read

    def finish(self) -> None:
        """Raises `CorruptError` unless every state is where encoding starts and no word is left."""
        if self.read != len(self.words) or (self.states != STATE_LOW).any():
            raise damaged(NAME, "it does not end where its symbols do")


def start_node(states: int) -> int:
    """The node at the top of a column whose trellis has `states` states; 0 for none."""
    if states == 0:
        return 0
    number = 1 + sum(count for count in STATES if count < states)
    return number << 1 | 1 << SCALE_BITS


@lru_cache(maxsize=1)
def _following() -> NDArray[np.int64]:
    """The next node, at [node | branch bit]."""
    out = np.zeros((2 << SCALE_BITS) + 256, np.int64)
    for states in STATES:
        first = start_node(states) >> 1 & 0xFF
        node = _nodes(np.arange(states), first)
        for bit, state in enumerate(next_states(states).T.astype(np.int64)):
            out[node + bit] = _nodes(state, first)
    return out


def _nodes(state: NDArray[np.int64], first: int) -> NDArray[np.int64]:
    return first + state << 1 | 1 + (state & 1) << SCALE_BITS
