"""torch tensors as stored tensors and back: the one place that knows both sides' dtypes."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from qpack.errors import CheckpointError
from qpack.tensors import QuantizedTensor, RawTensor, StoredTensor

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
"""By safetensors' names: the dtypes that a checkpoint or an artifact may hold."""
DTYPE_NAMES = {dtype: name for name, dtype in DTYPES.items()}


def dtype_name(name: str, tensor: Tensor) -> str:
    """safetensors' name of the dtype of the tensor `name`; CheckpointError if it has none."""
    if tensor.dtype not in DTYPE_NAMES:
        raise CheckpointError(f"{name}: dtype {tensor.dtype} cannot be stored")
    return DTYPE_NAMES[tensor.dtype]


def check_dtypes(tensors: Mapping[str, Tensor]) -> None:
    """Raise CheckpointError naming every tensor whose dtype cannot be stored."""
    alien = [f"{name}: {t.dtype}" for name, t in tensors.items() if t.dtype not in DTYPE_NAMES]
    if alien:
        raise CheckpointError("tensors of dtypes that cannot be stored", items=alien)


def tensor_bytes(tensor: Tensor) -> memoryview:
    """The elements of `tensor`, row-major, as bytes; shares memory where it can."""
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().data


def to_raw(name: str, tensor: Tensor) -> RawTensor:
    """`tensor` stored as it is; CheckpointError for a dtype that cannot be."""
    return RawTensor(
        name=name,
        shape=tuple(tensor.shape),
        dtype=dtype_name(name, tensor),
        data=tensor_bytes(tensor).tobytes(),
    )


def to_torch(tensor: StoredTensor) -> Tensor:
    """The decoded tensor on the CPU: float32 where quantized, else in its stored dtype."""
    if isinstance(tensor, QuantizedTensor):
        return torch.from_numpy(tensor.dequantize())
    dtype = DTYPES[tensor.dtype]
    if not tensor.data:  # frombuffer takes no empty buffer
        return torch.empty(tensor.shape, dtype=dtype)
    # bytearray: torch warns of memory that it must not write to
    return torch.frombuffer(bytearray(tensor.data), dtype=dtype).reshape(tensor.shape)
