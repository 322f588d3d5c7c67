"""Packing modules that qpack has never seen, from Python."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import qpack
from qpack.errors import BudgetError, CheckpointError, ConfigError, OutputExistsError
from qpack.recipe import parse_recipe


class Vision(nn.Module):
    """Convolutions, batch norm with buffers, a residual, a tied pair of linear layers."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 24, 3, padding=1)
        self.norm = nn.BatchNorm2d(24)
        self.mid = nn.Conv2d(24, 24, 3, padding=1, bias=False)
        self.up = nn.Linear(24, 96)
        self.down = nn.Linear(96, 24)
        self.again = nn.Linear(24, 24, bias=False)
        self.other = nn.Linear(24, 24, bias=False)
        self.other.weight = self.again.weight
        self.head = nn.Linear(24, 10)

    def forward(self, images: Tensor) -> Tensor:
        x = self.norm(self.stem(images)).relu()
        x = (x + self.mid(x)).mean((2, 3))
        x = x + self.down(self.up(x).relu())
        x = self.other(self.again(x).relu())
        out: Tensor = self.head(x)
        return out


def example() -> tuple[Vision, list[Tensor]]:
    generator = torch.Generator().manual_seed(0)
    model = Vision().eval().requires_grad_(False)
    for tensor in model.state_dict().values():
        if tensor.is_floating_point():
            tensor.copy_(torch.rand(tensor.shape, generator=generator) - 0.4)
    model.norm.running_var.abs_().add_(0.1)
    return model, [torch.randn(8, 3, 12, 12, generator=generator) for _ in range(4)]


@pytest.mark.parametrize(("suffix", "budget"), [("pyz", 19_000), ("qpk", 12_000)])
def test_pack_and_load_into_a_fresh_module(tmp_path: Path, suffix: str, budget: int) -> None:
    model, batches = example()
    before = {name: t.clone() for name, t in model.state_dict().items()}
    state = torch.random.get_rng_state()
    out = tmp_path / f"vision.{suffix}"
    report = qpack.pack(model, calibration=batches, budget=budget, out=out)
    assert torch.equal(state, torch.random.get_rng_state())
    assert out.stat().st_size == report["artifact_bytes"] <= budget
    assert report["artifact_bytes"] >= 0.99 * budget
    assert report["quality"]["relative_output_error"] < 1e-3
    assert sum(row["bytes"] for row in report["ledger"]) == report["artifact_bytes"]
    assert {"other.weight": "again.weight"}.items() <= qpack.inspect(out)["aliases"].items()
    fresh = qpack.load_into(Vision().eval(), out)
    assert fresh.other.weight is fresh.again.weight
    with torch.no_grad():
        y, other = model(batches[0]), fresh(batches[0])
    assert (y - other).square().sum() < 1e-3 * y.square().sum()
    assert all(torch.equal(before[n], t) for n, t in model.state_dict().items())


def test_same_call_same_bytes(tmp_path: Path) -> None:
    model, batches = example()
    digests = set()
    for name in ("a.qpk", "b.qpk"):
        report = qpack.pack(model, calibration=batches, budget=12_000, out=tmp_path / name)
        digests.add(report["sha256"])
    assert len(digests) == 1


def test_a_larger_budget_is_not_worse(tmp_path: Path) -> None:
    model, batches = example()
    errors = [
        qpack.pack(model, calibration=batches, budget=budget, out=tmp_path / f"{budget}.qpk")[
            "quality"
        ]["relative_output_error"]
        for budget in (7_000, 10_000, 15_000)
    ]
    assert errors == sorted(errors, reverse=True)


def test_a_budget_that_leaves_little_of_the_model_is_told(tmp_path: Path) -> None:
    model = nn.Linear(512, 512)
    batches = [torch.randn(2048, 512, generator=torch.Generator().manual_seed(0))]
    report = qpack.pack(model, calibration=batches, budget=24_000, out=tmp_path / "x.qpk")
    assert report["bits_per_weight"] < 1
    assert any("little of the model" in warning for warning in report["warnings"])
    report = qpack.pack(model, calibration=batches, budget=80_000, out=tmp_path / "y.qpk")
    assert not any("little of the model" in warning for warning in report["warnings"])


