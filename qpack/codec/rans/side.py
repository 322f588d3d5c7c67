"""The side block of a segment: trellises, frequency tables and escapes, as varints under deflate.

Everything that the decoder needs beside the coded words, at most 1 MiB of it. Varints are LEB128,
unsigned, at most 5 bytes, in their shortest form; signed values are zigzag (0, -1, 1, -2, ...).
What is read is checked here: a block that is accepted holds tables that can be decoded with.
"""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from qpack.codec.base import damaged
from qpack.codec.rans.tables import NO_CODE_TABLE, NO_MAIN_TABLE, SCALE, Table
from qpack.errors import CorruptError, TooLargeError
from qpack.trellis import STATES

NAME = "rans"
HEAD = struct.Struct("<BBII")
"""What a segment starts with: log2 of the lanes, classes, stored and decoded bytes of the block."""
SIDE_BYTES_MAX = 1 << 20
CLASSES_MAX = CODES_MAX = 64
VARINT_BYTES_MAX = 5


@dataclass(frozen=True, slots=True, eq=False)
class Side:
    """A decoded side block."""

    trellis: tuple[int, ...]
    """states of each member; 0 for none"""
    tables: tuple[Table, ...]
    """3 C + 2: scalar, even and odd of each class, row codes, column codes"""
    escapes: NDArray[np.int64]
    """e of each escape, in the order of decoding: the symbol is 2 e, or 2 e + 1"""


def pack(side: Side) -> tuple[bytes, int]:
    """The block under raw deflate, and its decoded bytes. Raises `TooLargeError` over 1 MiB."""
    if len(side.escapes) > SIDE_BYTES_MAX:
        raise _too_large(len(side.escapes))
    numbers = [_table_numbers(table) for table in side.tables]
    trellis = bytes(states.bit_length() - 1 if states else 0 for states in side.trellis)
    data = trellis + write_varints(np.concatenate([*numbers, zigzag(side.escapes)]))
    if len(data) > SIDE_BYTES_MAX:
        raise _too_large(len(data))
    squeeze = zlib.compressobj(9, zlib.DEFLATED, -15, 9)
    return squeeze.compress(data) + squeeze.flush(), len(data)


def unpack(data: bytes, *, decoded_bytes: int, members: int, classes: int, limit: int) -> Side:
    """Inflate and check a block. `limit` is the largest magnitude of an integer.

    Raises `CorruptError`.
    """
    block = _inflate(data, decoded_bytes)
    if len(block) < members:
        raise _bad("the side block ends in the trellises")
    numbers = read_varints(block[members:])
    tables: list[Table] = []
    at = 0
    for index in range(3 * classes + 2):
        main = index < 3 * classes
        table, at = _read_table(numbers, at, 2 if main else 0)
        low, high = _bounds(limit, kind=index % 3) if main else (0, CODES_MAX - 1)
        if table.used and not low <= table.lowest <= table.lowest + table.listed - 1 <= high:
            raise _bad(f"table {index} has symbols that are out of bounds")
        tables.append(table)
    return Side(_read_trellis(block[:members]), tuple(tables), unzigzag(numbers[at:]))


def zigzag(values: NDArray[np.int64]) -> NDArray[np.int64]:
    """0, -1, 1, -2, ... -> 0, 1, 2, 3, ..."""
    return np.where(values < 0, -2 * values - 1, 2 * values)


def unzigzag(values: NDArray[np.int64]) -> NDArray[np.int64]:
    """The inverse of `zigzag`."""
    return np.where(values & 1, -(values >> 1) - 1, values >> 1)


def write_varints(values: NDArray[np.int64]) -> bytes:
    """LEB128 of `values`, all at least 0 and below 2^35."""
    groups = values[:, None] >> (7 * np.arange(VARINT_BYTES_MAX))
    present = groups > 0
    present[:, 0] = True
    more = np.zeros_like(present)
    more[:, :-1] = present[:, 1:]
    return bytes((groups & 127 | more << 7).astype(np.uint8)[present].tobytes())


def read_varints(data: bytes) -> NDArray[np.int64]:
    """The values in `data`, which holds nothing else. Raises `CorruptError`."""
    read = np.frombuffer(data, np.uint8)
    ends = np.flatnonzero(read < 128)
    if len(read) == 0:
        return np.empty(0, np.int64)
    if len(ends) == 0 or ends[-1] != len(read) - 1:
        raise _bad("a number is cut off")
    starts = np.concatenate([[0], ends[:-1] + 1])
    lengths = ends - starts + 1
    if lengths.max() > VARINT_BYTES_MAX or ((read[ends] == 0) & (lengths > 1)).any():
        raise _bad("a number is not in its shortest form")
    place = np.arange(len(read)) - np.repeat(starts, lengths)
    return np.add.reduceat((read & 127).astype(np.int64) << (7 * place), starts)


def _table_numbers(table: Table) -> NDArray[np.int64]:
    """A table as it is written: symbols listed, the lowest, frequencies."""
    if not table.used:
        return np.zeros(1, np.int64)
    lowest = zigzag(np.array([table.lowest]))
    return np.concatenate([[table.listed], lowest, table.frequencies])


def _read_table(numbers: NDArray[np.int64], at: int, escapes: int) -> tuple[Table, int]:
    """The table at `at`, and where the next one starts."""
    if at >= len(numbers):
        raise _bad("it ends in the tables")
    listed = int(numbers[at])
    if listed == 0:
        return NO_MAIN_TABLE if escapes else NO_CODE_TABLE, at + 1
    end = at + 2 + listed + escapes
    if end > len(numbers):
        raise _bad("it ends in a table")
    frequencies = numbers[at + 2 : end]
    if frequencies.max() > SCALE or frequencies.sum() != SCALE:
        raise _bad("the frequencies of a table do not sum to 2^14")
    if frequencies[0] == 0 or frequencies[listed - 1] == 0:
        raise _bad("a table lists symbols at its ends that never occur")
    return Table(int(unzigzag(numbers[at + 1 : at + 2])[0]), frequencies, escapes), end


def _bounds(limit: int, *, kind: int) -> tuple[int, int]:
    """Lowest and highest symbol of a main table: of m (kind 0), or of k with m = 2 k + kind - 1."""
    return (-limit, limit) if kind == 0 else (-((limit + kind - 1) // 2), (limit - kind + 1) // 2)


def _read_trellis(data: bytes) -> tuple[int, ...]:
    """States of each member."""
    states = tuple(1 << log2 if log2 else 0 for log2 in data)
    if any(count and count not in STATES for count in states):
        raise _bad("a member has a trellis that there is none of")
    return states


def _inflate(data: bytes, decoded_bytes: int) -> bytes:
    """Exactly `decoded_bytes` bytes; the stream must end with `data`."""
    if decoded_bytes > SIDE_BYTES_MAX:
        raise _bad("the side block is over 1 MiB")
    inflater = zlib.decompressobj(-15)
    try:
        block = inflater.decompress(data, decoded_bytes + 1)
    except zlib.error as error:
        raise _bad(str(error)) from error
    if len(block) != decoded_bytes or not inflater.eof or inflater.unused_data:
        raise _bad("the side block does not hold what was declared")
    return block


def _bad(detail: str) -> CorruptError:
    return damaged(NAME, detail)


def _too_large(size: int) -> TooLargeError:
    return TooLargeError(
        f"{NAME}: tables and escapes take at least {size} bytes, over {SIDE_BYTES_MAX}",
        hint="these integers are too widely spread for it; store them with another codec",
    )
