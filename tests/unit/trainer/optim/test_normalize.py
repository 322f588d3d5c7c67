from __future__ import annotations

from typing import get_args

import numpy as np
import pytest
import torch

from qpack.trainer.optim.normalize import Normalization, normalize, normalize_columns

from . import reference

KINDS = get_args(Normalization)


@pytest.mark.parametrize("kind", KINDS)
def test_against_the_formula(kind: Normalization) -> None:
    U = torch.randn(3, 5, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    U[1, 2] *= 1e-9  # below the smallest norm
    U[2, 3] = 0.0
    got = normalize(U, kind)
    for one, want in zip(got, U, strict=True):
        np.testing.assert_allclose(one, reference.normalize(want.numpy(), kind), rtol=1e-12)


def test_lengths() -> None:
    U = torch.randn(5, 8, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(normalize(U, "rows").norm(dim=1), torch.ones(5))
    assert torch.allclose(normalize(U, "rows-columns").norm(dim=0), torch.ones(8))
    assert torch.allclose(normalize_columns(U).norm(dim=0), torch.ones(8))


def test_what_1440_calls_aol_is_rows_then_columns() -> None:
    """Its three divisions, literally: the second is by 1."""
    U = torch.randn(5, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    X = U / U.norm(dim=1, keepdim=True)
    X = X / (X @ X.mT).diagonal().sqrt()[:, None]
    X = X / (X.mT @ X).diagonal().sqrt()[None, :]
    torch.testing.assert_close(normalize(U, "rows-columns"), X)
