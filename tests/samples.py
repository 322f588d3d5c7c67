"""Small contents of every kind, and files taken apart and put together again by hand."""

from __future__ import annotations

import hashlib
import json
import struct
import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qpack.artifact import decoder
from qpack.artifact.encode import Encoded, encode
from qpack.artifact.reader import read
from qpack.artifact.unpack import safetensors_pieces
from qpack.artifact.writer import render
from qpack.codec.base import Codec
from qpack.codec.registry import resolve
from qpack.errors import ArtifactError
from qpack.tensors import Contents, EmbeddedFile, QuantizedTensor, RawTensor
from qpack.trellis import next_states

MAGIC = b"\x89QPK\r\n\x1a\n"


def integers(rows: int, cols: int, *, qmax: int = 31, seed: int = 0) -> NDArray[Any]:
    """(rows, cols) symbols like a quantizer's: rounded Gaussian, int8 where they fit."""
    drawn = np.random.default_rng(seed).normal(0, qmax / 8, (rows, cols))
    dtype = np.int8 if qmax < 128 else np.int16
    return np.clip(np.rint(drawn), -qmax, qmax).astype(dtype)


def quantized(
    name: str,
    rows: int,
    cols: int,
    *,
    shape: tuple[int, ...] | None = None,
    qmax: int = 31,
    col_codes: bool = False,
    octave: int = 16,
    trellis: int = 0,
    seed: int = 0,
) -> QuantizedTensor:
    """A quantized tensor with plausible step codes."""
    rng = np.random.default_rng(seed + 1)
    matrix = integers(rows, cols, qmax=qmax, seed=seed)
    return QuantizedTensor(
        name=name,
        shape=(rows, cols) if shape is None else shape,
        integers=obedient(matrix, trellis),
        row_codes=np.rint(rng.normal(-6 * octave, octave / 2, rows)).astype(np.int16),
        col_codes=np.rint(rng.normal(0, octave / 2, cols)).astype(np.int16) if col_codes else None,
        octave=octave,
        trellis=trellis,
    )


def obedient(integers: NDArray[Any], states: int) -> NDArray[Any]:
    """Integers changed by at most one, towards 0 where they can, to obey a trellis; 0: as is."""
    out = integers.copy()
    path = np.zeros(out.shape[1], np.uint8)
    for row in out if states else ():
        row -= ((row ^ path) & 1).astype(out.dtype) * np.where(row > 0, 1, -1).astype(out.dtype)
        path = next_states(states)[path, (row >> 1) & 1]
    return out


def raw(name: str, shape: tuple[int, ...], dtype: str, data: bytes) -> RawTensor:
    """A raw tensor."""
    return RawTensor(name=name, shape=shape, dtype=dtype, data=data)


def varied() -> Contents:
    """Every kind of tensor, an alias, metadata and files; a few KiB."""
    return Contents(
        tensors=(
            quantized("tok_emb.weight", 32, 24, qmax=127, octave=64),
            *(quantized(f"blocks.{i}.fc.weight", 40, 64, col_codes=True, seed=i) for i in range(2)),
            quantized("blocks.0.wide.weight", 48, 48, qmax=300),
            quantized("conv.weight", 6, 8, shape=(2, 3, 2, 4)),
            quantized("gain", 1, 7, shape=(7,)),
            quantized("scalar", 1, 1, shape=()),
            quantized("nothing", 0, 5),
            raw("norm", (3,), "F32", np.array([1, 2, 3], "<f4").tobytes()),
            raw("half", (2, 2), "BF16", bytes(range(8))),
            raw("empty", (0, 4), "I64", b""),
        ),
        aliases={"head.weight": "tok_emb.weight"},
        metadata={"architecture": "gpt", "config": '{"dim":24}', "model_name": "varied"},
        files=(
            EmbeddedFile(name="train.py", role="code", data=b"print('hello')\n" * 8),
            EmbeddedFile(name="tok.model", role="tokenizer", data=bytes(100)),
        ),
    )


