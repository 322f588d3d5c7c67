"""The trellis: its states, and which integers obey it."""

from __future__ import annotations

import numpy as np
import pytest

from qpack.trellis import POLYNOMIALS, STATES, next_states, obeys


@pytest.mark.parametrize("states", STATES)
def test_every_state_is_reached_from_two(states: int) -> None:
    following = next_states(states)
    assert following.shape == (states, 2)
    assert np.bincount(following.reshape(-1), minlength=states).tolist() == [2] * states


@pytest.mark.parametrize("states", STATES)
def test_the_recurrence_is_the_formula(states: int) -> None:
    h0, h1 = POLYNOMIALS[states]
    for s in range(states):
        for b in range(2):
            expected = (s >> 1) ^ ((s & 1) * (h0 >> 1)) ^ (b * (h1 >> 1))
            assert next_states(states)[s, b] == expected


def test_zeros_obey_every_trellis() -> None:
    assert all(obeys(np.zeros((9, 3), np.int8), states) for states in STATES)


def test_a_wrong_parity_is_seen_anywhere() -> None:
    good = np.zeros((6, 2), np.int16)
    for row in range(6):
        bad = good.copy()
        bad[row, 1] = 1
        # In state 0 only even integers are allowed.
        assert not obeys(bad, 8)
    assert obeys(bad, 0)


def test_negative_integers_have_the_parity_and_branch_of_their_residue() -> None:
    # m = -2 is 2 modulo 4: even, branch bit 1, so the next state is h1 >> 1.
    state = int(next_states(4)[0, 1])
    column = np.array([[-2], [state & 1]], np.int8)
    assert obeys(column, 4)
    assert not obeys(column ^ np.array([[0], [1]], np.int8), 4)
