"""What may be learned before what is scored: the order of score-first training at test time.

Target i is token i + 1. Chunk c holds the targets cK to (c + 1)K - 1, and a window belongs to the
chunk of the first target s that it scores (techniques.md 8.3). Before it, the tokens 0 to s are
known and no others, so exactly the chunks with (c + 1)K <= s may be learned from: the last target
of such a chunk is token (c + 1)K, which has been scored. The last chunk never is.

    rate of chunk c of C: (1 + cos(pi c / (C - 1))) / 2

depends on positions and on the number of targets of the whole stream, which is declared before the
first of them is scored, and on nothing in the text.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from qpack.eval.predictor import Tokens

IGNORED = -100
"""Target of a position that is only padding: cross entropy leaves it out."""


@dataclass(frozen=True, slots=True)
class Lesson:
    """Targets `begin` to `end` (exclusive), all of chunk `chunk`, to be learned at `rate`."""

    chunk: int
    begin: int
    end: int
    rate: float
    """Factor of the learning rate, 0 to 1."""


@dataclass(frozen=True, slots=True)
class Moment:
    """What is known where a window begins that bears on what has been learned before it."""

    chunk: int
    """Chunk of the first target that the window scores."""
    document: int
    """Position of the last document's first token; 0 where documents do not matter."""


@dataclass(frozen=True, slots=True)
class Timetable:
    """When a stream of `num_targets` is learned from, in chunks of `chunk_tokens`."""

    num_targets: int
    """Of the whole stream, as declared beforehand."""
    chunk_tokens: int
    bos: int | None = None
    """Token that begins a document, where what was learned is forgotten there."""
    constant: bool = False
    """The rate stays 1, and `num_targets` is of no account."""

    def moments(self, tokens: Tokens, firsts: Sequence[int]) -> list[Moment]:
        """The moment before each window, from the first targets that they score, ascending.

        Only the tokens up to each of those positions are looked at.
        """
        documents = [0] * len(firsts)
        if self.bos is not None and firsts:
            starts = np.flatnonzero(np.asarray(tokens[: firsts[-1] + 1]) == self.bos)
            found = np.searchsorted(starts, firsts, side="right") - 1
            documents = [int(starts[i]) if i >= 0 else 0 for i in found]
        return [
            Moment(first // self.chunk_tokens, document)
            for first, document in zip(firsts, documents, strict=True)
        ]

    def lessons(self, before: Moment, now: Moment) -> Iterator[Lesson]:
        """What is learned between two moments of a stream, in order.

        A document that began inside a chunk leaves only its own part of the chunk.
        """
        size = self.chunk_tokens
        for chunk in range(before.chunk, now.chunk):
            begin, end = max(chunk * size, now.document), (chunk + 1) * size
            if begin < end:
                yield Lesson(chunk, begin, end, self.rate(chunk))

    def rate(self, chunk: int) -> float:
        """Factor of the learning rate after chunk `chunk`."""
        last = -(-self.num_targets // self.chunk_tokens) - 1
        if self.constant or last < 1:
            return 1.0
        return 0.5 * (1.0 + math.cos(math.pi * min(chunk, last) / last))


def sequences(
    tokens: Tokens, begin: int, end: int, *, length: int, bos: int | None = None
) -> tuple[Tensor, Tensor]:
    """Inputs and targets (n, T) int64 of the targets `begin` to `end`, each in one row once.

    Rows are of `length` tokens and follow one another without overlap; what is left over is padded
    on the right with token 0, whose target is `IGNORED`. With `bos`, no row goes on beyond the
    beginning of a document, which is a target of the document before it. T is that of the longest
    row.
    """
    cuts = [begin, end]
    if bos is not None:
        cuts[1:1] = (begin + 1 + np.flatnonzero(tokens[begin + 1 : end] == bos)).tolist()
    spans = [
        (start, min(start + length, stop))
        for first, stop in pairwise(cuts)
        for start in range(first, stop, length)
    ]
    longest = max((stop - start for start, stop in spans), default=0)
    inputs = torch.zeros(len(spans), longest, dtype=torch.int64)
    targets = torch.full_like(inputs, IGNORED)
    for row, (start, stop) in enumerate(spans):
        piece = torch.from_numpy(np.asarray(tokens[start : stop + 1]).astype(np.int64))
        inputs[row, : stop - start], targets[row, : stop - start] = piece[:-1], piece[1:]
    return inputs, targets
