"""Contents -> layout and typed streams, and back.

Streams group what compresses alike: integers by role (a tensor's name with each all-digit part
replaced by `*`) and type, row codes, column codes, raw tensors by type, files by role. Integer
streams below `MISC_BYTES` are merged into one a type, since each stream costs about 25 bytes. The
codec that knows scales and trellises takes all integers as one stream instead (`integers.py`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qpack.artifact import layout as lay
from qpack.artifact import rules
from qpack.artifact.values import value_problems
from qpack.codec import filters
from qpack.codec.select import TypedStream
from qpack.errors import CheckpointError
from qpack.tensors import Contents, EmbeddedFile, QuantizedTensor, RawTensor, StoredTensor
from qpack.trellis import STATES, obeys

MISC_BYTES = 4096
ONE_STREAM = "integers"
"""Key of the stream of all integers."""
_INTEGER_DTYPES = {np.dtype(np.int8): "I8", np.dtype(np.int16): "I16"}


Members = list[tuple[int, NDArray[np.generic]]]
"""(index of the tensor or file, its array) in the order of the stream"""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Group:
    """One stream before encoding."""

    kind: str
    dtype: str
    members: tuple[int, ...]
    """indices of the tensors (or, of kind `files`, the files) it holds parts of, in order"""
    sizes: tuple[int, ...]
    """elements of each member's part"""
    stream: TypedStream


def role_of(name: str) -> str:
    """`blocks.3.attn.c_q.weight` -> `blocks.*.attn.c_q.weight`."""
    return ".".join("*" if part.isdecimal() else part for part in name.split("."))


def lead_of(shape: tuple[int, ...], rows: int, cols: int) -> int | None:
    """Leading dimensions of `shape` that make `rows`, the rest making `cols`; None if none do."""
    for lead in range(max(len(shape), 1)):
        if (prod(shape[:lead]), prod(shape[lead:])) == (rows, cols):
            return lead
    return None


def check_contents(contents: Contents) -> None:
    """CheckpointError naming everything that the format cannot hold."""
    offenders = [
        f"{tensor.name!a}: {problem}"
        for tensor in contents.tensors
        for problem in _tensor_problems(tensor)
    ]
    offenders += description_problems(
        [tensor.name for tensor in contents.tensors],
        aliases=contents.aliases,
        metadata=contents.metadata,
        files=contents.files,
    )
    if offenders:
        raise CheckpointError("contents that an artifact cannot hold", items=offenders)


def description_problems(
    names: Sequence[str],
    *,
    aliases: Mapping[str, str],
    metadata: Mapping[str, str],
    files: Sequence[EmbeddedFile],
) -> list[str]:
    """What the format cannot hold of names, counts and metadata: known before any tensor is."""
    layout = lay.Layout(
        streams=(),
        tensors=tuple(lay.TensorInfo(name=name, shape=(), stream=0) for name in names),
        aliases=dict(aliases),
        metadata=dict(metadata),
        files=tuple(
            lay.FileInfo(name=f.name, role=f.role, stream=0, num_bytes=len(f.data)) for f in files
        ),
    )
    counts = rules.count_problems(
        streams=0, tensors=len(names) + len(aliases), metadata=len(metadata), files=len(files)
    )
    return [*counts, *rules.name_problems(layout)]


def _tensor_problems(tensor: StoredTensor) -> list[str]:
    problem = rules.shape_problem(tensor.shape)
    if problem or min(tensor.shape, default=0) < 0:
        return [problem or f"shape {tensor.shape} has a negative dimension"]
    if isinstance(tensor, RawTensor):
        if tensor.dtype not in lay.WIDTHS:
            return [f"element type {tensor.dtype} is not one of {', '.join(lay.WIDTHS)}"]
        expected = prod(tensor.shape) * lay.WIDTHS[tensor.dtype]
        if len(tensor.data) != expected:
            return [f"{len(tensor.data)} bytes where shape and type take {expected}"]
        return []
    return _form_problems(tensor) or list(value_problems(tensor))


def _form_problems(tensor: QuantizedTensor) -> list[str]:
    integers, row_codes, col_codes = tensor.integers, tensor.row_codes, tensor.col_codes
    if integers.dtype not in _INTEGER_DTYPES or integers.ndim != 2:
        return [f"integers are {integers.dtype} of rank {integers.ndim}, not int8 or int16 of 2"]
    rows, cols = integers.shape
    problems = []
    if lead_of(tensor.shape, rows, cols) is None:
        problems.append(f"shape {tensor.shape} is not a matrix of {rows} x {cols}")
    if row_codes.shape != (rows,) or row_codes.dtype != np.int16:
        problems.append(f"row codes are {row_codes.dtype} {row_codes.shape}, not int16 ({rows},)")
    if col_codes is not None and (col_codes.shape != (cols,) or col_codes.dtype != np.int16):
        problems.append(f"col codes are {col_codes.dtype} {col_codes.shape}, not int16 ({cols},)")
    if tensor.octave not in rules.OCTAVES:
        problems.append(f"octave {tensor.octave} is not a power of two from 1 to 64")
    if tensor.trellis not in (0, *STATES):
        problems.append(f"there is no trellis of {tensor.trellis} states")
    elif not obeys(integers, tensor.trellis):
        problems.append(f"its integers do not obey the trellis of {tensor.trellis} states")
    return problems


