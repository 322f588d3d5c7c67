"""Training batches: which sequences each step sees, and on which rank.

Sequence i of a run is the (i mod n)-th of epoch i // n, where n is the number of windows. Step s
has sequences s B to s B + B - 1 and rank r of R every R-th of them from the r-th on. All of that is
a pure function of (tokens, seed, step), so a stopped run resumes exactly with no state saved, and
two ranks see together what one would.

How windows are cut is `windows.py` (end to end) or `packed.py` (by document). In an epoch they are
visited in a random order, or by a stride:

    window_j = (first + j s) mod n,  gcd(s, n) = 1,  s nearest to n / golden ratio

which visits each once, and spreads any stretch of steps evenly over the data (the coprime stride of
#1440; `techniques.md` 7.3). Shards are mixed, or read one after another.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from qpack.errors import ConfigError

from .packed import DocumentWindows
from .windows import StreamWindows, Windows

GOLDEN = (1 + math.sqrt(5)) / 2
PLANS_KEPT = 2
"""Epochs whose order is kept: a step's batch spans at most a few, and mostly one."""


class Loader:
    """Batches of `batch` sequences of `sequence` tokens, over all ranks."""

    def __init__(
        self,
        shards: Sequence[NDArray[np.uint16]],
        *,
        sequence: int,
        batch: int,
        seed: int = 0,
        windows: Literal["shuffled", "stride", "documents"] = "shuffled",
        mixed: bool = True,
        bos: int = 1,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        """Of `shards`, (tokens,) uint16 each; `mixed`: all at once, else one after another.

        `bos` begins a document. Raises `DataError` when the tokens are too few, or `windows` is
        "documents" and a shard has none; `ConfigError` when ranks cannot share a batch.
        """
        if batch % world_size:
            raise ConfigError(
                f"a batch of {batch:,} sequences cannot be shared by {world_size} ranks"
            )
        self._windows: Windows = (
            DocumentWindows(shards, sequence, bos=bos)
            if windows == "documents"
            else StreamWindows(shards, sequence)
        )
        self._stride = windows == "stride"
        self._ends = np.cumsum(self._windows.counts)
        self.num_windows = int(self._ends[-1])
        """Sequences in an epoch."""
        self.sequence, self.batch_size, self.seed, self.mixed = sequence, batch, seed, mixed
        self.rank, self.world_size = rank, world_size
        self._plans: dict[int, tuple[int, NDArray[np.int64]]] = {}
        self._lock = threading.Lock()

    def batch(self, step: int, micro: int = 0, num_micro: int = 1) -> tuple[Tensor, Tensor]:
        """Inputs and targets of a part of this rank's share of `step`, from 0.

        (rows, sequence) int64 each; targets of -1 are not to be predicted. Parts are consecutive
        and equal, `num_micro` of them.
        """
        both = torch.from_numpy(self.rows(step, micro, num_micro)).long()
        return both[0], both[1]

    def rows(
        self,
        step: int,
        micro: int = 0,
        num_micro: int = 1,
        *,
        out: NDArray[np.int32] | None = None,
    ) -> NDArray[np.int32]:
        """The same as one array, (2, rows, sequence) int32; `out`, of that shape, is filled."""
        count, left = divmod(self.batch_size, self.world_size * num_micro)
        if left:
            raise ConfigError(
                f"a batch of {self.batch_size:,} sequences cannot be cut into"
                f" {self.world_size} x {num_micro} parts"
            )
        if out is None:
            out = np.empty((2, count, self.sequence), dtype=np.int32)
        first = step * self.batch_size + self.rank + micro * count * self.world_size
        for row in range(count):
            shard, window, offset = self._locate(first + row * self.world_size)
            self._windows.fill(out[:, row], shard, window, offset=offset)
        return out

    def describe(self, step: int) -> str:
        """Where a step's batch comes from, for messages."""
        first = step * self.batch_size
        shard, window, offset = self._locate(first)
        start = self._windows.place(shard, window, offset=offset)
        return (
            f"sequences {first:,} to {first + self.batch_size - 1:,} of the run"
            f" (epoch {first // self.num_windows}), the first at token {start:,} of shard {shard}"
        )

    def _locate(self, index: int) -> tuple[int, int, int]:
        """Shard, window in it, and the epoch's offset, of the `index`-th sequence of the run."""
        epoch, position = divmod(index, self.num_windows)
        offset, order = self._plan(epoch)
        window = int(order[position])
        shard = int(np.searchsorted(self._ends, window, side="right"))
        return shard, window - (int(self._ends[shard - 1]) if shard else 0), offset

    def _plan(self, epoch: int) -> tuple[int, NDArray[np.int64]]:
        """An epoch's offset and the order of its windows, counted over all shards."""
        with self._lock:
            if epoch not in self._plans:
                while len(self._plans) >= PLANS_KEPT:
                    self._plans.pop(next(iter(self._plans)))
                self._plans[epoch] = self._make_plan(epoch)
            return self._plans[epoch]

    def _make_plan(self, epoch: int) -> tuple[int, NDArray[np.int64]]:
        generator = np.random.default_rng([self.seed, epoch])
        offset = int(generator.integers(self.sequence))
        if self.mixed:
            return offset, self._order(self.num_windows, generator)
        counts = self._windows.counts
        parts = [
            end - count + self._order(int(count), generator)
            for end, count in zip(self._ends, counts, strict=True)
        ]
        return offset, np.concatenate(parts)

    def _order(self, count: int, generator: np.random.Generator) -> NDArray[np.int64]:
        """Each of 0 ... `count` - 1 once: (count,) int64."""
        if not self._stride or not count:
            return generator.permutation(count)
        first = int(generator.integers(count))
        return (first + np.arange(count, dtype=np.int64) * coprime_stride(count)) % count


def coprime_stride(count: int) -> int:
    """The number coprime to `count` that is nearest to its golden section; the lower of two."""
    wanted = round(count / GOLDEN)
    near = (wanted + sign * distance for distance in range(count + 1) for sign in (-1, 1))
    return next(stride for stride in near if stride > 0 and math.gcd(stride, count) == 1)
