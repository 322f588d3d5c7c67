"""Gates weigh by the prefix alone, and the learned one follows its gradient."""

from __future__ import annotations

import math

import numpy as np
import pytest

pytest.importorskip("numba")

from qpack.eval.gate import (
    FEATURES,
    LEARNED_START,
    MAX_LEAD,
    NO_LEAD,
    STEADY,
    Lead,
    after_token,
    confidence,
    describe,
    fixed_gate,
    further,
    learn,
    learned_gate,
    weigh,
)
from qpack.eval.ppm import Seen

NOTHING = np.zeros(FEATURES)


def described(seen: Seen, q: list[float], r: list[float], lead: Lead = NO_LEAD) -> np.ndarray:
    x = np.empty(FEATURES)
    describe(seen, lead, np.array(q), np.array(r), x)
    return x


def test_the_fixed_gate_has_two_levels() -> None:
    gate = fixed_gate(threshold=0.9, sure=0.05, unsure=0.9)
    levels = {(10, 10): 0.05, (10, 9): 0.9, (100, 91): 0.05, (1, 0): 0.9}
    for (total, largest), level in levels.items():
        assert weigh(gate, 0, Seen(4, total, largest), NOTHING) == level
    assert confidence(Seen(-1, 0, 0)) == 0.0


def test_features_by_hand() -> None:
    x = described(Seen(1, 8, 4), [0.5, 0.5], [1.0, 0.0], Lead(-3.0, 0.25))
    expected = [1, 0.5, 2 / 4, math.log(9) / 4, math.log(2), 0, 0.5 / math.sqrt(0.5), -1.5, 0.25]
    np.testing.assert_allclose(x, expected, rtol=1e-15)


def test_who_is_ahead_by_hand() -> None:
    lead = further(further(Lead(0.0, 1.0), 0.5, 0.25), 0.1, 0.4)
    assert lead == pytest.approx((math.log(2) - math.log(4), 1.0))
    assert after_token(lead) == pytest.approx((0.0, 0.5 + 0.5 * -math.log(2)))
    # What was thought impossible leaves the lead finite, and of great leads only so much counts.
    assert after_token(further(NO_LEAD, 1.0, 0.0)) == (0.0, MAX_LEAD / 2)
    assert after_token(further(NO_LEAD, 0.0, 1.0)) == (0.0, -MAX_LEAD / 2)
    far = described(Seen(1, 8, 4), [1.0], [1.0], Lead(100.0, 0.0))
    assert far[7] == MAX_LEAD / 2


def test_neither_side_is_shut_out() -> None:
    gate, x = learned_gate(rate=0.1), np.ones(FEATURES)
    for sign in (1, -1):
        gate.weights[:] = sign * 1e6
        lam = weigh(gate, 0, Seen(-1, 0, 0), x)
        assert 0 < lam < 1
        learn(gate, 0, x, np.array([lam, 0.0, 1.0]))
        assert np.isfinite(gate.weights).all()


def test_the_learned_gate_trusts_the_network_at_first() -> None:
    x = described(Seen(-1, 0, 0), [0.5, 0.5], [0.5, 0.5]) * np.eye(FEATURES)[0]
    assert weigh(learned_gate(rate=0.1), 0, Seen(-1, 0, 0), x) == pytest.approx(
        1 / (1 + math.exp(-LEARNED_START))
    )


def test_a_step_follows_the_gradient() -> None:
    gate, seen, (q, r) = learned_gate(rate=0.1), Seen(2, 10, 6), (0.2, 0.7)
    x = described(seen, [0.2, 0.8], [0.7, 0.3])

    def log_probability(weights: np.ndarray) -> float:
        gate.weights[1] = weights
        lam = weigh(gate, 1, seen, x)
        return math.log(lam * q + (1 - lam) * r)

    before = gate.weights.copy()
    gradient = np.array(
        [
            (log_probability(before[1] + step) - log_probability(before[1] - step)) / 2e-6
            for step in 1e-6 * np.eye(FEATURES)
        ]
    )
    gate.weights[:] = before
    lam = weigh(gate, 1, seen, x)
    learn(gate, 1, x, np.array([lam, q, r]))
    np.testing.assert_allclose(gate.squares[1], STEADY + gradient**2, rtol=1e-6)
    expected = before[1] + 0.1 * gradient / np.sqrt(STEADY + gradient**2)
    np.testing.assert_allclose(gate.weights[1], expected, rtol=1e-6)
    assert weigh(gate, 1, seen, x) < lam  # the counts knew better
    others = [0, 2, 3]
    np.testing.assert_array_equal(gate.weights[others], before[others])


def test_all_later_bytes_share_weights() -> None:
    gate = learned_gate(rate=0.1)
    x = np.ones(FEATURES)
    learn(gate, 9, x, np.array([0.9, 0.1, 0.9]))
    assert weigh(gate, 3, Seen(-1, 0, 0), x) == weigh(gate, 7, Seen(-1, 0, 0), x)
    assert weigh(gate, 3, Seen(-1, 0, 0), x) < weigh(gate, 2, Seen(-1, 0, 0), x)


def test_a_fixed_gate_learns_nothing() -> None:
    gate = fixed_gate(threshold=0.9, sure=0.05, unsure=0.9)
    learn(gate, 0, NOTHING, np.array([0.9, 0.1, 0.9]))
    assert weigh(gate, 0, Seen(4, 1, 1), NOTHING) == 0.05
