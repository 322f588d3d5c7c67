"""The losses of tuning against torch's own, and their slopes against autograd."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from qpack.quant import divergence as module
from qpack.quant.divergence import divergence, sampled_slope, slope


def pair(*shape: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    reference, output = (3 * torch.randn(shape, generator=generator) for _ in range(2))
    return reference, output


def by_torch(reference: Tensor, output: Tensor, likelihood: str) -> Tensor:
    if likelihood == "gaussian":
        return (output - reference).square().sum()
    p, q = reference.log_softmax(-1), output.log_softmax(-1)
    return torch.nn.functional.kl_div(q, p, reduction="sum", log_target=True)


@pytest.mark.parametrize("likelihood", module.LIKELIHOODS)
@pytest.mark.parametrize("block", [1, 20, 1 << 20])
def test_against_torch(monkeypatch: pytest.MonkeyPatch, likelihood: str, block: int) -> None:
    monkeypatch.setattr(module, "BLOCK_ELEMENTS", block)
    reference, output = pair(3, 5, 7)
    output.requires_grad_()
    loss = by_torch(reference, output, likelihood)
    loss.backward()
    expected = float(loss.detach())
    distance, amount = divergence(reference, output, likelihood)
    assert distance == pytest.approx(expected, rel=1e-5)
    assert amount == pytest.approx(
        15 if likelihood == "categorical" else float(reference.square().sum()), rel=1e-6
    )
    assert output.grad is not None
    torch.testing.assert_close(slope(reference, output, likelihood), output.grad)


def test_nothing_is_lost_between_equal_outputs() -> None:
    reference, _ = pair(4, 9)
    for likelihood in module.LIKELIHOODS:
        assert divergence(reference, reference.clone(), likelihood)[0] == 0.0
        assert not slope(reference, reference.clone(), likelihood).any()


def test_other_dtypes_shapes_and_strides() -> None:
    reference, output = pair(6, 4)
    turned = slope(reference.T, output.T.bfloat16(), "gaussian")
    assert turned.shape == (4, 6) and turned.dtype == torch.bfloat16
    one = slope(torch.tensor(2.0), torch.tensor(5.0), "gaussian")
    assert one.shape == () and float(one) == 6.0
    assert divergence(torch.tensor(2.0), torch.tensor(5.0), "gaussian") == (9.0, 4.0)


@pytest.mark.parametrize("likelihood", module.LIKELIHOODS)
def test_sampled_slopes_have_the_curvature_as_their_mean_square(likelihood: str) -> None:
    """Fisher of a softmax: diag(p) - p p^T; twice the identity for squared errors."""
    output = torch.tensor([1.0, -0.5, 0.3, 2.0])
    rows = output.expand(40_000, 4)
    drawn = sampled_slope(rows, likelihood, torch.Generator().manual_seed(0))
    assert drawn.shape == rows.shape
    p = output.softmax(-1)
    expected = (
        torch.diag(p) - torch.outer(p, p) if likelihood == "categorical" else torch.eye(4) * 2
    )
    torch.testing.assert_close(drawn.T @ drawn / 40_000, expected, rtol=0, atol=0.03)
    again = sampled_slope(rows, likelihood, torch.Generator().manual_seed(0))
    assert torch.equal(drawn, again)
