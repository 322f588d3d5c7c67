"""What score-first training of the full weights is asked to do."""

from __future__ import annotations

import math
from dataclasses import dataclass

from qpack.errors import ConfigError
from qpack.eval.precision import PRECISIONS

RATES = {"sgd": 0.002, "adamw": 0.0001}
"""Learning rate of each optimiser where none is given. SGD's is that of #1440."""
CHOICES = {
    "optimizer": tuple(RATES),
    "schedule": ("cosine", "constant"),
    "reset": ("never", "chunk", "document"),
    "precision": PRECISIONS,
}


@dataclass(frozen=True, kw_only=True, slots=True)
class AdaptSettings:
    """How a network is trained on each chunk once it is scored. Defaults: #1440 with SGD.

    Raises `ConfigError` naming every value that is out of range.
    """

    optimizer: str = "sgd"
    """`sgd` or `adamw`."""
    learning_rate: float | None = None
    """None: the optimiser's own, in `RATES`. 0 leaves the network as it is: the control."""
    momentum: float = 0.9
    """Of SGD."""
    chunk_tokens: int = 32_768
    """Targets that are scored before the network learns from them."""
    epochs: int = 3
    """Passes over each chunk."""
    batch: int = 32
    """Sequences an optimiser step, each as long as the network's window, over all ranks."""
    clip: float = 1.0
    """Most length of a gradient; 0 clips nothing."""
    schedule: str = "cosine"
    """`cosine`: the rate falls to 0 over the chunks of the stream, by position alone; `constant`"""
    reset: str = "never"
    """`chunk`: each chunk is learned from by the network as given, so that only the last one
    counts; `document`: all is forgotten where a document begins"""
    freeze_first: int = 0
    """Blocks at the input that stay as they are."""
    freeze_recurrent: bool = False
    """Blocks that run more than once stay as they are."""
    block_factors: tuple[float, ...] = ()
    """Factors of the learning rate, one a block; empty: 1. What is in no block has 1."""
    precision: str = "float32"
    """`bfloat16`: the products of training under autocast. Scoring is the network's own."""

    def __post_init__(self) -> None:
        problems = [
            f"{name} = {getattr(self, name)!r}: expected one of {', '.join(known)}"
            for name, known in CHOICES.items()
            if getattr(self, name) not in known
        ]
        for name in ("chunk_tokens", "epochs", "batch"):
            if getattr(self, name) < 1:
                problems.append(f"{name} = {getattr(self, name)}: must be at least 1")
        numbers = {"clip": self.clip, "freeze_first": self.freeze_first, "learning_rate": self.rate}
        numbers |= {f"block_factors[{i}]": value for i, value in enumerate(self.block_factors)}
        for name, value in numbers.items():
            if not 0.0 <= value < math.inf:
                problems.append(f"{name} = {value}: must be at least 0 and finite")
        if not 0.0 <= self.momentum < 1.0:
            problems.append(f"momentum = {self.momentum}: must be at least 0 and below 1")
        if problems:
            raise ConfigError("a network cannot be adapted with these settings", items=problems)

    @property
    def rate(self) -> float:
        """The learning rate, the optimiser's own where none is given."""
        return RATES.get(self.optimizer, 0.0) if self.learning_rate is None else self.learning_rate
