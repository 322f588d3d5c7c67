"""The tilt is normalised, leans towards the likeliest follower alone, and has two equal forms."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from qpack.errors import ConfigError, DataError
from qpack.eval.tilt import TiltMixer, TiltSettings

from .test_ngram import random_rows


def tilted(
    stream: list[int], row: NDArray[np.float64], settings: TiltSettings
) -> NDArray[np.float64]:
    """The row after `stream`, from the definition."""
    for length in range(min(len(stream), settings.max_order - 1), settings.min_length - 1, -1):
        context = stream[len(stream) - length :]
        ends = [i for i in range(length, len(stream)) if stream[i - length : i] == context]
        found = Counter(stream[i] for i in ends)
        if found and max(found.values()) > settings.threshold * len(ends):
            p = np.exp(row)
            p[min(found, key=lambda token: (-found[token], token))] *= np.exp(settings.beta)
            return np.log(p / p.sum())
    return row


@given(
    st.lists(st.integers(0, 3), min_size=2, max_size=40),
    st.integers(1, 3),
    st.sampled_from([0.0, 0.5, 0.8]),
    st.sampled_from([0.0, 1.25, 20.0]),
)
def test_both_forms_are_the_definition(
    stream: list[int], min_length: int, threshold: float, beta: float
) -> None:
    settings = TiltSettings(max_order=5, min_length=min_length, threshold=threshold, beta=beta)
    rows = random_rows(len(stream) - 1, 4)
    mixer = TiltMixer(settings, 4)
    state = mixer.start(stream[0])
    found = []
    for i, token in enumerate(stream[1:]):
        mixed = state.mix(rows[i])
        np.testing.assert_allclose(
            mixed, tilted(stream[: i + 1], rows[i], settings), rtol=0, atol=1e-9
        )
        assert np.exp(mixed).sum() == pytest.approx(1, abs=1e-9)
        found.append(mixed[token])
        state.observe(token, rows[i])
    whole = mixer.start(stream[0]).advance(rows, np.array(stream[1:]))
    np.testing.assert_allclose(whole, found, rtol=0, atol=1e-12)
    assert (whole <= 0).all()


def test_of_equals_the_smallest_token_is_the_hint() -> None:
    row = np.log(np.full(5, 0.2))
    settings = TiltSettings(max_order=2, min_length=1, threshold=0.4, beta=1.0)
    for followers in ([3, 2], [2, 3]):
        state = TiltMixer(settings, 5).start(0)
        for token in (followers[0], 0, followers[1], 0):
            state.observe(token, row)
        assert state.mix(row).argmax() == 2


def test_a_certain_hint_and_an_impossible_one() -> None:
    state = TiltMixer(TiltSettings(min_length=1, beta=100.0), 2).start(0)
    row = np.log(np.array([0.5, 0.5]))
    for token in (1, 0):
        state.observe(token, row)
    np.testing.assert_allclose(state.mix(row), [-100.0, 0.0], atol=1e-12)
    certain = np.array([0.0, -np.inf])
    np.testing.assert_array_equal(state.mix(certain), certain)


def test_what_is_given_is_left_as_it_was() -> None:
    rows = random_rows(3, 2)
    before = rows.copy()
    rows.setflags(write=False)
    state = TiltMixer(TiltSettings(min_length=1), 2).start(0)
    state.advance(rows, np.array([1, 0, 1]))
    state.mix(rows[0])
    np.testing.assert_array_equal(rows, before)


def test_bad_settings_and_other_vocabularies_are_refused() -> None:
    with pytest.raises(ConfigError) as caught:
        TiltSettings(max_order=40, min_length=0, threshold=1.0, beta=float("inf"))
    names = ("max_order", "min_length", "threshold", "beta")
    assert [item.split()[0] for item in caught.value.items] == list(names)
    with pytest.raises(ConfigError, match="nothing to predict"):
        TiltMixer(TiltSettings(), 0)
    state = TiltMixer(TiltSettings(), 3).start(0)
    with pytest.raises(DataError, match="beyond the vocabulary of 3"):
        state.observe(3, random_rows(1, 3)[0])
    with pytest.raises(DataError, match="rows of shape"):
        state.advance(random_rows(1, 4), np.array([0]))
