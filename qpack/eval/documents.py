"""Documents of a stream, each scored in its own context.

A document begins at each BOS token; what comes before the first one is a document too. Its inputs
are its own tokens and its targets are the tokens after each of them, so the last target is the BOS
of the next document: that BOS is the document's end, predicted from this document alone. Its nats
count, it stands for no bytes, and as an input it is the first of the next document. So every token
of the stream but the first is scored once, and no prediction sees another document.
Source: `techniques.md` 8.4, where documents are the context of adapters.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qpack.errors import DataError
from qpack.eval.windows import Window, windows


def document_starts(tokens: NDArray[np.integer[Any]], bos: int) -> list[int]:
    """Where each document of `tokens` (n,) begins, in order; the first one at 0."""
    marks = np.flatnonzero(np.asarray(tokens) == bos).tolist()
    return marks if marks and marks[0] == 0 else [0, *marks]


def documents(tokens: NDArray[np.integer[Any]], bos: int) -> list[tuple[int, int]]:
    """(start, num_targets) of every document of `tokens` (n,) that has a target, in order.

    Inputs are `tokens[start : start + num_targets]`, targets are one further.
    """
    edges = [*document_starts(tokens, bos), len(tokens) - 1]
    return [(start, end - start) for start, end in pairwise(edges) if end > start]


def document_windows(
    tokens: NDArray[np.integer[Any]], bos: int, *, window: int, stride: int | None = None
) -> list[Window]:
    """Windows over the targets of `tokens` (n,), none of them reaching over a document's beginning.

    In each document as in `windows`. Raises as it does.
    """
    if len(tokens) < 2:
        raise DataError(f"{len(tokens)} tokens hold no target to score", hint="give a longer shard")
    return [
        replace(item, start=start + item.start)
        for start, num_targets in documents(tokens, bos)
        for item in windows(num_targets + 1, window=window, stride=stride)
    ]
