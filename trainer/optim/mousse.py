"""Mousse: an update is whitened by its moving second moments before it is orthogonalized
(techniques.md 2.3).

Two different things carry the name:

- The diagonal form (pull requests 1683, 1749), a moving average of squared rows and columns:

      L_i <- .95 L_i + .05 sum_j U_ij^2,  R_j likewise over rows;  U_ij L_i^(-1/2) R_j^(-1/2)

  The first value starts the average. Overall scale is lost in the orthogonalization that follows.
- The Kronecker form (arXiv 2603.09697; ported in pull request 1058):

      L <- (1 - beta) L + beta U U^T,  R <- (1 - beta) R + beta U^T U,  each over tr / n
      L = Q_L diag(l) Q_L^T,  R = Q_R diag(r) Q_R^T, every 10 steps
      O = Q_L NS(l^(-alpha) * Q_L^T U Q_R * r^(-alpha)) Q_R^T

  with alpha .125, beta .01. As in the port, the orthogonalized update is rotated back, not
  un-whitened; accounts of the paper that un-whiten and rescale it describe another update.

Pull request 1440 lists Mousse with an effect of -.002 bits per byte; no commit of it contains any.
The Kronecker form pays for eigendecompositions on the order of rows^3 + cols^3 every 10 steps.

Everything here is batched: n matrices of one shape.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

Precondition = Literal["none", "mousse-diagonal", "mousse-kronecker"]

DIAGONAL_DECAY = 0.95
DIAGONAL_EPS = 1e-30
"""Of squared norms, so that rows and columns that never had a gradient give 0, not 0 x infinity."""
BETA = 0.01
ALPHA = 0.125
KRONECKER_EPS = 1e-6
"""Added to eigenvalues whose mean is 1."""
REFRESH_STEPS = 10
"""Steps between eigendecompositions."""

State = dict[str, Tensor]


def new_state(precondition: Precondition, shape: torch.Size, device: torch.device) -> State:
    """Moments before the first step of matrices of `shape` (n, rows, cols), float32.

    Diagonal: `row_moment` (n, rows), `column_moment` (n, cols). Kronecker: `left` (n, rows, rows)
    and `right` (n, cols, cols), the statistics; `left_basis`, `right_basis`, eigenvectors of the
    last decomposition in columns; `left_gain` (n, rows), `right_gain` (n, cols), their eigenvalues
    to the power -alpha.
    """
    n, rows, cols = shape

    def zeros(*sizes: int) -> Tensor:
        return torch.zeros(sizes, device=device)

    if precondition == "mousse-diagonal":
        return {"row_moment": zeros(n, rows), "column_moment": zeros(n, cols)}
    if precondition == "mousse-kronecker":
        state = {}
        for side, width in (("left", rows), ("right", cols)):
            state[side] = zeros(n, width, width)
            state[f"{side}_basis"] = torch.eye(width, device=device).repeat(n, 1, 1)
            state[f"{side}_gain"] = torch.ones(n, width, device=device)
        return state
    return {}


def whiten_diagonal(U: Tensor, state: State) -> Tensor:
    """Take `U` (n, rows, cols) into the moments, in place, and divide it by their roots."""
    squares = U.square()
    gains = []
    for name, dim in (("row_moment", -1), ("column_moment", -2)):
        moment, now = state[name], squares.sum(dim)
        # A moment of exactly 0 has seen nothing yet: the first value is its start.
        first = (moment == 0).all(-1, keepdim=True)
        moment.copy_(torch.where(first, now, torch.lerp(now, moment, DIAGONAL_DECAY)))
        gains.append((moment + DIAGONAL_EPS).rsqrt())
    rows, cols = gains
    return U * rows.unsqueeze(-1) * cols.unsqueeze(-2)


def gather_kronecker(U: Tensor, state: State) -> None:
    """Take `U` (n, rows, cols) into the statistics, in place."""
    state["left"].copy_(torch.baddbmm(state["left"], U, U.mT, beta=1 - BETA, alpha=BETA))
    state["right"].copy_(torch.baddbmm(state["right"], U.mT, U, beta=1 - BETA, alpha=BETA))


def refresh_kronecker(state: State) -> None:
    """Decompose the statistics anew, in place."""
    for side in ("left", "right"):
        H = state[side]
        trace = H.diagonal(dim1=-2, dim2=-1).sum(-1)[:, None, None]
        # Nothing seen yet, or no longer finite, which eigh does not survive: whiten by nothing. The
        # update keeps what is not finite, for the loop to find.
        usable = trace.isfinite() & (trace > 0)
        eye = torch.eye(H.size(-1), device=H.device)
        values, basis = torch.linalg.eigh(torch.where(usable, H * (H.size(-1) / trace), eye))
        state[f"{side}_basis"].copy_(basis)
        state[f"{side}_gain"].copy_((values.clamp_min(0) + KRONECKER_EPS) ** -ALPHA)


def whiten_kronecker(U: Tensor, state: State) -> Tensor:
    """`U` (n, rows, cols) in the eigenbases of the last decomposition, whitened."""
    rotated = state["left_basis"].mT @ U @ state["right_basis"]
    return rotated * state["left_gain"].unsqueeze(-1) * state["right_gain"].unsqueeze(-2)


def rotate_back(X: Tensor, state: State) -> Tensor:
    """From the eigenbases to the weights' own: (n, rows, cols), in the dtype of the bases."""
    left, right = state["left_basis"], state["right_basis"]
    return left @ X.to(left.dtype) @ right.mT
