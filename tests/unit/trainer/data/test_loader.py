from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from qpack.errors import DataError
from qpack.trainer.data.loader import Loader


def counting(size: int) -> np.ndarray:
    return np.arange(size, dtype=np.uint16)


def test_targets_are_the_next_tokens() -> None:
    inputs, targets = Loader(counting(100), sequence=8, batch=3).batch(0)
    assert inputs.shape == targets.shape == (3, 8)
    assert inputs.dtype == targets.dtype == torch.int64
    assert torch.equal(targets, inputs + 1)
    assert torch.equal(inputs, inputs[:, :1] + torch.arange(8))


@given(st.integers(2, 400), st.integers(1, 40), st.integers(1, 5), st.integers(0, 3))
def test_an_epoch_reads_every_window_once(size: int, sequence: int, batch: int, seed: int) -> None:
    if size < 2 * sequence:
        with pytest.raises(DataError, match="too few"):
            Loader(counting(size), sequence=sequence, batch=batch, seed=seed)
        return
    loader = Loader(counting(size), sequence=sequence, batch=batch, seed=seed)
    total = loader.num_windows
    steps = -(-2 * total // batch)
    starts = [int(row[0]) for step in range(steps) for row in loader.batch(step)[0]]
    for epoch in (starts[:total], starts[total : 2 * total]):
        first = min(epoch)
        assert first < sequence
        assert sorted(epoch) == list(range(first, first + total * sequence, sequence))
    assert size - total * sequence < 2 * sequence


def test_a_batch_depends_on_seed_and_step_alone() -> None:
    first, second = (Loader(counting(500), sequence=8, batch=4, seed=7) for _ in range(2))
    expected = [first.batch(step)[0] for step in range(40)]
    for step in (39, 3, 17, 0):  # across epochs, in any order
        assert torch.equal(second.batch(step)[0], expected[step])
    other = Loader(counting(500), sequence=8, batch=4, seed=8).batch(0)[0]
    assert not torch.equal(other, expected[0])
    assert not torch.equal(expected[0], expected[15])


def test_global_generators_are_left_alone() -> None:
    before = torch.get_rng_state(), np.random.get_state()[1].copy()
    Loader(counting(500), sequence=8, batch=4).batch(0)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert (np.random.get_state()[1] == before[1]).all()
