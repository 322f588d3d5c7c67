"""rANS segments that break one rule each, stand on a limit, or are damaged at random."""

from __future__ import annotations

import time
import tracemalloc
import zlib
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import pytest

from qpack.artifact.inspect import inspect
from qpack.artifact.reader import read
from qpack.errors import ArtifactError, CorruptError
from qpack.tensors import Contents, QuantizedTensor
from tests.corrupt.test_mutations import mutate_bytes
from tests.golden.rans_vectors import CODED, HANDMADE, WIDE, plain
from tests.rans import Segment, Table, flat
from tests.samples import artifact, both, forge, quantized, take_apart

SIDE_MAX = STEPS_MAX = 1 << 20
SEGMENT = plain(WIDE)
DATA = SEGMENT.encode()
STATES_AT = 10 + int.from_bytes(DATA[2:6], "little")


def packed(tensors: Sequence[QuantizedTensor], data: bytes) -> bytes:
    """A file of these tensors with this segment."""
    contents = Contents(tensors=tuple(tensors), aliases={}, metadata={})
    header, segments = take_apart(artifact(contents, codec="rans"))
    return forge(header, [data, *segments[1:]])


def one(data: bytes) -> bytes:
    """A file of the one matrix WIDE with this segment."""
    return packed((WIDE,), data)


def refused(data: bytes) -> None:
    """By both decoders; the library with CorruptError."""
    with pytest.raises(CorruptError):
        read(data)
    assert both(data) is None


def test_the_segment_itself_is_accepted() -> None:
    assert both(one(DATA)) is not None


def patched(offset: int, value: bytes) -> bytes:
    return DATA[:offset] + value + DATA[offset + len(value) :]


HEADS = {
    "17 as log2 of lanes": patched(0, b"\x11"),
    "255 as log2 of lanes": patched(0, b"\xff"),
    "more lanes than there are": patched(0, b"\x10"),
    "no class": patched(1, b"\0"),
    "65 classes": patched(1, b"\x41"),
    "a class more": patched(1, b"\x02"),
    "side block longer": patched(2, (1 << 31).to_bytes(4, "little")),
    "side block shorter": patched(2, b"\x01\0\0\0"),
    "decoded side block longer": patched(6, b"\xff\0\0\0"),
    "decoded side block over the limit": patched(6, (SIDE_MAX + 1).to_bytes(4, "little")),
    "side block that does not inflate": patched(10, b"\xff\xff\xff"),
    "state of 0": patched(STATES_AT, bytes(4)),
    "state below 2^16": patched(STATES_AT, b"\xff\xff\0\0"),
    "nothing": b"\0",
    "half a head": DATA[:9],
    "no states": DATA[:STATES_AT],
    "no words": DATA[: STATES_AT + 16],
    "a word less": DATA[:-2],
    "half a word less": DATA[:-1],
    "a word more": DATA + b"\0\0",
    "half a word more": DATA + b"\0",
}


@pytest.mark.parametrize("name", HEADS)
def test_heads(name: str) -> None:
    refused(one(HEADS[name]))


def with_side(change: Callable[[bytes], bytes], data: bytes = DATA) -> bytes:
    """The segment with another side block."""
    stored = int.from_bytes(data[2:6], "little")
    side = change(zlib.decompress(data[10 : 10 + stored], -15))
    deflate = zlib.compressobj(9, zlib.DEFLATED, -15, 9)
    block = deflate.compress(side) + deflate.flush()
    sizes = len(block).to_bytes(4, "little") + len(side).to_bytes(4, "little")
    return data[:2] + sizes + block + data[10 + stored :]


SIDES: dict[str, Callable[[bytes], bytes]] = {
    "nothing at all": lambda side: b"",
    "no trellis": lambda side: side[1:],
    "trellis of 2 states": lambda side: b"\1" + side[1:],
    "trellis of 128 states": lambda side: b"\7" + side[1:],
    "trellis of 2^255 states": lambda side: b"\xff" + side[1:],
    "no row codes": lambda side: side[:-10] + b"\0" + side[-5:],
    "ends in a table": lambda side: side[:5],
    "ends before the last table": lambda side: side[:-4],
    "an escape too many": lambda side: side + b"\0",
    "a number cut off": lambda side: side + b"\x80",
    "a number with a useless byte": lambda side: side[:1] + b"\x8b\x00" + side[2:],
    "a number of six bytes": lambda side: side[:1] + b"\xff\xff\xff\xff\xff\x01" + side[2:],
    "a table of 2^35 symbols": lambda side: side[:1] + b"\xff\xff\xff\xff\x7f" + side[2:],
}


@pytest.mark.parametrize("name", SIDES)
def test_side_blocks(name: str) -> None:
    assert with_side(lambda side: side) == DATA
    refused(one(with_side(SIDES[name])))


