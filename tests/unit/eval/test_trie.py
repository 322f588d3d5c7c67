"""In the trie a distribution over tokens becomes one over bytes, and comes back exactly."""

from __future__ import annotations

import math
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

pytest.importorskip("numba")

from qpack.eval.trie import ROOT, Trie, build_trie, child_by, masses, path_to
from qpack.tokenizer import Tokenizer

PIECES = [b"", b"a", b"ab", b"abc", b"b", b"a", b""]
"""Two control tokens, and a piece that a byte-fallback token doubles."""


def summed(trie: Trie, p: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    E, M = np.empty(len(trie.symbol)), np.empty(len(trie.symbol))
    masses(trie, p, E, M)
    return E, M


def product(trie: Trie, p: NDArray[np.float64], token: int) -> float:
    """The probability of `token` as a product along its path."""
    E, M = summed(trie, p)
    path = np.empty(64, np.int64)
    nodes = path[: path_to(trie, token, path)]
    steps = [M[child] / M[node] for node, child in pairwise(nodes)]
    last = nodes[-1]
    return math.prod(steps) * E[last] / M[last] * p[token] / E[last]


def spelled(trie: Trie, node: int) -> bytes:
    return b"" if node == ROOT else spelled(trie, trie.parent[node]) + bytes([trie.symbol[node]])


def test_a_trie_by_hand() -> None:
    trie = build_trie(PIECES)
    assert [spelled(trie, node) for node in range(5)] == [b"", b"a", b"ab", b"abc", b"b"]
    assert trie.pieces.tolist() == [2, 2, 1, 1, 1]
    assert trie.node.tolist() == [0, 1, 2, 3, 4, 1, 0]
    assert trie.children[trie.first[ROOT] : trie.first[ROOT + 1]].tolist() == [1, 4]
    assert trie.rank.tolist() == [0, 0, 0, 0, 1]
    assert [child_by(trie, ROOT, byte) for byte in b"ab~"] == [1, 4, -1]
    assert child_by(trie, 3, ord("a")) == -1


def test_masses_by_hand() -> None:
    p = np.array([0.05, 0.1, 0.2, 0.15, 0.25, 0.125, 0.125])
    E, M = summed(build_trie(PIECES), p)
    np.testing.assert_allclose(E, [0.175, 0.225, 0.2, 0.15, 0.25], rtol=1e-15)
    np.testing.assert_allclose(M, [1.0, 0.575, 0.35, 0.15, 0.25], rtol=1e-15)


@settings(max_examples=50)
@given(st.data())
def test_the_product_telescopes_for_any_pieces(data: st.DataObject) -> None:
    piece = st.binary(max_size=5)
    pieces = data.draw(st.lists(piece, min_size=1, max_size=20))
    logits = data.draw(st.lists(st.floats(-60, 0), min_size=len(pieces), max_size=len(pieces)))
    p = np.exp(logits) / np.exp(logits).sum()
    trie = build_trie(pieces)
    for token, text in enumerate(pieces):
        assert spelled(trie, trie.node[token]) == text
        assert product(trie, p, token) == pytest.approx(p[token], rel=1e-12)


@pytest.mark.parametrize("name", ["fineweb_1024_bpe", "fineweb_8192_bpe"])
def test_the_product_telescopes_in_real_vocabularies(shared_data: Path, name: str) -> None:
    tokenizer = Tokenizer.load(shared_data / "tokenizers" / f"{name}.model")
    trie = build_trie(tokenizer.piece_texts)
    rng = np.random.default_rng(0)
    p = np.exp(rng.normal(scale=8.0, size=tokenizer.vocab_size))  # the least is about 1e-25
    p /= p.sum()
    for token in rng.integers(tokenizer.vocab_size, size=100).tolist():
        assert product(trie, p, token) == pytest.approx(p[token], rel=1e-12)
