"""The mixture of a network and a PPM is a distribution over tokens, in both of its forms."""

from __future__ import annotations

import math
import time
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

pytest.importorskip("numba")

from qpack.errors import ConfigError, DataError
from qpack.eval.ppm_mixer import PpmMixer
from qpack.eval.ppm_settings import PpmSettings
from qpack.tokenizer import Tokenizer
from qpack.tokens import read_shard

from .ppm_reference import Reference

PIECES = [b"", b"a", b"ab", b"abc", b"b", b"c", b"bc", b"a", b""]
"""Two control tokens, all bytes of the text as tokens, and one of them twice."""


@pytest.fixture(scope="module")
def abc() -> Tokenizer:
    return of_pieces(PIECES)


def of_pieces(pieces: list[bytes]) -> Tokenizer:
    return Tokenizer(
        path=Path("abc.model"),
        sha256="",
        piece_texts=tuple(pieces),
        piece_bytes=np.array([len(piece) for piece in pieces]),
        leading_space=np.zeros(len(pieces), np.bool_),
        boundary=np.array([not piece for piece in pieces]),
        _processor=None,
    )


def random_rows(num_rows: int, vocab_size: int, *, seed: int = 0) -> NDArray[np.float64]:
    logits = np.random.default_rng(seed).normal(scale=2.0, size=(num_rows, vocab_size))
    return logits - np.log(np.exp(logits).sum(1, keepdims=True))


def check_both_forms(mixer: PpmMixer, rows: NDArray[np.float64], tokens: NDArray[np.int64]) -> None:
    """Every row sums to 1, and its target has the probability that `advance` gives it."""
    state = mixer.start(int(tokens[0]))
    found = []
    for row, token in zip(rows, tokens[1:].tolist(), strict=True):
        mixed = state.mix(row)
        assert np.exp(mixed).sum() == pytest.approx(1.0, abs=1e-9)
        assert state.mix(row).tolist() == mixed.tolist()
        found.append(mixed[token])
        state.observe(token, row)
    fast = mixer.start(int(tokens[0]))
    cut = len(rows) // 3
    parts = [
        fast.advance(rows[:cut], tokens[1 : cut + 1]),
        fast.advance(rows[cut:], tokens[cut + 1 :]),
    ]
    np.testing.assert_allclose(np.concatenate(parts), found, rtol=0, atol=1e-10)


class Formulas:
    """The fixed-gate mixture over `PIECES` as its document says, one token after another."""

    def __init__(self, lam: float, first: int) -> None:
        self.lam = lam
        self.ppm = Reference(4, 257)
        self.ended: dict[bytes, list[float]] = defaultdict(lambda: [0.5, 1.0])
        self.before = b""
        self.observe(first)

    def after(self, text: bytes) -> list[float]:
        """P of the next symbol after the stream and `text`."""
        stream = self.ppm.stream
        self.ppm.stream = stream + list(text)
        out = [float(p) for p in self.ppm.probs()]
        self.ppm.stream = stream
        return out

    def e(self, node: bytes) -> float:
        ended, could = self.ended[node]
        return ended / could

    def step(self, node: bytes, p: NDArray[np.float64]) -> dict[bytes | None, float]:
        """The mixed probability of each child of `node`, and of END (None)."""
        prefixes = {piece[:k] for piece in PIECES for k in range(len(piece) + 1)}
        children = sorted(x for x in prefixes if len(x) == len(node) + 1 and x.startswith(node))
        P, r = self.after(node), {}
        if node == b"":
            r[None] = P[256]
            for child in children:
                known = self.before != b"" and self.before + child in prefixes
                r[child] = P[child[0]] * (self.e(self.before + child) if known else 1.0)
        else:
            r = {child: P[child[-1]] * (1 - self.e(child)) for child in children}
            r[None] = 1 - sum(r.values())
        total = sum(r.values())
        mass = sum(p[v] for v, piece in enumerate(PIECES) if piece.startswith(node))
        q = {x: sum(p[v] for v, y in enumerate(PIECES) if y.startswith(x)) / mass for x in children}
        ends = sum(p[v] for v, piece in enumerate(PIECES) if piece == node)
        return {
            x: self.lam * (q[x] if x is not None else ends / mass) + (1 - self.lam) * r[x] / total
            for x in r
        }

    def mix(self, p: NDArray[np.float64]) -> list[float]:
        out = []
        for v, piece in enumerate(PIECES):
            steps = [self.step(piece[:k], p)[piece[: k + 1]] for k in range(len(piece))]
            same = sum(p[u] for u, other in enumerate(PIECES) if other == piece)
            out.append(math.prod(steps) * self.step(piece, p)[None] * p[v] / same)
        return out

    def observe(self, token: int) -> None:
        piece = PIECES[token]
        if piece and self.before:
            refused = self.before + piece[:1]
            self.ended[refused] = [x + 1 for x in self.ended[refused]]
        for k in range(2, len(piece) + 1):
            self.ended[piece[:k]][1] += 1
        for symbol in piece or [256]:
            self.ppm.observe(symbol)
        self.before = piece


@settings(max_examples=20)
@given(st.lists(st.integers(0, len(PIECES) - 1), min_size=2, max_size=12), st.floats(0, 1))
def test_it_is_what_the_formulas_say(tokens: list[int], lam: float) -> None:
    gate = PpmSettings(gate="fixed", sure=lam, unsure=lam)
    state = PpmMixer(gate, of_pieces(PIECES)).start(tokens[0])
    formulas = Formulas(lam, tokens[0])
    for row, token in zip(random_rows(len(tokens) - 1, len(PIECES)), tokens[1:], strict=True):
        np.testing.assert_allclose(np.exp(state.mix(row)), formulas.mix(np.exp(row)), rtol=1e-10)
        state.observe(token, row)
        formulas.observe(token)


