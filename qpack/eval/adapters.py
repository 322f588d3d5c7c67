"""Low-rank deltas of a model's linears, one of each for every document of a batch (#826).

A linear that gives W x gives W x + B (A x) instead: A is (rank, in), drawn from
U(-1/sqrt(in), 1/sqrt(in)), B is (out, rank) and begins at zero, and there is no further factor. The
delta reads what the linear reads, because a hook on the linear computes it: #826 computed those of
Q and V from the block's raw input, which W never sees (techniques.md 8.4). Row d of a batch has the
d-th A and B, so a batch is as many models as it has rows.

The output layer may be no module of its own: a tied one is the token table. A model that takes
`adjust(hidden, logits) -> logits` in its forward pass, where `hidden` is what that layer read and
`logits` are those before any softcap, lets the head be adapted and a temperature come first.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from qpack.errors import ConfigError
from qpack.eval.batches import device_of, scored_logits
from qpack.eval.modes import evaluating

HEAD = "head"
"""Among the targets: the output layer, whatever it is."""


@dataclass(frozen=True, slots=True)
class Target:
    """A linear to be adapted."""

    name: str
    inputs: int
    outputs: int
    module: nn.Linear | None
    """None: the output layer, by way of `adjust`."""


class LowRank:
    """Which linears of a model have deltas, and how to run it with them."""

    def __init__(
        self, model: nn.Module, patterns: Sequence[str], *, rank: int, window: int
    ) -> None:
        """`patterns` are names of linears with `*` for anything, or `HEAD`; `window` is the most
        tokens that the model is given.

        Raises `ConfigError` naming every pattern that matches no linear, and every linear that the
        model has and never calls: it may multiply by the weight itself, and a hook sees nothing.
        """
        self.model = model
        self.rank, self.window = rank, window
        self._adjusts = "adjust" in inspect.signature(model.forward).parameters
        self.targets = self._find(patterns)
        self._check_called()

    def start(self, count: int, seed: int) -> list[Tensor]:
        """A and B of each target for `count` documents: (count, rank, in) and (count, out, rank).

        All documents begin with the same A: neither their number nor their order means anything.
        """
        generator = torch.Generator().manual_seed(seed)
        device = device_of(self.model)
        found = []
        for target in self.targets:
            bound = 1.0 / math.sqrt(target.inputs)
            a = torch.empty(self.rank, target.inputs).uniform_(-bound, bound, generator=generator)
            found.append(a.to(device).repeat(count, 1, 1))
            found.append(torch.zeros(count, target.outputs, self.rank, device=device))
        return found

    def logits(
        self,
        tokens: Tensor,  # (count, T)
        weights: Sequence[Tensor],  # as of `start`
        *,
        scored_from: int = 0,
        temperature: float = 1.0,
        cache: Any = None,
    ) -> Tensor:
        """(count, T - scored_from, V): each row of tokens by the model with its own deltas.

        `temperature` divides the logits, before the softcap where the model lets it. Without a
        cache, fewer tokens than the window get an empty one, as `network.py` explains. Raises
        `DataError` where the model gives something else than logits.
        """
        pairs = {
            target.name: (weights[2 * i], weights[2 * i + 1])
            for i, target in enumerate(self.targets)
        }

        def adjust(hidden: Tensor, logits: Tensor) -> Tensor:
            if HEAD in pairs:
                logits = logits + delta(hidden, *pairs[HEAD]).to(logits.dtype)
            return logits / temperature

        if cache is None and tokens.size(1) < self.window:
            cache = self.new_cache(len(tokens))
        more: dict[str, Any] = {} if cache is None else {"cache": cache}
        if self._adjusts:
            more["adjust"] = adjust
        with self._hooked(pairs):
            found = scored_logits(self.model, tokens, scored_from, **more)
        return found if self._adjusts else found / temperature

    def new_cache(self, count: int) -> Any:
        """An empty cache of the window for `count` rows; None where the model has none."""
        model: Any = self.model
        return model.new_cache(count, self.window) if hasattr(model, "new_cache") else None

    @contextmanager
    def _hooked(self, pairs: dict[str, tuple[Tensor, Tensor]]) -> Iterator[None]:
        """The model with deltas on its linears, for a while."""
        with ExitStack() as stack:
            for target in self.targets:
                if target.module is not None:
                    hook = _Hook(*pairs[target.name])
                    handle = target.module.register_forward_hook(hook, with_kwargs=True)
                    stack.callback(handle.remove)
            yield

    def _check_called(self) -> None:
        """Run one token, and see whether every linear is asked."""
        called: set[str] = set()
        with ExitStack() as stack:
            for target in self.targets:
                if target.module is not None:
                    note = partial(_note, called, target.name)
                    stack.callback(target.module.register_forward_hook(note).remove)
            self._run_one_token()
        missed = [
            target.name
            for target in self.targets
            if target.module is not None and target.name not in called
        ]
        if missed:
            raise ConfigError(
                f"{type(self.model).__name__} has these linears and does not call them",
                items=missed,
                hint="adapt others: a delta could not be added to what these give",
            )

    def _find(self, patterns: Sequence[str]) -> list[Target]:
        linears = {
            name: module
            for name, module in self.model.named_modules()
            if isinstance(module, nn.Linear)
        }
        found: dict[str, Target] = {}
        problems = []
        for pattern in patterns:
            if pattern == HEAD:
                more = self._head(linears)
            else:
                names = [name for name in linears if fnmatchcase(name, pattern)]
                more = [_target(name, linears[name]) for name in names]
            if not more:
                problems.append(f"{pattern}: matches no linear of {type(self.model).__name__}")
            found |= {target.name: target for target in more}
        if problems:
            known = ", ".join(sorted({name.rpartition(".")[2] for name in linears})) or "none"
            raise ConfigError(
                "there is nothing to adapt under these names",
                items=problems,
                hint=f"patterns such as *.NAME; its linears are called {known}",
            )
        return list(found.values())

    def _head(self, linears: dict[str, nn.Linear]) -> list[Target]:
        """The output layer: by `adjust`, or the one linear with as many outputs as tokens."""
        vocab_size = int(getattr(self.model, "vocab_size", 0))
        if self._adjusts:
            return [Target(HEAD, self._head_width(), vocab_size, None)]
        wide = [name for name, linear in linears.items() if linear.out_features == vocab_size]
        return [_target(wide[-1], linears[wide[-1]])] if wide else []

    def _head_width(self) -> int:
        """Width of what the output layer reads: asked of the model itself, on one token."""
        widths = []

        def adjust(hidden: Tensor, logits: Tensor) -> Tensor:
            widths.append(hidden.size(-1))
            return logits

        self._run_one_token(adjust=adjust)
        return widths[0]

    def _run_one_token(self, **more: Any) -> None:
        token = torch.zeros(1, 1, dtype=torch.int64, device=device_of(self.model))
        with torch.no_grad(), evaluating(self.model):
            self.model(token, **more)


def _note(called: set[str], name: str, *_: Any) -> None:
    """As a hook: `name` is called."""
    called.add(name)


class _Hook:
    """Adds a delta to what a linear gives."""

    def __init__(self, a: Tensor, b: Tensor) -> None:
        self._a, self._b = a, b

    def __call__(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], out: Tensor
    ) -> Tensor:
        """A linear may be asked to multiply its outputs by a `gain`: so is the delta."""
        more = delta(args[0], self._a, self._b).to(out.dtype)
        gain = args[1] if len(args) > 1 else kwargs.get("gain")
        return out + (more if gain is None else more * gain.to(out.dtype))


def delta(x: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """`B (A x)`, (count, ..., out), of x (count, ..., in), A (count, rank, in), B (count, out,
    rank), in the dtype of x."""
    rows = x.reshape(len(a), -1, x.size(-1))
    product = rows @ a.to(x.dtype).mT @ b.to(x.dtype).mT
    return product.view(*x.shape[:-1], -1)


def _target(name: str, linear: nn.Linear) -> Target:
    return Target(name, linear.in_features, linear.out_features, linear)
