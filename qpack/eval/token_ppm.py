"""A PPM over whole tokens mixed with a network: the simplest normalised mixture of the two.

PPM-D with exclusion gives every token of the vocabulary a probability r, the network gives q, and
one gate a token decides between them: p = lambda q + (1 - lambda) r. It learns repetitions faster
than a PPM over bytes, having fewer symbols to go through, and knows nothing of tokens that it has
not seen. Source: `techniques.md` 11.3.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from qpack.eval.blocks import as_rows, check_block, check_row
from qpack.eval.compiled import compiled
from qpack.eval.gate import (
    FEATURES,
    NO_LEAD,
    Gate,
    Lead,
    after_token,
    describe,
    further,
    learn,
    weigh,
)
from qpack.eval.ppm import Context, Ppm, Shape, Tables, count, predict
from qpack.eval.ppm_settings import TokenPpmSettings
from qpack.eval.predictor import LogProbs, Tokens

DEPTH = 0
"""Of the gate's weights: there is one decision a token."""


class Learned(NamedTuple):
    """What was learned so far, and room to work in."""

    tables: Tables
    shape: Shape
    gate: Gate
    q: NDArray[np.float64]  # (vocab,)
    r: NDArray[np.float64]  # (vocab,)
    x: NDArray[np.float64]  # (FEATURES,)


class Place(NamedTuple):
    """Where in the stream the next token comes."""

    context: Context
    lead: Lead


class TokenPpmMixer:
    """A `Mixer` for one vocabulary."""

    name = "token_ppm"

    def __init__(self, settings: TokenPpmSettings, vocab_size: int) -> None:
        """ConfigError where contexts of so many tokens cannot be counted."""
        self.settings = settings
        self.vocab_size = vocab_size
        Ppm(order=settings.order, alphabet=vocab_size)

    def start(self, first: int) -> TokenPpmState:
        """A state that has seen the token `first`."""
        return TokenPpmState(self.settings, self.vocab_size, first)


class TokenPpmState:
    """The counts and the gate of one stream: a `MixerState`."""

    def __init__(self, settings: TokenPpmSettings, vocab_size: int, first: int) -> None:
        self._vocab_size = vocab_size
        self._ppm = Ppm(order=settings.order, alphabet=vocab_size)
        self._ppm.observe(check_block(None, np.array([first]), vocab_size))
        self._lead = NO_LEAD
        self._gate = settings.new_gate()
        self._desk = np.empty(vocab_size), np.empty(vocab_size), np.empty(FEATURES)

    def mix(self, row: LogProbs) -> LogProbs:
        """(V,): log-probabilities of the next token, from the network's (V,). Changes nothing.

        Raises `DataError` for a row of another vocabulary.
        """
        row = check_row(row, self._vocab_size)
        return _mix(self._learned(), self._place(), row)

    def observe(self, token: int, row: LogProbs) -> None:
        """The next token was `token`; the network's log-probabilities of it were `row` (V,)."""
        self.advance(row[None], np.array([token]))

    def advance(self, rows: LogProbs, targets: Tokens) -> NDArray[np.float64]:
        """(b,): mixed log-probabilities of `targets` (b,) by `rows` (b, V), learning from each.

        Raises `DataError` for rows or targets of another vocabulary.
        """
        rows = as_rows(rows)
        tokens = check_block(rows, targets, self._vocab_size)
        self._ppm.reserve(len(tokens))
        found, place = _score(self._learned(), self._place(), rows, tokens)
        self._ppm.context, self._lead = place
        return found

    def _place(self) -> Place:
        return Place(self._ppm.context, self._lead)

    def _learned(self) -> Learned:
        return Learned(self._ppm.tables, self._ppm.shape, self._gate, *self._desk)


@compiled
def _score(
    learned: Learned, place: Place, rows: NDArray[np.float64], targets: NDArray[np.int64]
) -> tuple[NDArray[np.float64], Place]:
    out, decision = np.empty(len(targets)), np.empty(3)
    for i in range(len(targets)):
        lam = _decide(learned, place, rows[i])
        q, r = learned.q[targets[i]], learned.r[targets[i]]
        out[i] = math.log(lam * q + (1.0 - lam) * r)
        decision[0], decision[1], decision[2] = lam, q, r
        learn(learned.gate, DEPTH, learned.x, decision)
        context = count(learned.tables, learned.shape, place.context, targets[i])
        place = Place(context, after_token(further(place.lead, q, r)))
    return out, place


@compiled
def _mix(learned: Learned, place: Place, row: NDArray[np.float64]) -> NDArray[np.float64]:
    lam = _decide(learned, place, row)
    out = np.empty(len(row))
    for v in range(len(row)):
        out[v] = math.log(lam * learned.q[v] + (1.0 - lam) * learned.r[v])
    return out


@compiled
def _decide(learned: Learned, place: Place, row: NDArray[np.float64]) -> float:
    """Fill q, r and x of `learned`; lambda."""
    for v in range(len(row)):
        learned.q[v] = math.exp(row[v])
    seen = predict(learned.tables, learned.shape, place.context, learned.r)
    describe(seen, place.lead, learned.q, learned.r, learned.x)
    return weigh(learned.gate, DEPTH, seen, learned.x)
