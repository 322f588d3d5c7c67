"""A slow decoder of one segment in plain Python, written from docs/FORMAT.md alone."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator, Sequence

POLYNOMIALS = {4: (0o5, 0o2), 8: (0o13, 0o4), 16: (0o23, 0o4), 32: (0o45, 0o10), 64: (0o103, 0o24)}
Symbol = int | str


class Reader:
    """Lanes, words and tables of a segment."""

    def __init__(self, data: bytes, members: int) -> None:
        lanes_log, self.classes, stored, decoded = struct.unpack_from("<BBII", data)
        self.lanes = 1 << lanes_log
        side = zlib.decompress(data[10 : 10 + stored], -15)
        assert len(side) == decoded
        at = 10 + stored
        self.states = list(struct.unpack_from(f"<{self.lanes}I", data, at))
        rest = data[at + 4 * self.lanes :]
        self.words = list(struct.unpack(f"<{len(rest) // 2}H", rest))
        self.trellis = [1 << log if log else 0 for log in side[:members]]
        numbers = iter(varints(side[members:]))
        self.tables = [
            read_table(numbers, i < 3 * self.classes) for i in range(3 * self.classes + 2)
        ]
        self.escapes = [signed(n) for n in numbers]

    def step(self, tables: Sequence[int]) -> list[Symbol]:
        """One symbol of each of these tables, on the first lanes."""
        symbols = []
        for lane, index in enumerate(tables):
            x = self.states[lane]
            slot, start = x % (1 << 14), 0
            for symbol, frequency in self.tables[index]:
                if start <= slot < start + frequency:
                    self.states[lane] = frequency * (x >> 14) + slot - start
                    symbols.append(symbol)
                start += frequency
        for lane in range(len(tables)):
            if self.states[lane] < 1 << 16:
                self.states[lane] = self.states[lane] << 16 | self.words.pop(0)
        return symbols

    def codes(self, table: int, counts: Sequence[int]) -> list[list[int]]:
        """Class codes of each member."""
        left, found = sum(counts), []
        while left:
            found += self.step([table] * min(self.lanes, left))
            left = sum(counts) - len(found)
        every = iter(found)
        return [[int(next(every)) for _ in range(count)] for count in counts]

    def value(self, symbol: Symbol) -> int:
        """The symbol itself, or the one that an escape stands for."""
        return symbol if isinstance(symbol, int) else 2 * self.escapes.pop(0) + (symbol == "odd")


def varints(data: bytes) -> Iterator[int]:
    number = shift = 0
    for byte in data:
        number |= (byte & 127) << shift
        shift += 7
        if byte < 128:
            yield number
            number = shift = 0
    assert shift == 0


def signed(n: int) -> int:
    return -(n + 1) // 2 if n % 2 else n // 2


def read_table(numbers: Iterator[int], main: bool) -> list[tuple[Symbol, int]]:
    listed = next(numbers)
    if listed == 0:
        return []
    lowest = signed(next(numbers))
    table: list[tuple[Symbol, int]] = [(lowest + i, next(numbers)) for i in range(listed)]
    if main:
        table += [(name, next(numbers)) for name in ("even", "odd")]
    assert sum(frequency for _, frequency in table) == 1 << 14
    return table


def following(state: int, bit: int, states: int) -> int:
    h0, h1 = POLYNOMIALS[states]
    return (state >> 1) ^ ((state & 1) * (h0 >> 1)) ^ (bit * (h1 >> 1))


def decode(
    data: bytes, shapes: Sequence[tuple[int, int]]
) -> tuple[list[list[list[int]]], list[int]]:
    """Rows of integers of each member, and the states of its trellis."""
    reader = Reader(data, len(shapes))
    filled = [(rows, cols) if rows * cols else (0, 0) for rows, cols in shapes]
    row_codes = reader.codes(3 * reader.classes, [rows for rows, _ in filled])
    col_codes = reader.codes(3 * reader.classes + 1, [cols for _, cols in filled])
    out = [[[0] * cols for _ in range(rows)] for rows, cols in shapes]
    columns = [(member, j) for member, (_, cols) in enumerate(filled) for j in range(cols)]
    columns.sort(key=lambda column: -filled[column[0]][0])
    for first in range(0, len(columns), reader.lanes):
        batch = columns[first : first + reader.lanes]
        states = [0] * len(batch)
        for t in range(filled[batch[0][0]][0]):
            active = [column for column in batch if filled[column[0]][0] > t]
            tables = []
            for lane, (member, j) in enumerate(active):
                table = 3 * (row_codes[member][t] + col_codes[member][j])
                tables.append(table + (1 + states[lane] % 2 if reader.trellis[member] else 0))
            for lane, symbol in enumerate(reader.step(tables)):
                member, j = active[lane]
                k = reader.value(symbol)
                out[member][t][j] = k
                if reader.trellis[member]:
                    out[member][t][j] = 2 * k + states[lane] % 2
                    states[lane] = following(states[lane], k % 2, reader.trellis[member])
    assert reader.words == [] and reader.escapes == []
    assert reader.states == [1 << 16] * reader.lanes
    return out, reader.trellis
