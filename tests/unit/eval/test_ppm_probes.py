"""Probes pass both PPM mixtures, and refuse the byte-spread scores that came before them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

pytest.importorskip("numba")

from qpack.errors import QpackError
from qpack.eval.checks import CheckSettings, check, refuse
from qpack.eval.ppm_mixer import PpmMixer
from qpack.eval.ppm_settings import PpmSettings, TokenPpmSettings
from qpack.eval.predictor import LogProbs, Mixer, Mixture, Tokens
from qpack.eval.studies.byte_spread import Spread
from qpack.eval.token_ppm import TokenPpmMixer
from qpack.tokenizer import SPACE_MARK, Tokenizer

from .test_predictor import Bigram

CHECKS = CheckSettings(num_tokens=400)


class Wide(Bigram):
    """The bigram base, over a real vocabulary."""

    def __init__(self, vocab_size: int) -> None:
        logits = np.random.default_rng(0).normal(scale=2.0, size=(vocab_size, vocab_size))
        self.table = logits - np.log(np.exp(logits).sum(1, keepdims=True))
        self.vocab_size = vocab_size


class SpreadMixer:
    """#1959 as if it were a mixer: each token's row entry is what it would be scored."""

    name = "byte spread"

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.spelled = [name.replace(SPACE_MARK, " ").encode() for name in tokenizer.names()]

    def start(self, first: int) -> SpreadState:
        return SpreadState(self.spelled, first)


class SpreadState:
    def __init__(self, spelled: list[bytes], first: int) -> None:
        self.spread = Spread(spelled, first)

    def mix(self, row: LogProbs) -> LogProbs:
        return np.log(self.spread.scores(row))

    def observe(self, token: int, row: LogProbs) -> None:
        self.spread.advance(row[None], np.array([token]))

    def advance(self, rows: LogProbs, targets: Tokens) -> NDArray[np.float64]:
        bits = [
            self.spread.advance(rows[i : i + 1], targets[i : i + 1]) for i in range(len(targets))
        ]
        return -np.log(2) * np.array(bits)


@pytest.fixture(scope="module")
def stream(tokenizer: Tokenizer, sentences: list[str]) -> NDArray[np.int64]:
    return np.array([tokenizer.bos, *tokenizer.encode(" ".join(sentences * 3))])


@pytest.mark.parametrize("over", ["bytes", "tokens"])
def test_ppm_mixtures_pass_every_probe(
    over: str, tokenizer: Tokenizer, stream: NDArray[np.int64]
) -> None:
    mixers: dict[str, Any] = {
        "bytes": PpmMixer(PpmSettings(), tokenizer),
        "tokens": TokenPpmMixer(TokenPpmSettings(), tokenizer.vocab_size),
    }
    probes = check(
        Mixture(Wide(tokenizer.vocab_size), mixers[over]), stream, tokenizer, settings=CHECKS
    )
    assert [probe.name for probe in probes if not probe.passed] == []


def test_byte_spread_is_refused_by_its_sums(
    tokenizer: Tokenizer, stream: NDArray[np.int64]
) -> None:
    mixer: Mixer = SpreadMixer(tokenizer)
    predictor = Mixture(Wide(tokenizer.vocab_size), mixer)
    probes = check(predictor, stream, tokenizer, settings=CHECKS)
    assert "normalisation" in [probe.name for probe in probes if not probe.passed]
    with pytest.raises(QpackError, match="byte spread"):
        refuse(predictor, probes)
