"""The probes pass what learns after it is scored, and catch what learns before."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from qpack.errors import EvaluationError
from qpack.eval.adapt import Adapted
from qpack.eval.adapt_settings import AdaptSettings
from qpack.eval.checks import CheckSettings, check, refuse
from qpack.eval.learner import Learner
from qpack.eval.lessons import sequences
from qpack.eval.lora import LoraAdapted
from qpack.eval.lora_settings import LoraSettings
from qpack.eval.network import Network
from qpack.eval.predictor import Predictor, Tokens
from qpack.progress import SILENT, Progress
from tests.unit.trainer.model.tiny import BOS, tiny

HOW = AdaptSettings(learning_rate=0.05, chunk_tokens=12, epochs=1, batch=2)
CHECKS = CheckSettings(num_tokens=50, positions=2)


class TrainedFirst(Network):
    """Learns from the text it is given, and then scores it."""

    def score(self, tokens: Tokens, *, progress: Progress = SILENT) -> NDArray[np.float64]:
        learner = Learner(self.model, HOW)
        learner.learn(*sequences(tokens, 0, len(tokens) - 1, length=self.window), 1.0)
        return Network(learner.model, window=self.window).score(tokens)


def text() -> NDArray[np.uint16]:
    tokens = np.random.default_rng(3).choice([3, 4, 7, 11], 60).astype(np.uint16)
    tokens[[0, 20, 45]] = BOS
    return tokens


def network(isolate: int | None = None) -> Network:
    return Network(tiny(dtype=torch.float32, num_layers=2), window=12, stride=6, isolate=isolate)


@pytest.mark.parametrize(
    "predictor",
    [
        Adapted(network(), HOW),
        Adapted(network(BOS), AdaptSettings(learning_rate=0.05, chunk_tokens=6, reset="document")),
        LoraAdapted(network(BOS), LoraSettings(learning_rate=0.05, chunk_tokens=4, rank=2)),
    ],
    ids=lambda predictor: predictor.name,
)
def test_score_first_passes(predictor: Predictor) -> None:
    found = check(predictor, text(), None, settings=CHECKS)
    refuse(predictor, found)


def test_training_first_is_refused() -> None:
    predictor = TrainedFirst(network().model, window=12, name="trained first")
    with pytest.raises(EvaluationError, match="trained first") as caught:
        refuse(predictor, check(predictor, text(), None, settings=CHECKS))
    assert {item.partition(":")[0] for item in caught.value.items} >= {"future", "session"}
