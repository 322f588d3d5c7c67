"""Muon: momentum, then orthogonalized (Jordan et al.; techniques.md 2.2).

    M <- mu M + G                    U = G + mu M                        (Nesterov)
    O = orthogonalize(whiten(normalize(U)))
    W <- (1 - lr decay) W - lr sqrt(max(1, rows / cols)) O

Matrices of one shape are a stack, and every line runs once a stack, whatever the number of layers.
Over ranks (pull requests 399, 1019: "banked"), gradients are summed to the rank that owns a matrix,
it alone keeps the momentum and orthogonalizes, and updates are gathered; messages of one stack
travel while the next is computed. Ranks end with the same weights, bit for bit.

Why not `torch.optim.Muon` (torch >= 2.9): it takes one matrix at a time, each on every rank, always
in bfloat16, and has neither other coefficients nor a place for normalisation and whitening. Its
momentum is (1 - mu) times this one while mu is constant, which the orthogonalization cancels, but
not while mu rises: there the older gradients are weighted differently.

`benchmarks/muon.py` measures both (`results/muon_cpu.json`). One update agrees to the precision of
bfloat16; with mu rising, updates differ by far more. On a processor without bfloat16 products torch
is many times slower, for that reason alone: at equal precision, stacks there are no faster than one
matrix after another, rather slower. They are meant for GPUs, where launches count, and for ranks.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from . import mousse
from .mousse import State
from .sharding import Share, Wait
from .update import Rule, accumulate, direction

PLAIN = Rule()
COMPILED_SHAPES = 64
"""Shapes of matrix that may be compiled for: dynamo gives up after 8 otherwise."""


class _Stack:
    """The matrices of one shape and one parameter group, and this rank's part of their state."""

    def __init__(self, names: list[str], params: list[Tensor], group: int, rule: Rule) -> None:
        self.names, self.params, self.group = names, params, group
        self.share = Share(len(params))
        first = params[0]
        shape = torch.Size((self.share.each, *first.shape))
        # Moments are at least float32, whatever the weights.
        self.dtype = torch.promote_types(first.dtype, torch.float32)
        self.zero = torch.zeros(first.shape, dtype=self.dtype, device=first.device)
        self.state: State = {
            "momentum": torch.zeros(shape, dtype=self.dtype, device=first.device),
            **{
                name: tensor.to(self.dtype)
                for name, tensor in mousse.new_state(rule.precondition, shape, first.device).items()
            },
        }
        self.moments = {name: t for name, t in self.state.items() if name != "momentum"}
        self.steps = 0
        self.present: list[int] = []
        self.ratio = math.sqrt(max(1.0, first.size(0) / first.size(1)))

    def gradients(self) -> Tensor:
        """(each x world, rows, cols); zeros where there is none."""
        grads = [param.grad for param in self.params]
        self.present = [i for i, grad in enumerate(grads) if grad is not None]
        stack = [self.zero if grad is None else grad.to(self.dtype) for grad in grads]
        return torch.stack([*stack, *[self.zero] * self.share.padding])

    def absent(self) -> list[int]:
        """Positions in this rank's part of matrices that have no gradient this time."""
        return [i for i, index in enumerate(self.share.own) if index not in self.present]

    def apply(self, update: Tensor, *, lr: float, decay: float) -> None:
        """Move the weights by `update` (n, rows, cols)."""
        params = [self.params[i] for i in self.present]
        whole = update.to(params[0].dtype).unbind()
        torch._foreach_mul_(params, 1.0 - lr * decay)
        torch._foreach_add_(params, [whole[i] for i in self.present], alpha=-lr * self.ratio)


