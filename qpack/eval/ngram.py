"""N-grams of the text so far, backed off to a whole distribution and mixed into a network's.

The counts of `ngram_table.py` give, for contexts of growing length n, an interpolated distribution

    q_n(v) = (max(c(v) - d, 0) + (b + d kinds) q_{n-1}(v)) / (total + b)

where c counts the followers of the stream's last n tokens, `total` is their sum and `kinds` their
number; q_{-1} is uniform. This is `techniques.md` 11.1 with beta = b + d kinds, which at b = 0 is
absolute discounting (Ney, Essen and Kneser 1994). It sums to 1 whatever the counts. Unseen contexts
change nothing. The mixture is p = (1 - alpha) p_network + alpha q, and

    alpha = sigmoid(w . x),    x = (1, entropy / ln V, total / (total + 2), largest c / total)

with the entropy of the network's row and the counts of the longest context that was seen before:
all known before the token. Each length of that context has its own w. All w begin with the same
formula, whose constants were fitted on FineWeb training text; after a token was scored, w moves by
`rate` times the gradient of its log-probability, (alpha q / p - alpha) x. Rate 0 keeps the formula.

Valid where the original (#826) was not: counts have no collisions, q is summed over the vocabulary,
and nothing depends on the token before it is scored.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from qpack.errors import ConfigError
from qpack.eval.blocks import check_row, check_token, check_vocab_size, in_parts
from qpack.eval.compiled import compiled
from qpack.eval.ngram_table import DEPTH, Arrays, NgramTable, observe, times_of
from qpack.eval.predictor import LogProbs, Tokens

MAX_ORDER = 32
"""Longest n-grams that a table is asked for: each order costs a look-up and a node a token."""
FEATURES = 4
"""Length of x."""
START = (-9.0, 2.0, 4.0, 3.0)
"""The first w; fitted at rate 0 on the head of the FineWeb training shard under golf27m."""
START_LENGTH = 0.44
"""Added to the first weight for each token of the longest context; fitted with `START`."""
HALF_SURE = 2.0
"""The total at which the third feature is one half."""
LOGIT_LIMIT = 30.0
"""Bounds w . x, so that every token keeps a probability above 0."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NgramSettings:
    """What may be changed of the n-gram mixture."""

    max_order: int = 9
    """Longest n-grams that are counted, 2 to 32: contexts have up to one token less."""
    discount: float = 0.5
    """d: taken off each count for tokens that were not seen in its context, 0 to 1."""
    concentration: float = 0.0
    """b: a number of further observations spread as the shorter contexts say."""
    rate: float = 0.1
    """Step of the weights of alpha after each token; 0 keeps the fixed formula."""

    def __post_init__(self) -> None:
        """Raise `ConfigError` naming every setting that is out of range."""
        problems = [
            f"{name} = {getattr(self, name)}: {rule}"
            for name, rule, holds in (
                ("max_order", f"must be 2 to {MAX_ORDER}", 2 <= self.max_order <= MAX_ORDER),
                ("discount", "must be at least 0 and below 1", 0 <= self.discount < 1),
                ("concentration", "must be finite, and not below 0", finite(self.concentration)),
                ("rate", "must be finite, and not below 0", finite(self.rate)),
            )
            if not holds
        ]
        if self.discount == 0 == self.concentration:
            problems.append("discount and concentration are both 0: nothing is left for new tokens")
        if problems:
            raise ConfigError("no n-grams can be mixed with these settings", items=problems)


def finite(value: float) -> bool:
    """Whether `value` is a finite number that is not below 0."""
    return 0 <= value < math.inf


class NgramMixer:
    """A `Mixer` for predictors of `vocab_size` tokens."""

    name = "ngram"

    def __init__(self, settings: NgramSettings, vocab_size: int) -> None:
        """Raises `ConfigError` where there is nothing to choose from."""
        check_vocab_size(vocab_size)
        self.settings = settings
        self.vocab_size = vocab_size

    def start(self, first: int) -> NgramState:
        """As `Mixer.start`."""
        return NgramState(self.settings, self.vocab_size, first)


