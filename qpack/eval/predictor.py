"""What it means to predict: a normalised distribution first, the symbol after.

Everything that scores text here implements `Predictor`, in two forms that must agree. The batched
form, `score`, is fast and gives one log-probability a target. The sequential form, `start`, is the
one that proves: before a token is seen its session yields the log-probabilities of the whole
vocabulary, then it is told the token. An arithmetic coder can be driven by a session, so whatever a
session gives is a code. Source: the four conditions of Parameter Golf issue #1017.

A mixer improves the rows of a base predictor with what it learned from the tokens before. Its two
forms are one state with two ways to go on: `mix` then `observe` for one token, `advance` for many.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from qpack.progress import SILENT, Progress

Tokens = NDArray[np.integer[Any]]
"""(n,) token ids of one stream."""
LogProbs = NDArray[np.float64]
"""(V,) or (n, V) log-probabilities in nats; `exp` of each row sums to 1."""


class Session(Protocol):
    """A reader of one stream, one token at a time."""

    def log_probs(self) -> LogProbs:
        """(V,): the distribution of the next token. Changes nothing; asking twice is the same."""
        ...

    def observe(self, token: int) -> None:
        """The next token was `token`."""
        ...


@runtime_checkable
class Predictor(Protocol):
    """A model of token streams over a declared vocabulary."""

    @property
    def name(self) -> str:
        """As it is reported."""
        ...

    @property
    def vocab_size(self) -> int:
        """Tokens of the vocabulary."""
        ...

    def start(self, first: int, *, num_tokens: int | None = None) -> Session:
        """A session that has seen the token `first`, which is context and is never scored.

        `num_tokens` is the length of the stream, `first` included, where it is declared beforehand.
        Raises `ConfigError` where a predictor cannot do without and it is not given.
        """
        ...

    def score(self, tokens: Tokens, *, progress: Progress = SILENT) -> NDArray[np.float64]:
        """(n - 1,): the log-probability, in nats, of each of `tokens[1:]` given those before it."""
        ...


@runtime_checkable
class RowPredictor(Predictor, Protocol):
    """A predictor whose batched form can give whole distributions, on which mixers build."""

    def rows(
        self, tokens: Tokens, *, progress: Progress = SILENT
    ) -> Iterator[tuple[LogProbs, Tokens]]:
        """Blocks in stream order: rows (b, V) and their targets (b,), all of `tokens[1:]` once."""
        ...


class MixerState(Protocol):
    """What a mixer has learned from a stream so far."""

    def mix(self, row: LogProbs) -> LogProbs:
        """(V,): the mixed distribution of the next token, from the base's (V,). Changes nothing."""
        ...

    def observe(self, token: int, row: LogProbs) -> None:
        """The next token was `token`, and the base's distribution of it was `row` (V,)."""
        ...

    def advance(self, rows: LogProbs, targets: Tokens) -> NDArray[np.float64]:
        """(b,): mixed log-probabilities of `targets` (b,) by `rows` (b, V), learning from each.

        The same as `mix` and `observe` for one after another.
        """
        ...


class Mixer(Protocol):
    """A way to mix; holds settings and no state."""

    @property
    def name(self) -> str:
        """As it is reported."""
        ...

    def start(self, first: int) -> MixerState:
        """A state that has seen the token `first`."""
        ...


@dataclass(frozen=True, slots=True)
class Mixture:
    """A base predictor's rows, mixed: a `Predictor`."""

    base: RowPredictor
    mixer: Mixer

    @property
    def name(self) -> str:
        """Both names."""
        return f"{self.base.name} + {self.mixer.name}"

    @property
    def vocab_size(self) -> int:
        """The base's."""
        return self.base.vocab_size

    def start(self, first: int, *, num_tokens: int | None = None) -> Session:
        """As `Predictor.start`."""
        base = self.base.start(first, num_tokens=num_tokens)
        return MixedSession(base, self.mixer.start(first))

    def score(self, tokens: Tokens, *, progress: Progress = SILENT) -> NDArray[np.float64]:
        """As `Predictor.score`."""
        state = self.mixer.start(int(tokens[0]))
        blocks = self.base.rows(tokens, progress=progress)
        parts = [state.advance(rows, targets) for rows, targets in blocks]
        return np.concatenate(parts) if parts else np.empty(0)


class MixedSession:
    """One session of a mixture."""

    def __init__(self, base: Session, state: MixerState) -> None:
        self._base = base
        self._state = state

    def log_probs(self) -> LogProbs:
        """As `Session.log_probs`."""
        return self._state.mix(self._base.log_probs())

    def observe(self, token: int) -> None:
        """As `Session.observe`."""
        self._state.observe(token, self._base.log_probs())
        self._base.observe(token)
