"""Sums over ranks, in place: one message each, whatever a rank has to give."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor

from qpack.distributed import world_size


def sum_array(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """`values`, to which every rank's are added: each gives zeros where another one knows."""
    if world_size() > 1:
        dist.all_reduce(torch.from_numpy(values))
    return values


def sum_tensors(tensors: Sequence[Tensor]) -> None:
    """Add every rank's `tensors`, of one dtype and device, to these."""
    if world_size() == 1:
        return
    flat = torch.cat([tensor.flatten() for tensor in tensors])
    dist.all_reduce(flat)
    pieces = torch.split(flat, [tensor.numel() for tensor in tensors])
    for tensor, piece in zip(tensors, pieces, strict=True):
        tensor.copy_(piece.view_as(tensor))
