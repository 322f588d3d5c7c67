"""A GPU gives the statistics and integers that the CPU gives, up to rounding."""

from collections.abc import Iterator

import pytest
import torch
from torch import nn

from qpack.quant import stacks
from qpack.quant.calibrate import collect
from qpack.quant.engine import Quantizer
from qpack.quant.plan import classify, make_plan
from qpack.quant.qat import LateQAT, Start
from qpack.recipe import parse_recipe

from . import rd_net
from .qat_net import RULES, Net, recipe_of
from .reference import correlated_inputs

pytestmark = pytest.mark.gpu


def test_cuda_agrees_with_the_cpu() -> None:
    generator = torch.Generator().manual_seed(0)
    model = nn.Sequential(nn.Linear(256, 512), nn.ReLU(), nn.Linear(512, 256))
    model.requires_grad_(False)
    for parameter in model.parameters():
        parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.05)
    tensors = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    recipe = parse_recipe('[[rule]]\nmatch="re:.*"\nbits=6\nscale="sigma"', name="r")
    plan = make_plan(tensors, classify(model), {}, recipe)
    batches = [correlated_inputs(512, 256, seed) for seed in range(4)]
    out = {}
    for device in ("cpu", "cuda"):
        statistics = collect(model.to(device), batches, fingerprint="f", device=device)
        out[device] = (statistics, Quantizer(tensors, plan, statistics, device=device).quantize(0))
    for name, H in out["cpu"][0].hessians.items():
        assert torch.allclose(out["cuda"][0].hessians[name].cpu(), H, rtol=1e-4, atol=1e-3)
    for name, tensor in out["cpu"][1].items():
        other = out["cuda"][1][name]
        assert (other.row_codes == tensor.row_codes).all()
        assert (other.integers != tensor.integers).mean() < 1e-3


@pytest.mark.parametrize("how", ["gains", "row_feedback"])
@pytest.mark.parametrize("trellis", [0, 8])
def test_rule_rd_on_cuda_agrees_with_the_cpu(
    trellis: int, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stacks, "BLOCK_ROWS", {trellis: 4})
    tensors, plan, statistics = rd_net.case(f"trellis = {trellis}\n{how} = true")
    out = {
        device: Quantizer(tensors, plan, statistics, device=device).quantize(0.7)
        for device in ("cpu", "cuda")
    }
    for name, tensor in out["cpu"].items():
        other = out["cuda"][name]
        assert (other.row_codes == tensor.row_codes).all()
        assert tensor.col_codes is not None and other.col_codes is not None
        assert abs(other.col_codes - tensor.col_codes).max() <= 1
        assert (other.integers != tensor.integers).mean() < 0.05  # one early change moves others


@pytest.fixture
def no_waiting() -> Iterator[None]:
    """Whatever makes the program wait for the device is an error."""
    before = torch.cuda.get_sync_debug_mode()
    yield
    torch.cuda.set_sync_debug_mode(before)


@pytest.mark.usefixtures("no_waiting")
@pytest.mark.parametrize("soft", [None, (2.0, 8.0)])
@pytest.mark.parametrize("rule", RULES.values(), ids=RULES.keys())
def test_late_qat_agrees_with_the_cpu_and_never_waits(
    rule: str, soft: tuple[float, float] | None
) -> None:
    within = {}
    for device in ("cpu", "cuda"):
        model = Net().to(device)
        match = ("re:.*",)
        qat = LateQAT(model, recipe_of(rule), match=match, start=Start(step=1), soft_rounding=soft)
        for step in range(3):
            qat.on_step(step, step / 3, 1.0)
            if step == 2 and device == "cuda":  # the switch itself may wait
                torch.cuda.set_sync_debug_mode("error")
            with qat.quantized():
                model(torch.arange(40, device=device)[None]).square().mean().backward()
                values = [p.detach().clone() for p in model.parameters()]
        torch.cuda.set_sync_debug_mode("default")
        within[device] = values
    for ours, theirs in zip(within["cuda"], within["cpu"], strict=True):
        assert ((ours.cpu() - theirs).abs() > 1e-6).double().mean() < 1e-2
