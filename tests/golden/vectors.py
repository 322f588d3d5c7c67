"""What the golden files hold: at least two of each codec, every element type, every edge.

`python -m tests.golden.vectors` writes missing files; it never changes one that exists, because a
released file must stay readable for good.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np

from qpack.artifact.layout import WIDTHS
from qpack.artifact.unpack import safetensors_pieces
from qpack.tensors import Contents, EmbeddedFile, QuantizedTensor, StoredTensor
from tests.golden.rans_vectors import HANDMADE, handmade
from tests.samples import artifact, quantized, raw, small, varied

FOLDER = Path(__file__).parent / "vectors"
INDEX = FOLDER / "index.json"


def contents(*tensors: StoredTensor, metadata: dict[str, str] | None = None) -> Contents:
    """Contents of tensors alone."""
    return Contents(tensors=tensors, aliases={}, metadata=metadata or {})


def extremes() -> QuantizedTensor:
    """The largest and smallest of everything."""
    return QuantizedTensor(
        name="extremes",
        shape=(2, 3),
        integers=np.array([[-127, 0, 127], [1, -1, 0]], np.int8),
        row_codes=np.array([-126 * 64, 120 * 64], np.int16),
        col_codes=np.array([-64, 0, 63], np.int16),
        octave=64,
    )


def typed() -> Contents:
    """A raw tensor of every element type."""
    tensors = [raw(d, (2, 3), d, bytes(range(6 * w))) for d, w in WIDTHS.items()]
    return contents(*tensors)


CASES: dict[str, tuple[Contents, str]] = {
    **{f"small-{c}": (small(), c) for c in ("store", "lzma", "lzma-raw", "brotli", "zstd")},
    **{f"varied-{c}": (varied(), c) for c in ("store", "lzma", "lzma-raw", "brotli", "zstd")},
    "empty": (contents(), "store"),
    "metadata-only": (contents(metadata={"note": "line\nbreak \u00e9 \U0001f600"}), "store"),
    "one-element": (contents(quantized("w", 1, 1)), "store"),
    "scalar": (contents(quantized("w", 1, 1, shape=())), "brotli"),
    "vector": (contents(quantized("w", 1, 9, shape=(9,))), "zstd"),
    "no-rows": (contents(quantized("w", 0, 5)), "store"),
    "no-columns": (contents(quantized("w", 5, 0)), "store"),
    "rank-8": (contents(quantized("w", 4, 8, shape=(1, 2, 2, 2, 1, 2, 1, 2))), "lzma-raw"),
    "per-tensor-step": (contents(quantized("w", 1, 12, shape=(3, 4))), "store"),
    "int16": (contents(quantized("w", 64, 48, qmax=900, col_codes=True)), "lzma"),
    "int16-brotli": (contents(quantized("w", 64, 48, qmax=900, col_codes=True)), "brotli"),
    "extremes": (contents(extremes()), "store"),
    "every-type": (typed(), "store"),
    "every-type-brotli": (typed(), "brotli"),
    "longest-name": (contents(quantized("n" * 512, 2, 2)), "store"),
    "unicode-name": (contents(quantized("\u03b1.\u4e2d.\U0001f600", 2, 2)), "store"),
    "tied": (
        Contents(tensors=(quantized("a", 4, 4),), aliases={"b": "a", "c": "a"}, metadata={}),
        "zstd",
    ),
    "files": (
        Contents(
            tensors=(),
            aliases={},
            metadata={},
            files=(
                EmbeddedFile(name="a.py", role="code", data=b"import sys\n" * 20),
                EmbeddedFile(name="empty.py", role="code", data=b""),
                EmbeddedFile(name="t.model", role="tokenizer", data=bytes(range(64))),
            ),
        ),
        "brotli",
    ),
    "octaves": (contents(*(quantized(f"o{o}", 3, 5, octave=o) for o in (1, 2, 4, 8, 32))), "store"),
}


def main() -> None:
    """Write the files that are not there yet."""
    FOLDER.mkdir(exist_ok=True)
    index = json.loads(INDEX.read_text()) if INDEX.exists() else {}
    for name, (held, codec) in CASES.items():
        path = FOLDER / f"{name}.qpk"
        if not path.exists():
            path.write_bytes(artifact(held, codec=codec))
            weights = b"".join(safetensors_pieces(held))
            index[name] = {"weights_sha256": hashlib.sha256(weights).hexdigest()}
    for name in HANDMADE:
        path = FOLDER / f"{name}.qpk"
        if not path.exists():
            held, data = handmade(name)
            path.write_bytes(data)
            weights = b"".join(safetensors_pieces(held))
            index[name] = {"weights_sha256": hashlib.sha256(weights).hexdigest()}
    INDEX.write_text(json.dumps(index, indent=1, sort_keys=True) + "\n")


if __name__ == "__main__":
    main()
