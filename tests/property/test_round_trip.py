"""R1: whatever the format can hold comes back bit for bit, from both decoders, at the said size."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from qpack.artifact.contents import lead_of
from qpack.artifact.encode import encode
from qpack.artifact.layout import WIDTHS
from qpack.artifact.reader import open_artifact, read
from qpack.artifact.unpack import safetensors_pieces
from qpack.artifact.writer import file_bytes, ledger, render
from qpack.codec.registry import resolve
from qpack.tensors import Contents, EmbeddedFile, QuantizedTensor, RawTensor, StoredTensor
from qpack.trellis import STATES
from tests.samples import both, obedient, same

EXAMPLES = 500
NAMES = st.text(
    st.characters(exclude_categories=["C", "Z"]) | st.sampled_from("ab.0/_ "),
    min_size=1,
    max_size=12,
).filter(lambda name: ".." not in name.split("/") and name not in ("__metadata__", "aliases"))


SEEDS = st.integers(0, 2**32 - 1)


def drawn(rng: np.random.Generator, style: str, largest: int, shape: Any, dtype: Any) -> Any:
    """An integer array up to +-`largest`: constant, uniform, extreme, or nearly constant."""
    if style == "constant":
        return np.full(shape, rng.integers(-largest, largest + 1), dtype)
    if style == "extreme":
        return rng.choice([-largest, 0, largest], shape).astype(dtype)
    if style == "sparse":
        return (rng.integers(-largest, largest + 1, shape) * (rng.random(shape) < 0.1)).astype(
            dtype
        )
    return rng.integers(-largest, largest + 1, shape).astype(dtype)


STYLES = st.sampled_from(["constant", "extreme", "sparse", "uniform"])
SHAPES = st.lists(st.sampled_from([0, 1, 2, 3, 5, 8]), max_size=4).map(tuple)


@st.composite
def quantized(draw: Any, name: str) -> QuantizedTensor:
    """Any shape up to rank 4 with any split, any qmax, constant, random or extreme symbols."""
    shape, rng = draw(SHAPES), np.random.default_rng(draw(SEEDS))
    lead = draw(st.integers(0, max(len(shape) - 1, 0)))
    rows, cols = (math.prod(part) for part in (shape[:lead], shape[lead:]))
    qmax = draw(st.sampled_from([1, 15, 31, 127, 128, 32767]))
    octave = draw(st.sampled_from([1, 2, 4, 8, 16, 32, 64]))
    style, dtype = draw(STYLES), np.int8 if qmax < 128 else np.int16
    trellis = draw(st.sampled_from([0, 0, *STATES]))
    integers = drawn(rng, style, qmax, (rows, cols), dtype)
    return QuantizedTensor(
        name=name,
        shape=shape,
        integers=obedient(integers, trellis),
        row_codes=drawn(rng, style, 55 * octave, rows, np.int16),
        col_codes=drawn(rng, style, 55 * octave, cols, np.int16) if draw(st.booleans()) else None,
        octave=octave,
        trellis=trellis,
    )


@st.composite
def raw(draw: Any, name: str) -> RawTensor:
    """Any element type."""
    dtype, shape = draw(st.sampled_from(sorted(WIDTHS))), draw(SHAPES)
    data = np.random.default_rng(draw(SEEDS)).bytes(math.prod(shape) * WIDTHS[dtype])
    return RawTensor(name=name, shape=shape, dtype=dtype, data=data)


@st.composite
def contents(draw: Any) -> Contents:
    """Up to five tensors, aliases of them, metadata, files."""
    names = draw(st.lists(NAMES, unique=True, max_size=7))
    stored, tied = names[:5], names[5:]
    tensors: list[StoredTensor] = [draw(quantized(name) | raw(name)) for name in stored]
    plain = st.from_regex(r"[a-z0-9_][a-z0-9._-]{0,8}", fullmatch=True)
    files = draw(st.lists(plain, unique=True, max_size=2))
    return Contents(
        tensors=tuple(tensors),
        aliases={name: draw(st.sampled_from(stored)) for name in tied},
        metadata=draw(st.dictionaries(NAMES, st.text(st.characters(exclude_categories=["Cs"])))),
        files=tuple(
            EmbeddedFile(
                name=name,
                role=draw(st.sampled_from(["code", "tokenizer"])),
                data=draw(st.binary(max_size=40)),
            )
            for name in files
        ),
    )


def values(contents: Contents) -> Any:
    """Everything but the element type and trellis of integers, which the stream may change."""
    return contents.aliases, contents.metadata, contents.files, [
        (t.name, t.shape, t.octave, t.integers.tolist(), t.row_codes.tolist(), t.col_codes is None)
        if isinstance(t, QuantizedTensor)
        else t.data
        for t in contents.tensors
    ]  # fmt: skip


@settings(max_examples=EXAMPLES)
@given(stored=contents(), codec=st.sampled_from([c.name for c in resolve(None)]))
def test_contents_come_back_bit_for_bit(stored: Contents, codec: str) -> None:
    encoded = encode(stored, codecs=resolve([codec]))
    assert values(encoded.contents) == values(stored)
    data = render(encoded, form="qpk")
    assert len(data) == file_bytes(encoded, "qpk") == sum(n for _, n in ledger(encoded, "qpk"))
    assert same(read(data), encoded.contents)
    assert both(data) == b"".join(safetensors_pieces(stored))
    assert open_artifact(data).layout.decoded_bytes <= 1024 * len(data)


@settings(max_examples=EXAMPLES)
@given(shape=SHAPES)
def test_every_split_of_a_shape_is_found(shape: tuple[int, ...]) -> None:
    for lead in range(max(len(shape), 1)):
        rows = math.prod(shape[:lead])
        cols = math.prod(shape[lead:])
        found = lead_of(shape, rows, cols)
        assert found is not None
        assert math.prod(shape[:found]) == rows
    assert lead_of(shape, 7, 11) is None