def spare(table: Table) -> Segment:
    """The segment with another table of parity 1, which no symbol needs."""
    return replace(SEGMENT, tables=[*SEGMENT.tables[:2], table, *SEGMENT.tables[3:]])


def codes(table: Table, rows: list[int], classes: int = 1) -> Segment:
    """The segment with other row codes."""
    tables = [*SEGMENT.tables[:3] * classes, table, SEGMENT.tables[4]]
    return replace(SEGMENT, rows=[rows], tables=tables, classes=classes)


TABLES = {
    "a frequency too few": spare(Table(0, [16_383, 0, 0])),
    "a frequency too many": spare(Table(0, [16_384, 1, 0])),
    "a frequency of 1 alone": spare(Table(0, [1, 0, 0])),
    "a huge frequency": spare(Table(0, [1 << 34, 0, 0])),
    "first symbol never occurs": spare(Table(0, [0, 16_384, 0, 0])),
    "last symbol never occurs": spare(Table(0, [16_384, 0, 0, 0])),
    "escapes alone": spare(Table(0, [0, 8_192, 8_192])),
    "symbols above int8": spare(flat(60, 5)),
    "symbols below int8": spare(flat(-65, 5)),
    "a symbol far away": spare(Table(1 << 33, [16_384, 0, 0])),
    "row codes above 63": codes(Table(60, [8_192, 0, 0, 0, 8_192]), [60] * 6),
    "negative row codes": codes(Table(-1, [1, 16_383]), [0] * 6),
    "a class above": codes(flat(0, 2, escapes=0), [0, 1, 0, 0, 0, 0]),
    "a class far above": codes(flat(0, 64, escapes=0), [63] * 6, classes=63),
}


@pytest.mark.parametrize("name", TABLES)
def test_tables(name: str) -> None:
    refused(one(TABLES[name].encode()))


GOOD = {
    "highest symbols of int8": spare(flat(59, 5)),
    "lowest symbols of int8": spare(flat(-64, 5)),
    "never in between": spare(Table(0, [8_192, 0, 8_192, 0, 0])),
    "row code 63": codes(flat(0, 64, escapes=0), [63] * 6, classes=64),
    "one certain symbol": replace(
        SEGMENT,
        matrices=[np.zeros((6, 5), np.int8)],
        tables=[Table(0, [16_384, 0, 0]), *SEGMENT.tables[1:]],
    ),
}


@pytest.mark.parametrize("name", GOOD)
def test_tables_at_the_edge(name: str) -> None:
    assert both(one(GOOD[name].encode())) is not None


def test_a_table_that_is_needed_is_not_there() -> None:
    segment = SEGMENT.encode()
    count = sum(1 for _ in SEGMENT.tables[0].frequencies)
    width = 2 + sum(1 if f < 128 else 2 for f in SEGMENT.tables[0].frequencies)
    assert count == 13
    refused(one(with_side(lambda side: side[:1] + b"\0" + side[1 + width :], segment)))


def escaping(value: int) -> bytes:
    """A file whose only integer is an escape of this value."""
    tensor = replace(quantized("w", 1, 1), integers=np.full((1, 1), 99, np.int8))
    data = plain(tensor, listed=3, log_lanes=0).encode()
    coded = 2 * (99 >> 1)
    code = 2 * (value >> 1) if value >= 0 else -2 * (value >> 1) - 1
    assert with_side(lambda side: side, data) == data

    def change(side: bytes) -> bytes:
        assert side[-1] == coded
        more = [code & 127 | 128, code >> 7] if code > 127 else [code]
        return side[:-1] + bytes(more)

    return packed((tensor,), with_side(change, data))


@pytest.mark.parametrize(
    ("value", "good"), [(127, True), (129, False), (-127, True), (-129, False)]
)
def test_escapes_are_in_range(value: int, good: bool) -> None:
    assert (both(escaping(value)) is not None) == good


def padded(size: int) -> bytes:
    """A file whose side block has `size` bytes: tables that nothing needs, of all of int16."""
    tensor = quantized("w", 2, 2, qmax=300)
    base = plain(tensor)
    wide = Table(-32_767, [8_192, *[0] * 65_533, 8_192, 0, 0])
    spares = [wide, Table(), Table()] * 15
    segment = replace(base, tables=[*base.tables[:3], *spares, *base.tables[3:]], classes=16)
    left = size - len(segment.side([0] * 4))
    spares += [Table(-32_767, [8_192, *[0] * (left + 1), 8_192, 0, 0]), Table(), Table()]
    assert left < 65_536
    segment.tables = [*base.tables[:3], *spares, *base.tables[3:]]
    segment.classes = 17
    return segment.encode()


def side_bytes(data: bytes) -> int:
    return int.from_bytes(data[6:10], "little")


