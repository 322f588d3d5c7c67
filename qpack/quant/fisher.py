"""Output sensitivities: the mean squared gradient at every weight's outputs and every table's rows.

The rise of the loss for a weight error e in row r is about `1/2 g_r e H e^T` a token, with
`g_r = E[(dL / dy_r)^2]` over labels drawn from the model itself: the diagonal of the true Fisher
information, as in K-FAC (Martens and Grosse 2015, arXiv:1503.05671), not the empirical one.

As the inputs of a weight are seen below autograd (`qpack.quant.tap`), so are its output gradients.
In a backward pass autograd multiplies dL/dy by the weight itself to get the gradient of the input;
that product names both. So it suffices that inputs want gradients: tables do, matrices do not,
whose own gradients would double the cost. Works on any `nn.Module` of one argument.

Gradients of the loss by the outputs of the model need no loss: they are `softmax(y) - onehot` for
labels drawn from the softmax, and a standard normal draw for an output with unit Gaussian noise.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn

from qpack.distributed import world_size
from qpack.errors import CalibrationError
from qpack.quant.heads import BLOCK_ELEMENTS, Head, all_reduced
from qpack.quant.moments import add_moments, empty_moments
from qpack.quant.tap import Watch

Likelihood = Literal["categorical", "gaussian"]

aten = torch.ops.aten

_INDEX_PUTS = (aten.index_put, aten.index_put_, aten._index_put_impl_)
"""Backward passes of `table[indices]`."""

PRIOR_LOOKUPS = 0.5
"""Lookups that every row of a table is given beside those seen, so that unseen rows stay alive
(Krichevsky and Trofimov 1981)."""

FLOOR = 0.01
"""Least worth of a row, of its tensor's mean. Its step is then ten times the mean one."""


