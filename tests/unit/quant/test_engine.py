"""The engine equals solving each tensor by itself, and reports every fallback."""

import pytest
import torch
from torch import Tensor, nn

from qpack.quant.calibrate import collect
from qpack.quant.engine import Quantizer
from qpack.quant.grid import row_errors, step_values
from qpack.quant.plan import Plan, classify, make_plan
from qpack.quant.statistics import Statistics
from qpack.recipe import parse_recipe
from qpack.tensors import QuantizedTensor, decode_steps

from .reference import correlated_inputs, gptq


class Net(nn.Module):
    """Two layers of one shape, a shared input, an idle weight."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k = nn.Linear(48, 32, bias=False), nn.Linear(48, 16, bias=False)
        self.up, self.down = nn.Linear(48, 64, bias=False), nn.Linear(64, 48, bias=False)
        self.idle = nn.Linear(48, 12, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.k(x).mean() + self.q(x).mean()
        out: Tensor = self.down(self.up(x).relu())
        return out


def setup(rule: str, *, seed: int = 0) -> tuple[dict[str, Tensor], Plan, Statistics]:
    model = Net().requires_grad_(False)
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)
    statistics = collect(model, [correlated_inputs(400, 48, seed)], fingerprint="f")
    tensors = dict(model.state_dict())
    plan = make_plan(tensors, classify(model), {}, parse_recipe(rule, name="r"))
    return tensors, plan, statistics


def decoded(tensor: QuantizedTensor) -> Tensor:
    return torch.from_numpy(tensor.dequantize())


def check_steps_and_limit(tensor: QuantizedTensor, limit: int) -> None:
    assert abs(tensor.integers).max() <= limit
    assert (decode_steps(tensor.row_codes, tensor.octave) > 0).all()


@pytest.mark.parametrize("scale", ["absmax", "sigma"])
def test_same_integers_as_each_tensor_alone(scale: str) -> None:
    rule = f'[[rule]]\nmatch="re:.*"\nbits=5\nscale="{scale}"\nk=8'
    tensors, plan, statistics = setup(rule)
    out = Quantizer(tensors, plan, statistics).quantize(0)
    for name in ("q.weight", "k.weight", "up.weight", "down.weight"):
        found = out[name]
        check_steps_and_limit(found, 15)
        steps = step_values(torch.from_numpy(found.row_codes), found.octave)
        H = statistics.hessian(name)
        assert H is not None
        expected = gptq(tensors[name], H, steps, 15, damping=0.01)
        different = (torch.from_numpy(found.integers) != expected).double().mean()
        assert different <= 2e-3


def test_a_weight_that_was_not_calibrated_falls_back_and_says_so() -> None:
    tensors, plan, statistics = setup('[[rule]]\nmatch="re:.*"\nbits=5')
    quantizer = Quantizer(tensors, plan, statistics)
    assert list(quantizer.fallbacks) == ["idle.weight"]
    idle = quantizer.quantize(0)["idle.weight"]
    steps = step_values(torch.from_numpy(idle.row_codes), idle.octave)
    nearest = torch.round(tensors["idle.weight"] / steps[:, None])
    assert torch.equal(torch.from_numpy(idle.integers).float(), nearest)


def test_broken_hessian_falls_back_and_says_so() -> None:
    tensors, plan, statistics = setup('[[rule]]\nmatch="re:.*"\nbits=5')
    statistics.hessians["down.weight"][0, 0] = float("nan")
    quantizer = Quantizer(tensors, plan, statistics)
    assert "could not be factored" in quantizer.fallbacks["down.weight"]
    assert torch.isfinite(decoded(quantizer.quantize(0)["down.weight"])).all()


def test_round_to_nearest_is_asked_for_without_complaint() -> None:
    tensors, plan, statistics = setup('[[rule]]\nmatch="re:.*"\nbits=5\nsolver="rtn"')
    assert Quantizer(tensors, plan, statistics).fallbacks == {}
    assert Quantizer(tensors, plan, None).fallbacks == {}


def test_output_error_is_below_round_to_nearest() -> None:
    rule = '[[rule]]\nmatch="re:.*"\nbits=5\nscale="sigma"\nk=8\n'
    tensors, plan, statistics = setup(rule)
    quantizer = Quantizer(tensors, plan, statistics)
    for name in ("q.weight", "up.weight", "down.weight"):
        found = quantizer.quantize(0)[name]
        steps = step_values(torch.from_numpy(found.row_codes), found.octave)
        integers = torch.from_numpy(found.integers).float()
        nearest = torch.round(tensors[name] / steps[:, None]).clamp(-15, 15)
        ours = quantizer.errors(name, integers * steps[:, None]).sum()
        assert ours < 0.8 * quantizer.errors(name, nearest * steps[:, None]).sum()


def test_only_turned_tensors_follow_the_knob() -> None:
    tensors, plan, statistics = setup(
        '[knob]\nname="k"\n[[rule]]\nmatch="re:(q|k).*"\nbits=8\n[[rule]]\nmatch="re:.*"\nknob=true'
    )
    quantizer = Quantizer(tensors, plan, statistics)
    coarse, fine = quantizer.quantize(30.0), quantizer.quantize(3.0)
    assert coarse["q.weight"] is fine["q.weight"]
    for name in ("up.weight", "down.weight", "idle.weight"):
        assert abs(fine[name].integers).max() > abs(coarse[name].integers).max()
        error = (decoded(fine[name]) - tensors[name]).norm()
        assert error < 0.3 * (decoded(coarse[name]) - tensors[name]).norm()


def test_fine_steps_are_not_clipped() -> None:
    tensors, plan, statistics = setup(
        '[knob]\nname="k"\n[[rule]]\nmatch="re:.*"\nbits=6\nknob=true'
    )
    found = Quantizer(tensors, plan, statistics).quantize(0.5)["up.weight"]
    assert found.integers.dtype == "int16"
    assert abs(found.integers).max() > 127
    assert (decoded(found) - tensors["up.weight"]).abs().max() < 0.02


def test_percentile_search_is_no_worse_than_absmax() -> None:
    rule = '[[rule]]\nmatch="re:.*"\nqmax=3\noctave=64\nscale='
    tensors, plan, statistics = setup(f'{rule}"percentile"')
    tensors["up.weight"][:, 0] *= 20  # a tail worth clipping
    searched = Quantizer(tensors, plan, statistics).quantize(0)
    tensors2, plan2, statistics2 = setup(f'{rule}"absmax"')
    tensors2["up.weight"][:, 0] *= 20
    plain = Quantizer(tensors2, plan2, statistics2).quantize(0)
    for name in ("up.weight", "down.weight", "q.weight", "idle.weight"):
        H = statistics.hessian(name)
        costs = [
            row_errors(decoded(out[name]) - tensors[name], H).sum() for out in (searched, plain)
        ]
        assert costs[0] <= costs[1] * (1 + 1e-5)


def test_dead_inputs_become_zero_weights() -> None:
    tensors, plan, statistics = setup('[[rule]]\nmatch="re:.*"\nbits=6')
    H = statistics.hessians["down.weight"]
    H[5], H[:, 5] = 0, 0
    quantizer = Quantizer(tensors, plan, statistics)
    assert quantizer.factors["down.weight"].num_dead == 1
    assert (quantizer.quantize(0)["down.weight"].integers[:, 5] == 0).all()


def test_shapes_that_are_not_matrices() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.PReLU())
    tensors = dict(model.state_dict())
    recipe = parse_recipe('[[rule]]\nmatch="re:.*"\nbits=8', name="r")
    plan = make_plan(tensors, classify(model), {}, recipe)
    images = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    statistics = collect(model, [images], fingerprint="f")
    out = Quantizer(tensors, plan, statistics).quantize(0)
    assert out["0.weight"].integers.shape == (8, 27)
    assert out["0.weight"].shape == (8, 3, 3, 3)
    assert out["0.bias"].integers.shape == (1, 8)
    assert torch.allclose(decoded(out["0.bias"]), tensors["0.bias"], atol=0.01)


def test_dead_inputs_of_a_tied_table_keep_its_lookup_side() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Embedding(32, 16)

        def forward(self, tokens: Tensor) -> Tensor:
            x = self.table(tokens).clone()
            x[..., 5] = 0
            return x @ self.table.weight.T

    model = Tied().requires_grad_(False)
    tensors = dict(model.state_dict())
    recipe = parse_recipe('[[rule]]\nmatch="re:.*"\nbits=8', name="r")
    plan = make_plan(tensors, classify(model), {}, recipe)
    statistics = collect(model, [torch.arange(32).reshape(2, 16)], fingerprint="f")
    quantizer = Quantizer(tensors, plan, statistics)
    assert quantizer.factors["table.weight"].num_dead == 1
    found = decoded(quantizer.quantize(0)["table.weight"])
    assert torch.allclose(found[:, 5], tensors["table.weight"][:, 5], atol=0.02)
