"""Evaluation mode for a while, whatever modes a model's parts were in."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from torch import nn


@contextmanager
def evaluating(*models: nn.Module) -> Iterator[None]:
    """Switch `models` to eval mode, and back to what each of their parts was."""
    with ExitStack() as stack:
        for part in (part for model in models for part in model.modules()):
            stack.callback(setattr, part, "training", part.training)
        for model in models:
            model.eval()
        yield
