"""Orthogonalization by a Newton-Schulz iteration (techniques.md 2.2).

    X = G / |G|;  repeat: A = X X^T,  X <- a X + (b A + c A^2) X

An odd polynomial of X maps each singular value s to a s + b s^3 + c s^5 and leaves the singular
vectors: iterated, it draws all of them to 1, that is to U V^T of G = U S V^T.

- `ns5`: one (a, b, c) at every step (Jordan et al., Muon). Steep at 0 rather than exact at 1: after
  five steps the singular values lie between about 0.7 and 1.2.
- `polar-express`: the best polynomial for each step (Amsel et al., arXiv 2505.16932; digits as in
  pull request 1089), the last one repeated. Each but the last rises above 1 and counts on the next
  to come back, from an interval that ends where its own bound is: in bfloat16 rounding leaves that
  interval, and beyond it values grow without end. So, as in the paper's own listing, the start is
  G / (SAFETY |G|), and all polynomials but the last are those of X / SAFETY. As 1089 gives them,
  they make matrices of rank 1 infinite after seven steps (`test_low_rank_stays_bounded`).
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

Coefficients = Literal["ns5", "polar-express"]

EPS = 1e-7
SAFETY = 1.02

NS5 = (3.4445, -4.7750, 2.0315)
POLAR_EXPRESS = (
    (8.287, -23.596, 17.300),
    (4.107, -2.948, 0.5448),
    (3.949, -2.909, 0.5518),
    (3.318, -2.488, 0.5100),
    (2.301, -1.669, 0.4188),
    (1.891, -1.268, 0.3768),
    (1.875, -1.25, 0.375),
)


def polynomials(coefficients: Coefficients, steps: int) -> list[tuple[float, float, float]]:
    """(a, b, c) of each step."""
    if coefficients == "ns5":
        return [NS5] * steps
    safe = [(a / SAFETY, b / SAFETY**3, c / SAFETY**5) for a, b, c in POLAR_EXPRESS[:-1]]
    return [*safe, *[POLAR_EXPRESS[-1]] * (steps - len(safe))][:steps]


def orthogonalize(G: Tensor, *, steps: int, coefficients: Coefficients) -> Tensor:
    """Matrices (..., rows, cols) with singular vectors of `G` and singular values near 1.

    Any number of matrices at once; products are bfloat16 on CUDA, and so is the result, elsewhere
    in the dtype of `G`. Zero gives zero. Compiles without a break.
    """
    rows, cols = G.shape[-2:]
    X = G.reshape(-1, rows, cols)
    norm = torch.linalg.vector_norm(X, dim=(-2, -1), keepdim=True)
    X = X / (norm * (1.0 if coefficients == "ns5" else SAFETY) + EPS)
    if X.is_cuda:
        X = X.bfloat16()
    if rows > cols:  # the smaller of X X^T and X^T X
        X = X.mT
    for a, b, c in polynomials(coefficients, steps):
        A = X @ X.mT  # (n, r, r), r the smaller dimension
        B = torch.baddbmm(A, A, A, beta=b, alpha=c)
        X = torch.baddbmm(X, B, X, beta=a)
    if rows > cols:
        X = X.mT
    return X.reshape(G.shape)
