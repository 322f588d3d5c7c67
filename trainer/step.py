"""One step's forward and backward passes, compiled where that pays, and compiled beforehand.

The regions of the model are compiled (`GPT.compile_regions`) before the clock starts, by passes
whose gradients are thrown away, one for every order of layers that the run will have. Late QAT
changes the values of parameters, never a graph.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from qpack.distributed import world_size
from qpack.progress import Progress

from .loss import nll_sum
from .model.gpt import GPT

MOST_GRAPHS = 64
"""Variants of one region: blocks may differ in what they have."""
Order = tuple[int, ...] | None
Micro = tuple[Tensor, Tensor, Tensor | None]
"""Inputs and targets (rows, sequence), and weights of the same shape, of one pass."""


def micro_loss(
    model: GPT, inputs: Tensor, targets: Tensor, weights: Tensor | None, share: float | Tensor
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

    def __init__(self, model: GPT, *, tokens: int, masked: bool, compiled: bool) -> None:
        """`tokens` is how many targets a step has on this rank; with `masked` some do not count."""
        self.model = model
        self.compiled = compiled
        self._tokens, self._masked = tokens, masked
        if compiled:
            model.compile_regions()

    def __call__(self, parts: Iterable[Micro]) -> Tensor:
        """Gradients of the mean loss over the step's targets, added to the parameters'.

        Returns this rank's part of it (0-d, on the device, not waited for), of which the mean over
        ranks is the mean over all targets that count. It does not depend on how a batch is cut.
        """
        total: Tensor | None = None
        share: float | Tensor = 1.0 / self._tokens
        if self._masked:
            parts = list(parts)
            share = 1.0 / _counted(parts)
        for inputs, targets, weights in parts:
            loss = micro_loss(self.model, inputs, targets, weights, share)
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


def _counted(parts: Sequence[Micro]) -> Tensor:
    """Targets that count in a step, a rank's mean over all ranks, on the device; at least 1."""
    counted = torch.stack([(targets >= 0).sum() for _, targets, _ in parts]).sum().float()
    if world_size() > 1:
        dist.all_reduce(counted)
        counted /= world_size()
    return counted.clamp_min(1.0)


def _wait(model: torch.nn.Module) -> None:
    """Until the device has done what it was given, so that times mean something."""
    device: Any = next(model.parameters()).device
    if device.type == "cuda":
        torch.cuda.synchronize(device)
