"""Normalisation of a matrix before it is orthogonalized (techniques.md 2.2).

Rows, or rows and columns, of the update are brought to length 1, so that those with large gradients
do not take the singular vectors for themselves.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

Normalization = Literal["none", "rows", "rows-columns"]

SMALLEST = 1e-7
"""Norms are taken to be at least this: a row of zeros stays one."""


def normalize_rows(U: Tensor) -> Tensor:
    """MuonEq-R (arXiv 2603.28254; pull requests 1260, 1394): each row over its L2 norm.

    (..., rows, cols) to the same.
    """
    norms: Tensor = torch.linalg.vector_norm(U, dim=-1, keepdim=True)
    return U / norms.clamp_min(SMALLEST)


def normalize_columns(U: Tensor) -> Tensor:
    """Each column of (..., rows, cols) over its L2 norm."""
    return normalize_rows(U.mT).mT


def normalize_rows_columns(U: Tensor) -> Tensor:
    """What pull request 1440 calls AOL: rows, then columns, of (..., rows, cols).

    Its code divides rows by their norm, then by the root of the diagonal of U U^T, which is 1 by
    then, and by that of U^T U, the columns' norms. Almost-orthogonal layers (pull request 1089)
    scale by sums of |U U^T| over rows; that is not what it computes, and not offered here.
    """
    return normalize_columns(normalize_rows(U))


def normalize(U: Tensor, normalization: Normalization) -> Tensor:
    """`U`, (..., rows, cols), as `optim.normalize` asks."""
    if normalization == "rows":
        return normalize_rows(U)
    if normalization == "rows-columns":
        return normalize_rows_columns(U)
    return U
