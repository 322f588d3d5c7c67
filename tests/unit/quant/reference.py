"""Slow references written from the formulas, in float64, one weight or column at a time."""

import torch
from torch import Tensor


def gptq(W: Tensor, H: Tensor, steps: Tensor, limit: float, damping: float) -> Tensor:
    """GPTQ with act-order, unblocked: integers (rows, cols)."""
    W, H = W.double().clone(), H.double().clone()
    dead = H.diagonal() == 0
    H[dead, dead] = H.diagonal()[~dead].mean()
    W[:, dead] = 0
    H += damping * H.diagonal().mean() * torch.eye(len(H), dtype=H.dtype)
    order = torch.argsort(H.diagonal(), descending=True, stable=True)
    W, H = W[:, order], H[order][:, order]
    inverse = torch.linalg.inv(H)
    U = torch.linalg.cholesky(inverse, upper=True)
    Q = torch.zeros_like(W)
    for j in range(W.shape[1]):
        Q[:, j] = torch.round(W[:, j] / steps.double()).clamp(-limit, limit)
        error = (W[:, j] - Q[:, j] * steps.double()) / U[j, j]
        W[:, j:] -= error[:, None] * U[j, j:]
    out = torch.empty_like(Q)
    out[:, order] = Q
    return out


def output_error(W: Tensor, integers: Tensor, steps: Tensor, H: Tensor) -> float:
    """tr(E H E^T)."""
    E = W.double() - integers.double() * steps.double()[:, None]
    return float(torch.trace(E @ H.double() @ E.T))


def correlated_inputs(count: int, cols: int, seed: int) -> Tensor:
    """Inputs (count, cols) with strongly correlated columns of unequal power."""
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(cols, cols, generator=generator) / cols**0.5 + torch.eye(cols)
    power = torch.exp(torch.randn(cols, generator=generator))
    return torch.randn(count, cols, generator=generator) @ mix * power
