"""A copy of a model that learns from tokens which have been scored (techniques.md 8.3).

A lesson is cut into sequences; each of `epochs` passes over them takes `batch` sequences a step and
follows the mean cross entropy of their targets:

    g <- mean over the step's targets;  g <- g min(1, clip / |g|);  SGD or AdamW at rate * factor

Sequences come in the order of the text: no random state. What the optimiser remembers goes on from
lesson to lesson until `reset`.

Over ranks, each takes every world-th sequence of a step, and gradients are summed once a step,
whether a rank had sequences or not: so all ranks do the same number of collectives.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from qpack.distributed import rank, world_size
from qpack.errors import ConfigError, DataError
from qpack.eval.adapt_settings import AdaptSettings
from qpack.eval.lessons import IGNORED
from qpack.eval.precision import products
from qpack.eval.ranks import sum_tensors

MICRO_TOKENS = {"cpu": 2_048, "cuda": 16_384}
"""Tokens of one backward pass: the activations of more would not stay in caches, or in memory."""
BETAS, EPSILON = (0.9, 0.95), 1e-8
"""Of AdamW. The betas are those of #826; its epsilon, 1e-10, would let rounding decide where a
gradient is next to nothing."""


class Learner:
    """The adapted copy of a model, and its optimiser."""

    def __init__(self, model: nn.Module, settings: AdaptSettings) -> None:
        """Copies `model`, `LongTensor (B, T) -> logits (B, T, V)`.

        Raises `ConfigError` for settings that do not suit the model.
        """
        self.settings = settings
        self.model = copy.deepcopy(model).eval().requires_grad_(False)
        self._groups = trained_parameters(self.model, settings)
        self._trained: list[Tensor] = [p for _, group in self._groups for p in group]
        for parameter in self._trained:
            parameter.requires_grad_(True)
        self._given = [parameter.detach().clone() for parameter in self._trained]
        self._optimizer = self._new_optimizer()

    def reset(self) -> None:
        """Forget everything: weights as given, an optimiser that remembers nothing."""
        with torch.no_grad():
            torch._foreach_copy_(self._trained, self._given)
        self._optimizer = self._new_optimizer()

    def learn(self, inputs: Tensor, targets: Tensor, rate: float) -> None:
        """Train on `inputs` (n, T) and `targets` (n, T), `IGNORED` where nothing is to be learned.

        `rate` is a factor of the learning rates. Raises `DataError` where the gradient is no longer
        finite, on all ranks alike.
        """
        settings = self.settings
        for group, (factor, _) in zip(self._optimizer.param_groups, self._groups, strict=True):
            group["lr"] = settings.rate * factor * rate
        for _ in range(settings.epochs):
            for start in range(0, len(inputs), settings.batch):
                step = slice(start, start + settings.batch)
                self._step(inputs[step], targets[step])

    def _step(self, inputs: Tensor, targets: Tensor) -> None:
        count = int((targets != IGNORED).sum())
        self._optimizer.zero_grad(set_to_none=False)
        own = slice(rank(), None, world_size())
        for batch, goal in _micro(inputs[own], targets[own], self._device):
            with torch.enable_grad(), products(self.settings.precision, self._device):
                logits = self.model(batch)
                loss = nn.functional.cross_entropy(
                    logits.float().flatten(0, 1), goal.flatten(), reduction="sum"
                )
            (loss / count).backward()  # type: ignore[no-untyped-call]
        gradients = [self._gradient(parameter) for parameter in self._trained]
        sum_tensors(gradients)
        norm = nn.utils.clip_grad_norm_(self._trained, self.settings.clip or float("inf"))
        if not bool(norm.isfinite()):
            raise DataError(
                "the adapted model diverged: its gradient is not finite",
                hint="lower learning_rate, or set clip",
            )
        self._optimizer.step()

    def _gradient(self, parameter: Tensor) -> Tensor:
        """The gradient of a parameter; zeros where this rank had no sequence."""
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
        return parameter.grad

    def _new_optimizer(self) -> torch.optim.Optimizer:
        groups = [{"params": parameters, "lr": 0.0} for _, parameters in self._groups]
        if self.settings.optimizer == "sgd":
            return torch.optim.SGD(groups, lr=0.0, momentum=self.settings.momentum)
        return torch.optim.AdamW(groups, lr=0.0, betas=BETAS, eps=EPSILON, weight_decay=0.0)

    @property
    def _device(self) -> torch.device:
        return self._trained[0].device


def trained_parameters(
    model: nn.Module, settings: AdaptSettings
) -> list[tuple[float, list[nn.Parameter]]]:
    """Parameters of `model` by the factor of their learning rate, frozen ones left out.

    Raises `ConfigError` naming everything in the settings that the model cannot do.
    """
    blocks = _blocks(model)
    factors = dict(enumerate(settings.block_factors or (1.0,) * len(blocks)))
    problems = []
    if settings.block_factors and len(settings.block_factors) != len(blocks):
        given = len(settings.block_factors)
        problems.append(f"block_factors: {given} for the model's {len(blocks)} blocks")
    if settings.freeze_first > len(blocks):
        problems.append(f"freeze_first = {settings.freeze_first}: there are {len(blocks)} blocks")
    order = getattr(model, "layer_order", ())
    recurrent = {index for index in order if list(order).count(index) > 1}
    if settings.freeze_recurrent and not recurrent:
        problems.append("freeze_recurrent: the model runs no block more than once")
    frozen = set(range(settings.freeze_first))
    frozen |= recurrent if settings.freeze_recurrent else set()
    factors |= dict.fromkeys(frozen, 0.0)
    owner = {
        id(parameter): factors.get(i, 1.0)
        for i, block in enumerate(blocks)
        for parameter in block.parameters()
    }
    found: dict[float, list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        factor = owner.get(id(parameter), 1.0)
        if factor and parameter.is_floating_point():
            found.setdefault(factor, []).append(parameter)
            if parameter.dtype not in (torch.float32, torch.float64):
                problems.append(f"{name}: {parameter.dtype} would round small steps away")
    if not found:
        problems.append("every parameter is frozen")
    if problems:
        raise ConfigError("the model cannot be adapted with these settings", items=problems)
    return list(found.items())


def _blocks(model: nn.Module) -> list[nn.Module]:
    """The model's blocks: its attribute `blocks`, where it has one."""
    blocks = getattr(model, "blocks", ())
    return list(blocks) if isinstance(blocks, nn.ModuleList) else []


def _micro(
    inputs: Tensor, targets: Tensor, device: torch.device
) -> Iterator[tuple[Tensor, Tensor]]:
    """A step's sequences, as many at a time as a backward pass may hold, on `device`."""
    most = MICRO_TOKENS.get(device.type, MICRO_TOKENS["cuda"])
    rows = max(1, most // max(1, inputs.size(1)))
    for start in range(0, len(inputs), rows):
        piece = slice(start, start + rows)
        yield inputs[piece].to(device), targets[piece].to(device)
