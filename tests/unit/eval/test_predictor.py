"""A mixture mixes the base's rows, and both of its forms say the same."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from numpy.typing import NDArray

from qpack.eval.predictor import LogProbs, Mixture, Predictor, RowPredictor, Session, Tokens
from qpack.progress import SILENT, Progress

VOCAB = 5


class Bigram:
    """A base with one fixed row for each last token."""

    name = "bigram"
    vocab_size = VOCAB

    def __init__(self) -> None:
        logits = np.random.default_rng(0).normal(size=(VOCAB, VOCAB))
        self.table = logits - np.log(np.exp(logits).sum(1, keepdims=True))

    def start(self, first: int, *, num_tokens: int | None = None) -> Session:
        return BigramSession(self.table, first)

    def score(self, tokens: Tokens, *, progress: Progress = SILENT) -> NDArray[np.float64]:
        return self.table[tokens[:-1], tokens[1:]]

    def rows(
        self, tokens: Tokens, *, progress: Progress = SILENT
    ) -> Iterator[tuple[LogProbs, Tokens]]:
        for i in range(0, len(tokens) - 1, 3):
            context = tokens[i : min(i + 3, len(tokens) - 1)]
            yield self.table[context], tokens[i + 1 : i + 1 + len(context)]


class BigramSession:
    def __init__(self, table: LogProbs, last: int) -> None:
        self.table, self.last = table, last

    def log_probs(self) -> LogProbs:
        return self.table[self.last]

    def observe(self, token: int) -> None:
        self.last = token


class Unigram:
    """A mixer: half the base, half the counts so far."""

    name = "counts"

    def start(self, first: int) -> UnigramState:
        return UnigramState(first)


class UnigramState:
    def __init__(self, first: int) -> None:
        self.counts = np.ones(VOCAB)
        self.counts[first] += 1

    def mix(self, row: LogProbs) -> LogProbs:
        return np.log(0.5 * np.exp(row) + 0.5 * self.counts / self.counts.sum())

    def observe(self, token: int, row: LogProbs) -> None:
        self.counts[token] += 1

    def advance(self, rows: LogProbs, targets: Tokens) -> NDArray[np.float64]:
        out = np.empty(len(targets))
        for i, (row, token) in enumerate(zip(rows, targets, strict=True)):
            out[i] = self.mix(row)[token]
            self.observe(int(token), row)
        return out


def test_both_forms_agree_and_sum_to_one() -> None:
    mixture = Mixture(Bigram(), Unigram())
    tokens = np.random.default_rng(1).integers(VOCAB, size=20)
    session = mixture.start(int(tokens[0]))
    found = []
    for token in tokens[1:]:
        row = session.log_probs()
        assert np.exp(row).sum() == pytest.approx(1.0, abs=1e-12)
        found.append(row[token])
        session.observe(int(token))
    np.testing.assert_allclose(mixture.score(tokens), found, rtol=1e-12)


def test_a_mixture_is_a_predictor_and_says_what_it_is() -> None:
    mixture = Mixture(Bigram(), Unigram())
    assert isinstance(mixture, Predictor)
    assert isinstance(mixture.base, RowPredictor)
    assert (mixture.name, mixture.vocab_size) == ("bigram + counts", VOCAB)
    assert mixture.score(np.array([1])).size == 0
