"""A code is as long as its nats say, comes back, and damage is noticed."""

from __future__ import annotations

import builtins
import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from qpack.errors import CorruptError, DataError, SetupError
from qpack.eval.coding import decode, encode

V = 300


@dataclass
class Counts:
    """Learns counts as it goes: a decoder that is one token off gets everything wrong."""

    counts: NDArray[np.float64] = field(default_factory=lambda: np.full(V, 0.01))

    def log_probs(self) -> NDArray[np.float64]:
        row: NDArray[np.float64] = np.log(self.counts / self.counts.sum())
        return row

    def observe(self, token: int) -> None:
        self.counts[token] += 1


@dataclass
class Fixed:
    row: NDArray[np.float64]

    def log_probs(self) -> NDArray[np.float64]:
        return self.row

    def observe(self, token: int) -> None:
        pass


def nats(tokens: NDArray[np.int64]) -> float:
    session, total = Counts(), 0.0
    for token in tokens.tolist():
        total -= session.log_probs()[token]
        session.observe(token)
    return total


def skewed(count: int, seed: int = 0) -> NDArray[np.int64]:
    return np.random.default_rng(seed).geometric(0.05, count).clip(max=V) - 1


def test_the_length_is_what_the_nats_say() -> None:
    tokens = skewed(5_000)
    code = encode(Counts(), tokens)
    wanted = nats(tokens) / math.log(2)
    assert abs(8 * len(code) - wanted) <= 0.001 * wanted + 64
    np.testing.assert_array_equal(decode(Counts(), code, len(tokens)), tokens)


@given(st.lists(st.integers(0, V - 1), max_size=50))
def test_any_tokens_come_back(tokens: list[int]) -> None:
    code = encode(Counts(), tokens)
    assert decode(Counts(), code, len(tokens)).tolist() == tokens


def test_impossible_tokens_can_be_coded() -> None:
    """A probability of 0 becomes 2^-24."""
    row = np.full(V, -np.inf)
    row[0] = 0.0
    tokens = [0, V - 1] * 20
    code = encode(Fixed(row), tokens)
    assert decode(Fixed(row), code, len(tokens)).tolist() == tokens
    assert 8 * len(code) <= 24 * 20 + 64


def test_no_tokens_no_code() -> None:
    assert encode(Counts(), []) == b""
    assert decode(Counts(), b"", 0).tolist() == []


def test_a_truncated_code() -> None:
    code = encode(Counts(), skewed(200))
    with pytest.raises(CorruptError, match="whole number of words"):
        decode(Counts(), code[:-1], 200)


def test_a_code_that_goes_on() -> None:
    code = encode(Counts(), skewed(200))
    with pytest.raises(CorruptError, match="goes on"):
        decode(Counts(), code + bytes(12), 200)


def test_a_code_that_nobody_writes() -> None:
    with pytest.raises(CorruptError, match="damaged at token"):
        decode(Counts(), b"\xff" * 40, 200)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_rows_that_are_no_distribution(value: float) -> None:
    with pytest.raises(DataError, match="sum to"):
        encode(Fixed(np.full(V, value)), [1])


def test_tokens_beyond_the_alphabet() -> None:
    with pytest.raises(DataError, match="token 300"):
        encode(Counts(), [V])


def test_without_constriction(monkeypatch: pytest.MonkeyPatch) -> None:
    there = builtins.__import__

    def absent(name: str, *rest: Any) -> Any:
        if name == "constriction":
            raise ImportError(name)
        return there(name, *rest)

    monkeypatch.setattr(builtins, "__import__", absent)
    with pytest.raises(SetupError, match="constriction"):
        encode(Counts(), [1])
