"""How much a score on these documents says about others of their kind.

Bits per byte is a ratio of sums over documents. Its standard error is estimated by the bootstrap:
documents are drawn anew with replacement, as many as there are, and the ratio of the new sums is
taken; the standard deviation of those ratios is the error. A gain over a control on the same
documents is the ratio of the differences, and its error that of pairs, which is far smaller than
those of its two sides. Source: Efron and Tibshirani, An Introduction to the Bootstrap (1993), 6.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qpack.eval.documents import documents

REPLICATES = 1_000


def bootstrap_error(
    nats: NDArray[np.float64],  # (documents,)
    num_bytes: NDArray[np.int64],  # (documents,)
    rng: np.random.Generator,
    *,
    replicates: int = REPLICATES,
) -> float | None:
    """Standard error of `sum(nats) / ln 2 / sum(num_bytes)`, in bits per byte.

    None for fewer than two documents, of which nothing follows about others.
    """
    count = len(nats)
    if count < 2:
        return None
    both = np.stack((nats, num_bytes), axis=1)
    ratios = []
    for _ in range(replicates):
        drawn = np.bincount(rng.integers(count, size=count), minlength=count)
        total, length = drawn @ both
        if length:  # only documents without text were drawn
            ratios.append(total / length)
    return float(np.std(ratios, ddof=1)) / math.log(2) if len(ratios) > 1 else None


def by_document(
    values: NDArray[Any],  # (n - 1,): of each of tokens[1:]
    tokens: NDArray[np.integer[Any]],  # (n,)
    bos: int,
) -> NDArray[Any]:
    """Sums of `values` over each document, (documents,): a document's end counts as its own."""
    starts = [start for start, _ in documents(tokens, bos)]
    sums: NDArray[Any] = np.add.reduceat(values, starts)
    return sums
