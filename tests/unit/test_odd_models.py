"""Odd weights and odd calibration data: a right result or an error that names the tensor."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import qpack
from qpack.errors import CalibrationError

BUDGET = 60_000
NEAREST = "rounded to nearest: its Hessian could not be factored"
EQUAL = "equal relative steps: its outputs have no sensitivities"


def mlp() -> nn.Sequential:
    generator = torch.Generator().manual_seed(0)
    module = nn.Sequential(nn.Linear(32, 48), nn.ReLU(), nn.Linear(48, 16))
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) / 8)
    return module


def batches(scale: Tensor | float = 1.0, count: int = 8) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(8, 32, generator=generator) * scale for _ in range(count)]


def changed(index: int, change: Callable[[Tensor], Tensor]) -> nn.Module:
    module = mlp()
    with torch.no_grad():
        weight = module[index].weight
        assert isinstance(weight, Tensor)
        weight.copy_(change(weight))
    return module


class Silenced(nn.Module):
    """What the first layer gives does not matter."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(32, 32), nn.Linear(32, 4)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.b(self.a(x) * 0.0)
        return y


class Hollow(nn.Module):
    """A parameter without elements beside a real one."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.empty = nn.Linear(32, 32), nn.Parameter(torch.empty(0, 5))

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.a(x)
        return y


def thin() -> nn.Module:
    return nn.Sequential(nn.Linear(32, 1), nn.Linear(1, 16), nn.Linear(16, 1))


Case = tuple[nn.Module, list[Tensor], dict[str, str]]


def case(name: str) -> Case:
    """A module, its calibration batches and the fallbacks that the report must list."""
    spread = torch.logspace(-12, 12, 32)
    rows = torch.logspace(-15, 15, 16)[:, None]
    none: dict[str, str] = {}
    cases: dict[str, Callable[[], Case]] = {
        "one input": lambda: (mlp(), [torch.ones(1, 32)], none),
        "the same input again and again": lambda: (mlp(), [torch.ones(8, 32)] * 8, none),
        "inputs of zero": lambda: (mlp(), [torch.zeros(8, 32)] * 8, {"0.weight": NEAREST}),
        "inputs of wild scale": lambda: (mlp(), batches(spread), none),
        "sensitivities of wild scale": lambda: (changed(2, lambda W: W * rows), batches(), none),
        "weights of zero": lambda: (changed(2, torch.zeros_like), batches(), {"0.weight": EQUAL}),
        "constant weights": lambda: (changed(0, lambda W: W * 0 + 0.5), batches(), none),
        "sensitivities of zero": lambda: (Silenced(), batches(), {"a.weight": EQUAL}),
        "one row, one column": lambda: (thin(), batches(), none),
        "no elements": lambda: (Hollow(), batches(), none),
    }
    return cases[name]()


@pytest.mark.parametrize(
    "name",
    [
        "one input",
        "the same input again and again",
        "inputs of zero",
        "inputs of wild scale",
        "sensitivities of wild scale",
        "weights of zero",
        "constant weights",
        "sensitivities of zero",
        "one row, one column",
        "no elements",
    ],
)
def test_an_odd_model_is_packed_right(name: str, tmp_path: Path) -> None:
    module, calibration, fallbacks = case(name)
    out = tmp_path / "model.pyz"
    report = qpack.pack(module, calibration=calibration, budget=BUDGET, out=out)
    assert report["artifact_bytes"] == out.stat().st_size <= BUDGET
    assert report["quality"]["relative_output_error"] < 1e-3
    assert {row["tensor"]: row["reason"] for row in report["fallbacks"]} == fallbacks
    qpack.load_into(module, out)
    assert all(bool(tensor.isfinite().all()) for tensor in module.state_dict().values())


def test_inputs_that_are_not_finite_name_the_weights(tmp_path: Path) -> None:
    with pytest.raises(CalibrationError) as caught:
        nan = [torch.full((8, 32), torch.nan)]
        qpack.pack(mlp(), calibration=nan, budget=BUDGET, out=tmp_path / "model.pyz")
    assert caught.value.items == ("0.weight", "2.weight")
    assert not list(tmp_path.iterdir())
