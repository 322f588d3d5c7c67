"""What a tokenizer loses of a file, kept beside its tokens, so that any bytes come back.

A tokenizer normalises: both tokenizers of the challenge turn newlines into spaces, drop repeated
spaces and control characters, and write compatibility characters as others (NFKC). Bytes that are
no UTF-8 do not reach it at all. `split` gives the tokens and a residual, `join` the bytes again.

The tokenizer says where in its input each token ends. So file and text (what the tokens stand for)
are cut into the same segments, and where a segment differs an edit says by what:

    after `gap` bytes of text that stay, `cut` bytes give way to `put` bytes of the file

A residual is columns of these edits, as LEB128 numbers, as equal kinds compress well together:
how many edits, all gaps, all cuts, the lengths of all puts, their bytes. No edits, no residual.
Invalid bytes are left out of the text, where U+FFFD in their place would cost tokens and help no
prediction. `split` is lossless whatever the tokenizer answers: ends only say where to cut.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from qpack.errors import CorruptError
from qpack.tokenizer import Tokenizer

NUMBER_BYTES_MAX = 9
"""Of a LEB128 number below 2^63."""


class Edit(NamedTuple):
    """One difference, see above."""

    gap: int
    cut: int
    put: bytes


def split(data: bytes, tokenizer: Tokenizer) -> tuple[NDArray[np.int64], bytes]:
    """(n + 1,) tokens of `data`, of which the first is the context BOS, and their residual.

    Raises `DataError` for a tokenizer without BOS.
    """
    text, offsets = _valid(data)
    tokens, ends = tokenizer.encode_aligned(text)
    stream = np.array([tokenizer.bos, *tokens], dtype=np.int64)
    segments = _segments(data, stream_texts(stream, tokenizer), [int(offsets[end]) for end in ends])
    return stream, _write(list(_edits(segments)))


def join(tokens: Sequence[int] | NDArray[Any], residual: bytes, tokenizer: Tokenizer) -> bytes:
    """The bytes that `split` had. Raises `CorruptError` for a residual that does not fit."""
    text = b"".join(stream_texts(tokens, tokenizer))
    edits = _read(residual)
    kept = sum(edit.gap + edit.cut for edit in edits)
    if kept > len(text):
        raise CorruptError(f"the residual edits {kept:,} bytes of a text of {len(text):,}")
    parts, position = [], 0
    for gap, cut, put in edits:
        parts += [text[position : position + gap], put]
        position += gap + cut
    return b"".join((*parts, text[position:]))


def stream_texts(tokens: Sequence[int] | NDArray[Any], tokenizer: Tokenizer) -> list[bytes]:
    """What each of `tokens[1:]` stands for after the one before it."""
    ids = [int(token) for token in tokens]
    return [tokenizer.text_after(ids[i - 1], ids[i]) for i in range(1, len(ids))]


def _valid(data: bytes) -> tuple[str, NDArray[np.int64]]:
    """Text without the invalid bytes, and for each offset in it where in `data` that is: (n + 1,).

    An invalid byte lies before the next character's end, the last ones after all offsets.
    """
    escaped = data.decode("utf-8", "surrogateescape")
    points = np.frombuffer(escaped.encode("utf-32-le", "surrogatepass"), dtype="<u4")
    invalid = (points >= 0xDC80) & (points <= 0xDCFF)
    wide = sum((points >= least).astype(np.int64) for least in (0x80, 0x800, 0x10000))
    ends = np.cumsum(np.where(invalid, 1, 1 + wide))
    text = points[~invalid].tobytes().decode("utf-32-le")
    return text, np.concatenate(([0], ends[~invalid]))


def _edits(segments: Iterable[tuple[bytes, bytes]]) -> Iterator[Edit]:
    """Edits that make each segment's second bytes of its first, neighbours in one."""
    gap, cut, put = 0, 0, bytearray()
    for old, new in segments:
        head = len(old) if old == new else _common(old, new)
        left, right = old[head:], new[head:]
        tail = _common(left[::-1], right[::-1])
        left, right = left[: len(left) - tail], right[: len(right) - tail]
        for same, lost, found in ((head, left, right), (tail, b"", b"")):
            if same and (cut or put):
                yield Edit(gap, cut, bytes(put))
                gap, cut, put = 0, 0, bytearray()
            gap += same
            cut += len(lost)
            put += found
    if cut or put:
        yield Edit(gap, cut, bytes(put))


def _segments(
    data: bytes, texts: Sequence[bytes], ends: Sequence[int]
) -> Iterator[tuple[bytes, bytes]]:
    """(text, bytes of `data`) of each segment: together all of both, in order.

    A segment ends where the file has moved on: the tokens of one character stay together.
    """
    start, waiting = 0, []
    for text, end in zip(texts, ends, strict=True):
        waiting.append(text)
        if end > start:
            yield b"".join(waiting), data[start:end]
            start, waiting = end, []
    yield b"".join(waiting), data[start:]


def _common(first: bytes, second: bytes) -> int:
    """Length of the longest common prefix."""
    limit = min(len(first), len(second))
    return next((i for i in range(limit) if first[i] != second[i]), limit)


def _write(edits: Sequence[Edit]) -> bytes:
    if not edits:
        return b""
    gaps, cuts, puts = zip(*edits, strict=True)
    numbers = (len(edits), *gaps, *cuts, *(len(put) for put in puts))
    return b"".join((*map(_number, numbers), *puts))


def _read(residual: bytes) -> list[Edit]:
    if not residual:
        return []
    position = 0

    def take(count: int) -> list[int]:
        nonlocal position
        numbers = []
        for _ in range(count):
            number, position = _parse(residual, position)
            numbers.append(number)
        return numbers

    (count,) = take(1)
    if not 0 < count <= len(residual):
        raise CorruptError(f"a residual of {len(residual):,} bytes holds no {count:,} edits")
    gaps, cuts, lengths = take(count), take(count), take(count)
    if any(not cut and not length for cut, length in zip(cuts, lengths, strict=True)):
        raise CorruptError("the residual has an edit that changes nothing")
    if position + sum(lengths) != len(residual):
        raise CorruptError("the residual is not as long as its edits say")
    return [
        Edit(gap, cut, put)
        for gap, cut, put in zip(gaps, cuts, _cut(residual[position:], lengths), strict=True)
    ]


def _cut(data: bytes, lengths: Iterable[int]) -> Iterator[bytes]:
    start = 0
    for length in lengths:
        yield data[start : start + length]
        start += length


def _number(value: int) -> bytes:
    """`value` in groups of 7 bits, the lowest first; the high bit says that more follow."""
    groups = []
    while value > 0x7F:
        groups.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*groups, value])


def _parse(data: bytes, position: int) -> tuple[int, int]:
    """(the number at `position`, where it ends)."""
    value = 0
    for i, byte in enumerate(data[position : position + NUMBER_BYTES_MAX]):
        value |= (byte & 0x7F) << (7 * i)
        if byte < 0x80:
            return value, position + i + 1
    raise CorruptError("the residual ends inside a number, or holds one that is too large")
