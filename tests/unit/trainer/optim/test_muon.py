from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from qpack.trainer.optim.muon import Muon
from qpack.trainer.optim.update import Rule

from . import reference

SHAPES = [(6, 4), (4, 6), (6, 4), (5, 5), (6, 4)]
RULES = [
    Rule(),
    Rule(ns_steps=3, coefficients="polar-express"),
    Rule(normalization="rows"),
    Rule(ns_steps=4, normalization="rows-columns"),
    Rule(precondition="mousse-diagonal"),
    Rule(normalization="rows", precondition="mousse-kronecker"),
]


def parameters(dtype: torch.dtype = torch.float64) -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    return [
        nn.Parameter(torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype))
        for shape in SHAPES
    ]


def set_gradients(params: list[nn.Parameter], seed: int) -> None:
    generator = torch.Generator().manual_seed(100 + seed)
    for param in params:
        noise = torch.randn(param.shape, generator=generator, dtype=torch.float64)
        param.grad = noise.to(param.dtype)


@pytest.mark.parametrize("rule", RULES, ids=str)
def test_stacks_equal_the_formula_matrix_by_matrix(rule: Rule) -> None:
    params = parameters()
    slow = [reference.Muon(p.detach().numpy(), precondition=rule.precondition) for p in params]
    muon = Muon(params, lr=0.1, weight_decay=0.3, rule=rule)
    for step in range(12):
        lr, mu = 0.1 / (step + 1), 0.8 + 0.01 * step
        set_gradients(params, step)
        muon.param_groups[0].update(lr=lr, momentum=mu)
        muon.step()
        for param, one in zip(params, slow, strict=True):
            one.step(
                param.grad.numpy(),
                lr=lr,
                mu=float(np.float32(mu)),
                decay=0.3,
                normalization=rule.normalization,
                steps=rule.ns_steps,
                coefficients=rule.coefficients,
            )
            np.testing.assert_allclose(param.detach(), one.W, rtol=1e-6, atol=1e-7)


def test_weight_decay_alone() -> None:
    params = parameters()
    before = [p.detach().clone() for p in params]
    for param in params:
        param.grad = torch.zeros_like(param)
    Muon(params, lr=0.1, weight_decay=0.5).step()
    for param, old in zip(params, before, strict=True):
        torch.testing.assert_close(param.detach(), old * 0.95)


def test_a_matrix_without_gradient_stays_with_its_state() -> None:
    """Zeros in its place would move it along its old momentum, at full length."""
    for rule in RULES:
        params, without = parameters(), parameters()
        muon, other = Muon(params, lr=0.1, rule=rule), Muon(without[1:], lr=0.1, rule=rule)
        set_gradients(params, 0)
        muon.step()
        after, state = params[0].detach().clone(), muon.state_tensors()
        for step in (1, 2):
            set_gradients(params, step)
            params[0].grad = None
            muon.step()
        assert torch.equal(params[0], after)
        for name, tensor in muon.state_tensors().items():
            if name.startswith("0.0.") and not name.endswith("step"):
                assert torch.equal(tensor, state[name])
        for step in range(3):
            set_gradients(without, step)
            other.step()
        for a, b in zip(params[1:], without[1:], strict=True):
            torch.testing.assert_close(a, b)


def test_no_gradient_at_all_does_nothing() -> None:
    params = parameters()
    muon = Muon(params, lr=0.1)
    muon.step()
    assert torch.equal(params[0], parameters()[0])
    assert int(muon.state_tensors()["0.0.step"]) == 0


def test_groups_have_their_own_rates() -> None:
    params = parameters()
    groups = [{"params": params[:2], "lr": 0.0}, {"params": params[2:], "lr": 0.1}]
    muon = Muon(groups, lr=1.0)
    extra = nn.Parameter(torch.ones(3, 2))
    muon.add_param_group({"params": [extra], "lr": 0.5})
    set_gradients([*params, extra], 0)
    before = [p.detach().clone() for p in (*params, extra)]
    muon.step()
    after = [p.detach() for p in (*params, extra)]
    moved = [float((a - b).norm()) for a, b in zip(after, before, strict=True)]
    assert moved[:2] == [0.0, 0.0]
    assert all(length > 0.1 for length in moved[2:])
    assert moved[5] > 0.5 * moved[2]


def test_only_matrices() -> None:
    with pytest.raises(ValueError, match=r"0\.0: Muon is for matrices, not for \(3,\)"):
        Muon([nn.Parameter(torch.ones(3))], lr=0.1)


def named(params: list[nn.Parameter]) -> list[tuple[str, nn.Parameter]]:
    return [(f"layer{i}", param) for i, param in enumerate(params)]


