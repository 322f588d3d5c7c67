"""Soft rounding from its formula, and grids against the exporter's functions one by one."""

import math

import pytest
import torch
from torch import Tensor

from qpack.quant import grid
from qpack.quant.candidates import step_candidates, symbol_limit
from qpack.quant.fake import RowGrid, soft_round, soft_slope
from qpack.rule import Rule

CPU = torch.device("cpu")


def rand(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def slow_soft(u: float, alpha: float) -> float:
    r = u - math.floor(u) - 0.5
    return math.floor(u) + 0.5 + 0.5 * math.tanh(alpha * r) / math.tanh(alpha / 2)


@pytest.mark.parametrize("alpha", [0.5, 1.0, 4.0, 16.0])
def test_soft_rounding_is_the_formula(alpha: float) -> None:
    u = rand(200).double() * 5
    expected = torch.tensor([slow_soft(x, alpha) for x in u.tolist()], dtype=torch.float64)
    assert torch.allclose(soft_round(u, alpha), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("alpha", [0.5, 1.0, 4.0, 16.0])
def test_its_slope_by_finite_differences(alpha: float) -> None:
    u = rand(200, seed=1).double() * 5
    eps = 1e-6
    difference = (soft_round(u + eps, alpha) - soft_round(u - eps, alpha)) / (2 * eps)
    assert torch.allclose(soft_slope(u, alpha), difference, rtol=1e-5, atol=1e-6)


def test_integers_and_half_way_points_stay() -> None:
    u = torch.arange(-6, 7).double() / 2
    for alpha in (1.0, 16.0):
        assert torch.allclose(soft_round(u, alpha), u, atol=1e-12)


def test_sharp_is_rounding_and_blunt_is_nothing() -> None:
    u = rand(200, seed=2).double() * 5
    far = (u - u.floor() - 0.5).abs() > 0.1
    assert torch.allclose(soft_round(u, 100.0)[far], u.round()[far], atol=1e-6)
    assert torch.allclose(soft_round(u, 1e-3), u, atol=1e-6)


RULES = [
    Rule(match=("x",), qmax=7),
    Rule(match=("x",), qmax=15, scale="sigma", k=6.0),
    Rule(match=("x",), qmax=31, scale="sigma", k=12.85, clip=False),
    Rule(match=("x",), qmax=15, scale_floor="1/qmax"),
    Rule(match=("x",), qmax=5, scale="percentile"),
]


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.label())
def test_steps_and_values_are_the_exporters(rule: Rule) -> None:
    W = rand(12, 700) * torch.logspace(-3, 1, 12)[:, None]
    ours = RowGrid.of(rule, 12, CPU).chosen(W, [(12, None)])
    steps = ours.steps(W)
    limits = torch.full((12,), symbol_limit(rule))
    found = []
    for codes in step_candidates(W, rule):
        candidate = grid.step_values(codes, rule.step_octave)
        values = grid.round_to_nearest(W, candidate, limits) * candidate[:, None]
        found.append((candidate, values, (W - values).square().sum(dim=1)))
    for row in range(12):
        best = min(found, key=lambda item: float(item[2][row]))
        assert steps[row] == best[0][row]
        assert torch.equal(ours.hard(W, steps)[row], best[1][row])


def test_hessians_weigh_the_choice_of_their_own_rows() -> None:
    W = rand(40, 2000, seed=3)
    W[:, 0] = 8.0  # an outlier that is cheaper to cut, unless its input counts most
    rule = Rule(match=("x",), qmax=3, scale="percentile")
    H = torch.eye(2000)
    H[0, 0] = 1e6
    rows = RowGrid.of(rule, 40, CPU)
    free, weighed = (rows.chosen(W, pairs) for pairs in ([(40, None)], [(10, None), (30, H)]))
    assert free.choice is not None
    assert weighed.choice is not None
    assert torch.equal(weighed.choice[:10], free.choice[:10])
    steps = [grid.step_values(codes, 64) for codes in step_candidates(W, rule)]
    for row in range(10, 40):
        errors = [W[row] - (W[row] / s[row]).round().clamp(-3, 3) * s[row] for s in steps]
        costs = torch.stack([(e.double().square() * H.diagonal()).sum() for e in errors])
        assert costs[weighed.choice[row].long()] <= costs.min() * (1 + 1e-5)
        assert costs[free.choice[row].long()] > 100 * costs.min()


@pytest.mark.parametrize("alpha", [1.0, 8.0])
@pytest.mark.parametrize("rule", [RULES[0], RULES[1], RULES[4]], ids=lambda rule: rule.scale)
def test_slope_of_values_by_finite_differences(rule: Rule, alpha: float) -> None:
    W = rand(6, 400, seed=4)
    ours = RowGrid.of(rule, 6, CPU).chosen(W, [(6, None)])
    steps = ours.steps(W).double() * 0.7  # so that some weights lie outside
    W = W.double()
    eps = 1e-6
    ends = [ours.soft(W + sign * eps, steps, alpha) for sign in (1, -1)]
    difference = (ends[0] - ends[1]) / (2 * eps)
    slope = ours.slope(W, steps, alpha)
    assert torch.allclose(slope, difference, rtol=1e-4, atol=1e-5)
    outside = W.abs() > ours.limits[:, None] * steps[:, None]
    assert outside.any()
    assert (slope[outside] == 0).all()
    assert (slope[~outside] > 0).all()


def test_soft_values_are_clipped_and_near_the_hard_ones() -> None:
    W = rand(6, 400, seed=5)
    ours = RowGrid.of(RULES[1], 6, CPU)
    steps = ours.steps(W)
    soft, hard = ours.soft(W, steps, 500.0), ours.hard(W, steps)
    assert (soft.abs() <= 15 * steps[:, None] * (1 + 1e-6)).all()
    assert ((soft - hard).abs() > 0.05 * steps[:, None]).double().mean() < 0.01
