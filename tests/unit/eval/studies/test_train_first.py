"""Training on the text before scoring it claims a gain that is not there on other text."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from qpack.errors import ConfigError, DataError
from qpack.eval.network import Network
from qpack.eval.studies.train_first import TrainFirstSettings, study
from qpack.tokenizer import Tokenizer
from tests.unit.trainer.model.tiny import tiny

SETTINGS = TrainFirstSettings(
    window=16, epochs=40, learning_rate=0.1, batch=4, held_out=0.5, chunk_tokens=32
)


@pytest.fixture(scope="module")
def noise() -> NDArray[np.uint16]:
    """Text in which there is nothing to learn but the text itself."""
    return np.random.default_rng(0).integers(40, 80, 129).astype(np.uint16)


@pytest.fixture(scope="module")
def found(noise: NDArray[np.uint16], tokenizer: Tokenizer) -> dict[str, Any]:
    return study(small(tokenizer), noise, tokenizer, SETTINGS)


def small(tokenizer: Tokenizer) -> torch.nn.Module:
    return tiny(dtype=torch.float32, num_layers=2, vocab_size=tokenizer.vocab_size)


def test_what_it_claims_is_the_text_learned_by_heart(found: dict[str, Any]) -> None:
    violation = found["violation"]
    assert violation["leak_nats_per_token"] > 1.0
    gains = [violation[f"gain_on_{text}_nats_per_token"] for text in ("the_text", "held_out_text")]
    assert violation["leak_nats_per_token"] == gains[0] - gains[1]
    honest = found["honest"]
    assert found["claimed"]["claimed_bits_per_byte"] < honest["bpb_score_first"]
    assert honest["bpb_score_first"] < honest["bpb_network"]


def test_the_honest_figures_are_those_of_the_text(
    found: dict[str, Any], noise: NDArray[np.uint16], tokenizer: Tokenizer
) -> None:
    text = noise[:65]
    assert (found["tokens"], found["bytes"]) == (64, tokenizer.text_bytes(text))
    assert found["violation"]["held_out_tokens"] == 64
    nats = -Network(small(tokenizer), window=16).score(text).sum()
    bpb = nats / math.log(2) / tokenizer.text_bytes(text)
    assert found["honest"]["bpb_network"] == pytest.approx(bpb, rel=1e-9)


def test_it_is_plain_values_and_never_calls_the_claim_bpb(found: dict[str, Any]) -> None:
    assert json.loads(json.dumps(found)) == found
    assert found.keys() == {
        "claimed", "wrong", "violation", "honest", "tokens", "bytes", "seconds", "settings"
    }  # fmt: skip
    named = [key for part in ("claimed", "violation") for key in found[part]]
    assert not [key for key in named if "bpb" in key]


def test_what_cannot_be_studied(tokenizer: Tokenizer) -> None:
    with pytest.raises(ConfigError) as caught:
        TrainFirstSettings(window=0, epochs=0, learning_rate=0.0, held_out=1.0)
    assert len(caught.value.items) == 4
    with pytest.raises(DataError, match="too few"):
        study(small(tokenizer), np.array([40, 41], dtype=np.uint16), tokenizer)
    with pytest.raises(DataError, match="no text"):
        study(small(tokenizer), np.full(50, tokenizer.bos, dtype=np.uint16), tokenizer)
