"""Codes find the scales that there are, and are equal where there are none to find."""

from __future__ import annotations

import numpy as np
import pytest

from qpack.codec.rans.classes import FEW_SYMBOLS, choose
from qpack.codec.rans.model import Coding, coding, segment_bytes

from .samples import Matrix, gaussian


def one_class(matrices: list[Matrix], trellis: list[int]) -> Coding:
    """The same matrices without codes."""
    rows, cols = ([np.zeros(m.shape[axis], np.int64) for m in matrices] for axis in (0, 1))
    return coding(matrices, trellis, rows, cols)


@pytest.mark.parametrize("states", [0, 8])
def test_codes_follow_scales(states: int) -> None:
    rng = np.random.default_rng(0)
    loud = np.repeat([1.0, 8.0], 200)
    k = np.rint(rng.normal(size=(400, 600)) * loud[:, None] * np.repeat([1, 2], 300)).astype(int)
    matrix = 2 * k if states else k
    plan = choose([matrix.astype(np.int16)], [states])
    down, across = plan.rows[0], plan.cols[0]
    unit = float(np.median(down[200:]) - np.median(down[:200])) / 3  # codes to an octave
    assert unit >= 1
    assert np.ptp(down[:200]) <= 1 and np.ptp(down[200:]) <= 1
    assert np.median(across[300:]) - np.median(across[:300]) == unit


def test_equal_scales_have_one_class() -> None:
    rng = np.random.default_rng(1)
    matrices = [gaussian(rng, (500, 400), 0, scale=2.0, spread=0.0) for _ in range(2)]
    assert choose(matrices, [0, 0]).classes == 1


def test_a_tiny_matrix_has_one_class() -> None:
    rng = np.random.default_rng(2)
    assert choose([gaussian(rng, (20, 10), 0, scale=2.0, spread=1.0)], [0]).classes == 1


def test_it_is_never_longer_than_one_class() -> None:
    for seed, shape in enumerate([(5, 5), (60, 20), (300, 100)]):
        rng = np.random.default_rng(seed)
        matrices = [gaussian(rng, shape, s, scale=1.0, spread=0.5) for s in (0, 8)]
        chosen, plain = choose(matrices, [0, 8]), one_class(matrices, [0, 8])
        assert segment_bytes(chosen) <= segment_bytes(plain)


def test_levels_of_matrices_are_told_apart() -> None:
    rng = np.random.default_rng(3)
    matrices = [gaussian(rng, (200, 200), 0, scale=s, spread=0.0) for s in (0.3, 1.5, 12.0)]
    plan = choose(matrices, [0, 0, 0])
    assert segment_bytes(plan) < 0.97 * segment_bytes(one_class(matrices, [0, 0, 0]))


def test_extreme_scales_fit_into_all_classes() -> None:
    """Rows from all 0 to int16's limits, in a matrix that is over what coarser units are for."""
    rng = np.random.default_rng(4)
    scales = 2.0 ** rng.uniform(-12, 13, 2048)
    matrix = np.rint(rng.normal(size=(2048, 2200)) * scales[:, None]).clip(-32767, 32767)
    assert matrix.size > FEW_SYMBOLS
    plan = choose([matrix.astype(np.int16)], [0])
    assert 16 <= plan.classes <= 64
    assert all(int(codes[0].min()) == 0 for codes in (plan.rows, plan.cols))