def test_unreachable_budget_leaves_nothing(tmp_path: Path) -> None:
    model, batches = example()
    with pytest.raises(BudgetError) as caught:
        qpack.pack(model, calibration=batches, budget=500, out=tmp_path / "x.qpk")
    assert "smallest possible artifact" in caught.value.message
    assert len(caught.value.items) == 5
    assert list(tmp_path.iterdir()) == []


def test_everything_is_checked_before_any_work(tmp_path: Path) -> None:
    model, batches = example()
    out = tmp_path / "x.qpk"
    for budget in (0, -5, "150kB", 9_000.5):
        with pytest.raises(ConfigError, match="whole number of bytes"):
            qpack.pack(model, calibration=batches, budget=budget, out=out)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="for inputs, _ in batches"):
        qpack.pack(model, calibration=[(x, x) for x in batches], budget=9_000, out=out)  # type: ignore[misc]
    with pytest.raises(ConfigError):
        qpack.pack(model, calibration=batches, budget=9_000, out=tmp_path / "x.bin")
    model.head.weight[0, 0] = float("nan")
    model.up.bias[3] = float("inf")
    with pytest.raises(CheckpointError) as caught:
        qpack.pack(model, calibration=batches, budget=9_000, out=out)
    assert {item.partition(":")[0] for item in caught.value.items} == {"head.weight", "up.bias"}
    out.write_bytes(b"mine")
    model, _ = example()
    with pytest.raises(OutputExistsError):
        qpack.pack(model, calibration=batches, budget=9_000, out=out)
    assert out.read_bytes() == b"mine"


def test_recipes_and_knobs(tmp_path: Path) -> None:
    model, batches = example()
    recipe = parse_recipe(
        '[[rule]]\nmatch="head.weight"\ntype="float32"\n'
        '[[rule]]\nmatch="class:matrix"\nbits=6\nknob=true\n'
        '[[rule]]\nmatch="re:.*"\ntype="keep"',
        name="r",
    )
    out = tmp_path / "x.qpk"
    report = qpack.pack(
        model, calibration=batches, budget=16_000, out=out, recipe=recipe, knob="qmax"
    )
    assert report["knob"]["name"] == "qmax"
    assert 31 <= report["knob"]["value"] <= 127
    fresh = qpack.load_into(Vision(), out)
    assert torch.equal(fresh.head.weight, model.head.weight)
    assert torch.equal(fresh.norm.running_var, model.norm.running_var)


@pytest.mark.parametrize("module", [nn.ReLU(), nn.ParameterList([torch.empty(0, 8)])])
def test_a_module_without_weights_is_refused(tmp_path: Path, module: nn.Module) -> None:
    with pytest.raises(CheckpointError, match="nothing to pack"):
        qpack.pack(module, calibration=[torch.zeros(2, 0)], budget=9_000, out=tmp_path / "x.qpk")


def test_weights_of_another_module_are_refused(tmp_path: Path) -> None:
    model, batches = example()
    qpack.pack(model, calibration=batches, budget=12_000, out=tmp_path / "x.qpk")
    other = nn.Sequential(nn.Linear(3, 4))
    with pytest.raises(CheckpointError) as caught:
        qpack.load_into(other, tmp_path / "x.qpk")
    assert "0.weight: missing" in caught.value.items
    assert "head.bias: unexpected" in caught.value.items


def test_the_report_renders(tmp_path: Path) -> None:
    from qpack.report import markdown

    model, batches = example()
    report = qpack.pack(model, calibration=iter(batches), budget=12_000, out=tmp_path / "x.qpk")
    assert "squared error" in markdown.render(report)
    with pytest.raises(ConfigError, match="iterable of tensors"):
        qpack.pack(model, calibration=batches[0], budget=12_000, out=tmp_path / "y.qpk")
