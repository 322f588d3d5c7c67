"""What a layout must keep, checked in full before a single segment is read.

Reader and writer use the same functions, so no file is written that would be refused.
Passes in order: limits (TooLargeError), features (UnsupportedError), consistency (CorruptError);
each names every offender.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator
from math import prod

from qpack.artifact import layout as lay
from qpack.artifact import limits
from qpack.codec import filters
from qpack.codec.integers import Rans
from qpack.errors import CorruptError, TooLargeError, UnsupportedError

FILE_ROLES = ("code", "tokenizer")
OCTAVES = (1, 2, 4, 8, 16, 32, 64)
RESERVED_METADATA = "aliases"
"""Unpacking writes tied tensors under this key."""
RESERVED_NAME = "__metadata__"
"""A safetensors file holds its metadata under this name."""

_PLAIN = (filters.NONE,)
_WIDE = (filters.NONE, filters.PLANES)

# Control characters, line and paragraph separators, and what reorders text on a screen.
_UNPRINTABLE = re.compile("[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
_SURROGATE = re.compile("[\ud800-\udfff]")
_FILE_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]*", re.ASCII)


def filters_for(kind: str, dtype: str) -> tuple[int, ...]:
    """Filter ids that a stream of this kind and element type may have, the plainest first."""
    if kind == lay.INTEGERS:
        if dtype == "I8":
            return (filters.NONE, filters.TRANSPOSE)
        return (*_WIDE, filters.TRANSPOSE, filters.TRANSPOSE_PLANES)
    if kind in (lay.ROWS, lay.COLS):
        return (*_WIDE, filters.DELTA_PLANES)
    return _PLAIN if lay.WIDTHS[dtype] == 1 else _WIDE


def dtypes_for(kind: str) -> tuple[str, ...]:
    """Element types that a stream of this kind may have."""
    if kind == lay.INTEGERS:
        return ("I8", "I16")
    if kind in (lay.ROWS, lay.COLS):
        return ("I16",)
    return tuple(lay.WIDTHS) if kind == lay.RAW else ("U8",)


def name_problem(name: str) -> str | None:
    """Why `name` cannot name a tensor, an alias or a metadata entry; None if it can."""
    if _UNPRINTABLE.search(name):
        return "has an unprintable character"
    if not 1 <= len(name.encode()) <= limits.NAME_BYTES_MAX:
        return f"is not 1 to {limits.NAME_BYTES_MAX} bytes long"
    if ".." in name.split("/"):
        return "has a .. component"
    return None


def file_name_problem(name: str) -> str | None:
    """Why `name` cannot name an embedded file; None if it can."""
    if len(name) > limits.FILE_NAME_BYTES_MAX or not _FILE_NAME.fullmatch(name):
        return "is not a plain file name of letters, digits, '.', '_' and '-'"
    return None


def check(layout: lay.Layout, *, file_bytes: int, max_decoded_bytes: int) -> None:
    """Raise unless the layout keeps every rule; segments must fill the file exactly elsewhere."""
    over = list(_over_limits(layout, file_bytes, max_decoded_bytes))
    if over:
        raise TooLargeError("artifact is over the reader's limits", items=over)
    if layout.requires:
        raise UnsupportedError(
            "artifact needs features that this version does not know",
            items=layout.requires,
            hint="upgrade qpack",
        )
    unknown = list(_unknown(layout))
    if unknown:
        raise UnsupportedError("artifact uses what this version does not know", items=unknown)
    wrong = [*name_problems(layout), *_bad_tensors(layout)]
    if not wrong:
        wrong = list(_bad_streams(layout))
    if wrong:
        raise CorruptError("header contradicts itself", items=wrong)


def count_problems(*, streams: int, tensors: int, metadata: int, files: int) -> Iterator[str]:
    """What there is too much of; `tensors` counts aliases too."""
    counts = (
        ("streams", streams, limits.STREAMS_MAX),
        ("tensors and aliases", tensors, limits.TENSORS_MAX),
        ("metadata entries", metadata, limits.METADATA_MAX),
        ("files", files, limits.FILES_MAX),
    )
    for what, value, most in counts:
        if value > most:
            yield f"{what}: {value}, at most {most}"


def _over_limits(layout: lay.Layout, file_bytes: int, max_decoded_bytes: int) -> Iterator[str]:
    for tensor in layout.tensors:
        problem = shape_problem(tensor.shape)
        if problem:
            yield f"{tensor.name!a}: {problem}"
    most = min(max_decoded_bytes, limits.EXPANSION_MAX * file_bytes)
    if layout.decoded_bytes > most:
        yield f"decoded bytes: {layout.decoded_bytes}, at most {most}"


def shape_problem(shape: tuple[int, ...]) -> str | None:
    """Why a shape is over the limits; None if it is not."""
    if len(shape) > limits.RANK_MAX:
        return f"rank {len(shape)}, at most {limits.RANK_MAX}"
    if max(shape, default=0) > limits.DIM_MAX:
        return f"dimension {max(shape)}, at most {limits.DIM_MAX}"
    elements = prod(shape)
    if elements > limits.ELEMENTS_MAX:
        return f"{elements} elements, at most {limits.ELEMENTS_MAX}"
    return None


def _unknown(layout: lay.Layout) -> Iterator[str]:
    for index, stream in enumerate(layout.streams):
        kinds = (lay.INTEGERS, lay.ROWS, lay.COLS, lay.RAW, lay.FILES)
        if stream.kind not in kinds:
            yield f"stream {index}: kind {stream.kind!a}"
        elif stream.dtype not in dtypes_for(stream.kind):
            yield f"stream {index}: element type {stream.dtype!a} of kind {stream.kind}"
        elif stream.filter not in filters_for(stream.kind, stream.dtype):
            yield f"stream {index}: filter {stream.filter} of {stream.kind} {stream.dtype}"
        if stream.codec > 0xFF:
            yield f"stream {index}: codec id {stream.codec}"
        if stream.codec == Rans.id and (stream.kind, stream.filter) != (lay.INTEGERS, filters.NONE):
            yield f"stream {index}: {Rans.name} of kind {stream.kind} with filter {stream.filter}"


def name_problems(layout: lay.Layout) -> Iterator[str]:
    """What is wrong with names and texts."""
    names = [tensor.name for tensor in layout.tensors]
    stored = set(names)
    for name in (*names, *layout.aliases, *layout.metadata):
        problem = name_problem(name)
        if problem:
            yield f"name {name!a} {problem}"
    for name in repeated((*names, *layout.aliases)):
        yield f"name {name!a} is used twice"
    for alias, target in layout.aliases.items():
        if target not in stored:
            yield f"alias {alias!a} of {target!a}, which is not stored"
    if RESERVED_NAME in stored or RESERVED_NAME in layout.aliases:
        yield f"name {RESERVED_NAME!a} is reserved"
    if RESERVED_METADATA in layout.metadata:
        yield f"metadata key {RESERVED_METADATA!a} is reserved"
    for value in layout.metadata.values():
        if _SURROGATE.search(value):
            yield f"metadata value {value[:40]!a} is not Unicode text"
    yield from _bad_files(layout)


def _bad_files(layout: lay.Layout) -> Iterator[str]:
    for file in layout.files:
        problem = file_name_problem(file.name)
        if problem:
            yield f"file {file.name!a} {problem}"
        if file.role not in FILE_ROLES:
            yield f"file {file.name!a} has role {file.role!a}"
    for name in repeated(file.name.lower() for file in layout.files):
        yield f"file {name!a} is there twice"


def repeated(names: Iterable[str]) -> list[str]:
    """Names that occur more than once, sorted."""
    return sorted(name for name, count in Counter(names).items() if count > 1)


def _bad_tensors(layout: lay.Layout) -> Iterator[str]:
    for tensor in layout.tensors:
        kind = lay.INTEGERS if tensor.octave else lay.RAW
        if tensor.stream >= len(layout.streams) or layout.streams[tensor.stream].kind != kind:
            yield f"{tensor.name!a} is not in a stream of its kind"
        if tensor.octave and tensor.octave not in OCTAVES:
            yield f"{tensor.name!a}: octave {tensor.octave} is not a power of two up to 64"
        if tensor.lead > max(len(tensor.shape) - 1, 0):
            yield f"{tensor.name!a}: {tensor.lead} leading dimensions of {len(tensor.shape)}"
    for file in layout.files:
        if file.stream >= len(layout.streams) or layout.streams[file.stream].kind != lay.FILES:
            yield f"file {file.name!a} is not in a stream of its kind"


def _bad_streams(layout: lay.Layout) -> Iterator[str]:
    expected = [0] * len(layout.streams)
    members = [0] * len(layout.streams)
    for member, num_bytes in _memberships(layout):
        expected[member] += num_bytes
        members[member] += 1
    for index, stream in enumerate(layout.streams):
        label = f"stream {index} ({stream.kind} {stream.dtype})"
        if not members[index]:
            yield f"{label} belongs to nothing"
        elif stream.decoded_bytes != expected[index]:
            yield f"{label} declares {stream.decoded_bytes} bytes for {expected[index]}"
        if (stream.stored_bytes == 0) != (stream.decoded_bytes == 0):
            yield f"{label} stores {stream.stored_bytes} bytes for {stream.decoded_bytes}"
    kinds = Counter(stream.kind for stream in layout.streams)
    for kind, wanted in (
        (lay.ROWS, any(t.octave for t in layout.tensors)),
        (lay.COLS, any(t.has_cols for t in layout.tensors)),
    ):
        if kinds[kind] != int(wanted):
            yield f"{kinds[kind]} streams of kind {kind} where {int(wanted)} belongs"


def _memberships(layout: lay.Layout) -> Iterator[tuple[int, int]]:
    """(stream, bytes) of every tensor, its step codes, and every file."""
    kinds = [stream.kind for stream in layout.streams]
    rows = kinds.index(lay.ROWS) if lay.ROWS in kinds else None
    cols = kinds.index(lay.COLS) if lay.COLS in kinds else None
    for tensor in layout.tensors:
        width = lay.WIDTHS[layout.streams[tensor.stream].dtype]
        yield tensor.stream, tensor.elements * width
        if tensor.octave and rows is not None:
            yield rows, 2 * tensor.rows
        if tensor.has_cols and cols is not None:
            yield cols, 2 * tensor.cols
    for file in layout.files:
        yield file.stream, file.num_bytes
