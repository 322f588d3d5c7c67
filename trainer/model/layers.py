"""Linear and embedding tables that say how they start, and the norm without weights.

torch's own constructors draw from the global generator; these start at zero and leave drawing to
`init.initialize`, which a checkpoint does not need. Weights are kept in their own dtype and cast to
that of the activations where they are used.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

EXACT = (torch.float32, torch.float64)


class Linear(nn.Linear):
    """`x @ weight.T`, no bias. With `zero`, training starts from zero, else orthogonal."""

    def __init__(self, in_features: int, out_features: int, *, zero: bool = False) -> None:
        self.zero = zero
        super().__init__(in_features, out_features, bias=False)

    def reset_parameters(self) -> None:
        """Zero."""
        nn.init.zeros_(self.weight)

    def forward(self, input: Tensor, gain: Tensor | None = None) -> Tensor:
        """(..., in) to (..., out) in the input's dtype, times `gain`, (out,) or a scalar.

        Compiled, the gain multiplies the weight's rows: the same product, without a pass over the
        activations here or in the gradient of the gain. Elsewhere the product is with the weight
        itself, which calibration recognises by its storage.
        """
        weight = self.weight
        if gain is not None and torch.compiler.is_compiling():
            weight, gain = gain.reshape(-1, 1) * weight, None
        out = nn.functional.linear(input, weight.to(input.dtype))
        return out if gain is None else out * gain.to(input.dtype)


class Embedding(nn.Embedding):
    """A table of rows. Training starts from `N(0, std^2)`."""

    def __init__(self, num_rows: int, dim: int, *, std: float) -> None:
        self.std = std
        super().__init__(num_rows, dim)

    def reset_parameters(self) -> None:
        """Zero."""
        nn.init.zeros_(self.weight)


def rms_norm(x: Tensor) -> Tensor:
    """`x / sqrt(mean(x^2) + eps)` over the last axis, computed in float32 or wider.

    eps is that of the dtype it is computed in: bfloat16's own, 2^-7, would drown small inputs.
    """
    eps = torch.finfo(x.dtype if x.dtype in EXACT else torch.float32).eps
    return nn.functional.rms_norm(x, (x.size(-1),), eps=eps)


def shift(x: Tensor, before: Tensor | None) -> Tensor:
    """What precedes each position of (B, T, ...): `before` (B, 1, ...), or 0, comes first."""
    first = torch.zeros_like(x[:, :1]) if before is None else before
    return torch.cat((first, x[:, :-1]), dim=1)
