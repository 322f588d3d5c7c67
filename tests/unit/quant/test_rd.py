"""Rule rd on a whole model: every kind of tensor, shared columns, bad input."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from qpack.errors import CalibrationError
from qpack.progress import SILENT
from qpack.quant import moments, stacks
from qpack.quant.calibrate import collect
from qpack.quant.engine import Quantizer
from qpack.quant.plan import classify, make_plan
from qpack.quant.statistics import Statistics
from qpack.recipe import parse_recipe
from qpack.rule import TRELLISES
from qpack.tensors import QuantizedTensor, decode_steps
from qpack.trellis import obeys

from .rd_net import case, with_sensitivities


@pytest.fixture(autouse=True)
def _short_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """The weights here have fewer rows than a block."""
    monkeypatch.setattr(stacks, "BLOCK_ROWS", dict.fromkeys(TRELLISES, 4))


def decoded(tensor: QuantizedTensor) -> Tensor:
    return torch.from_numpy(tensor.dequantize())


def columns_of(tensor: QuantizedTensor) -> NDArray[np.int16]:
    assert tensor.col_codes is not None
    return tensor.col_codes


def predicted(quantizer: Quantizer, value: float) -> float:
    """Nats a token that all tensors cost together."""
    total = 0.0
    for name, tensor in quantizer.quantize(value).items():
        nats = quantizer.predicted_nats(name, decoded(tensor))
        assert nats is not None
        total += nats
    return total


def test_every_tensor_takes_part_and_is_unclipped() -> None:
    tensors, plan, statistics = case()
    quantizer = Quantizer(tensors, plan, statistics)
    assert quantizer.fallbacks == {}
    found = quantizer.quantize(0.01)
    assert found.keys() == tensors.keys()
    for name, tensor in found.items():
        assert tensor.integers.dtype == np.int16
        assert abs(tensor.integers.astype(int)).max() > 127
        assert (decoded(tensor) - tensors[name]).norm() < 0.02 * tensors[name].norm(), name


def test_the_knob_moves_all_steps_together() -> None:
    tensors, plan, statistics = case()
    quantizer = Quantizer(tensors, plan, statistics)
    fine, coarse = quantizer.quantize(0.5), quantizer.quantize(1.0)
    for name, tensor in fine.items():
        assert set(coarse[name].row_codes - tensor.row_codes) == {64}
        assert np.array_equal(columns_of(coarse[name]), columns_of(tensor))


def test_columns_are_shared_by_weights_of_one_input() -> None:
    tensors, plan, statistics = case("gains = true")
    found = Quantizer(tensors, plan, statistics).quantize(1.0)
    q, k, down = (columns_of(found[f"{name}.weight"]) for name in ("q", "k", "down"))
    assert np.array_equal(q, k)
    assert not np.array_equal(q, down[:24])


def test_steps_follow_rows_that_matter() -> None:
    tensors, plan, statistics = case()
    found = Quantizer(tensors, plan, statistics).quantize(1.0)["up.weight"]
    g = statistics.sensitivities["up.weight"].numpy()
    wanted = -0.5 * np.log2(g)
    stored = found.row_codes / 64
    assert np.abs((stored - stored.mean()) - (wanted - wanted.mean())).max() <= 1 / 16


def test_sensitivity_steps_cost_less_than_equal_ones_at_equal_step_volume() -> None:
    """Both have the same log-mean step over all weights, so nearly the same bits."""
    tensors, plan, statistics = case()
    quantizer = Quantizer(tensors, plan, statistics)
    assert predicted(quantizer, 0.3) < 0.8 * predicted(quantizer.with_terms(()), 0.3)


def test_other_terms_leave_the_first_quantizer_alone() -> None:
    tensors, plan, statistics = case()
    quantizer = Quantizer(tensors, plan, statistics)
    before = quantizer.quantize(1.0)["q.weight"]
    other = quantizer.with_terms(()).quantize(1.0)["q.weight"]
    assert other.col_codes is None and len(set(other.row_codes)) == 1
    after = quantizer.quantize(1.0)["q.weight"]
    assert (before.integers == after.integers).all() and after.col_codes is not None


@pytest.mark.parametrize("how", ["gains", "row_feedback"])
def test_a_trellis_is_obeyed_by_every_tensor(how: str) -> None:
    tensors, plan, statistics = case(f"trellis = 8\n{how} = true")
    for tensor in Quantizer(tensors, plan, statistics).quantize(1.0).values():
        assert tensor.trellis == 8
        assert obeys(tensor.integers, 8), tensor.name


def test_a_fixed_rule_keeps_its_c() -> None:
    tensors, plan, statistics = case("c = 0.5", knob="none")
    quantizer = Quantizer(tensors, plan, statistics)
    turned = Quantizer(*case())
    for name, tensor in quantizer.quantize(99.0).items():
        assert (tensor.integers == turned.quantize(0.5)[name].integers).all()


def test_without_statistics_steps_are_equal_relative_ones() -> None:
    tensors, plan, _ = case("trellis = 8")
    for name, tensor in Quantizer(tensors, plan, None).quantize(1.0).items():
        assert tensor.trellis == 0 and tensor.col_codes is None
        steps = decode_steps(tensor.row_codes, tensor.octave)
        assert steps == pytest.approx(0.41 * float(tensors[name].std()), rel=0.05)


def test_statistics_without_sensitivities_are_refused() -> None:
    tensors, plan, statistics = case()
    bare = replace(statistics, sensitivity_tokens=0, sensitivities={})
    with pytest.raises(CalibrationError, match="sensitivities"):
        Quantizer(tensors, plan, bare)


def broken(statistics: Statistics, kind: str) -> Statistics:
    name = "up.weight"
    g = statistics.sensitivities[name]
    if kind == "nan hessian":
        statistics.hessians[name][3, 3] = float("nan")
    elif kind == "one token":
        x = torch.linspace(-1, 1, len(statistics.hessians[name]))
        statistics.hessians[name][:] = torch.outer(x, x)
        statistics.counts[name] = 1
    elif kind == "no gradient":
        statistics.sensitivities[name] = torch.zeros_like(g)
    elif kind == "wild gradients":
        wild = torch.logspace(-30, 30, len(g))
        statistics.sensitivities[name] = g * wild
        statistics.moments[name] *= torch.outer(wild.sqrt(), wild.sqrt())
    elif kind == "gradients near zero":
        statistics.sensitivities[name] = g * torch.tensor([0.0, 1e-43]).repeat(len(g) // 2)
        statistics.moments[name] *= 1e-43
    elif kind == "small gradients":
        statistics.sensitivities[name] = g * 1e-12
        statistics.moments[name] *= 1e-12
    elif kind == "large gradients":
        statistics.sensitivities[name] = g * 1e12
        statistics.moments[name] *= 1e12
    elif kind == "idle":
        del statistics.hessians[name], statistics.members[name], statistics.counts[name]
    return statistics


@pytest.mark.parametrize("how", ["gains", "row_feedback"])
@pytest.mark.parametrize("trellis", [0, 8])
@pytest.mark.parametrize(
    ("kind", "reason", "error"),
    [
        ("nan hessian", "could not be factored", 0.1),
        ("one token", None, 0.1),
        ("no gradient", "no sensitivities", 0.1),
        ("wild gradients", "octaves finer", 0.1),
        ("gradients near zero", "out of the range", 0.1),
        ("small gradients", "octaves coarser", 0.6),
        ("large gradients", "octaves finer", 0.1),
        ("idle", "never saw a product", 0.1),
    ],
)
def test_bad_statistics_give_a_right_result_and_are_reported(
    kind: str, reason: str | None, error: float, trellis: int, how: str
) -> None:
    tensors, plan, statistics = case(f"trellis = {trellis}\n{how} = true")
    quantizer = Quantizer(tensors, plan, broken(statistics, kind))
    found = quantizer.quantize(0.1)
    if reason is None:
        assert "up.weight" not in quantizer.fallbacks
    else:
        assert reason in quantizer.fallbacks["up.weight"]
    for name, most in (("up.weight", error), ("q.weight", 0.1)):
        left = (decoded(found[name]) - tensors[name]).norm() / tensors[name].norm()
        assert left < most, name


@pytest.mark.parametrize("how", ["gains", "row_feedback"])
@pytest.mark.parametrize("trellis", [0, 8])
def test_odd_shapes_and_constant_weights(trellis: int, how: str) -> None:
    class Use(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.row = nn.Linear(24, 1, bias=False)
            self.column = nn.Linear(1, 24, bias=False)
            self.constant = nn.Linear(24, 16, bias=False)
            self.zero = nn.Linear(24, 16, bias=False)

        def forward(self, x: Tensor) -> Tensor:
            y = self.constant(x).sum() + self.zero(x).sum()
            out: Tensor = self.column(self.row(x)) + y
            return out

    use = Use().requires_grad_(False)
    use.constant.weight.fill_(0.25)
    use.zero.weight.zero_()
    for part, seed in ((use.row, 0), (use.column, 1)):
        shape = part.weight.shape
        part.weight.copy_(torch.randn(shape, generator=torch.Generator().manual_seed(seed)))
    tensors = dict(use.state_dict())
    text = f'[[rule]]\nmatch = "re:.*"\nscale = "rd"\nc = 0.2\n{how} = true\ntrellis = {trellis}'
    plan = make_plan(tensors, classify(use), {}, parse_recipe(text, name="r"))
    inputs = torch.randn(64, 24, generator=torch.Generator().manual_seed(3))
    statistics = with_bare_sensitivities(collect(use, [inputs], fingerprint="f"), tensors)
    for name, tensor in Quantizer(tensors, plan, statistics).quantize(0).items():
        error = (decoded(tensor) - tensors[name]).square().mean().sqrt()
        assert error <= 0.1 * tensors[name].square().mean().sqrt(), name


def with_bare_sensitivities(statistics: Statistics, tensors: dict[str, Tensor]) -> Statistics:
    g = {name: torch.ones(len(tensors[name])) for name in statistics.members}
    moments = {}
    for name in statistics.members:
        rows = len(tensors[name])
        moments[name] = (torch.eye(rows) + 0.5 * torch.ones(rows, rows))[None]
    return replace(statistics, sensitivities=g, moments=moments, sensitivity_tokens=64)


@pytest.mark.parametrize("how", ["gains", "row_feedback"])
def test_same_input_same_integers(how: str) -> None:
    first, second = (Quantizer(*case(f"trellis = 8\n{how} = true")).quantize(0.7) for _ in "ab")
    for name, tensor in first.items():
        assert (tensor.integers == second[name].integers).all()
        assert np.array_equal(columns_of(tensor), columns_of(second[name]))


def test_sensitivities_of_the_example_are_uneven() -> None:
    _, _, statistics = case()
    again = with_sensitivities(statistics, case()[0])
    assert again.sensitivities["q.weight"].std() > 0.3


@pytest.mark.parametrize("trellis", [0, 8])
def test_row_feedback_costs_less_at_equal_steps(trellis: int) -> None:
    rule = f'trellis = {trellis}\nterms = ["tensor", "column"]'  # rows have one step either way
    plain, fed = (Quantizer(*case(rule + more)) for more in ("", "\nrow_feedback = true"))
    value = 2.0
    for name in ("up.weight", "down.weight"):
        costs = []
        for quantizer in (plain, fed):
            found = quantizer.quantize(value)[name]
            scale = decode_steps(found.row_codes, found.octave)[0]
            nats = quantizer.predicted_nats(name, decoded(found))
            assert nats is not None
            costs.append(nats / scale**2)
        assert costs[1] < 0.9 * costs[0]


def test_row_feedback_is_of_weights_that_have_moments() -> None:
    tensors, plan, statistics = case("row_feedback = true")
    none = Quantizer(tensors, plan, replace(statistics, moments={}))
    plain = Quantizer(*case())
    for name, tensor in none.quantize(1.0).items():
        assert (tensor.integers == plain.quantize(1.0)[name].integers).all()


def test_without_terms_rows_have_no_feedback() -> None:
    fed, plain = Quantizer(*case("row_feedback = true")), Quantizer(*case())
    for name, tensor in fed.with_terms(()).quantize(1.0).items():
        assert (tensor.integers == plain.with_terms(()).quantize(1.0)[name].integers).all()


def test_moments_that_cannot_be_factored_are_reported() -> None:
    tensors, plan, statistics = case("row_feedback = true")
    statistics.moments["up.weight"][0, 0, 1] = float("nan")
    quantizer = Quantizer(tensors, plan, statistics)
    assert quantizer.fallbacks["up.weight"].startswith("no row feedback")
    assert torch.isfinite(decoded(quantizer.quantize(1.0)["up.weight"])).all()


def test_a_tensor_may_have_two_fallbacks() -> None:
    tensors, plan, statistics = case("row_feedback = true")
    statistics = broken(statistics, "large gradients")
    statistics.moments["up.weight"][0, 0, 1] = float("nan")
    quantizer = Quantizer(tensors, plan, statistics)
    feedback, held = quantizer.fallbacks["up.weight"].split("; ")
    assert feedback.startswith("no row feedback") and held.endswith("octaves finer")
    assert quantizer.with_terms(()).fallbacks["up.weight"] == feedback


@pytest.mark.parametrize(("trellis", "levels"), [(0, 6), (8, 12)])
def test_blocks_wait_for_their_run_and_along_a_trellis_for_their_weight(
    monkeypatch: pytest.MonkeyPatch, trellis: int, levels: int
) -> None:
    tensors, plan, statistics = case(f"row_feedback = true\ntrellis = {trellis}")
    monkeypatch.setattr(moments, "RUN_ROWS", 24)  # two runs of up.weight, of six blocks each
    whole = statistics.moments["up.weight"][0]
    statistics.moments["up.weight"] = torch.stack([whole[:24, :24], whole[24:, 24:]])
    stacker = stacks.Stacker(statistics, lambda entry: entry.rule, tensors)
    batches = stacker.batches(stacker.stacks(plan.tensors, SILENT))
    found = next(b for b in batches if b.places[0].entry.name == "up.weight")
    assert [block.level for block in found.blocks] == [i % levels for i in range(12)]
