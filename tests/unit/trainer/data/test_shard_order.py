from __future__ import annotations

import math
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from qpack.errors import DataError
from qpack.tokens import write_shard
from qpack.trainer.data.shard_order import SMOOTHING, Bigram, order_shards, sample_blocks

VOCAB = 50


def shard(path: Path, noise: float, *, seed: int, size: int = 60_000) -> Path:
    """A cycle through the vocabulary, of which a share `noise` is replaced by chance."""
    rng = np.random.default_rng(seed)
    tokens = np.arange(size) % VOCAB
    chance = rng.random(size) < noise
    tokens[chance] = rng.integers(0, VOCAB, size)[chance]
    write_shard(path, tokens.astype(np.uint16))
    return path


@pytest.fixture
def shards(tmp_path: Path) -> list[Path]:
    noises = {"c": 0.5, "a": 0.9, "d": 0.0, "b": 0.2}
    return [shard(tmp_path / f"{n}.bin", x, seed=i) for i, (n, x) in enumerate(noises.items())]


@pytest.mark.parametrize(
    ("order", "expected"),
    [("easy", "dbca"), ("hard", "acbd"), ("listed", "cadb"), ("random", "cadb")],
)
def test_the_order_follows_the_difficulty(shards: list[Path], order: str, expected: str) -> None:
    ordered = order_shards(shards, order, vocab_size=VOCAB)
    assert [path.stem for path in ordered.paths] == list(expected)
    assert ordered.report["value"] == order
    assert ordered.report["shards"] == [f"{name}.bin" for name in expected]
    if order in ("easy", "hard"):
        nats = ordered.report["mean_nats"]
        assert nats == sorted(nats, reverse=order == "hard")
        assert min(nats) < 1 < 4 < max(nats)


def test_ties_go_by_name_and_the_listing_does_not_matter(tmp_path: Path) -> None:
    paths = [shard(tmp_path / f"{name}.bin", 0.3, seed=1) for name in "cab"]
    for order in ("easy", "hard"):
        for listed in (paths, paths[::-1]):
            ordered = order_shards(listed, order, vocab_size=VOCAB)
            assert [path.stem for path in ordered.paths] == ["a", "b", "c"]


def test_short_shards_are_named(tmp_path: Path, shards: list[Path]) -> None:
    short = [shard(tmp_path / f"{name}.bin", 0.3, seed=1, size=1000) for name in "xy"]
    with pytest.raises(DataError, match="too short to be ranked") as caught:
        order_shards([*shards, *short], "easy", vocab_size=VOCAB)
    assert caught.value.items == tuple(map(str, short))
    assert order_shards(short, "listed", vocab_size=VOCAB).paths == short


@pytest.mark.parametrize("size", [0, 7, 8, 16, 23, 100, 1000])
def test_what_is_scored_is_never_counted(size: int) -> None:
    counted, held = sample_blocks(np.arange(size, dtype=np.uint16), block=8, blocks=10)
    rows = np.concatenate([counted, held])
    assert len(np.unique(rows)) == rows.size == 8 * min(10, size // 8)
    assert len(counted) - len(held) in (0, 1)
    if size >= 160:
        assert held.max() > 0.8 * size and counted.min() == 0


def test_bigram_against_a_slow_reference() -> None:
    rng = np.random.default_rng(3)
    samples = [rng.integers(0, 7, (4, 9)).astype(np.uint16) for _ in range(2)]
    held = rng.integers(0, 9, (3, 9)).astype(np.uint16)
    counts = np.zeros((9, 9))
    for rows in samples:
        for row in rows:
            for x, y in pairwise(row):
                counts[x, y] += 1
    u = (counts.sum(0) + 1) / (counts.sum() + 9)
    p = (counts + SMOOTHING * u) / (counts.sum(1, keepdims=True) + SMOOTHING)
    assert p.sum(1) == pytest.approx(1.0)
    nats = [-math.log(p[x, y]) for row in held for x, y in pairwise(row)]
    assert Bigram(samples, 9).mean_nats(held) == pytest.approx(np.mean(nats), rel=1e-12)
