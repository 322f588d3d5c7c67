"""Decodes one rANS stream, codec 5 of docs/FORMAT.md: the other half of the stand-alone decoder.

What follows the first import stands in every .pyz, in place of the decoder's import of this
module. It imports nothing of qpack, and follows the format's page, not the library's coder.
"""

from __future__ import annotations

import struct
import zlib
from typing import Any

# Polynomials (h0, h1) of the trellises by number of states, without their lowest bit.
TRELLISES = {4: (2, 1), 8: (5, 2), 16: (9, 2), 32: (18, 4), 64: (33, 10)}
STEPS, BLOCK, SIDE = 1 << 20, 1 << 17, 1 << 20


def insist(condition: object) -> None:
    """ValueError unless `condition` holds."""
    if not condition:
        raise ValueError("it breaks a rule of the format")


def inflate(stored: bytes, size: int) -> bytes:
    """Undo raw deflate; ValueError unless that makes exactly `size` bytes."""
    stream = zlib.decompressobj(-15)
    try:
        text = stream.decompress(stored, size + 1)
    except zlib.error as error:
        raise ValueError(str(error)) from None
    insist(len(text) == size and stream.eof and not stream.unused_data)
    return text


def varints(data: bytes) -> list[int]:
    """Numbers of seven bits a byte, the lowest first, in their shortest form."""
    numbers, value, shift = [], 0, 0
    for byte in data:
        value, shift = value | (byte & 127) << shift, shift + 7
        insist(shift < 35 if byte > 127 else byte or shift == 7)
        if byte < 128:
            numbers.append(value)
            value = shift = 0
    insist(shift == 0)
    return numbers


def tables(numbers: list[int], count: int, limit: int) -> tuple[Any, Any, Any]:
    """By table and slot, `frequency << 15 | offset << 1 | branch bit`, and the integer, -limit - 1
    for escapes and, with an entry of 0, where there is no symbol; escapes."""
    import numpy as np

    entries, at = np.zeros(count << 14, np.uint32), 0
    values = np.full(count << 14, -limit - 1, np.int8 if limit < 128 else np.int16)
    for table in range(count):
        listed, at = numbers[at], at + 1
        if listed:
            main = table < count - 2
            f = np.array(numbers[at + 1 : at + 1 + listed + 2 * main])
            insist(len(f) == listed + 2 * main and f[0] and f[listed - 1] and f.sum() == 1 << 14)
            low, kind = (numbers[at] >> 1) ^ -(numbers[at] & 1), table % 3 if main else 0
            symbol = np.arange(low, low + len(f))
            branch, value = symbol & 1, 2 * symbol + kind - 1 if kind else symbol
            least, most = (-limit, limit) if main else (0, 63)
            insist(least <= value[0] and value[listed - 1] <= most)
            if main:
                branch[-2:], value[-2:] = (0, 1), -limit - 1
            offset = np.arange(1 << 14) - np.repeat(f.cumsum() - f, f)
            slots = slice(table << 14, (table + 1) << 14)
            entries[slots] = np.repeat(f << 15 | branch, f) | offset << 1
            values[slots] = np.repeat(value, f)
            at += 1 + len(f)
    left = np.array(numbers[at:], np.int64)
    return entries, values, (left >> 1) ^ -(left & 1)


def turns() -> Any:
    """Where the path of a lane goes, by path + branch bit. A path names the state of a trellis, and
    in bit 14 or 15 how many tables on the one of its parity is; it is 0 where there is no trellis.
    """
    import numpy as np

    table = np.zeros(3 << 14, np.int64)
    for states, (h0, h1) in TRELLISES.items():
        for t in range(2 * states):
            following = (t >> 2) ^ (t >> 1 & 1) * h0 ^ (t & 1) * h1
            table[path(states, t >> 1) + (t & 1)] = path(states, following)
    return table


def path(states: int, state: int) -> int:
    """The path in `state` of the trellis of `states` states, of which 0 is none."""
    return (1 + (state & 1)) << 14 | 2 * (states + state) if states else 0


def batches(shapes: list[Any], lanes: int) -> Any:
    """Columns side by side, longest first: lists of (member, its columns, their lanes)."""
    batch: list[Any] = []
    for member in sorted(range(len(shapes)), key=lambda i: -shapes[i][0]):
        rows, cols = shapes[member]
        first = 0
        while rows and first < cols:
            lane = batch[-1][2].stop if batch else 0
            end = min(cols, first + lanes - lane)
            batch.append((member, slice(first, end), slice(lane, lane + end - first)))
            first = end
            if batch[-1][2].stop == lanes:
                yield batch
                batch = []
    if batch:
        yield batch