Indexed = list[tuple[int, QuantizedTensor]]


def group(contents: Contents) -> list[Group]:
    """Typed streams of checked contents, in the order of the file; integers by role."""
    return [*integers_by_role(contents), *other_groups(contents)]


def quantized_tensors(contents: Contents) -> Indexed:
    """Index and tensor of each that has integers."""
    return [(i, t) for i, t in enumerate(contents.tensors) if isinstance(t, QuantizedTensor)]


def all_integers(contents: Contents) -> Group:
    """The one stream of all integers, of which there are some: int8 where all of them are."""
    members = quantized_tensors(contents)
    dtypes = {_INTEGER_DTYPES[tensor.integers.dtype] for _, tensor in members}
    dtype = "I8" if dtypes == {"I8"} else "I16"
    whole = _group(lay.INTEGERS, dtype, ONE_STREAM, [(i, t.integers) for i, t in members])
    trellis = tuple(tensor.trellis for _, tensor in members)
    return replace(whole, stream=replace(whole.stream, filters=(filters.NONE,), trellis=trellis))


def coded_symbols(integers: NDArray[Any], trellis: int) -> NDArray[Any]:
    """What a coder is told of `integers`: with a trellis their parities are known."""
    return integers >> 1 if trellis else integers


def other_groups(contents: Contents) -> list[Group]:
    """Typed streams of all but the integers."""
    groups = []
    quantized = quantized_tensors(contents)
    rows: Members = [(index, tensor.row_codes) for index, tensor in quantized]
    cols: Members = [(index, t.col_codes) for index, t in quantized if t.col_codes is not None]
    for kind, codes in ((lay.ROWS, rows), (lay.COLS, cols)):
        if codes:
            groups.append(_group(kind, "I16", kind, codes))
    raw: dict[str, Members] = {}
    for index, tensor in enumerate(contents.tensors):
        if isinstance(tensor, RawTensor):
            array = np.frombuffer(tensor.data, f"<u{lay.WIDTHS[tensor.dtype]}")
            raw.setdefault(tensor.dtype, []).append((index, array))
    groups += [_group(lay.RAW, dtype, f"raw:{dtype}", raw[dtype]) for dtype in raw]
    files: dict[str, Members] = {}
    for index, file in enumerate(contents.files):
        files.setdefault(file.role, []).append((index, np.frombuffer(file.data, "<u1")))
    groups += [_group(lay.FILES, "U8", f"files:{role}", files[role]) for role in files]
    return groups


def integers_by_role(contents: Contents) -> list[Group]:
    """Streams of the integers, for codecs of bytes."""
    by_role: dict[str, Members] = {}
    dtypes: dict[str, str] = {}
    for index, tensor in quantized_tensors(contents):
        dtype = _INTEGER_DTYPES[tensor.integers.dtype]
        key = f"int:{role_of(tensor.name)}:{dtype}"
        by_role.setdefault(key, []).append((index, tensor.integers))
        dtypes[key] = dtype
    misc: dict[str, Members] = {}
    groups = []
    for key, members in by_role.items():
        if sum(array.nbytes for _, array in members) < MISC_BYTES:
            misc.setdefault(dtypes[key], []).extend(members)
        else:
            groups.append(_group(lay.INTEGERS, dtypes[key], key, members))
    for dtype, members in sorted(misc.items()):
        members.sort(key=lambda member: member[0])
        groups.append(_group(lay.INTEGERS, dtype, f"misc:{dtype}", members))
    return groups


def _group(kind: str, dtype: str, key: str, members: Members) -> Group:
    width = f"<{'i' if kind in (lay.INTEGERS, lay.ROWS, lay.COLS) else 'u'}{lay.WIDTHS[dtype]}"
    flat = [array.reshape(-1).astype(width, copy=False) for _, array in members]
    matrices = tuple((a.shape[0], a.shape[1]) for _, a in members if a.ndim == 2)
    return Group(
        kind=kind,
        dtype=dtype,
        members=tuple(index for index, _ in members),
        sizes=tuple(array.size for _, array in members),
        stream=TypedStream(
            key=key,
            array=np.concatenate(flat),
            filters=rules.filters_for(kind, dtype),
            matrices=matrices,
        ),
    )
