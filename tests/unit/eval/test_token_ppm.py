"""A PPM over tokens mixed with a network: normalised, in both forms, and what was written down."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("numba")

from qpack.errors import ConfigError, DataError
from qpack.eval.ppm_settings import TokenPpmSettings
from qpack.eval.token_ppm import TokenPpmMixer

from .ppm_reference import Reference

VOCAB = 6


def random_rows(num_rows: int, vocab_size: int) -> np.ndarray:
    logits = np.random.default_rng(0).normal(scale=2.0, size=(num_rows, vocab_size))
    return logits - np.log(np.exp(logits).sum(1, keepdims=True))


@settings(max_examples=30)
@given(st.lists(st.integers(0, VOCAB - 1), min_size=2, max_size=30), st.floats(0, 1))
def test_it_is_what_the_formulas_say(tokens: list[int], lam: float) -> None:
    chosen = TokenPpmSettings(gate="fixed", sure=lam, unsure=lam, order=2)
    state, ppm = TokenPpmMixer(chosen, VOCAB).start(tokens[0]), Reference(2, VOCAB)
    ppm.observe(tokens[0])
    for row, token in zip(random_rows(len(tokens) - 1, VOCAB), tokens[1:], strict=True):
        expected = lam * np.exp(row) + (1 - lam) * np.array(ppm.probs(), float)
        np.testing.assert_allclose(np.exp(state.mix(row)), expected, rtol=1e-12)
        state.observe(token, row)
        ppm.observe(token)


@settings(max_examples=30)
@given(
    st.lists(st.integers(0, VOCAB - 1), min_size=2, max_size=60),
    st.sampled_from([{}, {"gate": "fixed"}, {"order": 0}]),
)
def test_both_forms_agree_and_sum_to_one(tokens: list[int], chosen: dict[str, Any]) -> None:
    rows = random_rows(len(tokens) - 1, VOCAB)
    mixer = TokenPpmMixer(TokenPpmSettings(**chosen), VOCAB)
    state, found = mixer.start(tokens[0]), []
    for row, token in zip(rows, tokens[1:], strict=True):
        mixed = state.mix(row)
        assert np.exp(mixed).sum() == pytest.approx(1.0, abs=1e-9)
        assert state.mix(row).tolist() == mixed.tolist()
        found.append(mixed[token])
        state.observe(token, row)
    fast = mixer.start(tokens[0])
    parts = [
        fast.advance(rows[:7], np.array(tokens[1:8])),
        fast.advance(rows[7:], np.array(tokens[8:])),
    ]
    np.testing.assert_allclose(np.concatenate(parts), found, rtol=0, atol=1e-10)


def test_repeated_tokens_are_learned() -> None:
    tokens = np.tile([3, 4, 5, 1], 100)
    rows = np.full((len(tokens), VOCAB), -np.log(VOCAB))
    scores = TokenPpmMixer(TokenPpmSettings(), VOCAB).start(0).advance(rows, tokens)
    assert scores[:4].mean() < -1.5
    assert scores[-4:].mean() > -0.2


def test_other_vocabularies_are_refused() -> None:
    state = TokenPpmMixer(TokenPpmSettings(), VOCAB).start(0)
    with pytest.raises(DataError, match="5"):
        state.mix(np.full(5, -np.log(5)))
    with pytest.raises(DataError, match="beyond the vocabulary of 6"):
        state.advance(random_rows(1, VOCAB), np.array([6]))
    with pytest.raises(ConfigError, match="order 5"):
        TokenPpmMixer(TokenPpmSettings(order=5), 8192)
