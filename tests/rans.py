"""rANS segments written by hand: slow, plain, and able to break any rule of the format.

Written from docs/FORMAT.md apart from `qpack.codec.rans`, so that tests of the decoders do not
depend on what the library's encoder happens to choose.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from qpack.trellis import next_states

SCALE = 1 << 14
Codes = Sequence[Sequence[int]]


@dataclass
class Table:
    """The lowest symbol and the frequencies; the last two of a main table are its escapes."""

    lowest: int = 0
    frequencies: list[int] = field(default_factory=list)


def flat(lowest: int, listed: int, *, escapes: int = 2) -> Table:
    """`listed` symbols and the escapes, about equally frequent."""
    share, rest = divmod(SCALE, listed + escapes)
    return Table(lowest, [share + rest] + [share] * (listed + escapes - 1))


@dataclass
class Segment:
    """Everything that a segment says, before it is coded."""

    matrices: list[NDArray[np.signedinteger]]
    trellis: list[int]
    rows: list[list[int]]
    """row codes of each member with elements; empty otherwise"""
    cols: list[list[int]]
    tables: list[Table]
    classes: int = 1
    log_lanes: int = 2

    def encode(self) -> bytes:
        """The segment."""
        coder = Coder(1 << self.log_lanes)
        escapes: list[int] = []
        steps: list[list[tuple[int, int]]] = []
        for number, codes in enumerate((self.rows, self.cols)):
            table = 3 * self.classes + number
            every = [(table, code) for member in codes for code in member]
            steps += [every[i : i + coder.lanes] for i in range(0, len(every), coder.lanes)]
        steps += self.symbol_steps(coder.lanes)
        entries = []
        for step in steps:
            entries.append([self.slots(table, symbol, escapes) for table, symbol in step])
        words = coder.run(entries)
        side = self.side(escapes)
        return segment(self.log_lanes, self.classes, side, coder.states, words)

    def symbol_steps(self, lanes: int) -> Iterator[list[tuple[int, int]]]:
        """(table, symbol) of every lane, step by step."""
        shapes = [m.shape for m in self.matrices]
        columns = [(i, j) for i, (r, c) in enumerate(shapes) for j in range(c) if r]
        columns.sort(key=lambda column: -shapes[column[0]][0])
        for first in range(0, len(columns), lanes):
            batch = columns[first : first + lanes]
            state = [0] * len(batch)
            for t in range(shapes[batch[0][0]][0]):
                step = []
                for lane, (i, j) in enumerate(batch):
                    if t < shapes[i][0]:
                        m = int(self.matrices[i][t, j])
                        step.append(self.symbol(i, t, j, m, state[lane]))
                        if self.trellis[i]:
                            follow = next_states(self.trellis[i])
                            state[lane] = int(follow[state[lane], m >> 1 & 1])
                yield step

    def symbol(self, i: int, r: int, j: int, m: int, state: int) -> tuple[int, int]:
        """Table and symbol of one integer."""
        base = 3 * min(self.rows[i][r] + self.cols[i][j], self.classes - 1)
        if not self.trellis[i]:
            return base, m
        assert (m - state) % 2 == 0, "the integers do not obey the trellis"
        return base + 1 + (state & 1), m >> 1

    def slots(self, number: int, symbol: int, escapes: list[int]) -> tuple[int, int]:
        """Start and frequency of a symbol; those of an escape where the table does not list it."""
        table = self.tables[number]
        main = number < 3 * self.classes
        listed = len(table.frequencies) - 2 * main
        place = symbol - table.lowest
        if not 0 <= place < listed or table.frequencies[place] == 0:
            assert main, "a class code is not in its table"
            place = listed + (symbol & 1)
            escapes.append(symbol >> 1)
        return sum(table.frequencies[:place]), table.frequencies[place]

    def side(self, escapes: Sequence[int]) -> bytes:
        """The side block, decoded."""
        out = bytes(states.bit_length() - 1 if states else 0 for states in self.trellis)
        for number, table in enumerate(self.tables):
            main = number < 3 * self.classes
            out += varint(max(len(table.frequencies) - 2 * main, 0))
            if table.frequencies:
                out += varint(zigzag(table.lowest))
                out += b"".join(map(varint, table.frequencies))
        return out + b"".join(varint(zigzag(e)) for e in escapes)


class Coder:
    """Interleaved rANS, one lane after another, backwards."""

    def __init__(self, lanes: int) -> None:
        self.lanes = lanes
        self.states = [1 << 16] * lanes

    def run(self, steps: Sequence[Sequence[tuple[int, int]]]) -> list[int]:
        """Words of all steps, in the order in which they are read."""
        words: list[int] = []
        for step in reversed(steps):
            for lane, (start, freq) in reversed(list(enumerate(step))):
                x = self.states[lane]
                if x >= freq << 18:
                    words.append(x & 0xFFFF)
                    x >>= 16
                self.states[lane] = x // freq * SCALE + x % freq + start
        return words[::-1]


def segment(
    log_lanes: int, classes: int, side: bytes, states: Sequence[int], words: Sequence[int]
) -> bytes:
    """The parts of a segment, put together."""
    deflate = zlib.compressobj(9, zlib.DEFLATED, -15, 9)
    stored = deflate.compress(side) + deflate.flush()
    head = struct.pack("<BBII", log_lanes, classes, len(stored), len(side))
    lanes = struct.pack(f"<{len(states)}I", *states)
    return head + stored + lanes + struct.pack(f"<{len(words)}H", *words)


def varint(value: int) -> bytes:
    """LEB128."""
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes([*out, value])


def zigzag(value: int) -> int:
    """0, -1, 1, -2, ... -> 0, 1, 2, 3, ..."""
    return 2 * value if value >= 0 else -2 * value - 1
