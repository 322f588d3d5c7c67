from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch._dynamo.testing import CompileCounter

from qpack.trainer.optim import mousse
from qpack.trainer.optim.update import Rule, accumulate, direction

RULES = [
    Rule(),
    Rule(coefficients="polar-express", normalization="rows-columns"),
    Rule(normalization="rows", precondition="mousse-diagonal"),
    Rule(precondition="mousse-kronecker"),
]


def some(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def start(rule: Rule) -> tuple[Tensor, Tensor, mousse.State]:
    shape = torch.Size((3, 6, 4))
    return (
        some(0, *shape),
        some(1, *shape),
        mousse.new_state(rule.precondition, shape, torch.device("cpu")),
    )


@pytest.mark.parametrize("rule", RULES, ids=str)
def test_both_halves_compile_without_a_break_and_once(rule: Rule) -> None:
    """Momentum and clipping change from step to step: as tensors, they need no new graph."""
    counter = CompileCounter()
    options: dict[str, Any] = {"backend": counter, "fullgraph": True, "dynamic": False}
    G, momentum, state = start(rule)
    _, momentum_too, state_too = start(rule)
    with torch._dynamo.config.patch(recompile_limit=64):
        for step in range(3):
            scalars = {"mu": torch.tensor(0.9 + step / 100), "scale": torch.tensor(1.0 - step / 7)}
            U = torch.compile(accumulate, **options)(G, momentum, state, rule=rule, **scalars)
            got = torch.compile(direction, **options)(U, state, rule=rule)
            U = accumulate(G, momentum_too, state_too, rule=rule, **scalars)
            torch.testing.assert_close(got, direction(U, state_too, rule=rule))
            torch.testing.assert_close(momentum, momentum_too)
    assert counter.frame_count == 2


def test_scale_multiplies_the_gradient() -> None:
    G, momentum, _ = start(Rule())
    doubled = momentum.clone()
    half, one, mu = torch.tensor(0.5), torch.tensor(1.0), torch.tensor(0.9)
    U = accumulate(G, momentum, {}, mu=mu, scale=one, rule=Rule())
    torch.testing.assert_close(accumulate(2 * G, doubled, {}, mu=mu, scale=half, rule=Rule()), U)
    torch.testing.assert_close(doubled, momentum)