class GradientTap(Watch):
    """While entered, gathers output gradients of `parameters` in backward passes.

    `gradients`: weight -> (rows,) float64, sums of squares over all uses. `lookups`: table ->
    (rows,) float64, how often each row was looked up. `looked_up`: table -> (cols,) float64, sums
    of squares over lookups. `moments`: weight that is no table -> (runs, side, side) float32, sums
    of `g g^T` over all uses (`qpack.quant.moments`).

    `shares` is of the backward passes since `forget`: weight -> for each of its uses, the last one
    first, (inputs,) float32: what part of the squared gradients each input has, see `shares_of`.
    """

    def __init__(self, parameters: Mapping[str, Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.parameters = {name: p for name, p in parameters.items() if p.ndim >= 2 and p.numel()}
        self._names = {p.data_ptr(): (name, p) for name, p in self.parameters.items()}
        self._tables: dict[int, list[tuple[str, Tensor]]] = {}
        self._looked_up: set[str] = set()
        self.backward = False
        self.gradients: dict[str, Tensor] = {}
        self.lookups: dict[str, Tensor] = {}
        self.looked_up: dict[str, Tensor] = {}
        self.moments: dict[str, Tensor] = {}
        self.shares: dict[str, list[Tensor]] = {}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Watch the operator, then run it."""
        packet = getattr(func, "overloadpacket", None)
        if self.backward:
            self._watch_backward(packet, args)
        else:
            self._watch_forward(packet, args)
        return func(*args, **(kwargs or {}))

    def forget(self) -> None:
        """Drop what is of the last batch alone."""
        self._tables.clear()
        self._looked_up.clear()
        self.shares = {}

    def _watch_forward(self, packet: Any, args: tuple[Any, ...]) -> None:
        """Remember which indices look up which table; they are held so their address stays."""
        if packet is aten.embedding:
            table, indices = args[0], args[1]
        elif packet is aten.index and len(args[1]) == 1:
            table, indices = args[0], args[1][0]
        else:
            return
        found = self._names.get(table.data_ptr())
        if found is not None and found[1].shape == table.shape:
            self._tables.setdefault(indices.data_ptr(), []).append((found[0], indices))
            self._looked_up.add(found[0])

    def _watch_backward(self, packet: Any, args: tuple[Any, ...]) -> None:
        if packet is aten.mm:
            self._product(args[1], args[0])
        elif packet is aten.bmm and args[1].stride(0) == 0:
            self._product(args[1][0], args[0])
        elif packet is aten.linear_backward:
            self._product(args[2], args[1])
        elif packet is aten.convolution_backward:
            self._convolution(args)
        elif packet is aten.embedding_dense_backward:
            self._lookup(args[1], args[0])
        elif packet in _INDEX_PUTS and len(args[1]) == 1 and args[1][0] is not None:
            self._lookup(args[1][0], args[2])

    def _product(self, operand: Tensor, gradient: Tensor) -> None:
        found = self._names.get(operand.data_ptr())
        if found is None:
            return
        name, parameter = found
        if operand.shape == parameter.shape and operand.stride() == parameter.stride():
            self._used(name, gradient.reshape(-1, gradient.shape[-1]))

    def _convolution(self, args: tuple[Any, ...]) -> None:
        gradient, weight, is_transposed, groups = args[0], args[2], args[7], args[9]
        found = self._names.get(weight.data_ptr())
        if found is not None and not is_transposed and groups == 1:
            rows = gradient.flatten(2).movedim(1, 2).reshape(-1, gradient.shape[1])
            self._used(found[0], rows)

    def _used(self, name: str, rows: Tensor) -> None:
        """Gradients (inputs, rows) at the outputs of one use of a weight."""
        self._add(self.gradients, name, rows)
        if name not in self._looked_up:
            if name not in self.moments:
                self.moments[name] = empty_moments(rows, rows.shape[1])
            add_moments(self.moments[name], rows.float())
        self.shares.setdefault(name, []).append(shares_of(rows.float().square()))

    def _lookup(self, indices: Tensor, gradient: Tensor) -> None:
        """Gradients of what `indices` looked up. Tables of one shape that the same indices look up
        are told apart by their order, which backward passes go through from the last one on."""
        tables = self._tables.get(indices.data_ptr(), [])
        rows = gradient.reshape(indices.numel(), -1)
        for place, (name, known) in reversed(list(enumerate(tables))):
            table = self.parameters[name]
            if indices.shape == known.shape and rows.shape[1] == table[0].numel():
                del tables[place]
                self._add(self.looked_up, name, rows)
                counts = torch.bincount(indices.reshape(-1), minlength=table.shape[0])
                self.lookups[name] = self.lookups.get(name, 0.0) + counts.double()
                return

    @staticmethod
    def _add(sums: dict[str, Tensor], name: str, rows: Tensor) -> None:
        squares = rows.square().sum(dim=0).double()
        sums[name] = squares if name not in sums else sums[name] + squares


def shares_of(squares: Tensor) -> Tensor:
    """(inputs,) shares of squared gradients (inputs, rows), of the mean that `squares` has.

    Within one use all rows count alike, as errors do under a rule that makes a row finer as its
    gradients grow: squares are over their row's mean, at least `FLOOR` of the mean of all rows.
    Uses and batches count by their gradients.
    """
    g = squares.mean(dim=0)
    mean = g.mean()
    scales = g.clamp_min(FLOOR * float(mean)).clamp_min(torch.finfo(g.dtype).tiny)
    return squares @ (mean / (scales * len(scales)))


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Sensitivities:
    """What all ranks saw, as `qpack.quant.statistics.Statistics` keeps it."""

    gradients: dict[str, Tensor]
    lookups: dict[str, Tensor]
    looked_up: dict[str, Tensor]
    moments: dict[str, Tensor]
    places: int


def means(
    tap: GradientTap, places: int, head: Head, *, device: torch.device | str
) -> Sensitivities:
    """Sums over all ranks turned into means: over places, and of looked-up rows over lookups. The
    rows of the head share its sum as `head` says.

    Raises `CalibrationError` naming every weight whose gradients are not finite.
    """
    found = [tap.gradients, tap.lookups, tap.looked_up, tap.moments]
    if world_size() > 1:
        count = torch.tensor(places, device=device)
        dist.all_reduce(count)
        places = int(count)
        for sums, like in zip(found, (_a_row, _a_row, _a_column, _a_moment), strict=True):
            _all_reduce(sums, tap.parameters, like, device)
    bad = [name for sums in found for name, x in sums.items() if not bool(x.isfinite().all())]
    if bad:
        raise CalibrationError(
            "gradients are not finite on the calibration data, at the outputs of:",
            items=sorted(set(bad)),
            hint="check the checkpoint with `qpack eval`; its loss is likely NaN",
        )
    gradients, lookups, looked_up, moments = found
    head = all_reduced(head, tap.parameters, device)
    gradients = head.share(gradients)
    made = head.weight_of(gradients)
    for name in (*lookups, *([made] if made else [])):
        moments.pop(name, None)  # rows are pieces, of which a token has one: they share nothing
    return Sensitivities(
        gradients={name: (x / places).float() for name, x in gradients.items()},
        lookups={name: ((x + PRIOR_LOOKUPS) / places).float() for name, x in lookups.items()},
        looked_up={name: (x / lookups[name].sum()).float() for name, x in looked_up.items()},
        moments={name: x / places for name, x in moments.items()},
        places=places,
    )


def _a_row(parameter: Tensor) -> Tensor:
    return parameter.new_zeros(parameter.shape[0], dtype=torch.float64)


def _a_column(parameter: Tensor) -> Tensor:
    return parameter.new_zeros(parameter[0].numel(), dtype=torch.float64)


def _a_moment(parameter: Tensor) -> Tensor:
    return empty_moments(parameter, parameter.shape[0])


def _all_reduce(
    sums: dict[str, Tensor],
    parameters: Mapping[str, Tensor],
    zeros: Callable[[Tensor], Tensor],
    device: torch.device | str,
) -> None:
    """Sum over ranks in one order; what no rank saw stays absent."""
    seen = torch.tensor([int(name in sums) for name in parameters], device=device)
    dist.all_reduce(seen)
    for (name, parameter), ranks in zip(parameters.items(), seen.tolist(), strict=True):
        if ranks:
            if name not in sums:
                sums[name] = zeros(parameter.detach()).to(device)
            dist.all_reduce(sums[name])


@contextmanager
def wanting_input_gradients(model: nn.Module) -> Iterator[None]:
    """Only tables want gradients for a while (all parameters, if there is none); then as before.

    Gradients then flow to the input of everything that depends on a table.
    """
    tables = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
    before = [(p, p.requires_grad, p.grad) for p in model.parameters()]
    try:
        for p, _, _ in before:
            p.requires_grad_(p.is_floating_point() and (not tables or id(p) in tables))
        yield
    finally:
        for p, wanted, grad in before:
            p.requires_grad_(wanted)
            p.grad = grad


class _Start(torch.autograd.Function):
    """A number whose gradient by y is what is given. `torch.autograd.backward(y, gradient)` would
    do, but imports a symbolic algebra system first, seconds on a machine that has not read it."""

    @staticmethod
    def forward(ctx: Any, y: Tensor, gradient: Tensor) -> Tensor:
        ctx.save_for_backward(gradient)
        return y.new_zeros(())

    @staticmethod
    def backward(ctx: Any, *_: Tensor) -> tuple[Tensor, None]:
        (gradient,) = ctx.saved_tensors
        return gradient, None


def backward(
    output: Any, likelihood: Likelihood, *, seed: int, index: int, tap: GradientTap
) -> int:
    """Backward pass of a sampled loss from a model's `output`; returns how many places it has.

    A place is one position of one example: all axes of the output but the last. `index` is the
    batch's, so that labels do not depend on which rank draws them. Raises `CalibrationError` where
    the output wants no gradient.
    """
    y = output_tensor(output)
    if not y.requires_grad:
        raise CalibrationError(
            "the model's output does not depend on any parameter by differentiable operations",
            hint="sensitivities need a backward pass: detach nothing, or use the recipe record",
        )
    generator = torch.Generator().manual_seed(seed * 1_000_003 + index)
    with torch.no_grad():
        gradient = _gradient(y.detach(), likelihood, generator)
    tap.backward = True
    try:
        torch.autograd.backward(_Start.apply(y, gradient))  # type: ignore[no-untyped-call]
    finally:
        tap.backward = False
    return y.numel() // y.shape[-1]


def _gradient(y: Tensor, likelihood: Likelihood, generator: torch.Generator) -> Tensor:
    """Gradient of the summed sampled loss by y (..., outputs), drawn on the CPU on any device."""
    if likelihood == "gaussian":
        return torch.randn(y.shape, generator=generator).to(y)
    rows = y.reshape(-1, y.shape[-1])
    uniform = torch.rand(rows.shape[0], 1, generator=generator).to(y.device)
    gradient = torch.empty_like(rows)
    block = max(1, BLOCK_ELEMENTS // rows.shape[1])
    for start in range(0, rows.shape[0], block):
        part = slice(start, start + block)
        p = torch.softmax(rows[part].float(), dim=1)
        cumulative = p.double().cumsum(dim=1) if p.device.type != "mps" else p.cumsum(dim=1)
        point = uniform[part].to(cumulative.dtype) * cumulative[:, -1:]
        label = torch.searchsorted(cumulative, point, right=True)
        label.clamp_(max=rows.shape[1] - 1)
        gradient[part] = p.scatter_add_(1, label, torch.full_like(label, -1, dtype=p.dtype))
    return gradient.reshape(y.shape)


def output_tensor(output: Any) -> Tensor:
    """The model's outputs, also where they come first among others. Raises `CalibrationError`."""
    while isinstance(output, tuple | list):
        output = output[0]
    if not isinstance(output, Tensor):
        raise CalibrationError(f"the model returns {type(output).__name__}, not a tensor")
    return output