class NgramState:
    """Counts and weights that have seen a stream."""

    def __init__(self, settings: NgramSettings, vocab_size: int, first: int) -> None:
        self._settings, self._vocab_size = settings, vocab_size
        self._weights = np.tile(START, (settings.max_order, 1))
        self._weights[:, 0] += START_LENGTH * np.arange(settings.max_order)
        self._table = NgramTable(settings.max_order)
        self._table.observe(check_token(first, vocab_size))

    @property
    def num_bytes(self) -> int:
        """Bytes of memory that the counts take."""
        return self._table.num_bytes

    def mix(self, row: LogProbs) -> LogProbs:
        """As `MixerState.mix`. Raises `DataError` for a row of another vocabulary."""
        out = check_row(row, self._vocab_size).copy()
        mix(self._model(0), out)
        return out

    def observe(self, token: int, row: LogProbs) -> None:
        """As `MixerState.observe`."""
        self.advance(row[None], np.array([token]))

    def advance(self, rows: LogProbs, targets: Tokens) -> NDArray[np.float64]:
        """As `MixerState.advance`. Raises `DataError` for rows or targets of other vocabularies."""
        return in_parts(
            rows,
            targets,
            self._vocab_size,
            lambda part, known, out: advance(self._model(len(known)), part, known, out),
        )

    def _model(self, num_tokens: int) -> Model:
        settings = self._settings
        return Model(
            table=self._table.reserve(num_tokens),
            weights=self._weights,
            vocab_size=self._vocab_size,
            discount=float(settings.discount),
            concentration=float(settings.concentration),
            rate=float(settings.rate),
        )


# -- compiled -------------------------------------------------------------------------------------


class Model(NamedTuple):
    """Counts, weights and constants as compiled functions see them."""

    table: Arrays
    weights: NDArray[np.float64]
    """(max_order, FEATURES) w, by the length of the longest context that was seen before"""
    vocab_size: int
    discount: float
    concentration: float
    rate: float


@compiled
def advance(model: Model, rows: Any, targets: Any, out: Any) -> None:
    """Fill `out` (b,) with mixed log-probabilities of `targets` (b,), learning from each."""
    x = np.empty(FEATURES)
    for i in range(len(targets)):
        length = known_length(model.table)
        describe(model, length, rows[i], x)
        alpha = trust(model, length, x)
        q = alpha * backed_off(model, length, targets[i])
        p = (1 - alpha) * np.exp(rows[i, targets[i]]) + q
        out[i] = min(np.log(p), 0.0)
        step = model.rate * (q / p - alpha)
        for j in range(FEATURES):
            model.weights[length, j] += step * x[j]
        observe(model.table, targets[i])


@compiled
def mix(model: Model, row: Any) -> None:
    """Replace the log-probabilities `row` (V,) by the mixture's."""
    x = np.empty(FEATURES)
    length = known_length(model.table)
    describe(model, length, row, x)
    alpha = trust(model, length, x)
    q = np.full(model.vocab_size, 1 / model.vocab_size)
    for k in range(length + 1):
        back_off_all(model, model.table.nodes[model.table.recent[k]], q)
    for v in range(model.vocab_size):
        row[v] = min(np.log((1 - alpha) * np.exp(row[v]) + alpha * q[v]), 0.0)


@compiled
def known_length(table: Arrays) -> Any:
    """Tokens of the longest context that was seen before; 0 counts all tokens."""
    length = 0
    while length < table.size[DEPTH] and table.nodes[table.recent[length + 1]].times > 1:
        length += 1
    return length


@compiled
def backed_off(model: Model, length: int, token: int) -> Any:
    """q of `token`."""
    q = 1 / model.vocab_size
    for k in range(length + 1):
        node = model.table.recent[k]
        context = model.table.nodes[node]
        rest = model.concentration + model.discount * context.kinds
        seen = max(times_of(model.table, node, token) - model.discount, 0.0)
        q = (seen + rest * q) / (context.times - 1 + model.concentration)
    return q


@compiled
def back_off_all(model: Model, context: Any, q: Any) -> None:
    """Turn q (V,) of the shorter contexts into that of the node `context`."""
    rest = model.concentration + model.discount * context.kinds
    for v in range(len(q)):
        q[v] *= rest
    node = context.best
    for _ in range(context.kinds):
        follower = model.table.nodes[node]
        q[follower.token] += follower.times - model.discount
        node = follower.next
    for v in range(len(q)):
        q[v] /= context.times - 1 + model.concentration


@compiled
def describe(model: Model, length: int, row: Any, x: Any) -> None:
    """Fill x (FEATURES,): see the module's docstring."""
    context = model.table.nodes[model.table.recent[length]]
    total = context.times - 1
    x[0] = 1.0
    x[1] = entropy(row) / np.log(model.vocab_size)
    x[2] = total / (total + HALF_SURE)
    x[3] = model.table.nodes[context.best].times / total


@compiled
def entropy(row: Any) -> Any:
    """Nats of the distribution whose log-probabilities are `row` (V,)."""
    nats = 0.0
    for v in range(len(row)):
        p = np.exp(row[v])
        if p > 0:
            nats -= p * row[v]
    return nats


@compiled
def trust(model: Model, length: int, x: Any) -> Any:
    """alpha."""
    logit = 0.0
    for j in range(FEATURES):
        logit += model.weights[length, j] * x[j]
    return 1 / (1 + np.exp(-min(max(logit, -LOGIT_LIMIT), LOGIT_LIMIT)))
