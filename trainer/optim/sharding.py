"""A stack of tensors shared by ranks: summed to its owners, gathered from them.

A stack (n, ...) is padded with zeros to a multiple of the world and cut into equal runs; rank r
owns the r-th. Both directions begin at once and are waited for later, so that messages travel while
something else is computed. With one rank nothing moves.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from qpack.distributed import rank, world_size

BUCKET_BYTES = 32 << 20
"""Gradients that are summed whole travel in messages of about this."""

Wait = Callable[[], Tensor]


class Share:
    """Which of `count` tensors this rank owns."""

    def __init__(self, count: int) -> None:
        self.count = count
        self.world = world_size()
        self.each = -(-count // self.world)
        """Tensors a rank, padding counted."""
        self.padding = self.each * self.world - count
        first = min(rank() * self.each, count)
        self.own = range(first, min(first + self.each, count))
        """Indices of this rank's tensors, without padding: none on the last ranks of a large
        world."""

    def reduce(self, padded: Tensor) -> Wait:
        """Begin to add `padded` (each x world, ...) over ranks; the answer is (each, ...)."""
        if self.world == 1:
            return lambda: padded
        shape = (self.each, *padded.shape[1:])
        if not _nccl(padded):
            # gloo lacks reduce-scatter in some builds. The sum of everything holds the same sums.
            work = dist.all_reduce(padded, async_op=True)
            return lambda: _after(work, padded.view(self.world, *shape)[rank()])
        out = padded.new_empty(shape)
        work = dist.reduce_scatter_tensor(out, padded, async_op=True)
        return lambda: _after(work, out)

    def gather(self, owned: Tensor) -> Wait:
        """Begin to collect every rank's `owned` (each, ...); the answer is (count, ...)."""
        if self.world == 1:
            return lambda: owned
        out = owned.new_empty((self.each * self.world, *owned.shape[1:]))
        work = dist.all_gather_into_tensor(out, owned.contiguous(), async_op=True)
        return lambda: _after(work, out[: self.count])


def sum_whole(tensors: Sequence[Tensor]) -> Callable[[], list[Tensor]]:
    """Begin to add each of `tensors` over ranks; the answer has them in the same order.

    They travel flat, several in one message, and come back as parts of it.
    """
    if world_size() == 1:
        return lambda: list(tensors)
    parts = []
    for bucket in _buckets(tensors):
        flat = torch.cat([tensor.flatten() for tensor in bucket])
        parts.append((bucket, flat, dist.all_reduce(flat, async_op=True)))

    def wait() -> list[Tensor]:
        summed = []
        for bucket, flat, work in parts:
            pieces = torch.split(_after(work, flat), [tensor.numel() for tensor in bucket])
            summed += [p.view(t.shape) for p, t in zip(pieces, bucket, strict=True)]
        return summed

    return wait


def _buckets(tensors: Sequence[Tensor]) -> list[list[Tensor]]:
    """Runs of `tensors` of one dtype, each of at most `BUCKET_BYTES` or one tensor."""
    buckets: list[list[Tensor]] = []
    room = 0
    for tensor in tensors:
        room -= tensor.nbytes
        if not buckets or room < 0 or tensor.dtype != buckets[-1][0].dtype:
            buckets.append([])
            room = BUCKET_BYTES - tensor.nbytes
        buckets[-1].append(tensor)
    return buckets


def _nccl(tensor: Tensor) -> bool:
    return tensor.is_cuda and dist.get_backend() != "gloo"


def _after(work: dist.Work | None, tensor: Tensor) -> Tensor:
    """`tensor` once `work` is done with it; on CUDA it is the stream that waits."""
    assert work is not None, "an asynchronous collective returns its work"
    work.wait()
    return tensor
