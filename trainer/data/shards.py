"""Documents to token shards: BOS before each document, nothing after."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain

import numpy as np
from numpy.typing import NDArray

from qpack.errors import DataError
from qpack.tokenizer import Tokenizer


def tokenize(documents: Sequence[str], tokenizer: Tokenizer) -> NDArray[np.uint16]:
    """The documents' tokens in a row, each document after a BOS: (tokens,) uint16.

    Raises `DataError` when the tokenizer has no BOS or more tokens than uint16 holds.
    """
    if tokenizer.vocab_size > 1 << 16:
        raise DataError(f"a shard holds tokens below 65,536; got {tokenizer.vocab_size:,}")
    rows = tokenizer.encode_batch(documents)
    stream = chain.from_iterable(chain((tokenizer.bos,), row) for row in rows)
    return np.fromiter(stream, dtype=np.uint16, count=sum(map(len, rows)) + len(rows))
