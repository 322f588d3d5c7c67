"""The Viterbi search against an exhaustive one and against a plain dynamic program."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from qpack.quant.tcq import round_column
from qpack.trellis import STATES, next_states, obeys

pytest.importorskip("numba")


def given(rows: int, *, batch: int = 1, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    u = 2.5 * torch.randn(batch, rows, generator=generator)
    return u, 0.1 * torch.rand(batch, rows, generator=generator)


def cost(m: NDArray[np.float64], u: torch.Tensor, shrink: torch.Tensor) -> float:
    return float(((u.double().numpy() - m) ** 2 + shrink.double().numpy() * m**2).sum())


def least_cost(u: torch.Tensor, shrink: torch.Tensor, states: int) -> float:
    """A dynamic program over every integer in reach, one row and one state at a time."""
    following = next_states(states)
    costs = {0: 0.0}
    for x, weight in zip(u.double().tolist(), shrink.double().tolist(), strict=True):
        after: dict[int, float] = {}
        for state, so_far in costs.items():
            for m in range(-24, 25):
                if (m ^ state) & 1:
                    continue
                to = int(following[state, (m >> 1) & 1])
                total = so_far + (x - m) ** 2 + weight * m * m
                after[to] = min(total, after.get(to, np.inf))
        costs = after
    return min(costs.values())


@pytest.mark.parametrize("seed", range(4))
def test_no_path_of_a_short_column_is_better(seed: int) -> None:
    u, shrink = given(4, seed=seed)
    m = round_column(u, shrink, (0,), 4)[0].double().numpy()
    paths = (np.array(path) for path in product(range(-9, 10), repeat=4))
    best = min(cost(path, u[0], shrink[0]) for path in paths if obeys(path[:, None], 4))
    assert cost(m, u[0], shrink[0]) == pytest.approx(best, rel=1e-6)


@pytest.mark.parametrize("states", STATES)
def test_a_long_column_costs_what_a_plain_program_finds(states: int) -> None:
    u, shrink = given(60, seed=states)
    m = round_column(u, shrink, (0,), states)[0].double().numpy()
    assert obeys(m.astype(np.int64)[:, None], states)
    assert cost(m, u[0], shrink[0]) == pytest.approx(least_cost(u[0], shrink[0], states), rel=1e-6)


def test_every_segment_starts_in_state_0_and_is_searched_alone() -> None:
    u, shrink = given(50, batch=3)
    together = round_column(u, shrink, (0, 20, 21), 8)
    parts = [slice(0, 20), slice(20, 21), slice(21, 50)]
    alone = [round_column(u[:, p].clone(), shrink[:, p].clone(), (0,), 8) for p in parts]
    assert torch.equal(together, torch.cat(alone, dim=1))


def test_without_a_rate_term_more_states_leave_less_distortion() -> None:
    u, _ = given(4000)
    none = torch.zeros_like(u)
    errors = [float((round_column(u, none, (0,), n) - u).square().mean()) for n in STATES]
    assert errors == sorted(errors, reverse=True)
    # Twice the step of a scalar quantizer with the same number of symbols: 1/3 without a trellis.
    assert errors[1] < 0.26


def test_shrinking_pulls_towards_zero() -> None:
    u, _ = given(500)
    free = round_column(u, torch.zeros_like(u), (0,), 8)
    pulled = round_column(u, torch.full_like(u, 0.5), (0,), 8)
    assert pulled.abs().sum() < 0.85 * free.abs().sum()


def test_zeros_stay_zeros_and_an_empty_column_is_no_work() -> None:
    zero = torch.zeros(2, 7)
    assert torch.equal(round_column(zero, zero + 0.05, (0, 3), 16), zero)
    assert round_column(torch.zeros(0, 7), torch.zeros(0, 7), (0,), 8).shape == (0, 7)


def test_the_result_does_not_depend_on_threads() -> None:
    import numba

    u, shrink = given(300, batch=6)
    threads = numba.get_num_threads()
    try:
        numba.set_num_threads(1)
        one = round_column(u, shrink, (0, 100), 8)
    finally:
        numba.set_num_threads(threads)
    assert torch.equal(one, round_column(u, shrink, (0, 100), 8))
