"""One-token tilt: the row of a network, leaning towards the one token that counts point to.

The hint h is the most frequent follower (of equals, the smallest token) of the longest context in
which its share of all followers is above a threshold. The row is multiplied by e^beta at h and
divided by what it sums to then:

    p'(a) = p(a) e^(beta [a = h]) / (1 + p(h) (e^beta - 1))

so it is a distribution again, at the cost of one token's probability. Without a hint it is p. The
hint comes from the tokens before alone; variants whose hint saw the target were no codes.
Source: `techniques.md` 11.2 (#1514, #2018); the defaults were chosen on the head of the FineWeb
training shard under golf27m.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from qpack.errors import ConfigError
from qpack.eval.blocks import check_row, check_token, check_vocab_size, in_parts
from qpack.eval.compiled import compiled
from qpack.eval.ngram import MAX_ORDER, known_length
from qpack.eval.ngram_table import Arrays, NgramTable, observe
from qpack.eval.predictor import LogProbs, Tokens

NO_HINT = -1
MAX_BETA = 100
"""Nats; e^beta must be a number."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TiltSettings:
    """What may be changed of the tilt."""

    max_order: int = 9
    """Longest n-grams that are counted, 2 to 32: contexts have up to one token less."""
    min_length: int = 3
    """Tokens of the shortest context that gives hints, 1 to `max_order` - 1."""
    threshold: float = 0.8
    """Share of a context's followers above which the most frequent one is a hint, 0 to 1."""
    beta: float = 1.25
    """Nats that the hint gains on every other token."""

    def __post_init__(self) -> None:
        """Raise `ConfigError` naming every setting that is out of range."""
        longest = self.max_order - 1
        problems = [
            f"{name} = {getattr(self, name)}: {rule}"
            for name, rule, holds in (
                ("max_order", f"must be 2 to {MAX_ORDER}", 2 <= self.max_order <= MAX_ORDER),
                ("min_length", f"must be 1 to {longest}", 1 <= self.min_length <= longest),
                ("threshold", "must be at least 0 and below 1", 0 <= self.threshold < 1),
                ("beta", f"must be 0 to {MAX_BETA}", 0 <= self.beta <= MAX_BETA),
            )
            if not holds
        ]
        if problems:
            raise ConfigError("rows cannot be tilted with these settings", items=problems)


class TiltMixer:
    """A `Mixer` for predictors of `vocab_size` tokens."""

    name = "tilt"

    def __init__(self, settings: TiltSettings, vocab_size: int) -> None:
        """Raises `ConfigError` where there is nothing to choose from."""
        check_vocab_size(vocab_size)
        self.settings = settings
        self.vocab_size = vocab_size

    def start(self, first: int) -> TiltState:
        """As `Mixer.start`."""
        return TiltState(self.settings, self.vocab_size, first)


class TiltState:
    """Counts that have seen a stream."""

    def __init__(self, settings: TiltSettings, vocab_size: int, first: int) -> None:
        self._settings, self._vocab_size = settings, vocab_size
        self._table = NgramTable(settings.max_order)
        self._table.observe(check_token(first, vocab_size))

    def mix(self, row: LogProbs) -> LogProbs:
        """As `MixerState.mix`. Raises `DataError` for a row of another vocabulary."""
        row = check_row(row, self._vocab_size)
        hint = int(find_hint(self._model(0)))
        if hint == NO_HINT:
            return row
        mixed: LogProbs = row - normalizer(row[hint], self._settings.beta)
        mixed[hint] += self._settings.beta
        return np.minimum(mixed, 0.0)

    def observe(self, token: int, row: LogProbs) -> None:
        """As `MixerState.observe`."""
        self._table.observe(check_token(token, self._vocab_size))

    def advance(self, rows: LogProbs, targets: Tokens) -> NDArray[np.float64]:
        """As `MixerState.advance`. Raises `DataError` for rows or targets of other vocabularies."""
        return in_parts(
            rows,
            targets,
            self._vocab_size,
            lambda part, known, out: advance(self._model(len(known)), part, known, out),
        )

    def _model(self, num_tokens: int) -> Model:
        return Model(
            table=self._table.reserve(num_tokens),
            min_length=self._settings.min_length,
            threshold=float(self._settings.threshold),
            beta=float(self._settings.beta),
        )


# -- compiled -------------------------------------------------------------------------------------


class Model(NamedTuple):
    """Counts and constants as compiled functions see them."""

    table: Arrays
    min_length: int
    threshold: float
    beta: float


@compiled
def find_hint(model: Model) -> Any:
    """The token that the counts point to, or `NO_HINT`."""
    nodes = model.table.nodes
    for length in range(known_length(model.table), model.min_length - 1, -1):
        context = nodes[model.table.recent[length]]
        best = nodes[context.best]
        if best.times > model.threshold * (context.times - 1):
            return np.int64(best.token)
    return np.int64(NO_HINT)


@compiled
def normalizer(log_p: float, beta: float) -> Any:
    """ln(1 + p (e^beta - 1)): what a tilted row sums to, from the hint's log-probability."""
    return np.log1p(np.exp(log_p) * np.expm1(beta))


@compiled
def advance(model: Model, rows: Any, targets: Any, out: Any) -> None:
    """Fill `out` (b,) with tilted log-probabilities of `targets` (b,), counting each."""
    for i in range(len(targets)):
        target = targets[i]
        out[i] = rows[i, target]
        hint = find_hint(model)
        if hint != NO_HINT:
            out[i] -= normalizer(rows[i, hint], model.beta)
            if hint == target:
                out[i] += model.beta
            out[i] = min(out[i], 0.0)
        observe(model.table, target)
