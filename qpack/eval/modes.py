"""Evaluation mode for a while, whatever modes a model's parts were in."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


@contextmanager
def evaluating(*models: nn.Module) -> Iterator[None]:
    """Switch `models` to eval mode, and back to what each of their parts was."""
    switched = [part for model in models for part in model.modules() if part.training]
    try:
        if switched:  # a session asks for every token, of a model that mostly is in eval mode
            for model in models:
                model.eval()
        yield
    finally:
        for part in switched:
            part.training = True
