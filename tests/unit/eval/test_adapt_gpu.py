"""Adaptation on a CUDA device is what it is on the CPU."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from qpack.eval.adapt import Adapted
from qpack.eval.adapt_settings import AdaptSettings
from qpack.eval.lora import LoraAdapted
from qpack.eval.lora_settings import LoraSettings
from qpack.eval.network import Network
from qpack.eval.predictor import Predictor
from tests.unit.trainer.model.tiny import BOS, tiny

pytestmark = pytest.mark.gpu


def text() -> np.ndarray:
    tokens = np.random.default_rng(3).choice([3, 4, 7, 11], 110).astype(np.uint16)
    tokens[[30, 31, 77]] = BOS
    return tokens


def predictors(device: str, precision: str) -> list[Predictor]:
    model = tiny(dtype=torch.float32, num_layers=2).to(device)
    full = AdaptSettings(
        learning_rate=0.02, chunk_tokens=24, epochs=2, batch=2, precision=precision
    )
    low_rank = LoraSettings(learning_rate=0.02, chunk_tokens=6, rank=2, precision=precision)
    return [
        Adapted(Network(model, window=12, stride=5), full),
        LoraAdapted(Network(model, window=12, isolate=BOS), low_rank),
    ]


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_scores_are_those_of_the_cpu(precision: str) -> None:
    tokens = text()
    tolerance = 0.01 if precision == "float32" else 1.0
    for there, here in zip(
        predictors("cuda", precision), predictors("cpu", "float32"), strict=True
    ):
        scores = there.score(tokens)
        np.testing.assert_allclose(scores, here.score(tokens), atol=tolerance)
        session = there.start(int(tokens[0]), num_tokens=len(tokens))
        for token, score in zip(tokens[1:].tolist(), scores, strict=True):
            assert session.log_probs()[token] == pytest.approx(score, abs=tolerance)
            session.observe(token)
