"""Gates: how much a decision trusts the network rather than the counts, before its symbol is seen.

A gate yields lambda of  p = lambda * network + (1 - lambda) * counts  from features of the prefix.
It may not know the symbol: a mixture with a weight for each symbol is normalised for none.

The fixed gate is that of #1959: the confidence of the counts is the share of the most frequent
follower in the longest context that was seen; above a threshold the counts are trusted, else the
network. Source: `techniques.md` 9.4.

The learned gate is a logistic regression, lambda = sigmoid(w . x), with its own weights for each
depth in the trie. Besides what the two say of the next symbol, x has who was ahead so far: in the
bytes of this token, which are the log-odds that a Bayesian mixture of the two would have, and in
the tokens before, as text that repeats itself goes on doing so for a while. After a symbol was
scored, with probabilities q by the network and r by the counts, the gradient of its log-probability
is

    d ln p / dw = (q - r) / p * lambda (1 - lambda) * x

and each weight moves along it by `rate` over the root of its summed squares (Duchi, Hazan and
Singer 2011), so that no feature needs a scale of its own.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from qpack.eval.compiled import compiled
from qpack.eval.ppm import Seen

FEATURES = 9
"""Length of `x` in `describe`."""
DEPTHS = 4
"""Sets of weights: for the first byte of a token, the second, the third, and all others."""
LEARNED_START = 3.0
"""The first logit: the network has learned, the counts have not."""
STEADY = 0.1
"""Added to the summed squares: what a weight's very first gradients may move it."""

MAX_LOGIT = 12.0
"""Keeps both sides in: what one thinks impossible costs at most 17 bits."""
MAX_LEAD = 5.0
"""Nats beyond which being further ahead says no more."""
RECENT = 0.5
"""Share of the last token in who was ahead lately."""
LEAST = 1e-30
"""Stands for a probability of zero in a logarithm."""


class Lead(NamedTuple):
    """How far the network was ahead of the counts, ln q / r,"""

    token: float
    """in the bytes of the token so far"""
    recent: float
    """in the tokens before, each weighing half as much as the one after it"""


NO_LEAD = Lead(0.0, 0.0)


class Gate(NamedTuple):
    """Constants and weights of either gate."""

    learned: bool
    threshold: float
    """Fixed: the confidence above which the counts are trusted"""
    sure: float
    """Fixed: lambda above the threshold"""
    unsure: float
    """Fixed: lambda elsewhere"""
    rate: float
    """Learned: the step of a weight, in units of its root-sum-square gradient"""
    weights: NDArray[np.float64]
    """Learned: (DEPTHS, FEATURES)"""
    squares: NDArray[np.float64]
    """Learned: (DEPTHS, FEATURES) sums of squared gradients"""


def fixed_gate(*, threshold: float, sure: float, unsure: float) -> Gate:
    """lambda = `sure` where the counts are more confident than `threshold`, else `unsure`."""
    none = np.empty((0, 0))
    return Gate(False, threshold, sure, unsure, 0.0, none, none.copy())


def learned_gate(*, rate: float) -> Gate:
    """A logistic gate that has seen nothing."""
    weights = np.zeros((DEPTHS, FEATURES))
    weights[:, 0] = LEARNED_START
    return Gate(True, 0.0, 0.0, 0.0, rate, weights, np.full_like(weights, STEADY))


@compiled
def confidence(seen: Seen) -> float:
    """The share of the most frequent follower; 0 where nothing was seen."""
    return seen.largest / seen.total if seen.total else 0.0


@compiled
def further(lead: Lead, q: float, r: float) -> Lead:
    """After a symbol of the token, to which the network gave q and the counts r."""
    return Lead(lead.token + math.log(max(q, LEAST) / max(r, LEAST)), lead.recent)


@compiled
def after_token(lead: Lead) -> Lead:
    """Where the next token begins."""
    return Lead(0.0, (1.0 - RECENT) * lead.recent + RECENT * _within(lead.token, MAX_LEAD))


@compiled
def _within(x: float, limit: float) -> float:
    return min(max(x, -limit), limit)


@compiled
def describe(
    seen: Seen, lead: Lead, q: NDArray[np.float64], r: NDArray[np.float64], x: NDArray[np.float64]
) -> None:
    """Fill `x` (FEATURES,) from the prefix alone.

    q and r (n,) are what the network and the counts say of the symbols that can come. How spread
    each is, is its entropy of order 2, -ln sum q^2, which needs one logarithm; how far they agree
    is the cosine between them.
    """
    spread_q, spread_r, together = 0.0, 0.0, 0.0
    for i in range(len(q)):
        spread_q += q[i] * q[i]
        spread_r += r[i] * r[i]
        together += q[i] * r[i]
    x[0] = 1.0
    x[1] = confidence(seen)
    x[2] = (seen.order + 1) / 4.0
    x[3] = math.log1p(seen.total) / 4.0
    x[4] = -math.log(spread_q)
    x[5] = -math.log(spread_r)
    x[6] = together / math.sqrt(spread_q * spread_r)
    x[7] = _within(lead.token, MAX_LEAD) / 2.0
    x[8] = lead.recent


@compiled
def weigh(gate: Gate, depth: int, seen: Seen, x: NDArray[np.float64]) -> float:
    """lambda, at `depth` bytes into a token."""
    if not gate.learned:
        return gate.sure if confidence(seen) > gate.threshold else gate.unsure
    w = gate.weights[min(depth, DEPTHS - 1)]
    logit = 0.0
    for i in range(FEATURES):
        logit += w[i] * x[i]
    return 1.0 / (1.0 + math.exp(-_within(logit, MAX_LOGIT)))


@compiled
def learn(gate: Gate, depth: int, x: NDArray[np.float64], found: NDArray[np.float64]) -> None:
    """The symbol came: `found` is lambda, q and r of the decision at `depth` with features `x`."""
    if not gate.learned:
        return
    lam, q, r = found[0], found[1], found[2]
    slope = (q - r) / (lam * q + (1.0 - lam) * r) * lam * (1.0 - lam)
    row = min(depth, DEPTHS - 1)
    for i in range(FEATURES):
        gradient = slope * x[i]
        gate.squares[row, i] += gradient * gradient
        gate.weights[row, i] += gate.rate * gradient / math.sqrt(gate.squares[row, i])
