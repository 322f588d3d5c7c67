from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from qpack.artifact.layout import WIDTHS
from qpack.errors import CheckpointError
from qpack.tensors import QuantizedTensor, RawTensor
from qpack.torch_tensors import DTYPES, dtype_name, tensor_bytes, to_raw, to_torch


@given(
    st.sampled_from(sorted(DTYPES)),
    st.lists(st.integers(0, 5), max_size=4),
    st.integers(0, 2**32),
)
def test_every_dtype_and_shape_comes_back_bit_for_bit(
    dtype: str, shape: list[int], seed: int
) -> None:
    num_bytes = math.prod(shape) * WIDTHS[dtype]
    data = np.random.default_rng(seed).integers(0, 256, num_bytes, dtype=np.uint8)
    if dtype == "BOOL":
        data &= 1
    raw = RawTensor(name="w", shape=tuple(shape), dtype=dtype, data=data.tobytes())
    tensor = to_torch(raw)
    assert tensor.dtype == DTYPES[dtype]
    assert tuple(tensor.shape) == raw.shape
    again = to_raw("w", tensor)
    assert (again.name, again.shape, again.dtype) == (raw.name, raw.shape, raw.dtype)
    assert again.data == raw.data


def test_the_artifact_and_torch_know_the_same_dtypes() -> None:
    assert {name: dtype.itemsize for name, dtype in DTYPES.items()} == WIDTHS


def test_elements_are_row_major_whatever_the_strides() -> None:
    tensor = torch.arange(6, dtype=torch.int16).view(2, 3).T
    assert bytes(tensor_bytes(tensor)) == np.array([0, 3, 1, 4, 2, 5], "<i2").tobytes()
    assert bytes(tensor_bytes(torch.nn.Parameter(torch.tensor(1.0)))) == b"\x00\x00\x80\x3f"


def test_a_dtype_that_cannot_be_stored_is_named() -> None:
    with pytest.raises(CheckpointError, match=r"phase: dtype torch\.complex64"):
        dtype_name("phase", torch.zeros(1, dtype=torch.complex64))


def test_a_quantized_tensor_is_decoded() -> None:
    tensor = QuantizedTensor(
        name="w",
        shape=(2, 3),
        integers=np.array([[1, -2, 3], [4, 5, -6]], np.int8),
        row_codes=np.array([0, -16], np.int16),
    )
    assert to_torch(tensor).tolist() == [[1.0, -2.0, 3.0], [2.0, 2.5, -3.0]]
