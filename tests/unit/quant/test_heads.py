"""The head's sensitivities: what their shares are, and of which weight."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from qpack.quant.calibrate import Sensing, collect
from qpack.quant.fisher import _gradient
from qpack.quant.heads import Head


class Net(nn.Module):
    """Logits are capped, so that gradients at the head are not those at the outputs."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.table, self.inner = nn.Embedding(13, 8), nn.Linear(8, 8, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        h = torch.tanh(self.inner(self.table(tokens)))
        return 3 * torch.tanh(nn.functional.linear(h, self.table.weight) / 3)


def test_rows_of_the_head_share_its_sum_by_the_variance_of_labels() -> None:
    model, batches = Net(), [torch.arange(24).reshape(4, 6) % 11, torch.arange(12).reshape(2, 6)]
    found = collect(model, batches, fingerprint="f", sensing=Sensing(batches=1, seed=3))
    p = torch.cat([torch.softmax(model(batch), -1).reshape(-1, 13) for batch in batches])
    variance = (p * (1 - p)).mean(0).detach()
    g = found.sensitivities["table.weight"]
    torch.testing.assert_close(g / g.sum(), variance / variance.sum())


def test_the_sum_is_that_of_the_gradients() -> None:
    model, batch = Net(), torch.arange(24).reshape(4, 6) % 11
    found = collect(model, [batch], fingerprint="f", sensing=Sensing(seed=3)).sensitivities
    z = nn.functional.linear(torch.tanh(model.inner(model.table(batch))), model.table.weight)
    z.retain_grad()
    y = 3 * torch.tanh(z / 3)
    generator = torch.Generator().manual_seed(3 * 1_000_003)
    y.backward(_gradient(y.detach(), "categorical", generator))
    assert z.grad is not None
    total = float(z.grad.reshape(-1, 13).square().mean(0).sum())
    assert float(found["table.weight"].sum()) == pytest.approx(total, rel=1e-5)


def test_a_head_of_its_own_is_one_too_and_has_no_moments() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(13, 8), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 13))
    batch = torch.arange(24).reshape(4, 6) % 11
    found = collect(model, [batch], fingerprint="f", sensing=Sensing(seed=3))
    p = torch.softmax(model(batch), -1).reshape(-1, 13)
    variance = (p * (1 - p)).mean(0).detach()
    g = found.sensitivities["3.weight"]
    torch.testing.assert_close(g / g.sum(), variance / variance.sum())
    assert found.moments.keys() == {"1.weight"}


def test_without_one_head_of_as_many_rows_nothing_is_shared() -> None:
    gradients = {"a": torch.ones(3, dtype=torch.float64), "b": torch.ones(4, dtype=torch.float64)}
    logits = torch.tensor([[0.0, 1.0, 2.0]])
    head = Head()
    assert head.share(gradients) is gradients  # nothing was seen
    head.add("b", logits)
    assert head.share(gradients) is gradients  # other rows than outputs
    other = Head()
    other.add("a", logits)
    assert not torch.equal(other.share(gradients)["a"], gradients["a"])
    other.add("b", logits)
    assert other.share(gradients) is gradients  # not one weight
    lost = Head()
    lost.add("a", torch.full((1, 3), torch.nan))
    assert lost.share(gradients) is gradients
