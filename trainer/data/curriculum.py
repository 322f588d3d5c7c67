"""Markov curriculum: token weights from a bigram table, by how surprising a token is where much can
follow.

    p(y | x) = (C_xy + .01) / (C_x + .01 V),   s = -ln p(y | x)
    h_x = entropy of row x, min-max normalised over the vocabulary to [0, 1]
    w_t = (1 + P min(s_t h_{x_t} / 5, 1)) / mean

The counts C are of at most 2 M tokens of the first shard. This is the per-token account of #1440's
README; what its program ran was one scalar for each micro-batch, in [1, 1 + P], on a loss whose
gradient was clipped and whose optimizers do not depend on its scale, so that it did nothing
(`techniques.md` 7.1).

The mean is over the targets of the whole step, over all its parts and all ranks, so that the
weights do not depend on how a batch is cut: it is one sum and one count, all-reduced. Only pairs
that were seen are stored; all others of a row have the same probability, and its entropy is exact
without them. Validation is never weighted.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor

from qpack.distributed import world_size
from qpack.errors import DataError

TABLE_TOKENS = 2_000_000
SMOOTHING = 0.01
SCALE_NATS = 5.0
"""Surprise times entropy at which a weight is at its largest."""


class Curriculum:
    """Weights of targets; make one with `from_tokens`. The tables are on the device."""

    def __init__(
        self,
        pairs: Tensor,  # (seen,) int64, x V + y, sorted
        log_counts: Tensor,  # (seen,) float32, ln(C_xy + .01)
        log_totals: Tensor,  # (vocab,) float32, ln(C_x + .01 V)
        entropy: Tensor,  # (vocab,) float32, in [0, 1]
        *,
        power: float,
    ) -> None:
        self._pairs, self._log_counts = pairs, log_counts
        self._log_totals, self._entropy = log_totals, entropy
        self._power = power

    @classmethod
    def from_tokens(
        cls,
        tokens: NDArray[np.uint16],  # (tokens,)
        *,
        vocab_size: int,
        power: float,
        device: torch.device | str = "cpu",
    ) -> Curriculum:
        """The curriculum of power P = `power` whose table counts `tokens`, the first shard's."""
        if len(tokens) < 2:
            raise DataError("the first shard holds no pair of tokens for the curriculum to count")
        wide = np.asarray(tokens[:TABLE_TOKENS]).astype(np.int64)
        pairs, counts = np.unique(wide[:-1] * vocab_size + wide[1:], return_counts=True)
        before = pairs // vocab_size
        totals = np.bincount(before, counts, minlength=vocab_size) + SMOOTHING * vocab_size
        entropy = row_entropy(before, counts + SMOOTHING, totals, vocab_size=vocab_size)
        low, high = entropy.min(), entropy.max()
        span = high - low if high > low else 1.0

        def put(values: NDArray[np.float64]) -> Tensor:
            return torch.from_numpy(values.astype(np.float32)).to(device)

        return cls(
            torch.from_numpy(pairs).to(device),
            put(np.log(counts + SMOOTHING)),
            put(np.log(totals)),
            put((entropy - low) / span),
            power=power,
        )

    def weigh(self, parts: Sequence[tuple[Tensor, Tensor]]) -> list[Tensor]:
        """Weights of each part of a step: float32, the shape of its inputs and targets.

        `parts` are inputs and targets, integers on the device; targets below 0 are not to be
        predicted, weigh 0 and are not in the mean. Under `torchrun` every rank must call this with
        its share of the step.
        """
        raw = [self._raw(inputs.long(), targets.long()) for inputs, targets in parts]
        sums = torch.stack([torch.stack([w.sum(), (w > 0).sum()]) for w in raw]).double().sum(0)
        if world_size() > 1:
            dist.all_reduce(sums)
        # A counted weight is at least 1 before this, so that without any the factor is 0.
        factor = (sums[1] / sums[0].clamp_min(1)).float()
        return [weights * factor for weights in raw]

    def _raw(self, inputs: Tensor, targets: Tensor) -> Tensor:
        """1 + P min(s h / 5, 1), 0 where there is no target."""
        counted = targets >= 0
        pairs = inputs * len(self._entropy) + targets.clamp_min(0)
        at = torch.searchsorted(self._pairs, pairs).clamp_max(len(self._pairs) - 1)
        seen = self._pairs[at] == pairs
        log_count = torch.where(seen, self._log_counts[at], float(np.log(SMOOTHING)))
        surprise = self._log_totals[inputs] - log_count
        share = (surprise * self._entropy[inputs] / SCALE_NATS).clamp_max(1.0)
        return (1.0 + self._power * share) * counted


def row_entropy(
    before: NDArray[np.int64],  # (seen,) x of each pair
    shares: NDArray[np.float64],  # (seen,) C_xy + .01
    totals: NDArray[np.floating[Any]],  # (vocab,) C_x + .01 V
    *,
    vocab_size: int,
) -> NDArray[np.float64]:
    """Entropy of each row of the table, nats, (vocab,): of the pairs seen and of all others."""
    p = shares / totals[before]
    seen = np.bincount(before, -p * np.log(p), minlength=vocab_size)
    unseen = vocab_size - np.bincount(before, minlength=vocab_size)
    rest = SMOOTHING / totals
    entropy: NDArray[np.float64] = seen - unseen * rest * np.log(rest)
    return entropy
