"""The quadratic forms: each kind of tensor, and estimates that say nothing."""

from dataclasses import replace
from typing import Any

import pytest
import torch

from qpack.quant.sensitivity import FLOOR, PRIOR_TOKENS, form_of, tied_form
from qpack.quant.statistics import Statistics

from .reference import correlated_inputs


def statistics(**fields: Any) -> Statistics:
    X = correlated_inputs(100, 12, seed=0)
    base = Statistics(
        hessians={"w": X.T @ X}, counts={"w": 100}, members={"w": "w"}, fingerprint="f", source={}
    )
    return replace(base, sensitivity_tokens=100, **fields)


def test_a_product_weighs_rows_by_g_and_columns_by_the_mean_of_h() -> None:
    g = torch.linspace(0.5, 2, 5)
    form = form_of("w", statistics(sensitivities={"w": g}))
    assert form is not None and form.known and form.floored == 0
    assert torch.equal(form.weights, g)
    X = correlated_inputs(100, 12, seed=0)
    assert torch.allclose(form.H, X.T @ X / 100)


def test_inputs_that_matter_weigh_more_where_they_are_known() -> None:
    g, W = torch.ones(5), torch.diag(torch.arange(1.0, 13.0))
    X = correlated_inputs(100, 12, seed=0)
    for tokens, part in ((0, 0.0), (PRIOR_TOKENS, 0.5), (9 * PRIOR_TOKENS, 0.9)):
        given = replace(
            statistics(sensitivities={"w": g}, weighted={"w": W}), sensitivity_tokens=tokens
        )
        form = form_of("w", given)
        assert form is not None
        assert torch.allclose(form.H, (1 - part) * X.T @ X / 100 + part * W)


def test_a_lookup_weighs_columns_by_what_comes_back() -> None:
    f, g_in = torch.linspace(0.1, 0.3, 5), torch.linspace(0.2, 1, 12)
    given = statistics(frequencies={"t": f}, table_sensitivities={"t": g_in})
    form = form_of("t", given)
    assert form is not None
    assert torch.equal(form.H, torch.diag(g_in))
    assert torch.equal(form.weights, f)
    assert form_of("other", given) is None


def test_a_tied_table_keeps_the_trace_of_both_sides() -> None:
    generator = torch.Generator().manual_seed(0)
    X = correlated_inputs(100, 12, seed=1)
    H, g = X.T @ X / 100, torch.rand(7, generator=generator) + 0.1
    f, g_in = torch.rand(7, generator=generator), torch.rand(12, generator=generator)
    form = tied_form(H, g, f, g_in)
    for row in range(7):
        wanted = torch.trace(g[row] * H + f[row] * torch.diag(g_in))
        assert torch.trace(form.weights[row] * form.H) == pytest.approx(float(wanted), rel=1e-4)
    assert torch.allclose(form.H, g.mean() * H + f.mean() * torch.diag(g_in))


def test_rows_that_no_gradient_reached_stay_alive() -> None:
    g = torch.tensor([1.0, 0.0, 1e-9, 3.0])
    form = form_of("w", statistics(sensitivities={"w": g}))
    assert form is not None and form.floored == 2
    assert torch.allclose(form.weights, torch.tensor([1.0, FLOOR, FLOOR, 3.0]))


@pytest.mark.parametrize("g", [torch.zeros(5), torch.full((5,), float("nan")), None])
def test_sensitivities_that_say_nothing_are_not_used(g: torch.Tensor | None) -> None:
    form = form_of("w", statistics(sensitivities={} if g is None else {"w": g}))
    assert form is not None and not form.known


def test_a_tied_form_is_made_in_float64() -> None:
    X = correlated_inputs(100, 12, seed=1)
    H, g, f, g_in = X.T @ X / 100, torch.rand(7) + 0.1, torch.rand(7), torch.rand(12)
    form, same = tied_form(H * 1e12, g * 1e18, f, g_in * 1e30), tied_form(H, g, f, g_in)
    assert torch.allclose(form.H, same.H * 1e30)
    assert torch.allclose(form.weights, same.weights)


@pytest.mark.parametrize("scale", [1e-44, 1e38])
def test_what_float32_cannot_hold_weighs_nothing(scale: float) -> None:
    g, one = torch.linspace(0.5, 2, 5) * scale, torch.ones(5)
    given = statistics(sensitivities={"w": g}, frequencies={"w": one, "t": g})
    given = replace(given, table_sensitivities={"w": torch.ones(12), "t": torch.ones(12)})
    given.hessians["w"] *= 1e6
    tied, lookup = form_of("w", given), form_of("t", given)
    assert tied is not None and lookup is not None
    assert tied.known is (scale < 1)  # the lookups are worth more than nothing
    assert lookup.known is (scale > 1)
    for form in (tied, lookup):
        assert torch.isfinite(form.H).all() and torch.isfinite(form.weights).all()
