"""Seeing every use of a weight in a matrix product, in any module, without changing the module.

A dispatch mode watches the operators below autograd. A product whose right operand is a parameter,
or its transpose, is a use of that weight with the left operand as input. This finds `nn.Linear`,
functional heads on a tied embedding, `x @ W.T`, fused q/k/v projections and convolutions alike.
Weights are recognised by their storage, so the model must run in the parameters' own dtype.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

aten = torch.ops.aten

Observer = Callable[[str, Tensor, Callable[[], Tensor]], None]
"""Called with (weight name, the tensor that was fed in, a function that gives it as rows)."""


class Watch(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """A mode that eager calls alone run in."""

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """No: torch would import its compiler for that, seconds of every first calibration."""
        return False


class WeightTap(Watch):
    """While entered, calls `observer` at every product with one of `parameters`."""

    def __init__(self, parameters: Mapping[str, Tensor], observer: Observer) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._names = {p.data_ptr(): (name, p) for name, p in parameters.items() if p.ndim >= 2}
        self._observer = observer

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Watch the operator, then run it."""
        self._watch(func, args)
        return func(*args, **(kwargs or {}))

    def _watch(self, func: Any, args: tuple[Any, ...]) -> None:
        packet = getattr(func, "overloadpacket", None)
        if packet is aten.linear:
            self._product(args[0], args[1], transposed=False)
        elif packet in (aten.mm, aten.matmul):
            self._product(args[0], args[1], transposed=True)
        elif packet is aten.addmm:
            self._product(args[1], args[2], transposed=True)
        elif packet is aten.bmm and args[1].stride(0) == 0:  # one weight, expanded over a batch
            self._product(args[0], args[1][0], transposed=True)
        elif packet is aten.convolution:
            self._convolution(args)

    def _product(self, x: Tensor, operand: Tensor, *, transposed: bool) -> None:
        """`operand` is the weight (out, in), or with `transposed` its transpose (in, out)."""
        found = self._names.get(operand.data_ptr())
        if found is None:
            return
        name, parameter = found
        weight = operand.mT if transposed and operand.ndim == 2 else operand
        if weight.shape == parameter.shape and weight.stride() == parameter.stride():
            self._observer(name, x, lambda: x.reshape(-1, x.shape[-1]))

    def _convolution(self, args: tuple[Any, ...]) -> None:
        x, weight, _, stride, padding, dilation, is_transposed, _, groups = args
        found = self._names.get(weight.data_ptr())
        if found is None or is_transposed or groups != 1 or weight.ndim not in (3, 4):
            return

        def rows() -> Tensor:
            image, kernel = (x, weight) if x.ndim == 4 else (x[:, :, None], weight[:, :, None])
            pad = (0,) * (2 - len(padding))
            one = (1,) * (2 - len(padding))
            patches = F.unfold(
                image,
                kernel.shape[2:],
                dilation=(*one, *dilation),
                padding=(*pad, *padding),
                stride=(*one, *stride),
            )
            return patches.mT.reshape(-1, patches.shape[1])

        self._observer(found[0], x, rows)
