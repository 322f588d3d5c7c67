"""Factoring a Hessian for GPTQ: dead columns, damping ladder, activation order.

GPTQ needs U, upper triangular, with `H^-1 = U^T U`. Reversing rows and columns of H turns one
Cholesky into the factor that is wanted: if `flip(H) = L L^T` then `H = R R^T` with `R = flip(L)`
upper triangular, and `U = R^-1`. One float64 Cholesky and one triangular solve (pull request 1948
of the challenge) replace the usual Cholesky, inverse, Cholesky.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from qpack.quant.grid import precise

DAMPING_LADDER = (1.0, 10.0, 100.0, 1000.0)
"""Multiples of the asked damping that are tried in turn while H is not positive definite."""

LEAST_RETRY = 1e-4
"""A retry damps by at least this, so that the ladder also rises from 0."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Factor:
    """U and what it took to get it; `U is None` means round-to-nearest is all that is left."""

    U: Tensor | None
    """(cols, cols) float32, upper triangular, in the order of `order`"""
    order: Tensor
    """(cols,) int64: column j of the solver is column order[j] of the weight"""
    dead: Tensor
    """(cols,) bool, in the weight's own order: inputs that calibration never saw non-zero"""
    scale: float
    """mean of the living diagonal: U belongs to `H / scale`"""
    damping: float
    """relative damping that worked (a multiple of the mean diagonal)"""
    retries: int

    @property
    def num_dead(self) -> int:
        """How many columns are dead."""
        return int(self.dead.sum())


def factor_hessian(hessian: Tensor, *, damping: float = 0.01, act_order: bool = True) -> Factor:
    """Factor `hessian` (cols, cols), symmetric positive semi-definite up to rounding.

    Columns whose diagonal is zero are dead: their weights carry no information about the output
    and are set to zero by the solver. Damping is relative to the mean of the living diagonal, so
    that the result does not depend on the scale of H. If no rung of the ladder gives a positive
    definite matrix, or H is not finite, `U` is None.
    """
    H = precise(hessian)
    cols = H.shape[0]
    identity_order = torch.arange(cols, device=H.device)
    diagonal = H.diagonal()
    dead = diagonal == 0
    if not bool(torch.isfinite(H).all()) or bool(dead.all()):
        return Factor(
            U=None,
            order=identity_order.to(hessian.device),
            dead=(dead & False).to(hessian.device),
            scale=1.0,
            damping=0.0,
            retries=0,
        )
    scale = float(diagonal[~dead].mean())
    H = H / scale
    H.diagonal()[dead] = 1.0
    order = (
        torch.argsort(H.diagonal(), descending=True, stable=True) if act_order else identity_order
    )
    H = H[order][:, order]
    eye = torch.eye(cols, dtype=H.dtype, device=H.device)
    for retries, rung in enumerate(DAMPING_LADDER):
        lam = damping if retries == 0 else max(damping, LEAST_RETRY) * rung
        lower, info = torch.linalg.cholesky_ex((H + lam * eye).flip((0, 1)))
        if int(info) == 0:
            U = torch.linalg.solve_triangular(lower.flip((0, 1)), eye, upper=True)
            if bool(torch.isfinite(U).all()):
                return Factor(
                    U=U.float().to(hessian.device),
                    order=order.to(hessian.device),
                    dead=dead.to(hessian.device),
                    scale=scale,
                    damping=lam,
                    retries=retries,
                )
    return Factor(
        U=None,
        order=identity_order.to(hessian.device),
        dead=(dead & False).to(hessian.device),
        scale=scale,
        damping=lam,
        retries=len(DAMPING_LADDER),
    )
