"""safetensors files: read by the safetensors package, written here so that the bytes are fixed.

The package orders metadata by a hash that differs from process to process.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from qpack.errors import CheckpointError

DTYPES: dict[str, torch.dtype] = {
    "BOOL": torch.bool,
    "U8": torch.uint8,
    "I8": torch.int8,
    "U16": torch.uint16,
    "I16": torch.int16,
    "U32": torch.uint32,
    "I32": torch.int32,
    "U64": torch.uint64,
    "I64": torch.int64,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F32": torch.float32,
    "F64": torch.float64,
}
"""safetensors' names of the dtypes that a checkpoint may hold."""
DTYPE_NAMES = {dtype: name for name, dtype in DTYPES.items()}


def read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and metadata of any safetensors file; CheckpointError if it cannot be read."""
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in sorted(file.keys())}
            return tensors, dict(file.metadata() or {})
    except FileNotFoundError:
        raise CheckpointError(f"{path}: no such file") from None
    except (OSError, SafetensorError, KeyError, AttributeError, TypeError, ValueError) as error:
        # the last four: dtypes that torch does not have
        raise CheckpointError(f"{path}: not a readable safetensors file: {error}") from error


def render_safetensors(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> bytes:
    """A safetensors file: sorted names, 8-byte aligned (the package's own order is not fixed)."""
    header: dict[str, Any] = {"__metadata__": dict(sorted(metadata.items()))}
    order = sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))
    end = 0
    for name in order:  # widest elements first keeps every tensor aligned to its own elements
        tensor = tensors[name]
        begin, end = end, end + tensor.numel() * tensor.element_size()
        header[name] = {
            "dtype": dtype_name(name, tensor),
            "shape": list(tensor.shape),
            "data_offsets": [begin, end],
        }
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    data = (tensor_bytes(tensors[name]) for name in order)
    return b"".join((len(text).to_bytes(8, "little"), text, *data))


def dtype_name(name: str, tensor: Tensor) -> str:
    """safetensors' name of the tensor's dtype; CheckpointError if it has none."""
    if tensor.dtype not in DTYPE_NAMES:
        raise CheckpointError(f"{name}: a checkpoint cannot hold dtype {tensor.dtype}")
    return DTYPE_NAMES[tensor.dtype]


def tensor_bytes(tensor: Tensor) -> memoryview:
    """The elements of `tensor`, row-major, as bytes."""
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().data