def test_side_block_limit() -> None:
    tensor = quantized("w", 2, 2, qmax=300)
    room = SIDE_MAX - side_bytes(padded(SIDE_MAX))
    at, past = padded(SIDE_MAX + room), padded(SIDE_MAX + room + 1)
    assert (side_bytes(at), side_bytes(past)) == (SIDE_MAX, SIDE_MAX + 1)
    assert both(packed((tensor,), at)) is not None
    refused(packed((tensor,), past))


def test_a_bomb_is_refused_at_once() -> None:
    """A side block of many MiB, and one of the largest size that says nothing."""
    for size in (64 << 20, SIDE_MAX):
        deflate = zlib.compressobj(9, zlib.DEFLATED, -15)
        block = deflate.compress(bytes(size)) + deflate.flush()
        sizes = len(block).to_bytes(4, "little") + SIDE_MAX.to_bytes(4, "little")
        data = one(b"\x10\x40" + sizes + block + (1 << 16).to_bytes(4, "little") * (1 << 16))
        tracemalloc.start()
        start = time.process_time()
        refused(data)
        assert time.process_time() - start < 4
        assert tracemalloc.get_traced_memory()[1] < 96 << 20
        tracemalloc.stop()


def zeros(*shapes: tuple[int, int]) -> bytes:
    """A file of zeros on one lane: certain symbols, which take a step each and no bits."""
    tensors = [
        replace(quantized(f"w{i}", *shape), integers=np.zeros(shape, np.int8))
        for i, shape in enumerate(shapes)
    ]
    tables = [Table(0, [16_384, 0, 0]), Table(), Table(), *[flat(0, 1, escapes=0)] * 2]
    small = [quantized(f"w{i}", 1, 1) for i, _ in enumerate(shapes)]
    segment = replace(plain(*small, log_lanes=0), tables=tables)
    segment.matrices = [np.zeros((1, 1), np.int8) for _ in shapes]
    contents = Contents(tensors=tuple(tensors), aliases={}, metadata={})
    header, segments = take_apart(artifact(contents, codec="store"))
    header["streams"] = [["int", "I8", 5, 0, 0, sum(r * c for r, c in shapes), ""],
                         *(row for row in header["streams"] if row[0] == "rows")]  # fmt: skip
    for row in header["tensors"]:
        row[2] = 0
    return forge(header, [segment.encode(), segments[-1]])


@pytest.mark.slow
def test_steps_limit() -> None:
    rows = STEPS_MAX // 2 - 2  # a step for each row code, column code and integer
    assert both(zeros((rows, 1), (1, 1))) is not None


@pytest.mark.parametrize("shapes", [[(STEPS_MAX // 2, 1)], [(STEPS_MAX // 3, 2)]])
def test_steps_over_the_limit_are_refused_at_once(shapes: list[tuple[int, int]]) -> None:
    data = zeros(*shapes)
    start = time.process_time()
    refused(data)
    assert time.process_time() - start < 2


def test_all_lanes() -> None:
    segment = replace(SEGMENT, log_lanes=16)
    assert both(one(segment.encode())) is not None


@pytest.mark.parametrize("kind", ["rows", "raw"])
def test_only_integers(kind: str) -> None:
    header, segments = take_apart(one(DATA))
    next(row for row in header["streams"] if row[0] == "rows")[2] = 5
    with pytest.raises(ArtifactError):
        read(forge(header, segments))
    assert both(forge(header, segments)) is None


@pytest.mark.parametrize("filter_id", [2, 1])
def test_no_filter(filter_id: int) -> None:
    header, segments = take_apart(one(DATA))
    header["streams"][0][3] = filter_id
    assert both(forge(header, segments)) is None


@pytest.mark.parametrize("name", HANDMADE)
def test_every_flip_and_truncation(name: str) -> None:
    """Digests repaired: both decoders refuse, or agree on other values."""
    tensors, segment = HANDMADE[name]
    data = bytearray(segment.encode())
    header, segments = take_apart(packed(tensors, bytes(data)))
    for position in range(len(data)):
        data[position] ^= 1 << position % 8
        both(forge(header, [bytes(data), *segments[1:]]))
        data[position] ^= 1 << position % 8
        assert both(forge(header, [bytes(data[:position]), *segments[1:]])) is None


@pytest.mark.slow
@pytest.mark.parametrize("name", HANDMADE)
def test_many_changes(name: str) -> None:
    rng = np.random.default_rng(0)
    tensors, segment = HANDMADE[name]
    data = segment.encode()
    header, segments = take_apart(packed(tensors, data))
    for _ in range(3_000):
        both(forge(header, [mutate_bytes(data, rng), *segments[1:]]))


def test_inspect_names_the_trellis_without_decoding() -> None:
    rows = inspect(packed((CODED,), plain(CODED, listed=21).encode()))["tensors"]
    assert rows[0]["trellis"] == 8
    broken = with_side(lambda side: b"\x09" + side[1:], plain(CODED, listed=21).encode())
    with pytest.raises(CorruptError):
        inspect(packed((CODED,), broken))
