"""The order of shards: as listed, or by how well a small model predicts them.

    score = mean of -ln p(y | x) over a sample of the shard,
    p(y | x) = (C_xy + a u_y) / (C_x + a),  u_y = (C_y + 1) / (C + V)

with the counts C of adjacent tokens in another sample, of every shard. #826 ranked shards by the
loss of the model to be trained, before its training: its output projections are zero then, so that
every shard scores about ln V, and the order is chance (`techniques.md` 7.2). This is the version
that does what was described: the proxy is trained, and never on what it scores.

Both samples are blocks spread evenly over the shard, alternately for one and the other. Text of the
kind that most shards hold is what the proxy knows best, and so the easiest.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from qpack.errors import DataError
from qpack.progress import SILENT, Progress
from qpack.tokens import read_shard

Order = Literal["random", "listed", "easy", "hard"]

BLOCK_TOKENS = 512
BLOCKS = 256
"""Of each shard: half of them count, half are scored; 65,536 tokens each."""
SMOOTHING = 64.0
"""a: how many of a token's occurrences its successors' frequencies are worth."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Ordered:
    """Shards in the order in which they are read, and why."""

    paths: list[Path]
    report: dict[str, Any]


def order_shards(
    paths: Sequence[Path], order: Order, *, vocab_size: int, progress: Progress = SILENT
) -> Ordered:
    """The shards `paths` in `order`; `easy` is the lowest mean loss first, ties by name.

    `random` leaves them as listed: windows of all shards are then mixed, by the loader. Raises
    `DataError` naming every shard that is too short to be scored.
    """
    report: dict[str, Any] = {"value": order, "shards": [path.name for path in paths]}
    if order in ("random", "listed"):
        return Ordered(paths=list(paths), report=report)
    with progress.stage("rank shards", total=2 * len(paths), unit="shards") as task:
        samples = []
        for path in paths:
            samples.append(sample_blocks(read_shard(path)))
            task.advance()
        short = [str(path) for path, (_, held) in zip(paths, samples, strict=True) if not held.size]
        if short:
            raise DataError(
                "these shards are too short to be ranked",
                items=short,
                hint=f"give {2 * BLOCK_TOKENS:,} tokens or more in each, or order = 'listed'",
            )
        proxy = Bigram([counted for counted, _ in samples], vocab_size)
        scores = []
        for _, held in samples:
            scores.append(proxy.mean_nats(held))
            task.advance()
    sign = 1 if order == "easy" else -1
    ranked = sorted(
        zip(scores, paths, strict=True), key=lambda pair: (sign * pair[0], pair[1].name)
    )
    report["shards"] = [path.name for _, path in ranked]
    report["mean_nats"] = [score for score, _ in ranked]
    return Ordered(paths=[path for _, path in ranked], report=report)


def sample_blocks(
    tokens: NDArray[np.uint16], *, block: int = BLOCK_TOKENS, blocks: int = BLOCKS
) -> tuple[NDArray[np.uint16], NDArray[np.uint16]]:
    """Two disjoint samples of a shard, (rows, block) each: to count, and to score.

    Of up to `blocks` blocks that lie evenly spread, the even ones and the odd ones.
    """
    count = min(blocks, len(tokens) // block)
    starts = np.linspace(0, len(tokens) - block, count).astype(np.int64).tolist() if count else []
    rows = [np.asarray(tokens[start : start + block]) for start in starts]
    empty = np.zeros((0, block), dtype=np.uint16)
    counted, held = (np.stack(part) if part else empty for part in (rows[::2], rows[1::2]))
    return counted, held


class Bigram:
    """A bigram model of rows of tokens, smoothed by their frequencies; sparse."""

    def __init__(self, samples: Sequence[NDArray[np.uint16]], vocab_size: int) -> None:
        """`samples`, (rows, block) each, are what it counts."""
        self._vocab = vocab_size
        pairs = np.concatenate([_pairs(rows, vocab_size) for rows in samples])
        self._pairs, self._counts = np.unique(pairs, return_counts=True)
        before, after = np.divmod(self._pairs, vocab_size)
        self._before = np.bincount(before, self._counts, minlength=vocab_size)
        frequency = np.bincount(after, self._counts, minlength=vocab_size) + 1.0
        self._frequency = frequency / frequency.sum()

    def mean_nats(self, rows: NDArray[np.uint16]) -> float:
        """Mean of -ln p over adjacent tokens in `rows`, (rows, block)."""
        pairs = _pairs(rows, self._vocab)
        before, after = np.divmod(pairs, self._vocab)
        at = np.minimum(np.searchsorted(self._pairs, pairs), len(self._pairs) - 1)
        counts = np.where(self._pairs[at] == pairs, self._counts[at], 0)
        share = counts + SMOOTHING * self._frequency[after]
        return float(-np.log(share / (self._before[before] + SMOOTHING)).mean())


def _pairs(rows: NDArray[np.uint16], vocab_size: int) -> NDArray[np.int64]:
    """Each two adjacent tokens of a row as one number, x V + y: (pairs,)."""
    wide = rows.astype(np.int64)
    return (wide[:, :-1] * vocab_size + wide[:, 1:]).ravel()
