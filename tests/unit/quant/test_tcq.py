"""The Viterbi search against an exhaustive one and against a plain dynamic program."""

from __future__ import annotations

import sys
from itertools import product

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from qpack.errors import SetupError
from qpack.quant import tcq
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
            for m in range(-12, 13):
                if (m ^ state) & 1:
                    continue
                to = int(following[state, (m >> 1) & 1])
                total = so_far + (x - m) ** 2 + weight * m * m
                after[to] = min(total, after.get(to, np.inf))
        costs = after
    return min(costs.values())


def least_long_cost(u: torch.Tensor, shrink: torch.Tensor, states: int) -> float:
    """The same in float64, all states at once, with the nearest integer of each coset of 4Z."""
    following = next_states(states).astype(np.int64)
    total = np.where(np.arange(states) == 0, 0.0, np.inf)
    cosets = np.arange(2) * 2 + (np.arange(states) & 1)[:, None]  # (states, branch bit)
    for x, weight in zip(u.double().tolist(), shrink.double().tolist(), strict=True):
        m = 4 * np.rint((x / (1 + weight) - cosets) / 4) + cosets
        after = np.full(states, np.inf)
        np.minimum.at(after, following, total[:, None] + (x - m) ** 2 + weight * m**2)
        total = after
    return float(total.min())


@pytest.mark.parametrize("seed", range(4))
def test_no_path_of_a_short_column_is_better(seed: int) -> None:
    u, shrink = given(4, seed=seed)
    u = u.clamp(-3, 3)
    m = round_column(u, shrink, (0,), 4)[0].double().numpy()
    paths = (np.array(path) for path in product(range(-5, 6), repeat=4))
    best = min(cost(path, u[0], shrink[0]) for path in paths if obeys(path[:, None], 4))
    assert cost(m, u[0], shrink[0]) == pytest.approx(best, rel=1e-6)


@pytest.mark.parametrize("states", STATES)
def test_a_long_column_costs_what_a_plain_program_finds(states: int) -> None:
    u, shrink = given(30, seed=states)
    m = round_column(u, shrink, (0,), states)[0].double().numpy()
    assert obeys(m.astype(np.int64)[:, None], states)
    assert cost(m, u[0], shrink[0]) == pytest.approx(least_cost(u[0], shrink[0], states), rel=1e-6)


def test_every_segment_starts_in_state_0_and_is_searched_alone() -> None:
    u, shrink = given(50, batch=3)
    together = round_column(u, shrink, (0, 20, 21), 8)
    parts = [slice(0, 20), slice(20, 21), slice(21, 50)]
    alone = [round_column(u[:, p].clone(), shrink[:, p].clone(), (0,), 8) for p in parts]
    assert torch.equal(together, torch.cat(alone, dim=1))


@pytest.mark.parametrize("states", STATES)
def test_a_segment_may_go_on_where_another_ended(states: int) -> None:
    u, shrink = given(60, batch=2, seed=1)
    at = torch.zeros(2, 1, dtype=torch.int32)
    parts = [
        round_column(u[:, p].clone(), shrink[:, p].clone(), (0,), states, at)
        for p in (slice(0, 25), slice(25, 60))
    ]
    for column, end in zip(torch.cat(parts, dim=1).to(torch.int64), at[:, 0], strict=True):
        assert obeys(column[:, None].numpy(), states)
        state = 0
        for m in column.tolist():
            state = int(next_states(states)[state, (m >> 1) & 1])
        assert state == int(end)


def test_segments_start_in_states_of_their_own() -> None:
    u, shrink = given(20, batch=1)
    at = torch.tensor([[5, 2]], dtype=torch.int32)
    m = round_column(u, shrink, (0, 10), 8, at)[0].to(torch.int64)
    assert m[0] % 2 == 1 and m[10] % 2 == 0
    alone = torch.tensor([[2]], dtype=torch.int32)
    assert torch.equal(
        round_column(u[:, 10:].clone(), shrink[:, 10:].clone(), (0,), 8, alone)[0].long(), m[10:]
    )
    assert int(alone) == int(at[0, 1])


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


def test_nothing_is_lost_over_a_long_column() -> None:
    u, shrink = given(20_000)
    m = round_column(u, shrink, (0,), 8)[0].double().numpy()
    assert cost(m, u[0], shrink[0]) == pytest.approx(least_long_cost(u[0], shrink[0], 8), rel=1e-7)


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e4])
@pytest.mark.parametrize("pull", [0.0, 1e-2, 1e6])
def test_weights_of_any_size_and_pull_cost_least(scale: float, pull: float) -> None:
    u, _ = given(200)
    u, shrink = u * scale, torch.full_like(u, pull)
    m = round_column(u, shrink, (0,), 4)[0].double().numpy()
    assert obeys(m.astype(np.int64)[:, None], 4)
    assert cost(m, u[0], shrink[0]) == pytest.approx(least_long_cost(u[0], shrink[0], 4), rel=1e-5)


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_the_result_does_not_depend_on_threads(threads: int) -> None:
    u, shrink = given(3000, batch=7)
    bounds = (0, 1, 1500)
    alone = [round_column(u[[i]], shrink[[i]], bounds, 8) for i in range(len(u))]
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        together = round_column(u, shrink, bounds, 8)
    finally:
        torch.set_num_threads(before)
    assert torch.equal(together, torch.cat(alone))


def test_columns_may_be_strided() -> None:
    u, shrink = given(40, batch=2)
    strided = torch.stack([u, u], dim=-1)[..., 0]
    assert not strided.is_contiguous()
    assert torch.equal(round_column(strided, shrink, (0,), 8), round_column(u, shrink, (0,), 8))


def test_equal_costs_go_to_branch_bit_0() -> None:
    # From state 0 to an even m: 0 and 2 are as near to 1, but the last state breaks the tie first.
    assert round_column(torch.ones(1, 1), torch.zeros(1, 1), (0,), 4).tolist() == [[0.0]]


def test_without_numba_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "numba", None)
    tcq._search.cache_clear()
    with pytest.raises(SetupError, match="numba") as caught:
        round_column(*given(3), (0,), 8)
    assert "qpack-lm[pack]" in (caught.value.hint or "")
