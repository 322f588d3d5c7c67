"""Rules on decoded values, the same for reader and writer.

Integers are symmetric (the most negative value of their type is invalid), every step is a normal
float32, and no reconstructed value can overflow.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from qpack.tensors import EXPONENT_MAX, EXPONENT_MIN, QuantizedTensor, decode_steps


def value_problems(tensor: QuantizedTensor) -> Iterator[str]:
    """What is wrong with the values of a quantized tensor of valid form; at most a few lines."""
    integers = tensor.integers
    if integers.size and integers.min() == np.iinfo(integers.dtype).min:
        yield f"an integer is {np.iinfo(integers.dtype).min}: grids are symmetric"
    low, high = EXPONENT_MIN * tensor.octave, (EXPONENT_MAX + 1) * tensor.octave - 1
    codes = [("row", tensor.row_codes)]
    if tensor.col_codes is not None:
        codes.append(("column", tensor.col_codes))
    wrong = False
    for what, array in codes:
        if array.size and not low <= int(array.min()) <= int(array.max()) <= high:
            wrong = True
            yield f"a {what} code is outside {low} to {high}"
    if integers.size and not wrong and not _finite(tensor):
        yield "its largest value overflows float32"


def _finite(tensor: QuantizedTensor) -> bool:
    largest = max(int(tensor.integers.max()), -int(tensor.integers.min()))
    with np.errstate(over="ignore"):
        peak = np.float32(largest) * _largest_step(tensor.row_codes, tensor.octave)
        if tensor.col_codes is not None:
            peak = peak * _largest_step(tensor.col_codes, tensor.octave)
    return bool(np.isfinite(peak))


def _largest_step(codes: NDArray[np.int16], octave: int) -> np.float32:
    return np.float32(decode_steps(codes.max(keepdims=True), octave)[0])
