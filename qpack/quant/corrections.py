"""What tuning may change of an artifact's contents, as numbers that gradients can reach.

    W = integers * 2^(row + u) * 2^(col + v)        b = b0 + w

Row steps, column steps and float tensors each have offsets u, v, w that start at zero; integers
stay. Column steps that several tensors share (q, k and v have one input) are one vector here too,
so that the codes still repeat in the file. What is trained are moves m, `u = scale * m`:
with scales of one over the root of the loss's curvature, all moves matter alike.

The gradients of steps need no gradient of W: with y = W x for each token, `dL/d(row) = ln2 sum_t
y dL/dy` and `dL/d(col) = ln2 sum_t x dL/dx`. `Products` computes them so where a weight is used in
`torch.nn.functional.linear`, which saves one of the three products of a training step. Elsewhere
(convolutions, lookups) W itself is differentiated.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from qpack.tensors import (
    EXPONENT_MAX,
    EXPONENT_MIN,
    RESOLUTION,
    Contents,
    QuantizedTensor,
    RawTensor,
    StoredTensor,
)
from qpack.torch_tensors import DTYPES, to_raw, to_torch

Offsets = dict[str, Tensor]
"""Kind and name ("rows blocks.0.mlp.fc.weight") -> float32, a value for each step or element"""


@dataclass(slots=True, eq=False)
class _Grid:
    """A quantized tensor on the device, with the keys of its offsets."""

    stored: QuantizedTensor
    integers: Tensor
    rows: str
    cols: str | None
    row_logs: Tensor
    col_logs: Tensor | None


class Corrections:
    """The offsets of `contents`, and the weights that they make."""

    def __init__(self, contents: Contents, model: nn.Module) -> None:
        """Offsets begin at zero, on the model's device."""
        self._contents = contents
        state = model.state_dict(keep_vars=True)
        parameters = dict(model.named_parameters(remove_duplicate=False))
        self._likes = {t.name: state[t.name] for t in contents.tensors}
        self.moves: dict[str, Tensor] = {}
        self._grids: dict[str, _Grid] = {}
        self._floats: dict[str, Tensor] = {}
        self._fixed: dict[str, Tensor] = {}
        leaders: dict[bytes, str] = {}
        for tensor in contents.tensors:
            like = self._likes[tensor.name]
            if isinstance(tensor, QuantizedTensor):
                self._grids[tensor.name] = self._grid(tensor, like.device, leaders)
            elif tensor.name in parameters and DTYPES[tensor.dtype].is_floating_point:
                value = to_torch(tensor).to(like.device, torch.float32)
                self._floats[tensor.name] = value
                self._add(f"values {tensor.name}", value)
            else:
                self._fixed[tensor.name] = to_torch(tensor).to(like)
        self.scales = {key: torch.ones_like(move) for key, move in self.moves.items()}

    def reset(self) -> None:
        """Back to where it started."""
        with torch.no_grad():
            for move in self.moves.values():
                move.zero_()

    @property
    def are_finite(self) -> bool:
        """Whether no move has left all bounds."""
        return all(bool(move.isfinite().all()) for move in self.moves.values())

    def offsets(self) -> Offsets:
        """Where all offsets are now."""
        return {key: self.scales[key] * move for key, move in self.moves.items()}

    def weights(self) -> tuple[dict[str, Tensor], Products]:
        """Every tensor of the model by name, and the mode in which to run it."""
        made = dict(self._fixed)
        known: dict[int, _Product] = {}
        offsets = self.offsets()
        for name, grid in self._grids.items():
            rows = offsets[grid.rows]
            cols = None if grid.cols is None else offsets[grid.cols]
            W = _Rebuilt.apply(grid, rows, cols).to(self._likes[name].dtype)  # type: ignore[no-untyped-call]
            made[name] = W.reshape(grid.stored.shape)
            known[id(made[name])] = _Product(made[name].detach(), rows, cols)
        for name, value in self._floats.items():
            made[name] = (value + offsets[f"values {name}"]).to(self._likes[name].dtype)
        aliases = {other: made[name] for other, name in self._contents.aliases.items()}
        return made | aliases, Products(known)

    def rounded(self) -> Contents:
        """Contents with every offset rounded to what a file stores: codes, float types."""
        offsets = {key: offset.detach() for key, offset in self.offsets().items()}
        tensors = (self._rounded(tensor, offsets) for tensor in self._contents.tensors)
        return replace(self._contents, tensors=tuple(tensors))

    def _grid(
        self, stored: QuantizedTensor, device: torch.device, leaders: dict[bytes, str]
    ) -> _Grid:
        cols = None
        if stored.col_codes is not None:
            shared = f"{stored.octave} ".encode() + stored.col_codes.tobytes()
            cols = leaders.setdefault(shared, f"cols {stored.name}")
        grid = _Grid(
            stored=stored,
            integers=torch.from_numpy(stored.integers).to(device),
            rows=f"rows {stored.name}",
            cols=cols,
            row_logs=_logs(stored.row_codes, stored.octave).to(device),
            col_logs=None
            if stored.col_codes is None
            else _logs(stored.col_codes, stored.octave).to(device),
        )
        self._add(grid.rows, grid.row_logs)
        if grid.cols is not None and grid.cols not in self.moves and grid.col_logs is not None:
            self._add(grid.cols, grid.col_logs)
        return grid

    def _add(self, key: str, like: Tensor) -> None:
        self.moves[key] = torch.zeros_like(like).requires_grad_()

    def _rounded(self, tensor: StoredTensor, offsets: Offsets) -> StoredTensor:
        name = tensor.name
        if isinstance(tensor, RawTensor):
            if name not in self._floats:
                return tensor
            moved = (self._floats[name] + offsets[f"values {name}"]).cpu()
            return to_raw(name, moved.to(DTYPES[tensor.dtype]))
        grid = self._grids[name]
        col_codes = tensor.col_codes
        if grid.cols is not None and col_codes is not None:
            col_codes = _moved(col_codes, tensor.octave, offsets[grid.cols])
        return replace(
            tensor,
            row_codes=_moved(tensor.row_codes, tensor.octave, offsets[grid.rows]),
            col_codes=col_codes,
            octave=RESOLUTION,
        )


