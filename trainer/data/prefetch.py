"""Batches on the device, made by a thread while the steps before them run.

What a step gets is what `Loader` says, whatever was asked for before it: the thread only looks
ahead. On CUDA its arrays are in pinned memory, so that their copy (int32, half of int64's bytes)
overlaps with the device's work.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType

import torch
from torch import Tensor

from .loader import Loader

STEPS_AHEAD = 2
"""Batches made before they are asked for."""


class Prefetcher:
    """A context manager: within it a thread looks ahead; without, batches are made when asked."""

    def __init__(self, loader: Loader, *, parts: int = 1, device: torch.device | str) -> None:
        """A step's share of this rank comes in `parts` parts."""
        self._loader, self._parts = loader, parts
        self._device = torch.device(device)
        self._pool: ThreadPoolExecutor | None = None
        self._ahead: dict[int, Future[Tensor]] = {}

    def __enter__(self) -> Prefetcher:
        self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="qpack-batches")
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._ahead.clear()
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)
            self._pool = None

    def step(self, step: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Inputs and targets of each part of `step`: (rows, sequence) int32, on the device.

        Targets of -1 are not to be predicted.
        """
        whole = self._take(step)
        for part in whole.unbind(0):
            both = part.to(self._device, non_blocking=True)
            yield both[0], both[1]

    def _take(self, step: int) -> Tensor:
        """All parts of `step`; starts on the steps after it."""
        if self._pool is None:
            return self._make(step)
        wanted = range(step, step + 1 + STEPS_AHEAD)
        for stale in [other for other in self._ahead if other not in wanted]:
            self._ahead.pop(stale).cancel()
        for number in wanted:
            if number not in self._ahead:
                self._ahead[number] = self._pool.submit(self._make, number)
        return self._ahead.pop(step).result()

    def _make(self, step: int) -> Tensor:
        """(parts, 2, rows, sequence) int32 on the CPU, pinned for CUDA."""
        loader = self._loader
        rows = loader.batch_size // (loader.world_size * self._parts)
        whole = torch.empty(
            (self._parts, 2, rows, loader.sequence),
            dtype=torch.int32,
            pin_memory=self._device.type == "cuda",
        )
        for part, out in enumerate(whole.numpy()):
            loader.rows(step, part, self._parts, out=out)
        return whole