@pytest.mark.parametrize("rule", RULES, ids=str)
@pytest.mark.parametrize("way", ["state_tensors", "state_dict"])
def test_going_on_is_bit_exact(rule: Rule, way: str) -> None:
    """Over a refresh of the decomposition at step 10, and with bases that are older than the
    statistics."""
    through, first = parameters(torch.float32), parameters(torch.float32)
    whole, half = Muon(named(through), lr=0.1, rule=rule), Muon(named(first), lr=0.1, rule=rule)
    for step in range(7):
        for params, muon in ((through, whole), (first, half)):
            set_gradients(params, step)
            muon.step()
    second = [nn.Parameter(p.detach().clone()) for p in first]
    resumed = Muon(named(second), lr=9.0, rule=rule)
    saved: Any = getattr(half, way)()
    kept = copy.deepcopy(saved)
    set_gradients(first, 99)
    half.step()  # what was saved is a copy
    if way == "state_dict":
        resumed.load_state_dict(saved)
        assert resumed.param_groups[0]["lr"] == 0.1
    else:
        resumed.load_state_tensors(saved)
        resumed.param_groups[0]["lr"] = 0.1
    for name, tensor in resumed.state_tensors().items():
        want = kept[name] if way == "state_tensors" else tensor
        assert torch.equal(tensor, want)
    for step in range(7, 14):
        for params, muon in ((through, whole), (second, resumed)):
            set_gradients(params, step)
            muon.step()
    for a, b in zip(through, second, strict=True):
        assert torch.equal(a, b)


def test_state_has_the_parameters_names() -> None:
    muon = Muon(named(parameters()), lr=0.1, rule=Rule(precondition="mousse-diagonal"))
    tensors = muon.state_tensors()
    assert sorted(tensors) == sorted(muon.state_names())
    shapes = {name: tuple(t.shape) for name, t in tensors.items() if name.startswith("layer1.")}
    assert shapes == {
        "layer1.momentum": (4, 6),
        "layer1.row_moment": (4,),
        "layer1.column_moment": (6,),
        "layer1.step": (),
    }


def test_momentum_is_float32_for_short_weights() -> None:
    params = parameters(torch.bfloat16)
    muon = Muon(params, lr=0.1)
    set_gradients(params, 0)
    muon.step()
    assert muon.state_tensors()["0.0.momentum"].dtype == torch.float32
    assert params[0].dtype == torch.bfloat16


def test_a_closure_computes_the_gradients() -> None:
    params = parameters()

    def closure() -> float:
        loss = sum((p.square().sum() for p in params), torch.zeros(()))
        loss.backward()  # type: ignore[no-untyped-call]
        return float(loss.detach())

    before = float(sum((p.detach().square().sum() for p in params), torch.zeros(())))
    assert Muon(params, lr=0.01).step(closure) == before
    assert float(sum((p.detach().square().sum() for p in params), torch.zeros(()))) < before


def run_both(
    rule: Rule, shapes: list[tuple[int, int]], **where: Any
) -> list[tuple[Tensor, Tensor]]:
    """Weights after 3 steps, compiled and not."""
    found = []
    for compiled in (True, False):
        generator = torch.Generator().manual_seed(0)
        params = [
            nn.Parameter(torch.randn(shape, generator=generator).to(**where)) for shape in shapes
        ]
        muon = Muon(params, lr=0.1, rule=rule, compiled=compiled)
        for step in range(3):
            for param in params:
                param.grad = torch.randn(param.shape, generator=generator).to(**where)
            muon.param_groups[0].update(lr=0.1 / (step + 1), momentum=0.9 + step / 100)
            muon.step()
        found.append([p.detach().cpu() for p in params])
    return list(zip(*found, strict=True))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*script_method.*:DeprecationWarning")  # of torch, by inductor
@pytest.mark.parametrize("rule", [RULES[0], RULES[4], RULES[5]], ids=str)
def test_compiled_equals_eager_for_many_shapes(rule: Rule) -> None:
    """dynamo alone would give up after 8 shapes."""
    shapes = [(4 + i, 6) for i in range(9)]
    for a, b in run_both(rule, shapes, dtype=torch.float64):
        torch.testing.assert_close(a, b)


@pytest.mark.gpu
@pytest.mark.filterwarnings("ignore:.*script_method.*:DeprecationWarning")
@pytest.mark.parametrize("rule", RULES, ids=str)
def test_compiled_equals_eager_on_cuda(rule: Rule) -> None:
    shapes = [(256, 128), (128, 256), (256, 128)]
    for a, b in run_both(rule, shapes, device="cuda"):
        torch.testing.assert_close(a, b, rtol=0, atol=3e-3)
