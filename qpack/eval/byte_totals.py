"""Do the bytes that a score is divided by add up to the text? (techniques.md 8.1)

The tokenizer counts bytes token by token; the text itself is what it decodes whole documents to.
The two are independent, and each of the four known mistakes in counting shows as a difference.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from qpack.tokenizer import Tokenizer

REPLACEMENT = "\ufffd"
"""What part of a character decodes to."""


def byte_gap(tokens: NDArray[np.integer[Any]], tokenizer: Tokenizer) -> int:
    """Bytes by which the count over `tokens` (n,) and the length of their texts differ, summed.

    A document is what stands between two boundaries. Tokens at its edges that are part of a
    character only, because the stream was cut there, are left out.
    """
    boundaries = np.flatnonzero(tokenizer.boundary[tokens])
    runs = np.split(tokens, boundaries)
    first_boundary = int(np.flatnonzero(tokenizer.boundary)[0])
    return sum(_run_gap(run, tokenizer, first_boundary) for run in runs)


def _run_gap(run: NDArray[np.integer[Any]], tokenizer: Tokenizer, boundary: int) -> int:
    if len(run) and tokenizer.boundary[run[0]]:
        run = run[1:]
    text = tokenizer.decode(run.tolist())
    while len(run) and text.endswith(REPLACEMENT):
        run = run[:-1]
        text = tokenizer.decode(run.tolist())
    while len(run) and text.startswith(REPLACEMENT):
        run = run[1:]
        text = tokenizer.decode(run.tolist())
    counted = tokenizer.text_bytes(np.concatenate(([boundary], run)))
    return abs(counted - len(text.encode()))
