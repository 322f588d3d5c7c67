"""What cannot be stored is named in full; what can is grouped by role."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from qpack.artifact import encode as encode_module
from qpack.artifact.contents import check_contents, group, role_of
from qpack.artifact.encode import encode
from qpack.artifact.limits import DIM_MAX, TENSORS_MAX
from qpack.codec.registry import resolve
from qpack.errors import CheckpointError
from qpack.tensors import Contents, EmbeddedFile, RawTensor
from tests.samples import encoded, quantized, raw, varied

GOOD = quantized("w", 4, 6, col_codes=True)


@pytest.mark.parametrize(
    ("name", "role"),
    [
        ("blocks.3.attn.c_q.weight", "blocks.*.attn.c_q.weight"),
        ("h.10.mlp.0.w", "h.*.mlp.*.w"),
        ("tok_emb.weight", "tok_emb.weight"),
        ("layer3.w", "layer3.w"),
        ("7", "*"),
    ],
)
def test_roles(name: str, role: str) -> None:
    assert role_of(name) == role


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": ""}, "bytes long"),
        ({"name": "a\nb"}, "unprintable"),
        ({"name": "__metadata__"}, "reserved"),
        ({"shape": (4, 7)}, "not a matrix of 4 x 6"),
        ({"shape": (24,)}, "not a matrix"),
        ({"shape": (-4, -6)}, "negative"),
        ({"shape": (1,) * 9}, "rank 9"),
        ({"shape": (DIM_MAX + 1, 0)}, "dimension"),
        ({"integers": np.zeros((4, 6), np.int32)}, "int32"),
        ({"integers": np.zeros(24, np.int8)}, "rank 1"),
        ({"integers": np.full((4, 6), -128, np.int8)}, "symmetric"),
        ({"row_codes": np.zeros(4, np.int64)}, "row codes"),
        ({"row_codes": np.zeros(5, np.int16)}, "row codes"),
        ({"col_codes": np.zeros((1, 6), np.int16)}, "col codes"),
        ({"octave": 3}, "octave 3"),
        ({"row_codes": np.full(4, 128 * 16, np.int16)}, "row code"),
        ({"col_codes": np.full(6, -126 * 16 - 1, np.int16)}, "column code"),
        ({"row_codes": np.full(4, 127 * 16, np.int16)}, "overflows"),
    ],
)
def test_quantized_tensors_that_cannot_be_stored(change: dict[str, Any], message: str) -> None:
    contents = Contents(tensors=(replace(GOOD, **change),), aliases={}, metadata={})
    with pytest.raises(CheckpointError, match=message):
        check_contents(contents)


@pytest.mark.parametrize(
    ("tensor", "message"),
    [
        (raw("w", (2,), "F4", b""), "element type F4"),
        (raw("w", (2,), "F32", b"1234567"), "7 bytes where shape and type take 8"),
    ],
)
def test_raw_tensors_that_cannot_be_stored(tensor: RawTensor, message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        check_contents(Contents(tensors=(tensor,), aliases={}, metadata={}))


def test_all_offenders_are_named() -> None:
    contents = Contents(
        tensors=(replace(GOOD, octave=5), GOOD, replace(GOOD, name="v", shape=(1,))),
        aliases={"x": "nowhere"},
        metadata={"aliases": "", "bad\x00key": "", "text": "\ud800"},
        files=(
            EmbeddedFile(name="a/b", role="code", data=b""),
            EmbeddedFile(name="X", role="virus", data=b""),
            EmbeddedFile(name="x", role="code", data=b""),
        ),
    )
    with pytest.raises(CheckpointError) as caught:
        encode(contents, codecs=resolve(["store"]))
    text = str(caught.value)
    for part in (
        *("octave 5", "(1,)", "'w' is used twice", "nowhere", "reserved", "bad\\x00key"),
        *("not Unicode", "a/b", "virus", "'x' is there twice"),
    ):
        assert part in text


def test_too_many_tensors() -> None:
    tensors = tuple(raw(str(i), (0,), "U8", b"") for i in range(TENSORS_MAX + 1))
    with pytest.raises(CheckpointError, match="tensors and aliases"):
        check_contents(Contents(tensors=tensors, aliases={}, metadata={}))


def test_a_header_that_is_too_large() -> None:
    contents = Contents(tensors=(), aliases={}, metadata={"note": "x" * (1 << 20)})
    with pytest.raises(CheckpointError, match="header takes"):
        encode(contents, codecs=resolve(["store"]))


def test_contents_that_are_too_large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encode_module, "DECODED_BYTES_MAX", 100)
    with pytest.raises(CheckpointError, match="decoded"):
        encode(varied(), codecs=resolve(["store"]))


def test_streams_are_typed_and_grouped_by_role() -> None:
    tensors = (
        quantized("blocks.0.w", 64, 64, seed=1),
        quantized("head", 8, 8),
        quantized("blocks.1.w", 64, 64, seed=2, col_codes=True),
        quantized("blocks.2.w", 64, 64, qmax=300),
        quantized("tail", 8, 8),
        raw("a", (2,), "F32", bytes(8)),
        raw("b", (2,), "F16", bytes(4)),
        raw("c", (2,), "F32", bytes(8)),
    )
    files = (
        EmbeddedFile(name="a.py", role="code", data=b"1"),
        EmbeddedFile(name="t", role="tokenizer", data=b"2"),
        EmbeddedFile(name="b.py", role="code", data=b"3"),
    )
    groups = group(Contents(tensors=tensors, aliases={}, metadata={}, files=files))
    assert [(g.stream.key, g.members) for g in groups] == [
        ("int:blocks.*.w:I8", (0, 2)),
        ("int:blocks.*.w:I16", (3,)),
        ("misc:I8", (1, 4)),
        ("rows", (0, 1, 2, 3, 4)),
        ("cols", (2,)),
        ("raw:F32", (5, 7)),
        ("raw:F16", (6,)),
        ("files:code", (0, 2)),
        ("files:tokenizer", (1,)),
    ]


def test_choices_give_the_same_file_without_trials() -> None:
    first = encoded(varied())
    again = encode(varied(), codecs=resolve(None), choices=first.choices)
    assert (again.header, again.segments) == (first.header, first.segments)
    assert len(again.trials) == len(again.groups) < len(first.trials)


def test_a_constant_tensor_is_stored_in_a_file_that_can_be_read() -> None:
    flat = replace(GOOD, shape=(256, 2048), integers=np.zeros((256, 2048), np.int8),
                   row_codes=np.zeros(256, np.int16), col_codes=None)  # fmt: skip
    parts = encoded(Contents(tensors=(flat,), aliases={}, metadata={}))
    assert parts.layout.decoded_bytes <= 1024 * parts.qpk_bytes
    assert parts.layout.streams[0].codec == 0
    assert parts.choices["int:w:I8"][0] != 0


def test_step_codes_cost_about_their_entropy() -> None:
    from qpack.codec.entropy import zero_order_bits

    tensor = quantized("w", 40_000, 1)
    parts = encoded(Contents(tensors=(tensor,), aliases={}, metadata={}))
    rows = next(s for s in parts.layout.streams if s.kind == "rows")
    assert rows.stored_bytes <= 1.04 * zero_order_bits(tensor.row_codes) / 8
