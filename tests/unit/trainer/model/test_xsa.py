from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from qpack.trainer.model.xsa import exclude_own_value

from . import reference


def drawn(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize(("heads", "kv_heads"), [(4, 4), (4, 2), (6, 2), (3, 1)])
@pytest.mark.parametrize("gated", [False, True])
def test_the_part_along_the_own_value_is_taken_off(heads: int, kv_heads: int, gated: bool) -> None:
    y, v = drawn(2, 3, heads, 5, seed=0), drawn(2, 3, kv_heads, 5, seed=1)
    alpha = drawn(heads, seed=2)
    out = exclude_own_value(y, v, alpha if gated else None)
    for b in range(2):
        for t in range(3):
            for h in range(heads):
                own = v[b, t, h // (heads // kv_heads)].numpy()
                amount = math.tanh(alpha[h]) if gated else 1.0
                wanted = reference.exclude(y[b, t, h].numpy(), own, amount)
                np.testing.assert_allclose(out[b, t, h].numpy(), wanted, rtol=1e-10, atol=1e-12)


def test_what_is_left_is_orthogonal_and_the_rest_stays() -> None:
    y, v = drawn(1, 4, 2, 8, seed=0), drawn(1, 4, 2, 8, seed=1)
    out = exclude_own_value(y, v)
    assert (out * v).sum(dim=-1).abs().max() < 1e-12
    torch.testing.assert_close(exclude_own_value(out, v), out)


def test_a_closed_gate_changes_nothing_and_can_open() -> None:
    y, v = drawn(1, 4, 2, 8, seed=0), drawn(1, 4, 2, 8, seed=1)
    gate = torch.zeros(2, dtype=torch.float64, requires_grad=True)
    out = exclude_own_value(y, v, gate)
    torch.testing.assert_close(out, y)
    out.square().sum().backward()
    assert gate.grad is not None
    assert (gate.grad != 0).all()


def test_a_value_of_length_zero_has_no_direction() -> None:
    y = drawn(1, 1, 1, 4, seed=0)
    v = torch.zeros(1, 1, 1, 4, dtype=torch.float64, requires_grad=True)
    out = exclude_own_value(y, v)
    assert torch.equal(out, y)
    out.sum().backward()
    assert v.grad is not None
    assert v.grad.isfinite().all()
