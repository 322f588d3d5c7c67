"""The n-gram mixture is normalised, and its two forms say the same, on any stream."""

from __future__ import annotations

import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from qpack.errors import ConfigError, DataError
from qpack.eval import blocks, ngram_table
from qpack.eval.checks import CheckSettings, check
from qpack.eval.network import Network
from qpack.eval.ngram import NgramMixer, NgramSettings
from qpack.eval.predictor import Mixture
from qpack.eval.tilt import TiltMixer, TiltSettings
from qpack.tokenizer import Tokenizer
from qpack.tokens import read_shard

SETTINGS = st.builds(
    NgramSettings,
    max_order=st.integers(2, 9),
    discount=st.floats(0.01, 0.99),
    concentration=st.sampled_from([0.0, 0.5, 20.0]),
    rate=st.sampled_from([0.0, 0.1, 3.0]),
)


def random_rows(num_rows: int, vocab_size: int, *, seed: int = 0) -> NDArray[np.float64]:
    logits = np.random.default_rng(seed).normal(size=(num_rows, vocab_size)) * 3
    rows: NDArray[np.float64] = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    return rows


def by_formula(
    stream: list[int],
    row: NDArray[np.float64],
    *,
    max_order: int,
    discount: float,
    concentration: float,
) -> NDArray[np.float64]:
    """The mixture at rate 0 after `stream`, from the formulas in the docstring."""
    vocab_size = len(row)
    q = np.full(vocab_size, 1 / vocab_size)
    x = np.zeros(4)
    longest = 0
    for n in range(min(max_order, len(stream))):
        context = stream[len(stream) - n :]
        ends = [i for i in range(n, len(stream)) if stream[i - n : i] == context]
        found = Counter(stream[i] for i in ends)
        if not found:
            break
        total, longest = len(ends), n
        c = np.array([found[v] for v in range(vocab_size)], float)
        beta = concentration + discount * len(found)
        q = (np.maximum(c - discount, 0) + beta * q) / (total + concentration)
        x[2:] = total / (total + 2), max(found.values()) / total
    x[:2] = 1, -(np.exp(row) * row).sum() / np.log(vocab_size)
    weights = np.array([-9 + 0.44 * longest, 2, 4, 3])
    alpha = 1 / (1 + np.exp(-weights @ x))
    return np.log((1 - alpha) * np.exp(row) + alpha * q)


@given(st.lists(st.integers(0, 4), min_size=2, max_size=40), SETTINGS)
def test_both_forms_agree_and_sum_to_one(stream: list[int], settings: NgramSettings) -> None:
    tokens = np.array(stream)
    rows = random_rows(len(tokens) - 1, 5)
    mixer = NgramMixer(settings, 5)
    state = mixer.start(stream[0])
    found = []
    for row, token in zip(rows, tokens[1:], strict=True):
        mixed = state.mix(row)
        np.testing.assert_array_equal(state.mix(row), mixed)
        assert np.exp(mixed).sum() == pytest.approx(1, abs=1e-9)
        found.append(mixed[token])
        state.observe(int(token), row)
    whole = mixer.start(stream[0]).advance(rows, tokens[1:])
    np.testing.assert_allclose(whole, found, rtol=0, atol=1e-12)
    assert (whole <= 0).all()


@given(st.lists(st.integers(0, 2), min_size=1, max_size=25), st.sampled_from([0.0, 5.0]))
def test_the_mixture_is_that_of_the_formulas(stream: list[int], concentration: float) -> None:
    settings = NgramSettings(max_order=5, discount=0.3, concentration=concentration, rate=0)
    rows = random_rows(len(stream), 3)
    state = NgramMixer(settings, 3).start(stream[0])
    for row, token in zip(rows[1:], stream[1:], strict=True):
        state.observe(token, row)
    expected = by_formula(stream, rows[0], max_order=5, discount=0.3, concentration=concentration)
    np.testing.assert_allclose(state.mix(rows[0]), expected, rtol=0, atol=1e-12)


def test_blocks_of_any_length_give_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocks, "BLOCK_TOKENS", 7)
    monkeypatch.setattr(ngram_table, "FIRST_NODES", 16)
    tokens = np.random.default_rng(3).integers(6, size=101).astype(np.uint16)
    rows = random_rows(100, 6)
    mixer = NgramMixer(NgramSettings(), 6)
    whole = mixer.start(int(tokens[0])).advance(rows, tokens[1:])
    state = mixer.start(int(tokens[0]))
    parts = [state.advance(rows[i : i + 30], tokens[i + 1 : i + 31]) for i in range(0, 100, 30)]
    np.testing.assert_array_equal(np.concatenate(parts), whole)