class Lanes:
    """The coder's states, one a lane, and all that they decode with."""

    def __init__(self, state: Any, words: Any, limit: int, parts: tuple[Any, Any, Any]) -> None:
        self.state, self.words, self.limit = state, words, limit
        self.entries, self.values, self.escapes = parts
        self.word = self.escape = 0

    def walk(self, index: Any, paths: Any, turn: Any) -> Any:
        """Integers of a block (steps, lanes); `index` is where the table of each one begins.

        `paths` are those of the lanes, None where all are 0.
        """
        import numpy as np

        x, take = self.state[: index.shape[1]], self.entries.take
        words, word = self.words, self.word
        # Arrays, not numbers, and results in place: each step takes some twenty calls of numpy.
        slot, high, one, bits = (np.array(n, np.uint32) for n in (0x3FFF, 14, 1, 15))
        low, table, near = np.array(1 << 16, np.uint32), np.array(3 << 14), x < 0
        part, entry, jump = x.copy(), x.copy(), index[0].copy()
        for line in index:
            np.bitwise_and(x, slot, out=part)
            np.add(line, part, out=line)
            if paths is not None:
                np.bitwise_and(paths, table, out=jump)
                np.add(line, jump, out=line)
            take(line, out=entry, mode="clip")
            if paths is not None:
                np.bitwise_and(entry, one, out=part)
                np.add(paths, part, out=jump)
                turn.take(jump, out=paths, mode="clip")
            np.right_shift(x, high, out=x)
            np.right_shift(entry, bits, out=part)
            np.multiply(x, part, out=x)
            np.right_shift(entry, one, out=entry)
            np.bitwise_and(entry, slot, out=entry)
            np.add(x, entry, out=x)
            (short,) = np.less(x, low, out=near).nonzero()
            x[short] = x[short] << 16 | words[word : word + len(short)]
            word += len(short)
        self.word = word
        found = self.values.take(index, mode="clip")
        where = np.flatnonzero(found == -self.limit - 1)
        at = index.take(where)
        mark, kind = self.entries.take(at), (at >> 14) % 3
        symbol = 2 * self.escapes[self.escape : self.escape + len(mark)] + (mark & 1)
        integer = np.where(kind > 0, 2 * symbol + kind - 1, symbol)
        insist(mark.all() and abs(integer).max(initial=0) <= self.limit)
        found.put(where, integer)
        self.escape += len(mark)
        return found

    def codes(self, table: int, counts: list[int]) -> list[Any]:
        """Class codes, an array for each of `counts`."""
        import numpy as np

        total, lanes, parts = sum(counts), len(self.state), [np.zeros(0, np.int64)]
        for first in range(0, total, lanes):
            index = np.full((1, min(lanes, total - first)), table << 14)
            parts.append(self.walk(index, None, None)[0].astype(np.int64))
        return np.split(np.concatenate(parts), np.cumsum(counts)[:-1])

    def end(self) -> None:
        """Nothing may be left."""
        insist((self.state == 1 << 16).all() and self.word == len(self.words))
        insist(self.escape == len(self.escapes))


def rans(data: bytes, shapes: list[Any], size: int) -> bytes:
    """Integers, row-major, of members of these (rows, columns), `size` bytes in all."""
    import numpy as np

    log, classes, stored, decoded = struct.unpack_from("<BBII", data)
    insist(log <= 16 and 1 <= classes <= 64 and decoded <= SIDE)
    width, at, elements = 1 << log, 10 + stored, [rows * cols for rows, cols in shapes]
    side, count = inflate(data[10:at], decoded), len(shapes)
    trellis = [1 << k if k else 0 for k in side[:count]]
    insist(len(trellis) == count and {*trellis} <= {0, *TRELLISES})
    out = np.zeros(sum(elements), "<i1" if size == sum(elements) else "<i2")
    state = np.frombuffer(data, "<u4", width, at).astype(np.uint32)
    insist(state.min() >= 1 << 16)
    words = np.frombuffer(data[at + 4 * width :], "<u2").astype(np.uint32)
    limit = int(np.iinfo(out.dtype).max)
    parts = tables(varints(side[count:]), 3 * classes + 2, limit)
    lanes, turn = Lanes(state, words, limit, parts), turns()
    filled = [(shape if n else (0, 0)) for shape, n in zip(shapes, elements, strict=True)]
    steps = sum(-(-sum(shape[axis] for shape in filled) // width) for axis in (0, 1))
    for batch in batches(filled, width):
        steps += filled[batch[0][0]][0]
        insist(steps <= STEPS)
    down, across = (
        lanes.codes(3 * classes + axis, [shape[axis] for shape in filled]) for axis in (0, 1)
    )
    for row, col in zip(down, across, strict=True):
        insist(int(row.max(initial=0)) + int(col.max(initial=0)) < classes)
        row *= 3 << 14
        col *= 3 << 14
    cuts = np.split(out, np.cumsum(elements)[:-1])
    members = [part.reshape(shape) for part, shape in zip(cuts, shapes, strict=True)]
    for batch in batches(filled, width):
        paths, top = np.zeros(width, np.int64), 0
        for member, _, on in batch:
            paths[on] = path(trellis[member], 0)
        while batch:
            active = batch[-1][2].stop
            stop = min(filled[batch[-1][0]][0], top + BLOCK // active + 1)
            index = np.empty((stop - top, active), np.int64)
            for member, own, on in batch:
                np.add(down[member][top:stop, None], across[member][own], out=index[:, on])
            found = lanes.walk(index, paths[:active] if paths.any() else None, turn)
            for member, own, on in batch:
                members[member][top:stop, own] = found[:, on]
            top = stop
            batch = [span for span in batch if filled[span[0]][0] > top]
    lanes.end()
    return out.tobytes()
