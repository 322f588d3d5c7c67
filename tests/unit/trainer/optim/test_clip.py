from __future__ import annotations

import torch
from torch import nn

from qpack.trainer.optim.clip import clip_factor, global_norm

CPU = torch.device("cpu")


def test_the_same_as_torch() -> None:
    generator = torch.Generator().manual_seed(0)
    params = [nn.Parameter(torch.zeros(n)) for n in (3, 50, 7)]
    for param in params:
        param.grad = torch.randn(param.shape, generator=generator)
    grads = [p.grad.clone() for p in params if p.grad is not None]
    for limit in (0.3, 3.0, 1e6):
        norm = global_norm(grads[:1], grads[1:], CPU)
        for param, grad in zip(params, grads, strict=True):
            param.grad = grad.clone()
        torch.testing.assert_close(norm, torch.nn.utils.clip_grad_norm_(params, limit))
        for param, grad in zip(params, grads, strict=True):
            torch.testing.assert_close(grad * clip_factor(norm, limit), param.grad)


def test_no_limit_and_no_gradients() -> None:
    assert float(clip_factor(torch.tensor(1e9), 0.0)) == 1.0
    assert float(global_norm([], [], CPU)) == 0.0
    assert float(clip_factor(torch.tensor(0.0), 0.3)) == 1.0


def test_what_is_not_finite_stays_so() -> None:
    assert not global_norm([torch.tensor([1.0, float("nan")])], [], CPU).isfinite()
    assert clip_factor(torch.tensor(float("nan")), 0.3).isnan()