def test_probes_find_nothing(table_model, tokenizer: Tokenizer, sentences: list[str]) -> None:  # type: ignore[no-untyped-def]
    generator = torch.Generator().manual_seed(0)
    model = table_model(
        torch.randn(tokenizer.vocab_size, tokenizer.vocab_size, generator=generator)
    )
    tokens = np.array([tokenizer.bos, *tokenizer.encode(" ".join(sentences * 2))])
    network = Network(model, window=32)
    for mixer in (
        NgramMixer(NgramSettings(), tokenizer.vocab_size),
        TiltMixer(TiltSettings(min_length=1), tokenizer.vocab_size),
    ):
        predictor = Mixture(network, mixer)
        settings = CheckSettings(num_tokens=120, nats_tolerance=1e-9)
        probes = check(predictor, tokens, tokenizer, settings=settings)
        assert [probe for probe in probes if not probe.passed] == []
        assert predictor.score(tokens).sum() > network.score(tokens).sum()


def test_repeated_text_costs_less_and_weights_learn_it() -> None:
    """The network is always unsure; the text repeats itself after 50 tokens."""
    once = np.random.default_rng(0).integers(100, size=50)
    tokens = np.tile(once, 8)
    rows = np.full((len(tokens) - 1, 100), -np.log(100))
    fixed, learned = (
        NgramMixer(NgramSettings(rate=rate), 100).start(int(tokens[0])).advance(rows, tokens[1:])
        for rate in (0.0, 0.1)
    )
    assert fixed[:40].mean() == pytest.approx(-np.log(100), abs=0.05)
    assert learned[-50:].mean() > fixed[-50:].mean() > 0.5 * -np.log(100)
    assert learned[-50:].mean() > -0.2


def test_a_token_the_network_rules_out_keeps_a_probability() -> None:
    row = np.log(np.array([0.5, 0.5, 1.0])) + np.array([0, 0, -np.inf])
    state = NgramMixer(NgramSettings(rate=100.0), 3).start(0)
    for token in (0, 1, 1, 2, 0, 1, 2):
        mixed = state.mix(row)
        assert np.isfinite(mixed).all()
        assert np.exp(mixed).sum() == pytest.approx(1, abs=1e-9)
        state.observe(token, row)


def test_what_is_given_is_left_as_it_was() -> None:
    rows = random_rows(4, 3)
    before = rows.copy()
    rows.setflags(write=False)
    state = NgramMixer(NgramSettings(), 3).start(0)
    state.mix(rows[0])
    state.advance(rows, np.array([0, 1, 2, 0]))
    np.testing.assert_array_equal(rows, before)


def test_settings_are_refused_all_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        NgramSettings(max_order=1, discount=1.0, concentration=-1.0, rate=float("nan"))
    names = ("max_order", "discount", "concentration", "rate")
    assert [item.split()[0] for item in caught.value.items] == list(names)
    with pytest.raises(ConfigError, match="both 0"):
        NgramSettings(discount=0)


def test_other_vocabularies_are_refused() -> None:
    with pytest.raises(ConfigError, match="nothing to predict"):
        NgramMixer(NgramSettings(), 1)
    mixer = NgramMixer(NgramSettings(), 3)
    with pytest.raises(DataError, match="beyond the vocabulary of 3"):
        mixer.start(3)
    state = mixer.start(0)
    with pytest.raises(DataError, match="beyond the vocabulary of 3") as caught:
        state.advance(random_rows(4, 3), np.array([0, 9, -1, 2]))
    assert caught.value.items == ("-1", "9")
    with pytest.raises(DataError, match="mix with the vocabulary of the base"):
        state.advance(random_rows(2, 4), np.array([0, 1]))


@pytest.mark.slow
def test_a_million_tokens_a_minute(shared_data: Path) -> None:
    """On one core, the network's own time left out: its rows are made up."""
    tokens = read_shard(shared_data / "shards" / "fineweb_val_head_sp1024.bin")[: (1 << 17) + 1]
    rows = random_rows(2048, 1024)
    mixer = NgramMixer(NgramSettings(), 1024)
    mixer.start(1).advance(rows[:2], tokens[:2])  # compiles
    state = mixer.start(int(tokens[0]))
    began = time.process_time()
    for i in range(1, len(tokens), len(rows)):
        state.advance(rows, tokens[i : i + len(rows)])
    assert (1 << 17) / (time.process_time() - began) > 1e6 / 60
    assert state.num_bytes < 512 * len(tokens)


@pytest.mark.parametrize(
    "mixer", [NgramMixer(NgramSettings(), 6), TiltMixer(TiltSettings(), 6)], ids=["ngram", "tilt"]
)
@pytest.mark.parametrize("length", [5, 7])
def test_a_row_of_another_vocabulary_is_refused(mixer: NgramMixer | TiltMixer, length: int) -> None:
    with pytest.raises(DataError, match="rows of shape"):
        mixer.start(0).mix(np.full(length, -np.log(length)))
