"""One step's forward and backward passes, compiled where that pays, and compiled beforehand.

The regions of the model are compiled (`GPT.compile_regions`) before the clock starts, by passes
whose gradients are thrown away, one for every order of layers that the run will have. Late QAT
changes the values of parameters, never a graph.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from qpack.progress import Progress

from .loss import nll_sum
from .model.gpt import GPT

MOST_GRAPHS = 64
"""Variants of one region: blocks may differ in what they have."""
Order = tuple[int, ...] | None
Micro = tuple[Tensor, Tensor, Tensor | None]
"""Inputs and targets (rows, sequence), and weights of the same shape, of one pass."""


def micro_loss(
    model: GPT, inputs: Tensor, targets: Tensor, weights: Tensor | None, share: float
) -> Tensor:
    """`share` times the sum of the weighted losses of (rows, sequence) targets, nats."""
    tokens = inputs.long()
    features, weight = model.readout(model.hidden(tokens), tokens)
    return share * nll_sum(
        features.flatten(0, 1),
        weight,
        targets.long().flatten(),
        softcap=model.softcap,
        weights=None if weights is None else weights.flatten(),
    )


class Passes:
    """The passes of a step over its parts; `compiled` decides how they run."""

    def __init__(self, model: GPT, *, tokens: int, compiled: bool) -> None:
        """`tokens` is how many targets a step has on this rank."""
        self.model = model
        self.compiled = compiled
        self._share = 1.0 / tokens
        if compiled:
            model.compile_regions()

    def __call__(self, parts: Iterable[Micro]) -> Tensor:
        """Gradients of the mean loss over the step's targets, added to the parameters'.

        Returns that mean (0-d, on the device, not waited for). Targets that are not to be predicted
        count as zero loss, so that the mean does not depend on how a batch is cut into parts.
        """
        total: Tensor | None = None
        for inputs, targets, weights in parts:
            loss = micro_loss(self.model, inputs, targets, weights, self._share)
            loss.backward()  # type: ignore[no-untyped-call]
            total = loss.detach() if total is None else total + loss.detach()
        assert total is not None, "a step has at least one part"
        return total

    def warm_up(
        self,
        orders: Sequence[Order],
        parts: Callable[[], Iterable[Micro]],
        *,
        progress: Progress,
    ) -> None:
        """Compile for every order of layers in `orders`; gradients are None afterwards."""
        if not self.compiled:
            return
        limit = torch._dynamo.config.patch(recompile_limit=MOST_GRAPHS)
        with limit, progress.stage("compile", total=len(orders), unit="orders") as task:
            for order in orders:
                self.model.set_layer_order(order)
                self(parts())
                self._forget()
                _wait(self.model)
                task.advance()

    def _forget(self) -> None:
        for parameter in self.model.parameters():
            parameter.grad = None


def _wait(model: torch.nn.Module) -> None:
    """Until the device has done what it was given, so that times mean something."""
    device: Any = next(model.parameters()).device
    if device.type == "cuda":
        torch.cuda.synchronize(device)
