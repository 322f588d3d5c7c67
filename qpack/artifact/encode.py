"""Contents -> encoded segments and header: everything of an artifact but the file around it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from qpack.artifact import layout as lay
from qpack.artifact.contents import Group, check_contents, lead_of, other_groups
from qpack.artifact.integers import encode_integers
from qpack.artifact.limits import DECODED_BYTES_MAX, EXPANSION_MAX, HEADER_BYTES_MAX
from qpack.codec import filters
from qpack.codec.base import Codec
from qpack.codec.integers import Rans
from qpack.codec.registry import byte_codecs
from qpack.codec.select import Choices, Coded, Trial, encode_streams
from qpack.codec.store import Store
from qpack.errors import CheckpointError
from qpack.progress import SILENT, Progress
from qpack.tensors import Contents, QuantizedTensor, StoredTensor


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Encoded:
    """An artifact in parts. `writer.render` makes the file."""

    contents: Contents
    """as they decode: the element type and trellis of integers are those of their stream"""
    groups: tuple[Group, ...]
    """typed streams, in the order of `segments`"""
    layout: lay.Layout
    header: bytes
    """prefix and stored header"""
    segments: tuple[bytes, ...]
    choices: dict[str, tuple[int, int]]
    """stream key -> (codec id, filter id): pass to a later `encode` to skip the trials"""
    trials: tuple[Trial, ...]

    @property
    def qpk_bytes(self) -> int:
        """Size of the `.qpk` file."""
        return _file_bytes(self.layout, self.header)


def encode(
    contents: Contents,
    *,
    codecs: Sequence[Codec],
    choices: Choices | None = None,
    progress: Progress = SILENT,
) -> Encoded:
    """Encode `contents` with the smallest of `codecs` for each stream.

    `choices` of an earlier result are reused without trials. The same contents, codecs and codec
    packages give the same bytes. CheckpointError names everything that cannot be stored.
    """
    check_contents(contents)
    integers = encode_integers(contents, codecs, choices=choices, progress=progress)
    others = other_groups(contents)
    rest, trials = encode_streams(
        [g.stream for g in others], byte_codecs(codecs), choices=choices, progress=progress
    )
    groups, coded = (*integers.groups, *others), [*integers.coded, *rest]
    won = {g.stream.key: (c.codec, c.filter) for g, c in zip(groups, coded, strict=True)}
    layout, header = describe(contents, groups, coded)
    # A constant tensor can shrink by more than readers allow a whole file to expand.
    while layout.decoded_bytes > EXPANSION_MAX * _file_bytes(layout, header):
        worst = max(layout.streams, key=lambda s: s.decoded_bytes / max(s.stored_bytes, 1))
        index = layout.streams.index(worst)
        coded[index] = _stored(groups[index], coded[index])
        layout, header = describe(contents, groups, coded)
    _check_size(layout, header)
    return Encoded(
        contents=_as_decoded(contents, groups, coded),
        groups=groups,
        layout=layout,
        header=header,
        segments=tuple(c.data for c in coded),
        choices=won,
        trials=(*integers.trials, *trials),
    )


def _file_bytes(layout: lay.Layout, header: bytes) -> int:
    return len(header) + layout.stored_bytes + lay.TRAILER_BYTES


def _stored(group: Group, coded: Coded) -> Coded:
    stream = group.stream
    data = filters.forward(stream.array, filters.NONE, stream.matrices)
    return replace(coded, data=data, codec=Store.id, filter=filters.NONE)


def _check_size(layout: lay.Layout, header: bytes) -> None:
    decoded_header_bytes = lay.PREFIX.unpack_from(header)[4]
    if max(len(header) - lay.PREFIX.size, decoded_header_bytes) > HEADER_BYTES_MAX:
        raise CheckpointError(
            f"the header takes {decoded_header_bytes} bytes, at most {HEADER_BYTES_MAX}",
            hint="shorten tensor names or metadata",
        )
    if layout.decoded_bytes > DECODED_BYTES_MAX:
        raise CheckpointError(
            f"the streams take {layout.decoded_bytes} bytes decoded, at most {DECODED_BYTES_MAX}"
        )


def _as_decoded(contents: Contents, groups: Sequence[Group], coded: Sequence[Coded]) -> Contents:
    tensors = list(contents.tensors)
    for g, c in zip(groups, coded, strict=True):
        for index in g.members if g.kind == lay.INTEGERS else ():
            tensor = tensors[index]
            assert isinstance(tensor, QuantizedTensor)
            tensors[index] = replace(
                tensor,
                integers=tensor.integers.astype(f"i{lay.WIDTHS[g.dtype]}", copy=False),
                trellis=tensor.trellis if c.codec == Rans.id else 0,
            )
    return replace(contents, tensors=tuple(tensors))


def describe(
    contents: Contents, groups: Sequence[Group], coded: Sequence[Coded]
) -> tuple[lay.Layout, bytes]:
    """Layout and stored header of `groups` as they were coded."""
    home: dict[int, int] = {}
    file_home: dict[int, int] = {}
    for number, g in enumerate(groups):
        if g.kind in (lay.INTEGERS, lay.RAW):
            home |= dict.fromkeys(g.members, number)
        elif g.kind == lay.FILES:
            file_home |= dict.fromkeys(g.members, number)
    layout = lay.Layout(
        streams=tuple(
            lay.StreamInfo(
                kind=g.kind,
                dtype=g.dtype,
                codec=c.codec,
                filter=c.filter,
                stored_bytes=len(c.data),
                decoded_bytes=g.stream.array.nbytes,
                digest=lay.digest64(c.data),
            )
            for g, c in zip(groups, coded, strict=True)
        ),
        tensors=tuple(_tensor_info(t, home[i]) for i, t in enumerate(contents.tensors)),
        aliases=contents.aliases,
        files=tuple(
            lay.FileInfo(name=f.name, role=f.role, stream=file_home[i], num_bytes=len(f.data))
            for i, f in enumerate(contents.files)
        ),
        metadata=contents.metadata,
    )
    return layout, lay.header_bytes(layout)


def _tensor_info(tensor: StoredTensor, stream: int) -> lay.TensorInfo:
    if isinstance(tensor, QuantizedTensor):
        rows, cols = tensor.integers.shape
        return lay.TensorInfo(
            name=tensor.name,
            shape=tensor.shape,
            stream=stream,
            lead=lead_of(tensor.shape, rows, cols) or 0,
            octave=tensor.octave,
            has_cols=tensor.col_codes is not None,
        )
    return lay.TensorInfo(name=tensor.name, shape=tensor.shape, stream=stream)
