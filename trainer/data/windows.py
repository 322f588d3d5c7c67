"""Windows of a token stream: disjoint sequences, cut anew in every epoch.

    window w of an epoch holds the pairs (t_i, t_{i+1}),  i = offset + w T ... offset + w T + T - 1

The offset, below T, belongs to the epoch, so that a token does not meet the same end of a window
every time. A shard gives (tokens - T) // T windows whatever the offset; windows never span shards.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from qpack.errors import DataError

IGNORED = -1
"""A target that is not to be predicted."""


class Windows(Protocol):
    """How sequences are cut from shards."""

    @property
    def counts(self) -> NDArray[np.int64]:
        """Windows of each shard in an epoch: (shards,)."""

    def fill(self, out: NDArray[np.int32], shard: int, window: int, *, offset: int) -> None:
        """Write inputs and targets of one window to `out`, (2, sequence) int32.

        `offset`, below `sequence`, is the epoch's.
        """

    def place(self, shard: int, window: int, *, offset: int) -> int:
        """The first token of a window in its shard."""


class StreamWindows:
    """Windows that lie end to end in each shard."""

    def __init__(self, shards: Sequence[NDArray[np.uint16]], sequence: int) -> None:
        """Raises `DataError` when no shard holds a window."""
        # A memory map's own slices are slow: each is an object that knows its file.
        self._shards = [shard.view(np.ndarray) for shard in shards]
        self._sequence = sequence
        sizes = np.array([len(shard) for shard in shards], dtype=np.int64)
        self.counts: NDArray[np.int64] = np.maximum(sizes - sequence, 0) // sequence
        if not self.counts.any():
            raise DataError(
                f"{int(sizes.max(initial=0)):,} tokens are too few for sequences of {sequence:,}",
                hint=f"give at least {2 * sequence:,} tokens in a shard",
            )

    def fill(self, out: NDArray[np.int32], shard: int, window: int, *, offset: int) -> None:
        """See `Windows.fill`."""
        start = self.place(shard, window, offset=offset)
        tokens = self._shards[shard][start : start + self._sequence + 1]
        out[0] = tokens[:-1]
        out[1] = tokens[1:]

    def place(self, shard: int, window: int, *, offset: int) -> int:
        """See `Windows.place`."""
        return offset + window * self._sequence