@settings(max_examples=20)
@given(
    st.lists(st.integers(0, len(PIECES) - 1), min_size=2, max_size=40),
    st.sampled_from([PpmSettings(), PpmSettings(gate="fixed"), PpmSettings(order=0, rate=5.0)]),
)
def test_both_forms_agree_on_any_stream(tokens: list[int], chosen: PpmSettings) -> None:
    rows = random_rows(len(tokens) - 1, len(PIECES))
    check_both_forms(PpmMixer(chosen, of_pieces(PIECES)), rows, np.array(tokens))


@pytest.mark.parametrize("gate", ["learned", "fixed"])
def test_both_forms_agree_on_real_text(shared_data: Path, gate: str) -> None:
    tokenizer = Tokenizer.load(shared_data / "tokenizers" / "fineweb_1024_bpe.model")
    shard = read_shard(shared_data / "shards" / "fineweb_val_head_sp1024.bin")
    mixer = PpmMixer(PpmSettings(gate=gate), tokenizer)  # type: ignore[arg-type]
    check_both_forms(mixer, random_rows(200, 1024), shard[:201].astype(np.int64))


def test_a_sentencepiece_model_serves_as_it_is(tokenizer: Tokenizer, sentences: list[str]) -> None:
    tokens = np.array([1, *tokenizer.encode(" ".join(sentences))])
    rows = random_rows(len(tokens) - 1, tokenizer.vocab_size)
    check_both_forms(PpmMixer(PpmSettings(), tokenizer), rows, tokens)


def test_all_weight_on_the_network_gives_it_back(abc: Tokenizer) -> None:
    state = PpmMixer(PpmSettings(gate="fixed", sure=1.0, unsure=1.0), abc).start(0)
    for row, token in zip(random_rows(30, len(PIECES)), [1, 2, 8] * 10, strict=True):
        np.testing.assert_allclose(state.mix(row), row, rtol=1e-12, atol=1e-12)
        state.observe(token, row)


def test_what_the_network_thinks_impossible_still_sums_to_one(abc: Tokenizer) -> None:
    row = np.full(len(PIECES), -np.inf)
    row[4] = 0.0
    for weight in (0.0, 0.5):
        state = PpmMixer(PpmSettings(gate="fixed", sure=weight, unsure=weight), abc).start(0)
        for token in (4, 1, 3, 0):
            mixed = state.mix(row)
            assert np.exp(mixed).sum() == pytest.approx(1.0, abs=1e-12)
            assert np.isfinite(mixed).all()
            state.observe(token, row)


@pytest.mark.parametrize("gate", ["learned", "fixed"])
def test_no_float_is_too_small_to_come(abc: Tokenizer, gate: str) -> None:
    row = np.full(len(PIECES), -2_000.0)
    row[1] = 0.0
    chosen = PpmSettings(gate=gate, sure=1.0, unsure=1.0)  # type: ignore[arg-type]
    tokens = np.array([4, 7, 3, 0, 1])
    rows = np.tile(row, (4, 1))
    scores = PpmMixer(chosen, abc).start(4).advance(rows, tokens[1:])
    assert np.isfinite(scores).all()
    check_both_forms(PpmMixer(chosen, abc), rows, tokens)


def test_repeated_text_is_learned(abc: Tokenizer) -> None:
    tokens = np.tile([3, 4, 6, 1, 5], 100)
    rows = np.full((len(tokens), len(PIECES)), -np.log(len(PIECES)))
    scores = PpmMixer(PpmSettings(), abc).start(0).advance(rows, tokens)
    assert scores[:5].mean() < -1.5
    assert scores[-5:].mean() > -0.2


@pytest.mark.slow
def test_a_megabyte_a_minute(shared_data: Path) -> None:
    tokenizer = Tokenizer.load(shared_data / "tokenizers" / "fineweb_1024_bpe.model")
    shard = read_shard(shared_data / "shards" / "fineweb_val_head_sp1024.bin")[:60_001]
    rows, mixer = random_rows(500, 1024), PpmMixer(PpmSettings(), tokenizer)
    mixer.start(1).advance(rows[:1], shard[:1])  # compiles
    state = mixer.start(int(shard[0]))
    began = time.process_time()
    for at in range(1, len(shard), len(rows)):
        state.advance(rows, shard[at : at + len(rows)])
    seconds = time.process_time() - began
    assert tokenizer.text_bytes(shard) / seconds * 60 > 1e6


def test_text_of_other_vocabularies_is_refused(abc: Tokenizer) -> None:
    state = PpmMixer(PpmSettings(), abc).start(0)
    with pytest.raises(DataError, match="8"):
        state.mix(np.full(8, -np.log(8)))
    with pytest.raises(DataError, match="beyond the vocabulary of 9"):
        state.advance(random_rows(1, 9), np.array([9]))


def test_settings_name_all_that_is_wrong() -> None:
    with pytest.raises(ConfigError) as caught:
        PpmSettings(order=7, sure=1.5, rate=-1.0, gate="other")  # type: ignore[arg-type]
    named = [item.partition(" =")[0] for item in caught.value.items]
    assert sorted(named) == ["gate", "order", "rate", "sure"]
