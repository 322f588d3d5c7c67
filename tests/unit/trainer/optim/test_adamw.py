from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from qpack.trainer.optim.adamw import AdamW

BETAS, EPS = (0.9, 0.95), 1e-8


def parameters(seed: int = 0) -> dict[str, nn.Parameter]:
    generator = torch.Generator().manual_seed(seed)
    shapes = {"table": (5, 3), "gain": (4,), "scale": ()}
    return {n: nn.Parameter(torch.randn(s, generator=generator)) for n, s in shapes.items()}


def make(named: dict[str, nn.Parameter]) -> AdamW:
    pairs = list(named.items())
    groups = [
        {"params": pairs[:1], "lr": 0.1, "weight_decay": 0.2},
        {"params": pairs[1:], "lr": 0.01, "weight_decay": 0.0},
    ]
    return AdamW(groups, betas=BETAS, eps=EPS)


def step(adamw: AdamW, named: dict[str, nn.Parameter], seed: int, scale: float = 1.0) -> None:
    generator = torch.Generator().manual_seed(100 + seed)
    for parameter in named.values():
        parameter.grad = torch.randn(parameter.shape, generator=generator)
    adamw.start()
    adamw.finish(torch.tensor(scale))


def test_against_the_formula_with_a_scale() -> None:
    named = parameters()
    adamw = make(named)
    slow = {name: p.detach().double().numpy() for name, p in named.items()}
    moments = {name: (np.zeros_like(w), np.zeros_like(w)) for name, w in slow.items()}
    for t in range(1, 5):
        step(adamw, named, t, scale=0.25)
        generator = torch.Generator().manual_seed(100 + t)
        for name, w in slow.items():
            g = 0.25 * torch.randn(w.shape, generator=generator).double().numpy()
            lr, decay = (0.1, 0.2) if name == "table" else (0.01, 0.0)
            m = 0.9 * moments[name][0] + 0.1 * g
            v = 0.95 * moments[name][1] + 0.05 * g**2
            moments[name] = (m, v)
            move = m / (1 - 0.9**t) / (np.sqrt(v / (1 - 0.95**t)) + EPS)
            slow[name] = (1 - lr * decay) * w - lr * move
    for name, parameter in named.items():
        np.testing.assert_allclose(parameter.detach(), slow[name], rtol=1e-5, atol=1e-6)


def test_a_parameter_without_gradient_stays() -> None:
    named = parameters()
    adamw = make(named)
    named["table"].grad = torch.ones(5, 3)
    adamw.start()
    adamw.finish(torch.tensor(1.0))
    assert torch.equal(named["gain"], parameters()["gain"])
    assert not torch.equal(named["table"], parameters()["table"])


@pytest.mark.parametrize("steps", [0, 3])
def test_going_on_is_bit_exact(steps: int) -> None:
    """From before the first step too, when torch has no state yet."""
    named = parameters()
    adamw = make(named)
    for i in range(steps):
        step(adamw, named, i)
    saved = adamw.state_tensors()
    assert sorted(saved) == sorted(adamw.state_names())
    again = {name: nn.Parameter(p.detach().clone()) for name, p in named.items()}
    resumed = make(again)
    step(resumed, {n: nn.Parameter(p.detach().clone()) for n, p in named.items()}, 77)
    resumed.load_state_tensors(saved)
    for i in range(3):
        step(adamw, named, 10 + i)
        step(resumed, again, 10 + i)
    for name, parameter in named.items():
        assert torch.equal(parameter, again[name])


def test_going_back_forgets_the_steps_since() -> None:
    """As after a warm-up, on the same object."""
    named = parameters()
    adamw = make(named)
    saved = adamw.state_tensors()
    step(adamw, named, 0)
    with torch.no_grad():
        for name, start in parameters().items():
            named[name].copy_(start)
    adamw.load_state_tensors(saved)
    fresh = parameters()
    step(adamw, named, 5)
    step(make(fresh), fresh, 5)
    for name, parameter in named.items():
        assert torch.equal(parameter, fresh[name])
