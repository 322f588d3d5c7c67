from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from qpack.errors import ConfigError, DataError
from qpack.trainer.data.loader import Loader, coprime_stride

SCHEMES = ("shuffled", "stride", "documents")


def counting(size: int, start: int = 0) -> np.ndarray:
    return np.arange(start, start + size, dtype=np.uint16)


def documents(*lengths: int, start: int = 2) -> np.ndarray:
    """Documents of these lengths, BOS (1) included; all other tokens are distinct."""
    parts = []
    for length in lengths:
        parts.append([1, *range(start, start + length - 1)])
        start += length - 1
    return np.array([token for part in parts for token in part], dtype=np.uint16)


def text() -> list[np.ndarray]:
    """Three shards of documents."""
    rng = np.random.default_rng(5)
    return [documents(*rng.integers(2, 40, size=12).tolist(), start=500 * i + 2) for i in range(3)]


def epoch_of(loader: Loader, epoch: int) -> list[tuple[Any, ...]]:
    """Rows of an epoch as (inputs, targets) tuples; the loader's batches are of one sequence."""
    steps = range(epoch * loader.num_windows, (epoch + 1) * loader.num_windows)
    return [tuple(tuple(part[0].tolist()) for part in loader.batch(step)) for step in steps]


def test_targets_are_the_next_tokens() -> None:
    inputs, targets = Loader([counting(100)], sequence=8, batch=3).batch(0)
    assert inputs.shape == targets.shape == (3, 8)
    assert inputs.dtype == targets.dtype == torch.int64
    assert torch.equal(targets, inputs + 1)
    assert torch.equal(inputs, inputs[:, :1] + torch.arange(8))


@given(
    st.lists(st.integers(1, 200), min_size=1, max_size=4),
    st.integers(1, 40),
    st.integers(1, 5),
    st.integers(0, 3),
    st.sampled_from(("shuffled", "stride")),
    st.booleans(),
)
def test_an_epoch_reads_every_window_once(
    sizes: list[int], sequence: int, batch: int, seed: int, windows: Any, mixed: bool
) -> None:
    shards = [counting(size, 1000 * i) for i, size in enumerate(sizes)]
    options = {"sequence": sequence, "batch": batch, "seed": seed, "windows": windows}
    if max(sizes) < 2 * sequence:
        with pytest.raises(DataError, match="too few"):
            Loader(shards, **options)
        return
    loader = Loader(shards, mixed=mixed, **options)
    total = loader.num_windows
    steps = -(-2 * total // batch)
    starts = [int(row[0]) for step in range(steps) for row in loader.batch(step)[0]]
    for epoch in (starts[:total], starts[total : 2 * total]):
        expected = [
            1000 * i + min(epoch) % 1000 + w * sequence
            for i, size in enumerate(sizes)
            for w in range(max(size - sequence, 0) // sequence)
        ]
        assert min(epoch) % 1000 < sequence
        assert sorted(epoch) == sorted(expected)
        if not mixed:
            assert [start // 1000 for start in epoch] == sorted(s // 1000 for s in epoch)


def test_mixing_interleaves_shards() -> None:
    shards = [counting(1000), counting(1000, 10_000)]
    loader = Loader(shards, sequence=8, batch=1)
    first = [row[0][0] // 10_000 for row in epoch_of(loader, 0)[: loader.num_windows // 4]]
    assert set(first) == {0, 1}


@pytest.mark.parametrize("windows", SCHEMES)
def test_every_target_counts_once_an_epoch(windows: Any) -> None:
    shards = text()
    loader = Loader(shards, sequence=16, batch=1, windows=windows)
    for epoch in range(2):
        pairs = [
            (before, after)
            for inputs, targets in epoch_of(loader, epoch)
            for before, after in zip(inputs, targets, strict=True)
            if after != -1
        ]
        real = [pair for shard in shards for pair in pairwise(shard)]
        assert len(set(pairs)) == len(pairs)
        assert set(pairs) <= set(real)
        lost = len(real) - len(pairs)
        assert lost == 0 if windows == "documents" else lost < 2 * 16 * len(shards)


@pytest.mark.parametrize("windows", SCHEMES)
def test_a_batch_depends_on_seed_and_step_alone(windows: Any) -> None:
    options = {"sequence": 8, "batch": 4, "windows": windows}
    first, second = (Loader(text(), seed=7, **options) for _ in range(2))
    expected = [first.batch(step) for step in range(60)]
    for step in (59, 3, 17, 0):  # across epochs, in any order
        assert all(map(torch.equal, second.batch(step), expected[step]))
    other = Loader(text(), seed=8, **options).batch(0)[0]
    assert not torch.equal(other, expected[0][0])


@pytest.mark.parametrize("windows", SCHEMES)
@pytest.mark.parametrize(("ranks", "parts"), [(2, 1), (2, 3), (4, 1), (1, 6)])
def test_ranks_and_parts_share_what_one_would_see(windows: Any, ranks: int, parts: int) -> None:
    options = {"sequence": 8, "batch": 12, "windows": windows, "seed": 3}
    alone = Loader(text(), **options)
    together = [Loader(text(), rank=r, world_size=ranks, **options) for r in range(ranks)]
    for step in range(8):
        for whole, side in zip(alone.batch(step), (0, 1), strict=True):
            for rank, loader in enumerate(together):
                rows = [loader.batch(step, part, parts)[side] for part in range(parts)]
                assert torch.equal(torch.cat(rows), whole[rank::ranks])


def test_batches_that_cannot_be_shared() -> None:
    with pytest.raises(ConfigError, match="shared by 3 ranks"):
        Loader([counting(100)], sequence=8, batch=4, world_size=3)
    with pytest.raises(ConfigError, match="cut into 2 x 3 parts"):
        Loader([counting(100)], sequence=8, batch=8, world_size=2).batch(0, 0, 3)


@given(st.integers(1, 3000))
def test_strides_are_coprime_and_near_the_golden_section(count: int) -> None:
    stride = coprime_stride(count)
    assert math.gcd(stride, count) == 1
    wanted = round(count / ((1 + math.sqrt(5)) / 2))
    nearer = range(max(1, wanted - abs(stride - wanted) + 1), wanted + abs(stride - wanted))
    assert all(math.gcd(other, count) > 1 for other in nearer)


def test_a_strides_batches_are_spread_evenly() -> None:
    loader = Loader([counting(8001)], sequence=8, batch=50, windows="stride")
    starts = np.sort([row[0] for row in loader.batch(0)[0].tolist()])
    assert np.diff(starts).max() < 2.7 * 8000 / 50  # three-distance theorem; random: about 4.5


def test_a_batch_is_described() -> None:
    loader = Loader([counting(100), counting(100)], sequence=8, batch=4, seed=1, mixed=False)
    described = loader.describe(4)
    start = int(loader.batch(4)[0][0, 0])
    assert described == (
        f"sequences 16 to 19 of the run (epoch 0), the first at token {start:,} of shard 1"
    )


def test_global_generators_are_left_alone() -> None:
    before = torch.get_rng_state(), np.random.get_state()[1].copy()
    Loader([counting(500)], sequence=8, batch=4).batch(0)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert (np.random.get_state()[1] == before[1]).all()
