"""A real artifact of two small tensors, written by the library."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from qpack.artifact.encode import encode
from qpack.artifact.writer import form_of, render
from qpack.codec.registry import resolve
from qpack.tensors import Contents, EmbeddedFile, QuantizedTensor, RawTensor


def contents() -> Contents:
    """Deterministic: the same on every call."""
    integers = np.random.default_rng(0).integers(-31, 32, (8, 16), dtype=np.int8)
    gain = np.linspace(0.5, 1.5, 16, dtype="<f4")
    return Contents(
        tensors=(
            QuantizedTensor(
                name="head.weight",
                shape=(8, 16),
                integers=integers,
                row_codes=np.full(8, -80, dtype=np.int16),
            ),
            RawTensor(name="norm.gain", shape=(16,), dtype="F32", data=gain.tobytes()),
        ),
        aliases={},
        metadata={"model_name": "tiny", "note": "x" * 300},
        files=(EmbeddedFile(name="train.py", role="code", data=b"print(1)\n"),),
    )


def write_artifact(path: Path) -> Path:
    """Write it to `path`, in the form that the suffix names; returns `path`."""
    encoded = encode(contents(), codecs=resolve(None, stdlib_only=True))
    path.write_bytes(render(encoded, form=form_of(path)))
    return path
