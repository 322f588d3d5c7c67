"""An artifact -> safetensors, byte for byte what the embedded decoder writes.

Quantized tensors become F32, raw ones stay as they are. Tensors are sorted by element width, the
widest first, then by name, so that every tensor is aligned. Metadata keys are prefixed `qpack.`;
tied tensors are listed as JSON under `qpack.aliases`.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from qpack.artifact.layout import WIDTHS
from qpack.artifact.reader import Source, read
from qpack.artifact.writer import write_atomic, write_pieces
from qpack.errors import InputError, OutputExistsError
from qpack.tensors import Contents, QuantizedTensor, StoredTensor, num_elements


def unpack(
    source: Source,
    out: str | os.PathLike[str],
    *,
    force: bool = False,
    files_dir: str | os.PathLike[str] | None = None,
) -> Contents:
    """Decode `source` into the safetensors file `out`, embedded files into `files_dir` if given.

    Nothing is written before everything is checked. OutputExistsError lists what is in the way.
    """
    outputs = [Path(out)]
    contents = read(source)
    if files_dir is not None:
        folder = Path(files_dir)
        outputs += [folder / file.name for file in contents.files]
    existing = [str(path) for path in outputs if os.path.lexists(path)]
    if existing and not force:
        raise OutputExistsError(
            "outputs exist already", items=existing, hint="--force overwrites them"
        )
    write_pieces(out, safetensors_pieces(contents), force=force)
    if files_dir is not None:
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"cannot make the folder {folder}: {error.strerror}") from error
        for file in contents.files:
            write_atomic(folder / file.name, file.data, force=force)
    return contents


def safetensors_pieces(contents: Contents) -> Iterator[bytes]:
    """The safetensors file, header first, then one piece a tensor."""
    order = sorted(contents.tensors, key=lambda t: (-WIDTHS[_dtype(t)], t.name))
    header: dict[str, Any] = {}
    metadata = {f"qpack.{key}": value for key, value in sorted(contents.metadata.items())}
    if contents.aliases:
        metadata["qpack.aliases"] = json.dumps(
            contents.aliases, sort_keys=True, separators=(",", ":")
        )
    if metadata:
        header["__metadata__"] = metadata
    position = 0
    for tensor in order:
        end = position + num_elements(tensor.shape) * WIDTHS[_dtype(tensor)]
        header[tensor.name] = {
            "dtype": _dtype(tensor),
            "shape": list(tensor.shape),
            "data_offsets": [position, end],
        }
        position = end
    text = json.dumps(header, separators=(",", ":")).encode("ascii")
    text += b" " * (-len(text) % 8)
    yield len(text).to_bytes(8, "little") + text
    for tensor in order:
        if isinstance(tensor, QuantizedTensor):
            yield tensor.dequantize().astype("<f4", copy=False).tobytes()
        else:
            yield tensor.data


def _dtype(tensor: StoredTensor) -> str:
    return "F32" if isinstance(tensor, QuantizedTensor) else tensor.dtype
