"""What score-first training of low-rank adapters is asked to do."""

from __future__ import annotations

import math
from dataclasses import dataclass

from qpack.errors import ConfigError
from qpack.eval.precision import PRECISIONS


@dataclass(frozen=True, kw_only=True, slots=True)
class LoraSettings:
    """How each document's adapters are trained on its chunks once they are scored (#826).

    Raises `ConfigError` naming every value that is out of range.
    """

    rank: int = 8
    """Of each delta."""
    targets: tuple[str, ...] = ("*.c_q", "*.c_v", "head")
    """Names of linears, `*` for anything, and `head`: the output layer."""
    chunk_tokens: int = 256
    """Targets that are scored before the adapters learn from them. Must divide the window, which
    reaches back from the end of the chunk."""
    epochs: int = 3
    """Optimiser steps on each chunk."""
    learning_rate: float = 0.003
    """Of AdamW. 0 leaves the adapters without effect: the control. #826 has 0.01, and scored by an
    average that hardly moved: adapters that are scored by themselves overshoot with that, and then
    documents score worse than without."""
    horizon_chunks: int = 8
    """The rate falls along a cosine from a document's first chunk to this one, and stays there. By
    position alone: how long a document is shows only at its end."""
    floor: float = 0.1
    """What the rate falls to, as a share of `learning_rate`."""
    clip: float = 1.0
    """Most length of the gradient of one document's adapters; 0 clips nothing."""
    polyak: float = 0.0
    """Decay of an average of the adapters over optimiser steps, by which is scored; 0: none."""
    temperature: float = 1.0
    """Divides the logits where they are scored, before the softcap."""
    precision: str = "float32"
    """`bfloat16`: the products of training under autocast. Scoring is the network's own."""
    seed: int = 0
    """Of the A that all documents begin with."""

    def __post_init__(self) -> None:
        problems = [
            f"{name} = {getattr(self, name)}: must be at least 1"
            for name in ("rank", "chunk_tokens", "epochs", "horizon_chunks")
            if getattr(self, name) < 1
        ]
        for name in ("learning_rate", "clip"):
            if not 0.0 <= getattr(self, name) < math.inf:
                problems.append(f"{name} = {getattr(self, name)}: must be at least 0 and finite")
        if not 0.0 < self.temperature < math.inf:
            problems.append(f"temperature = {self.temperature}: must be above 0 and finite")
        if not 0.0 <= self.floor <= 1.0:
            problems.append(f"floor = {self.floor}: must be from 0 to 1")
        if not 0.0 <= self.polyak < 1.0:
            problems.append(f"polyak = {self.polyak}: must be at least 0 and below 1")
        if self.precision not in PRECISIONS:
            known = ", ".join(PRECISIONS)
            problems.append(f"precision = {self.precision!r}: expected one of {known}")
        if not self.targets:
            problems.append("targets: names no linear")
        if problems:
            raise ConfigError("adapters cannot be trained with these settings", items=problems)

    def rate(self, chunk: int) -> float:
        """Learning rate after a document's chunk `chunk`, counted from 0."""
        done = min(chunk / self.horizon_chunks, 1.0)
        share = self.floor + (1.0 - self.floor) * 0.5 * (1.0 + math.cos(math.pi * done))
        return self.learning_rate * share
