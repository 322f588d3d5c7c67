"""Varints in their one form, and side blocks that are read as they were written or not at all."""

from __future__ import annotations

import zlib
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qpack.codec.rans import side
from qpack.codec.rans.side import Side, pack, read_varints, unpack, unzigzag, write_varints, zigzag
from qpack.codec.rans.tables import NO_MAIN_TABLE, SCALE, Table
from qpack.errors import CorruptError, TooLargeError

CODES = Table(0, np.array([SCALE]), 0)


def main(lowest: int, *frequencies: int) -> Table:
    return Table(lowest, np.array(frequencies), 2)


GOOD = main(-1, 8192, 8000, 100, 92, 0)
SIDE = Side((0, 64), (GOOD, NO_MAIN_TABLE, GOOD, CODES, CODES), np.array([-5, 0, 3000]))


def read(block: bytes, **changes: int) -> Side:
    stored, sizes = deflate(block), {"decoded_bytes": len(block), "members": 2, "classes": 1}
    return unpack(stored, **{**sizes, "limit": 127, **changes})


def deflate(block: bytes) -> bytes:
    squeeze = zlib.compressobj(9, zlib.DEFLATED, -15)
    return squeeze.compress(block) + squeeze.flush()


def written(tables: Sequence[Table]) -> bytes:
    data, _ = pack(Side((0, 64), tuple(tables), np.empty(0, np.int64)))
    return zlib.decompress(data, -15)


@given(st.lists(st.integers(0, 2**35 - 1)))
def test_varints_come_back(values: list[int]) -> None:
    assert read_varints(write_varints(np.array(values, np.int64))).tolist() == values


@given(st.binary(max_size=12))
def test_bytes_are_one_list_of_varints_or_none(data: bytes) -> None:
    """Whatever is accepted is what would be written."""
    try:
        values = read_varints(data)
    except CorruptError:
        return
    assert write_varints(values) == data


@pytest.mark.parametrize("text", ["80", "8000", "ff00", "808080808001", "0180"])
def test_other_forms_are_refused(text: str) -> None:
    with pytest.raises(CorruptError):
        read_varints(bytes.fromhex(text))


@given(st.lists(st.integers(-(2**33), 2**33)))
def test_zigzag(values: list[int]) -> None:
    array = np.array(values, np.int64)
    assert unzigzag(zigzag(array)).tolist() == values
    assert zigzag(np.array([0, -1, 1, -2])).tolist() == [0, 1, 2, 3]


def test_a_block_comes_back() -> None:
    data, decoded_bytes = pack(SIDE)
    again = unpack(data, decoded_bytes=decoded_bytes, members=2, classes=1, limit=127)
    assert again.trellis == SIDE.trellis
    assert again.escapes.tolist() == SIDE.escapes.tolist()
    for before, after in zip(SIDE.tables, again.tables, strict=True):
        assert (before.lowest, before.escapes) == (after.lowest, after.escapes)
        assert before.frequencies.tolist() == after.frequencies.tolist()


BAD = {
    "sum too low": main(0, SCALE - 1, 0, 0),
    "sum too high": main(0, SCALE, 1, 0),
    "first never occurs": main(0, 0, SCALE, 0, 0),
    "last never occurs": main(0, SCALE, 0, 0, 0),
    "above the largest": main(126, SCALE - 2, 1, 1, 0, 0),
    "below the least": main(-128, SCALE, 0, 0),
    "far away": main(1 << 33, SCALE, 0, 0),
}


@pytest.mark.parametrize("name", BAD)
def test_tables_are_checked(name: str) -> None:
    read(written([GOOD] * 3 + [CODES] * 2))
    with pytest.raises(CorruptError):
        read(written([BAD[name], GOOD, GOOD, CODES, CODES]))


@pytest.mark.parametrize(
    ("kind", "lowest", "highest"), [(0, -127, 127), (1, -63, 63), (2, -64, 63)]
)
def test_symbols_of_a_trellis_stay_in_range_too(kind: int, lowest: int, highest: int) -> None:
    """k of m = 2 k + parity, for integers up to 127."""

    def with_symbol(symbol: int) -> bytes:
        tables = [NO_MAIN_TABLE] * 3
        tables[kind] = main(symbol, SCALE, 0, 0)
        return written([*tables, CODES, CODES])

    for symbol in (lowest, highest):
        read(with_symbol(symbol))
    for symbol in (lowest - 1, highest + 1):
        with pytest.raises(CorruptError):
            read(with_symbol(symbol))


def test_class_codes_stay_in_range() -> None:
    read(written([GOOD] * 3 + [CODES, Table(63, np.array([SCALE]), 0)]))
    for lowest in (-1, 64):
        with pytest.raises(CorruptError):
            read(written([GOOD] * 3 + [CODES, Table(lowest, np.array([SCALE]), 0)]))


@pytest.mark.parametrize("changes", [{"members": 3}, {"classes": 2}, {"decoded_bytes": 7}])
def test_sizes_are_checked(changes: dict[str, int]) -> None:
    with pytest.raises(CorruptError):
        read(written([GOOD] * 3 + [CODES] * 2), **changes)


def test_every_cut_is_found() -> None:
    """All but one: where the escapes begin, so that there are none."""
    block = written(SIDE.tables)
    for end in range(len(block)):
        with pytest.raises(CorruptError):
            read(block[:end])


def test_a_block_of_zeros_is_not_inflated() -> None:
    bomb = deflate(bytes(1 << 24))
    for claimed in (1 << 20, 1 << 24):
        with pytest.raises(CorruptError):
            unpack(bomb, decoded_bytes=claimed, members=0, classes=1, limit=127)


def test_a_large_block_is_not_written() -> None:
    for escapes in (side.SIDE_BYTES_MAX - 10, 2 * side.SIDE_BYTES_MAX):
        with pytest.raises(TooLargeError):
            pack(Side((), SIDE.tables, np.zeros(escapes, np.int64)))
