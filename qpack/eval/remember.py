"""A model that remembers its outputs, for the float model beside which many others are scored.

A sweep, a benchmark and tuning run the float model on the same batches again and again. Its outputs
are kept, up to a limit of memory, and given back when the same batch comes.
"""

from __future__ import annotations

import hashlib
from typing import Any

import torch
from torch import Tensor, nn

from qpack.errors import ConfigError
from qpack.torch_tensors import tensor_bytes

LIMIT_BYTES = 1 << 30
"""Outputs kept: a million logits of 1,024 pieces take 4 GB, so 262,144 tokens of such a model."""


class Remembering(nn.Module):
    """`model`, in evaluation and without gradients; equal batches are computed once."""

    def __init__(self, model: nn.Module, *, limit_bytes: int = LIMIT_BYTES) -> None:
        """Keeps at most `limit_bytes` of outputs; what comes after that is computed every time."""
        super().__init__()
        self.model = model
        self.vocab_size = getattr(model, "vocab_size", None)
        self._left_bytes = limit_bytes
        self._known: dict[bytes, Tensor] = {}

    def forward(self, batch: Tensor) -> Tensor:
        """The model's first output for `batch`, on the batch's device."""
        key = _key(batch)
        if key not in self._known:
            with torch.no_grad():
                output = first_output(self.model(batch))
            if output.nbytes > self._left_bytes:
                return output
            self._left_bytes -= output.nbytes
            self._known[key] = output
        return self._known[key]


def first_output(output: Any) -> Tensor:
    """A module's output, or the first of several. ConfigError if that is no tensor."""
    while isinstance(output, tuple | list):
        output = output[0]
    if not isinstance(output, Tensor):
        raise ConfigError(f"the module returns {type(output).__name__}, not a tensor")
    return output


def _key(batch: Tensor) -> bytes:
    digest = hashlib.sha256(f"{batch.dtype} {tuple(batch.shape)}".encode())
    digest.update(tensor_bytes(batch))
    return digest.digest()