class Muon(Optimizer):
    """Muon over 2-D matrices of any shapes.

    Under `torch.distributed`, gradients are those of each rank's own part of the batch, *not* yet
    reduced, and the step is that of their mean; every rank must call every method. A matrix without
    a gradient stays as it is, momentum too; all ranks must agree which those are.

    `step` does all. In its parts, for clipping between them: `start`, `owned_gradients`, `finish`.
    """

    def __init__(
        self,
        params: Iterable[Any],
        *,
        lr: float,
        momentum: float = 0.95,
        weight_decay: float = 0.0,
        rule: Rule = PLAIN,
        compiled: bool = False,
    ) -> None:
        """`params` as for any optimizer of torch; with names, state is saved under them.

        `compiled`: the mathematics of a stack goes through `torch.compile`, once for each shape.
        Raises ValueError for a parameter that is no matrix.
        """
        self.rule = rule
        self._stacks: list[_Stack] = []
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})
        self._accumulate: Callable[..., Tensor] = accumulate
        self._direction: Callable[..., Tensor] = direction
        if compiled:
            self._accumulate = torch.compile(accumulate, fullgraph=True, dynamic=False)
            self._direction = torch.compile(direction, fullgraph=True, dynamic=False)
        self._compiled = compiled
        self._reduced: list[tuple[_Stack, Wait]] = []
        self._scalars: dict[tuple[int, torch.device], tuple[Tensor, Tensor]] = {}

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Also update these. Raises ValueError for a parameter that is no matrix."""
        super().add_param_group(param_group)
        index, group = len(self.param_groups) - 1, self.param_groups[-1]
        numbered = [f"{index}.{i}" for i in range(len(group["params"]))]
        stacks: dict[Any, tuple[list[str], list[Tensor]]] = {}
        for name, param in zip(group.get("param_names", numbered), group["params"], strict=True):
            if param.ndim != 2:
                raise ValueError(f"{name}: Muon is for matrices, not for {tuple(param.shape)}")
            names, params = stacks.setdefault((param.shape, param.dtype, param.device), ([], []))
            names.append(name)
            params.append(param)
        self._stacks += [_Stack(*some, index, self.rule) for some in stacks.values()]

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """One update from the parameters' gradients; returns what `closure` does."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        self.start()
        self.finish()
        return loss

    @torch.no_grad()
    def start(self) -> None:
        """Read the gradients and begin to sum them over ranks. They may be freed afterwards."""
        self._reduced = []
        for stack in self._stacks:
            gradients = stack.gradients()
            if stack.present:
                self._reduced.append((stack, stack.share.reduce(gradients)))

    def owned_gradients(self) -> list[Tensor]:
        """Sums over ranks of the gradients that this rank owns, waited for."""
        gradients = [wait() for _, wait in self._reduced]
        self._reduced = [
            (stack, lambda G=G: G)  # type: ignore[misc]
            for (stack, _), G in zip(self._reduced, gradients, strict=True)
        ]
        return gradients

    @torch.no_grad()
    def finish(self, scale: Tensor | None = None) -> None:
        """Update the weights by what `start` read, times `scale` (0-d, on the device).

        None: 1 / ranks, the mean.
        """
        moving: tuple[_Stack, Wait] | None = None
        for stack, wait in self._reduced:
            mu, default = self._scalars_of(stack)
            update = self._update(stack, wait(), mu, default if scale is None else scale)
            after = (stack, stack.share.gather(update))
            if moving is not None:  # its messages travelled while this stack was computed
                self._apply(*moving)
            moving = after
        if moving is not None:
            self._apply(*moving)
        self._reduced = []

    def _update(self, stack: _Stack, G: Tensor, mu: Tensor, scale: Tensor) -> Tensor:
        """The update of this rank's part of a stack, (each, rows, cols)."""
        absent = stack.absent()
        kept = {name: tensor[absent].clone() for name, tensor in stack.state.items() if absent}
        momentum, moments, rule = stack.state["momentum"], stack.moments, self.rule
        with self._room_for_shapes():
            U = self._accumulate(G, momentum, moments, mu=mu, scale=scale, rule=rule)
            kronecker = rule.precondition == "mousse-kronecker"
            if kronecker and stack.steps % mousse.REFRESH_STEPS == 0:
                mousse.refresh_kronecker(moments)
            update = self._direction(U, moments, rule=rule)
        for name, tensor in kept.items():
            stack.state[name][absent] = tensor
        stack.steps += 1
        return update

    def _room_for_shapes(self) -> contextlib.AbstractContextManager[Any]:
        if not self._compiled:  # importing dynamo takes seconds
            return contextlib.nullcontext()
        room: contextlib.AbstractContextManager[Any] = torch._dynamo.config.patch(
            recompile_limit=COMPILED_SHAPES
        )
        return room

    def _apply(self, stack: _Stack, wait: Wait) -> None:
        group = self.param_groups[stack.group]
        stack.apply(wait(), lr=float(group["lr"]), decay=float(group["weight_decay"]))

    def _scalars_of(self, stack: _Stack) -> tuple[Tensor, Tensor]:
        """The momentum and 1 / ranks as tensors on the device, filled without waiting for it."""
        key = (stack.group, stack.zero.device)
        if key not in self._scalars:
            mu = torch.zeros((), dtype=torch.float32, device=key[1])
            self._scalars[key] = (mu, torch.full_like(mu, 1.0 / stack.share.world))
        mu, mean = self._scalars[key]
        mu.fill_(float(self.param_groups[stack.group]["momentum"]))
        return mu, mean

    @torch.no_grad()
    def state_tensors(self) -> dict[str, Tensor]:
        """Copies of the whole state, the same on all ranks: `{parameter}.{what}` -> tensor."""
        tensors: dict[str, Tensor] = {}
        for stack in self._stacks:
            for key, owned in stack.state.items():
                whole = stack.share.gather(owned)()
                for name, tensor in zip(stack.names, whole.unbind(), strict=False):
                    tensors[f"{name}.{key}"] = tensor.clone()
            for name in stack.names:
                tensors[f"{name}.step"] = torch.tensor(stack.steps)
        return tensors

    def state_names(self) -> list[str]:
        """Names that `state_tensors` has and `load_state_tensors` needs."""
        return [
            f"{name}.{key}"
            for stack in self._stacks
            for name in stack.names
            for key in (*stack.state, "step")
        ]

    @torch.no_grad()
    def load_state_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """Go on from `state_tensors`, of any number of ranks. Raises KeyError for one missing."""
        for stack in self._stacks:
            for key, owned in stack.state.items():
                for i, index in enumerate(stack.share.own):
                    owned[i].copy_(tensors[f"{stack.names[index]}.{key}"])
            stack.steps = int(tensors[f"{stack.names[0]}.step"])

    def state_dict(self) -> dict[str, Any]:
        """As of any optimizer of torch, by the number of the parameter; collective."""
        tensors = self.state_tensors()
        whole: dict[str, Any] = super().state_dict()
        whole["state"] = {
            number: {key: tensors[f"{name}.{key}"] for key in (*stack.state, "step")}
            for number, (stack, name) in enumerate(self._in_order())
        }
        return whole

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Go on from `state_dict`, of any number of ranks."""
        super().load_state_dict({**state_dict, "state": {}})
        self.load_state_tensors(
            {
                f"{name}.{key}": tensor
                for number, (_, name) in enumerate(self._in_order())
                for key, tensor in state_dict["state"][number].items()
            }
        )

    def _in_order(self) -> Sequence[tuple[_Stack, str]]:
        """Each parameter's stack and name, in the order of the groups."""
        of = {id(p): (s, n) for s in self._stacks for p, n in zip(s.params, s.names, strict=True)}
        return [of[id(p)] for group in self.param_groups for p in group["params"]]
