"""Say what is in an artifact without decoding it, and check one in full."""

from __future__ import annotations

import hashlib
import re
from typing import Any, BinaryIO

from qpack.artifact import layout as lay
from qpack.artifact import pyz
from qpack.artifact.contents import ONE_STREAM, role_of
from qpack.artifact.reader import PIECE_BYTES, Header, Source, check_digests, decoded, opened
from qpack.codec import filters
from qpack.codec.integers import Rans, trellises
from qpack.codec.registry import codecs
from qpack.errors import ConfigError, VerifyError

SCHEMA = "qpack.inspect/1"
HEAD_BYTES = 1 << 20
"""Read of a rANS stream: the trellises stand first in its side block."""


def inspect(source: Source) -> dict[str, Any]:
    """Summary of an artifact (JSON-able): sizes, streams, tensors, metadata, files.

    Checks the header and its bounds; reads the rest only to name its SHA-256. Decodes nothing.
    """
    with opened(source) as (file, header):
        return _summary(file, header)


def verify(source: Source, *, sha256: str | None = None) -> dict[str, Any]:
    """Check everything: digests, codecs, values, and the file's SHA-256 if given (hex).

    Returns `inspect`'s summary with `verified: true`. ArtifactError where the artifact is wrong;
    VerifyError where it is sound but not the file with that digest.
    """
    if sha256 is not None and not re.fullmatch("[0-9a-fA-F]{64}", sha256):
        raise ConfigError(f"{sha256!r} is not a SHA-256 digest of 64 hexadecimal digits")
    with opened(source) as (file, header):
        check_digests(file, header)
        decoded(file, header)
        summary = _summary(file, header)
    if sha256 is not None and summary["sha256"] != sha256.lower():
        raise VerifyError(
            "the file is intact, but it is not the one with the expected SHA-256",
            items=[f"expected {sha256.lower()}", f"found    {summary['sha256']}"],
        )
    return {**summary, "verified": True, "sha256_expected": sha256 and sha256.lower()}


def _summary(file: BinaryIO, header: Header) -> dict[str, Any]:
    layout = header.layout
    weights = sum(tensor.elements for tensor in layout.tensors)
    major, minor = header.version
    decoder = None
    if header.decoder is not None:
        decoder = {
            "status": pyz.decoder_status(header.decoder),
            "sha256": hashlib.sha256(header.decoder).hexdigest(),
            "bytes": len(header.decoder),
        }
    return {
        "schema": SCHEMA,
        "form": header.form,
        "format_version": f"{major}.{minor}",
        "bytes": header.file_bytes,
        "sha256": _sha256(file),
        "header_bytes": header.header_bytes,
        "qpk_bytes": header.qpk_bytes,
        "decoded_bytes": layout.decoded_bytes,
        "weights": weights,
        "bits_per_weight": 8 * header.qpk_bytes / weights if weights else None,
        "decoder": decoder,
        "requires": required_packages(layout),
        "streams": [_stream_row(layout, index) for index in range(len(layout.streams))],
        "tensors": [
            _tensor_row(layout, tensor, states)
            for tensor, states in zip(layout.tensors, _trellises(file, header), strict=True)
        ],
        "aliases": dict(layout.aliases),
        "metadata": dict(layout.metadata),
        "files": [
            {"name": file.name, "role": file.role, "bytes": file.num_bytes} for file in layout.files
        ],
    }


def _sha256(file: BinaryIO) -> str:
    digest = hashlib.sha256()
    file.seek(0)
    while piece := file.read(PIECE_BYTES):
        digest.update(piece)
    return digest.hexdigest()


def required_packages(layout: lay.Layout) -> list[str]:
    """Packages beyond numpy that decoding needs; built-in codecs only."""
    by_id = {codec.id: codec for codec in codecs(plugins=False).values()}
    used = (by_id.get(stream.codec) for stream in layout.streams)
    return sorted({codec.requires for codec in used if codec is not None and codec.requires})


def _stream_row(layout: lay.Layout, index: int) -> dict[str, Any]:
    stream = layout.streams[index]
    names = {codec.id: name for name, codec in codecs(plugins=False).items()}
    return {
        "name": stream_name(layout, index),
        "kind": stream.kind,
        "dtype": stream.dtype,
        "elements": stream.decoded_bytes // lay.WIDTHS[stream.dtype],
        "codec": names.get(stream.codec, f"id {stream.codec}"),
        "filter": filters.NAMES[stream.filter],
        "raw_bytes": stream.decoded_bytes,
        "bytes": stream.stored_bytes,
        "bits_per_weight": _bits(stream) if stream.kind == lay.INTEGERS else None,
    }


def _bits(stream: lay.StreamInfo) -> float:
    elements = stream.decoded_bytes // lay.WIDTHS[stream.dtype]
    return 8 * stream.stored_bytes / max(elements, 1)


def stream_name(layout: lay.Layout, index: int) -> str:
    """The role of an integer stream (`misc` if it has several, `integers` if it has all of a
    model's); else its kind and what it holds."""
    stream = layout.streams[index]
    if stream.codec == Rans.id:
        return ONE_STREAM
    if stream.kind == lay.INTEGERS:
        roles = {role_of(tensor.name) for tensor in layout.tensors if tensor.stream == index}
        return roles.pop() if len(roles) == 1 else f"misc {stream.dtype}"
    if stream.kind == lay.RAW:
        return f"raw {stream.dtype}"
    if stream.kind == lay.FILES:
        return "files " + "+".join(sorted({f.role for f in layout.files if f.stream == index}))
    return f"{stream.kind[:-1]} codes"


def _trellises(file: BinaryIO, header: Header) -> list[int]:
    """States of the trellis of each tensor, 0 for none: from the heads of rANS streams."""
    layout = header.layout
    found = [0] * len(layout.tensors)
    for index, (stream, offset) in enumerate(zip(layout.streams, header.offsets(), strict=True)):
        if stream.codec != Rans.id:
            continue
        own = [i for i, tensor in enumerate(layout.tensors) if tensor.stream == index]
        file.seek(offset)
        head = file.read(min(stream.stored_bytes, HEAD_BYTES))
        for i, states in zip(own, trellises(head, len(own)), strict=True):
            found[i] = states
    return found


def _tensor_row(layout: lay.Layout, tensor: lay.TensorInfo, trellis: int) -> dict[str, Any]:
    quantized = tensor.octave > 0
    row: dict[str, Any] = {
        "name": tensor.name,
        "shape": list(tensor.shape),
        "kind": "int" if quantized else "raw",
        "dtype": layout.streams[tensor.stream].dtype,
        "elements": tensor.elements,
        "stream": stream_name(layout, tensor.stream),
    }
    if quantized:
        row |= {
            "rows": tensor.rows,
            "cols": tensor.cols,
            "octave": tensor.octave,
            "col_codes": tensor.has_cols,
            "trellis": trellis,
        }
    return row
