from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from qpack.trainer.optim import mousse

from . import reference


def some(seed: int, *shape: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def new(precondition: mousse.Precondition, *shape: int) -> mousse.State:
    state = mousse.new_state(precondition, torch.Size(shape), torch.device("cpu"))
    return {name: tensor.double() for name, tensor in state.items()}


def test_diagonal_against_the_formula() -> None:
    state = new("mousse-diagonal", 2, 4, 7)
    references = [reference.Mousse("mousse-diagonal") for _ in range(2)]
    for step in range(4):
        U = some(step, 2, 4, 7)
        got = mousse.whiten_diagonal(U, state)
        for one, slow, matrix in zip(got, references, U, strict=True):
            np.testing.assert_allclose(one, slow._diagonal(matrix.numpy()), rtol=1e-9)


def test_the_first_value_starts_the_diagonal_average() -> None:
    state = new("mousse-diagonal", 1, 4, 7)
    assert torch.equal(
        mousse.whiten_diagonal(torch.zeros(1, 4, 7).double(), state).abs().sum(),
        torch.zeros(()).double(),
    )
    U = some(1, 1, 4, 7)
    mousse.whiten_diagonal(U, state)
    torch.testing.assert_close(state["row_moment"], U.square().sum(-1))
    torch.testing.assert_close(state["column_moment"], U.square().sum(-2))


def kronecker(U: Tensor, state: mousse.State, step: int) -> Tensor:
    mousse.gather_kronecker(U, state)
    if step % mousse.REFRESH_STEPS == 0:
        mousse.refresh_kronecker(state)
    return mousse.whiten_kronecker(U, state)


def test_kronecker_statistics_and_bases() -> None:
    state = new("mousse-kronecker", 2, 4, 6)
    slow = [reference.Mousse("mousse-kronecker") for _ in range(2)]
    for step in range(13):
        U = some(step, 2, 4, 6)
        kronecker(U, state, step)
        for one, matrix in zip(slow, U, strict=True):
            one.direction(matrix.numpy(), steps=5)
    for i, one in enumerate(slow):
        for side, key in (("left", "L"), ("right", "R")):
            np.testing.assert_allclose(state[side][i], one.state[key], rtol=1e-9)
            # Of step 10, not of step 12.
            _, gains = one.state[key + "basis"]
            np.testing.assert_allclose(state[f"{side}_gain"][i], gains, rtol=1e-6)
            Q = state[f"{side}_basis"][i]
            torch.testing.assert_close(Q.mT @ Q, torch.eye(len(Q)).double())


def test_whitening_brings_directions_together_and_comes_back() -> None:
    """Strong directions of the statistics are weakened; rotation alone changes no length."""
    state = new("mousse-kronecker", 1, 6, 6)
    scales = torch.logspace(0, -3, 6, dtype=torch.float64)
    for step in range(11):
        white = kronecker(scales[:, None] * some(step, 1, 6, 6), state, step)
    U = scales[:, None] * some(10, 1, 6, 6)
    before, after = (torch.linalg.svdvals(X[0]) for X in (U, white))
    assert after[0] / after[-1] < 0.5 * before[0] / before[-1]
    ones = dict(state, left_gain=torch.ones(1, 6).double(), right_gain=torch.ones(1, 6).double())
    rotated = mousse.whiten_kronecker(U, ones)
    torch.testing.assert_close(mousse.rotate_back(rotated, ones), U)


@pytest.mark.parametrize("bad", [0.0, float("nan"), float("inf")])
def test_nothing_seen_or_not_finite_whitens_by_nothing(bad: float) -> None:
    """eigh would raise in the midst of training, before the loop has said what is wrong."""
    state = new("mousse-kronecker", 2, 3, 5)
    U = some(0, 2, 3, 5)
    U[0] = bad
    kronecker(U, state, 0)
    for side in ("left", "right"):
        gain = state[f"{side}_gain"]
        assert torch.allclose(gain[0], torch.ones_like(gain[0]), atol=1e-6)
        assert not torch.allclose(gain[1], torch.ones_like(gain[1]), atol=1e-2)


def test_no_precondition_has_no_state() -> None:
    assert new("none", 2, 3, 5) == {}
