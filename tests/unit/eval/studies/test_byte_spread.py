"""Byte spreading as claimed: its shares sum to more than 1, and the trie's do not."""

from __future__ import annotations

import math
from collections import defaultdict

import numpy as np
import pytest
import torch
from torch import nn

pytest.importorskip("numba")

from qpack.errors import ConfigError, DataError
from qpack.eval.studies.byte_spread import ByteSpreadSettings, Spread, study
from qpack.tokenizer import SPACE_MARK, Tokenizer

WORDS = [b"amen", b"bird", b"city", b"dumb", b"echo", b"frog", b"glum", b"hint"]
"""Eight tokens of four bytes each, every byte after the first certain."""


class Original:
    """The scheme with dictionaries, as #1959 wrote it."""

    def __init__(self) -> None:
        self.counts: dict[bytes, dict[int, int]] = defaultdict(dict)
        self.stream = b""

    def byte(self, q: float, symbol: int) -> float:
        confidence, escape, r = None, 1.0, None
        for order in range(min(4, len(self.stream)), -1, -1):
            followers = self.counts.get(self.stream[len(self.stream) - order :])
            if not followers:
                continue
            total = sum(followers.values())
            if confidence is None:
                confidence = max(followers.values()) / total
            if symbol in followers:
                r = escape * (2 * followers[symbol] - 1) / (2 * total)
                break
            escape *= len(followers) / (2 * total)
        r = escape / 256 if r is None else r
        lam = 0.05 if (confidence or 0.0) > 0.9 else 0.9
        return max(lam * q + (1 - lam) * r, 1e-20)

    def learn(self, symbol: int) -> None:
        for order in range(min(4, len(self.stream)) + 1):
            followers = self.counts[self.stream[len(self.stream) - order :]]
            followers[symbol] = followers.get(symbol, 0) + 1
        self.stream += bytes([symbol])

    def bits(self, text: bytes, p: float) -> float:
        total = 0.0
        for symbol in text:
            total -= math.log2(self.byte(p ** (1 / len(text)), symbol))
            self.learn(symbol)
        return total


def random_rows(num_rows: int, vocab_size: int) -> np.ndarray:
    logits = np.random.default_rng(0).normal(scale=2.0, size=(num_rows, vocab_size))
    return logits - np.log(np.exp(logits).sum(1, keepdims=True))


def test_the_claimed_bits_are_those_of_the_original() -> None:
    texts = [b" the", b"<s>", b"e", b"<0x0A>", b"th"]
    tokens = np.random.default_rng(1).integers(5, size=120)
    rows, original = random_rows(120, 5), Original()
    spread = Spread(texts, 1)
    original.bits(b"<s>", 1.0)
    for row, token in zip(rows, tokens, strict=True):
        expected = original.bits(texts[token], math.exp(row[token]))
        assert spread.advance(row[None], np.array([token])) == pytest.approx(expected, rel=1e-12)


def test_eight_equal_words_sum_to_four() -> None:
    equal = np.full((20_000, 8), -math.log(8))
    tokens = np.random.default_rng(0).integers(8, size=20_000)
    spread = Spread(WORDS, 0)
    assert spread.scores(equal[0]).sum() < 1.0  # it knows one word
    bits = spread.advance(equal[:19_000], tokens[:19_000])
    bits = spread.advance(equal[19_000:], tokens[19_000:])
    total = spread.scores(equal[0]).sum()
    assert total == pytest.approx(4.09, abs=0.03)
    # A code needs 3 bits for each of these words. The claim is less by what was free.
    assert bits / 1000 == pytest.approx(3 - math.log2(total), abs=0.01)
    assert math.log2(total) == pytest.approx(2.03, abs=0.01)


class Table(nn.Module):
    """A bigram model."""

    def __init__(self, vocab_size: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.vocab_size = vocab_size
        self.table = nn.Parameter(torch.randn(vocab_size, vocab_size, generator=generator))

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.table[tokens]


@pytest.fixture(scope="module")
def stream(tokenizer: Tokenizer, sentences: list[str]) -> np.ndarray:
    document = [tokenizer.bos, *tokenizer.encode(" ".join(sentences))]
    return np.array(document * 8, np.uint16)


def test_the_study(tokenizer: Tokenizer, stream: np.ndarray) -> None:
    model = Table(tokenizer.vocab_size)
    found = study(model, stream, tokenizer, ByteSpreadSettings(window=64, positions=50))
    assert list(found) == [
        "claimed", "wrong", "violation", "honest", "tokens", "bytes", "seconds", "settings",
    ]  # fmt: skip
    claimed, violation, honest = found["claimed"], found["violation"], found["honest"]
    assert found["tokens"] == len(stream) - 1
    assert found["bytes"] == tokenizer.text_bytes(stream)
    assert violation["positions"] == 50
    assert violation["mean_sum_over_tokens"] > 1.4
    real = violation["bits_per_byte_less_what_was_free"]
    assert real > claimed["claimed_bits_per_real_byte"] > claimed["claimed_bits_per_byte"]
    # The names of bytes and control tokens are longer than what they stand for.
    names = [name.replace(SPACE_MARK, " ") for name in tokenizer.names()]
    spelled = "".join(names[token] for token in stream[1:])
    assert claimed["claimed_bytes"] == len(spelled.encode())
    assert violation["bytes_added_by_names"] == len(spelled.encode()) - found["bytes"] > 0
    # The text repeats, so the honest mixtures gain; with the same gate less than was claimed.
    assert honest["bpb_learned_gate"] < honest["bpb_fixed_gate"] < honest["bpb_network"]
    assert honest["bpb_fixed_gate"] > claimed["claimed_bits_per_byte"]


def test_no_claim_is_called_bits_per_byte(tokenizer: Tokenizer, stream: np.ndarray) -> None:
    found = study(Table(tokenizer.vocab_size), stream[:40], tokenizer)
    assert all("bpb" not in key for part in ("claimed", "violation") for key in found[part])
    assert all(key.startswith("claimed") for key in found["claimed"])
    assert found["violation"]["positions"] == 39  # all there are


def test_same_seed_same_study(tokenizer: Tokenizer, stream: np.ndarray) -> None:
    chosen = ByteSpreadSettings(window=16, positions=5, seed=3)
    first, second = (study(Table(tokenizer.vocab_size), stream, tokenizer, chosen) for _ in "12")
    assert {**first, "seconds": 0} == {**second, "seconds": 0}


def test_bad_input_is_refused(tokenizer: Tokenizer, stream: np.ndarray) -> None:
    with pytest.raises(ConfigError) as caught:
        ByteSpreadSettings(window=0, positions=0, seed=-1)
    assert len(caught.value.items) == 3
    with pytest.raises(DataError, match="no text"):
        study(Table(tokenizer.vocab_size), stream[:1], tokenizer)
    with pytest.raises(DataError, match="the model 7"):
        study(Table(7), stream, tokenizer)
