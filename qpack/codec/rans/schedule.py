"""The order of symbols in a segment: columns in batches, longest first, one row of each at a step.

A lane runs down a column, so a lane's state of the trellis and its column code belong to one
column. Columns of all members are sorted by their number of rows, longest first, and cut into
batches of at most L. The columns that have a row t are then the first of the batch, and those of
one member are neighbours: a batch is a few `Span`s of members, and blocks of steps over the same
spans are matrices (steps, lanes), cut straight out of the members' own.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from qpack.codec.rans.side import NAME
from qpack.errors import TooLargeError

BLOCK_SYMBOLS = 1 << 17
"""Symbols at most in a block, of several steps: what is prepared at once stays in the cache."""

STEPS_MAX = 1 << 20
"""Steps of a segment: the format's limit, as each takes time however few bits it needs."""
LANES_LOG_MAX = 16
LANES_LOG_USUAL = 11
SYMBOLS_PER_LANE = 8192
"""A lane costs 3 bytes; more lanes than 2^11 gain little speed."""


@dataclass(frozen=True, slots=True)
class Span:
    """Neighbouring columns of one member, and the lane of the first of them."""

    member: int
    first: int
    last: int
    """one past the last column"""
    lane: int

    @property
    def end(self) -> int:
        """One past the last lane."""
        return self.lane + self.last - self.first

    @property
    def lanes(self) -> slice:
        """Where the columns are in a block."""
        return slice(self.lane, self.end)

    @property
    def columns(self) -> slice:
        """Where they are in the member."""
        return slice(self.first, self.last)


@dataclass(frozen=True, slots=True)
class Block:
    """Steps `first` to `last` (one past) of a batch, in all of which the same spans are active."""

    first: int
    last: int
    spans: tuple[Span, ...]

    @property
    def lanes(self) -> int:
        """Active lanes."""
        return self.spans[-1].end

    @property
    def steps(self) -> slice:
        """The rows of the members."""
        return slice(self.first, self.last)


def batches(shapes: Sequence[tuple[int, int]], lanes: int) -> Iterator[tuple[Span, ...]]:
    """The spans of each batch, in the order of decoding. `shapes` are (rows, cols) of members."""
    filled = [member for member, (rows, cols) in enumerate(shapes) if rows and cols]
    batch: list[Span] = []
    lane = 0
    for member in sorted(filled, key=lambda member: -shapes[member][0]):
        column, cols = 0, shapes[member][1]
        while column < cols:
            last = min(cols, column + lanes - lane)
            batch.append(Span(member, column, last, lane))
            lane += last - column
            column = last
            if lane == lanes:
                yield tuple(batch)
                batch, lane = [], 0
    if batch:
        yield tuple(batch)


def blocks(spans: tuple[Span, ...], shapes: Sequence[tuple[int, int]]) -> Iterator[Block]:
    """The blocks of a batch, from the top down."""
    first = 0
    while spans:
        end = shapes[spans[-1].member][0]
        steps = max(1, BLOCK_SYMBOLS // spans[-1].end)
        while first < end:
            last = min(end, first + steps)
            yield Block(first, last, spans)
            first = last
        spans = tuple(span for span in spans if shapes[span.member][0] > end)


def classes(
    block: Block, rows: Sequence[NDArray[np.int64]], cols: Sequence[NDArray[np.int64]]
) -> NDArray[np.int64]:
    """Class of each symbol (steps, lanes), row code plus column code, in units of the codes."""
    out = np.empty((block.last - block.first, block.lanes), np.int64)
    for span in block.spans:
        down, across = rows[span.member][block.steps], cols[span.member][span.columns]
        np.add(down[:, None], across[None, :], out=out[:, span.lanes])
    return out


def code_steps(count: int, lanes: int) -> Iterator[slice]:
    """Steps of `count` class codes: which of them are decoded together."""
    return (slice(at, min(at + lanes, count)) for at in range(0, count, lanes))


def num_steps(shapes: Sequence[tuple[int, int]], lanes: int) -> int:
    """Steps of all class codes and all batches."""
    filled = [(rows, cols) for rows, cols in shapes if rows and cols]
    steps: int = sum(-(-sum(counts) // lanes) for counts in zip(*filled, strict=True))
    lane = 0
    for rows, cols in sorted(filled, reverse=True):
        begun = -(-(lane + cols) // lanes) - -(-lane // lanes)  # batches that this member leads
        steps += rows * begun
        lane += cols
    return steps


def num_lanes(shapes: Sequence[tuple[int, int]]) -> int:
    """A power of two: as many lanes as keep numpy busy and cost next to nothing.

    More where the steps would be over the format's limit; raises `TooLargeError` if nothing helps.
    """
    symbols = sum(rows * cols for rows, cols in shapes)
    columns = sum(cols for rows, cols in shapes if rows)
    most = max(1, min(symbols // SYMBOLS_PER_LANE, columns, 1 << LANES_LOG_USUAL))
    for log in range(most.bit_length() - 1, LANES_LOG_MAX + 1):
        if num_steps(shapes, 1 << log) <= STEPS_MAX:
            return 1 << log
    raise TooLargeError(
        f"{NAME}: {symbols} integers take more than {STEPS_MAX} steps",
        hint="a matrix has too many rows for it; store the integers with another codec",
    )