def small() -> Contents:
    """One tensor of each kind: a file of a few hundred bytes."""
    return Contents(
        tensors=(quantized("w", 8, 16), raw("b", (2,), "F32", bytes(range(8)))),
        aliases={"tied": "w"},
        metadata={"model_name": "small"},
        files=(EmbeddedFile(name="a.txt", role="code", data=b"text"),),
    )


def encoded(contents: Contents, codecs: Sequence[Codec] | None = None) -> Encoded:
    """Encode with all built-in codecs, or those given."""
    return encode(contents, codecs=codecs or resolve(None))


def artifact(contents: Contents, *, form: str = "qpk", codec: str | None = None) -> bytes:
    """The file of `contents`, with one codec if named."""
    return render(encoded(contents, resolve([codec]) if codec else None), form=form)


def same(left: Contents, right: Contents) -> bool:
    """Whether two contents are bit for bit the same."""
    if (left.aliases, left.metadata, left.files) != (right.aliases, right.metadata, right.files):
        return False
    return [_key(t) for t in left.tensors] == [_key(t) for t in right.tensors]


def _key(tensor: QuantizedTensor | RawTensor) -> tuple[Any, ...]:
    if isinstance(tensor, RawTensor):
        return tensor.name, tensor.shape, tensor.dtype, tensor.data
    cols = None if tensor.col_codes is None else tensor.col_codes.tobytes()
    matrix = tensor.integers
    return (
        *(tensor.name, tensor.shape, tensor.octave, matrix.dtype.name, matrix.shape),
        tensor.trellis,
        *(matrix.tobytes(), tensor.row_codes.dtype.name, tensor.row_codes.tobytes(), cols),
    )


def take_apart(data: bytes) -> tuple[dict[str, Any], list[bytes]]:
    """Header object and segments of a sound `.qpk`."""
    stored = struct.unpack_from("<I", data, 12)[0]
    header = json.loads(zlib.decompress(data[28 : 28 + stored], -15))
    segments, position = [], 28 + stored
    for row in header["streams"]:
        segments.append(data[position : position + row[4]])
        position += row[4]
    return header, segments


def forge(
    header: dict[str, Any],
    segments: Sequence[bytes],
    *,
    version: tuple[int, int] = (1, 0),
    text: bytes | None = None,
) -> bytes:
    """A file with this header and these segments whose every digest is right.

    Stored bytes and digests in the header's stream rows are made to fit; the rest is as given.
    """
    rows = header.get("streams")
    for row, segment in zip(rows if isinstance(rows, list) else (), segments, strict=False):
        if isinstance(row, list) and len(row) == 7:
            row[4], row[6] = len(segment), hashlib.blake2b(segment, digest_size=8).hexdigest()
    if text is None:
        text = json.dumps(header, sort_keys=True, separators=(",", ":")).encode()
    deflate = zlib.compressobj(9, zlib.DEFLATED, -15)
    return seal(deflate.compress(text) + deflate.flush(), len(text), segments, version=version)


def seal(
    stored: bytes,
    decoded_bytes: int,
    segments: Sequence[bytes],
    *,
    version: tuple[int, int] = (1, 0),
) -> bytes:
    """A file of these parts, with right digests of header and whole."""
    digest = hashlib.blake2b(stored, digest_size=8).digest()
    prefix = struct.pack("<8sHHII8s", MAGIC, *version, len(stored), decoded_bytes, digest)
    body = prefix + stored + b"".join(segments)
    return body + hashlib.sha256(body).digest()


def both(data: bytes) -> bytes | None:
    """What both decoders make of a `.qpk`: the same safetensors bytes, or None if both refuse.

    Anything else, a foreign exception included, is an error.
    """
    try:
        library: bytes | None = b"".join(safetensors_pieces(read(data)))
    except ArtifactError:
        library = None
    try:
        alone: bytes | None = b"".join(decoder.decode(data)[0])
    except decoder.StopError as stop:
        assert stop.args[0] == 4, stop
        alone = None
    assert library == alone, "the two decoders disagree"
    return library
