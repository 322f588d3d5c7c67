"""H by what inputs matter, against autograd's own gradients of every use."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from qpack.quant.calibrate import Sensing, collect
from qpack.quant.fisher import FLOOR, _gradient, shares_of
from qpack.quant.grams import Grams
from qpack.quant.statistics import Statistics

SENSING = Sensing(seed=3)


class Net(nn.Module):
    """q and k share an input, one layer runs twice, and one branch reaches no output."""

    def __init__(self, *, dangling: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.table = nn.Embedding(13, 8)
        self.q, self.k = nn.Linear(8, 6, bias=False), nn.Linear(8, 4)
        self.twice = nn.Linear(8, 8)
        self.join = nn.Linear(10, 8)
        self.head = nn.Linear(8, 13)
        self.dangling = dangling
        self.uses: dict[str, list[tuple[Tensor, Tensor]]] = {}

    def use(self, name: str, x: Tensor) -> Tensor:
        y: Tensor = getattr(self, name)(x)
        if y.requires_grad:
            y.retain_grad()
            self.uses.setdefault(name, []).append((x, y))
        return y

    def forward(self, tokens: Tensor) -> Tensor:
        h = self.table(tokens)
        for _ in range(2):
            h = h + torch.tanh(self.use("twice", h))
        if self.dangling:
            self.use("twice", h)
        h = self.use("join", torch.cat([self.use("q", h), self.use("k", h)], -1).relu())
        return self.use("head", h)


def tokens(seed: int) -> Tensor:
    return torch.randint(0, 13, (4, 6), generator=torch.Generator().manual_seed(seed))


def uses_of(model: Net, batch: Tensor, index: int = 0) -> dict[str, list[tuple[Tensor, Tensor]]]:
    """name -> (inputs, output gradients) of each use, first to last."""
    model.uses = {}
    y = model(batch)
    generator = torch.Generator().manual_seed(SENSING.seed * 1_000_003 + index)
    y.backward(_gradient(y.detach(), "categorical", generator))
    found = {}
    for name, uses in model.uses.items():
        found[name] = []
        for x, out in uses:
            assert out.grad is not None
            found[name].append((x.detach().flatten(0, 1), out.grad.flatten(0, 1)))
    return found


def weighted(uses: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, float]:
    """(sum of w x x^T, sum of w), one input after the other."""
    H, total = torch.zeros(()), 0.0
    for inputs, gradients in uses:
        g = gradients.square().mean(0)
        scales = g.clamp_min(FLOOR * float(g.mean()))
        for x, d in zip(inputs, gradients, strict=True):
            w = float((d.square() / scales).mean() * g.mean())
            H, total = H + w * torch.outer(x, x), total + w
    return H, total


def gathered(model: Net, *batches: Tensor) -> Statistics:
    return collect(model, list(batches), fingerprint="f", sensing=SENSING)


def test_inputs_count_by_their_part_of_the_gradients() -> None:
    model = Net()
    found, uses = gathered(model, tokens(1)), uses_of(model, tokens(1))
    for name in ("twice", "join", "head"):
        H, total = weighted(uses[name])
        torch.testing.assert_close(found.weighted[f"{name}.weight"], H / total)
    plain = found.hessians["twice.weight"] / found.counts["twice.weight"]
    assert not torch.allclose(found.weighted["twice.weight"], plain, rtol=0.05)


def test_a_group_has_the_mean_over_its_rows() -> None:
    model = Net()
    found, uses = gathered(model, tokens(1)), uses_of(model, tokens(1))
    assert found.members["k.weight"] == "q.weight"
    (q, of_q), (k, of_k) = weighted(uses["q"]), weighted(uses["k"])
    expected = (6 * q / of_q + 4 * k / of_k) / 10
    torch.testing.assert_close(found.weighted["q.weight"], expected)
    assert "k.weight" not in found.weighted


def test_batches_add_up_and_those_without_gradients_do_not_count() -> None:
    model = Net()
    first, second = (weighted(uses_of(model, tokens(i), i)["head"]) for i in (0, 1))
    found = gathered(model, tokens(0), tokens(1))
    expected = (first[0] + second[0]) / (first[1] + second[1])
    torch.testing.assert_close(found.weighted["head.weight"], expected)
    one = collect(
        model,
        [tokens(0), tokens(1)],
        fingerprint="f",
        sensing=Sensing(seed=SENSING.seed, batches=1),
    )
    torch.testing.assert_close(one.weighted["head.weight"], first[0] / first[1])
    assert collect(model, [tokens(0)], fingerprint="f").weighted == {}


def test_uses_that_cannot_be_paired_with_gradients_leave_the_plain_matrix() -> None:
    found = gathered(Net(dangling=True), tokens(1))
    assert "twice.weight" not in found.weighted
    assert "twice.weight" in found.hessians
    assert "head.weight" in found.weighted


def test_gradients_without_a_use_are_not_paired_either() -> None:
    grams, x = Grams(), torch.ones(3, 2)
    grams.expect({"w": [torch.ones(3), torch.ones(3)]})
    grams.observe("w", x, lambda: x)
    grams.finish()
    assert grams.weighted == {}
    assert grams.counts == {"w": 3}


def test_a_weight_that_nothing_depends_on_has_the_plain_matrix_alone() -> None:
    model = Net()
    with torch.no_grad():
        model.head.weight.zero_()
    found = gathered(model, tokens(1))
    assert "join.weight" in found.hessians
    assert found.weighted.keys() == {"head.weight"}


def test_shares_have_the_mean_of_the_squares_but_for_floored_rows() -> None:
    squares = torch.tensor([[4.0, 0.0], [2.0, 0.0]])
    torch.testing.assert_close(shares_of(squares), torch.tensor([1.0, 0.5]))
    assert shares_of(torch.zeros(2, 3)).tolist() == [0.0, 0.0]
    even = torch.tensor([[1.0, 10.0], [3.0, 30.0]])
    torch.testing.assert_close(shares_of(even).mean(), even.mean())
