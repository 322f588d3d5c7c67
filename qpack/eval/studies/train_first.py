"""Training on the text and then scoring it: what #398 did, and why its score is no code.

#398 trained the packed model for 20 epochs on the whole validation stream (SGD, rate .008, momentum
.9, clip 1, batches of 32 sequences; techniques.md 8.5) and then scored that stream. A decoder has
no text to train on before it has decoded it, so nobody can have the weights that this score needs
without the text itself: Parameter Golf issue #402.

How much of the gain is the text, learned by heart? The same weights are scored on text of the same
kind that they were not trained on, the stream's own continuation. What is gained there is what was
learned of the kind, and could have been had honestly; the rest is the leak. Beside it stands the
score-first form of the same text, in which every target is scored before anything learns from it.
"""

from __future__ import annotations

import math
import time
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

from qpack.errors import ConfigError, DataError
from qpack.eval.adapt import Adapted
from qpack.eval.adapt_settings import AdaptSettings
from qpack.eval.learner import Learner
from qpack.eval.lessons import sequences
from qpack.eval.network import Network
from qpack.eval.predictor import Tokens
from qpack.progress import SILENT, Progress
from qpack.tokenizer import Tokenizer

WRONG = (
    "The weights were trained on the text before they scored it: a decoder would need the text to "
    "get the weights, and the weights to get the text."
)


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainFirstSettings:
    """Defaults: #398, and for the honest form those of `AdaptSettings`.

    Raises `ConfigError` naming every value that is out of range.
    """

    window: int = 1024
    """Tokens of a sequence, in training and in scoring; windows are disjoint."""
    epochs: int = 20
    """Passes over the whole text before it is scored."""
    learning_rate: float = 0.008
    """Of SGD with momentum 0.9, constant."""
    batch: int = 32
    """Sequences an optimiser step."""
    held_out: float = 0.25
    """Share of the tokens, at the end, that are not trained on."""
    chunk_tokens: int = 32_768
    """Of the honest form: targets that are scored before the network learns from them."""

    def __post_init__(self) -> None:
        problems = [
            f"{name} = {getattr(self, name)}: must be at least 1"
            for name in ("window", "epochs", "batch", "chunk_tokens")
            if getattr(self, name) < 1
        ]
        if not 0.0 < self.learning_rate < math.inf:
            problems.append(f"learning_rate = {self.learning_rate}: must be above 0 and finite")
        if not 0.0 < self.held_out < 1.0:
            problems.append(f"held_out = {self.held_out}: must be above 0 and below 1")
        if problems:
            raise ConfigError("the text cannot be trained on so", items=problems)


def study(
    model: nn.Module,
    tokens: Tokens,  # (n,)
    tokenizer: Tokenizer,
    settings: TrainFirstSettings | None = None,
    progress: Progress = SILENT,
) -> dict[str, Any]:
    """What training first claims on the first part of `tokens`, and what it gains on the rest.

    The model, float32 logits (B, T, V) of tokens (B, T), is left as it is. Plain values under the
    keys that the package's docstring names. Raises `DataError` for too few tokens, tokens that
    stand for no text, and training that diverges; `ConfigError` for a model that is not float32.
    """
    settings = settings or TrainFirstSettings()
    tokenizer.check_model(int(getattr(model, "vocab_size", 0)))
    tokens = np.asarray(tokens)
    cut = int(len(tokens) * (1.0 - settings.held_out))
    text, rest = tokens[: cut + 1], tokens[cut:]
    if min(len(text), len(rest)) < 2:
        raise DataError(f"{len(tokens)} tokens are too few to hold some out")
    num_bytes = tokenizer.text_bytes(text)
    if not num_bytes:
        raise DataError("the tokens to score stand for no text")
    began = time.perf_counter()
    network = Network(model, window=settings.window)
    trained = network.with_model(_trained(network, text, settings, progress))
    before, after = (_nats(item, text, progress) for item in (network, trained))
    gain = before - after
    gain_beyond = _nats(network, rest, progress) - _nats(trained, rest, progress)
    honest = Adapted(
        network, AdaptSettings(chunk_tokens=settings.chunk_tokens, batch=settings.batch)
    )
    score_first = _nats(honest, text, progress)
    bits = (len(text) - 1) / math.log(2) / num_bytes
    return {
        "claimed": {
            "claimed_bits_per_byte": after * bits,
            "nats_per_token": after,
            "epochs": settings.epochs,
        },
        "wrong": WRONG,
        "violation": {
            "gain_on_the_text_nats_per_token": gain,
            "gain_on_held_out_text_nats_per_token": gain_beyond,
            "leak_nats_per_token": gain - gain_beyond,
            "held_out_tokens": len(rest) - 1,
        },
        "honest": {"bpb_network": before * bits, "bpb_score_first": score_first * bits},
        "tokens": len(text) - 1,
        "bytes": num_bytes,
        "seconds": time.perf_counter() - began,
        "settings": asdict(settings),
    }


def _trained(
    network: Network,
    text: NDArray[np.integer[Any]],
    settings: TrainFirstSettings,
    progress: Progress,
) -> nn.Module:
    """A copy of the network's model after all epochs over the text."""
    how = AdaptSettings(learning_rate=settings.learning_rate, batch=settings.batch, epochs=1)
    learner = Learner(network.model, how)
    inputs, targets = sequences(text, 0, len(text) - 1, length=settings.window)
    total = settings.epochs * (len(text) - 1)
    with progress.stage("train on the text", total=total, unit="tokens") as task:
        for _ in range(settings.epochs):
            learner.learn(inputs, targets, 1.0)
            task.advance(len(text) - 1)
    return learner.model


def _nats(predictor: Network | Adapted, tokens: Tokens, progress: Progress) -> float:
    """Mean nats a token."""
    scores = predictor.score(tokens, progress=progress)
    return -math.fsum(scores) / len(scores)
