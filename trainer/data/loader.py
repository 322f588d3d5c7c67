"""Training sequences in a shuffled order that depends on the step alone.

An epoch cuts the stream into windows that do not overlap, from an offset of its own, and visits
them in a random order. The batch of a step is a pure function of (tokens, seed, step), so a
stopped run resumes exactly, and no state has to be saved.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from qpack.errors import DataError


class Loader:
    """Batches of `batch` sequences of `sequence + 1` tokens of `tokens`, (tokens,) uint16."""

    def __init__(
        self, tokens: NDArray[np.uint16], *, sequence: int, batch: int, seed: int = 0
    ) -> None:
        # An epoch's offset takes up to sequence - 1 tokens, and the last target one more.
        self.num_windows = (len(tokens) - sequence) // sequence
        if self.num_windows < 1:
            raise DataError(
                f"{len(tokens):,} tokens are too few for sequences of {sequence:,}",
                hint=f"give at least {2 * sequence:,} tokens",
            )
        self.tokens = tokens
        self.sequence = sequence
        self.batch_size = batch
        self.seed = seed
        self._epoch = -1
        self._starts = np.zeros(0, dtype=np.int64)

    def batch(self, step: int) -> tuple[Tensor, Tensor]:
        """Inputs and targets of `step`, from 0: (batch, sequence) int64 each."""
        first = step * self.batch_size
        rows = np.stack(
            [
                self.tokens[start : start + self.sequence + 1]
                for start in (self._start(i) for i in range(first, first + self.batch_size))
            ]
        )
        both = torch.from_numpy(rows.astype(np.int64))
        return both[:, :-1], both[:, 1:]

    def _start(self, index: int) -> int:
        """First token of the `index`-th sequence of the run."""
        epoch, position = divmod(index, self.num_windows)
        if epoch != self._epoch:
            generator = np.random.default_rng([self.seed, epoch])
            offset = int(generator.integers(self.sequence))
            self._starts = offset + self.sequence * generator.permutation(self.num_windows)
            self._epoch = epoch
        return int(self._starts[position])