class Products(TorchFunctionMode):
    """Runs `linear` with known weights so that their gradients are not formed."""

    def __init__(self, known: Mapping[int, _Product]) -> None:
        """`known`: `id` of a weight -> its parts. The weights outlive the mode."""
        super().__init__()
        self._known = known

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Replace `linear(x, W, bias)` for a known W; everything else runs as it is."""
        kwargs = kwargs or {}
        if func is nn.functional.linear and len(args) >= 2 and id(args[1]) in self._known:
            product = self._known[id(args[1])]
            y = _Linear.apply(args[0], product.W, product.rows, product.cols)  # type: ignore[no-untyped-call]
            bias = args[2] if len(args) > 2 else kwargs.get("bias")
            return y if bias is None else y + bias
        return func(*args, **kwargs)


@dataclass(frozen=True, slots=True, eq=False)
class _Product:
    W: Tensor
    """(out, in), without history"""
    rows: Tensor
    cols: Tensor | None


class _Linear(torch.autograd.Function):
    """`x W^T` with the gradients of x and of the steps' offsets."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, W: Tensor, rows: Tensor, cols: Tensor | None) -> Tensor:
        y = nn.functional.linear(x, W)
        ctx.save_for_backward(x, W, y)
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, W, y = ctx.saved_tensors
        (dy,) = grads
        dx = dy @ W
        rows = math.log(2) * (dy * y).reshape(-1, W.shape[0]).float().sum(0)
        cols = None
        if ctx.needs_input_grad[3]:
            cols = math.log(2) * (dx * x).reshape(-1, W.shape[1]).float().sum(0)
        return dx, None, rows, cols


class _Rebuilt(torch.autograd.Function):
    """W (rows, cols) float32 of a grid and its offsets."""

    @staticmethod
    def forward(ctx: Any, grid: _Grid, rows: Tensor, cols: Tensor | None) -> Tensor:
        W = grid.integers.float().mul_(torch.exp2(grid.row_logs + rows)[:, None])
        if cols is not None and grid.col_logs is not None:
            W.mul_(torch.exp2(grid.col_logs + cols)[None, :])
        ctx.save_for_backward(W)
        return W

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (W,) = ctx.saved_tensors
        weighed = grads[0] * W
        cols = math.log(2) * weighed.sum(0) if ctx.needs_input_grad[2] else None
        return None, math.log(2) * weighed.sum(1), cols


def _logs(codes: np.ndarray[Any, np.dtype[np.int16]], octave: int) -> Tensor:
    """log2 of the steps, float32."""
    return torch.from_numpy(codes.astype(np.float32) / octave)


def _moved(
    codes: np.ndarray[Any, np.dtype[np.int16]], octave: int, offset: Tensor
) -> np.ndarray[Any, np.dtype[np.int16]]:
    """Codes of the finest octave, nearest to the steps moved by `offset` octaves."""
    fine = codes.astype(np.float64) * (RESOLUTION // octave)
    moved = np.rint(fine + RESOLUTION * offset.cpu().numpy().astype(np.float64))
    lowest, end = EXPONENT_MIN * RESOLUTION, (EXPONENT_MAX + 1) * RESOLUTION
    return moved.clip(lowest, end - 1).astype(np.int16)
