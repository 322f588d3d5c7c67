"""H is exactly X^T X of what each weight was multiplied by, whatever the module."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from qpack.errors import CalibrationError
from qpack.quant.calibrate import collect
from qpack.quant.grams import add_outer
from qpack.quant.statistics import Statistics
from qpack.stages import RunLog

GENERATOR = torch.Generator().manual_seed(0)


def rand(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=GENERATOR)


def collected(model: nn.Module, *batches: Tensor) -> Statistics:
    return collect(model, list(batches), fingerprint="f")


def check(statistics: Statistics, name: str, X: Tensor) -> None:
    X = X.reshape(-1, X.shape[-1])
    H = statistics.hessian(name)
    assert H is not None
    assert torch.allclose(H, X.T @ X, rtol=1e-4, atol=1e-4)
    assert statistics.counts[statistics.members[name]] == len(X)


class Attention(nn.Module):
    """q, k, v as modules, a functional product, and a transposed one."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k = nn.Linear(8, 8, bias=False), nn.Linear(8, 4)
        self.v = nn.Parameter(rand(6, 8))
        self.out = nn.Parameter(rand(8, 6))

    def forward(self, x: Tensor) -> Tensor:
        a = self.q(x).sum() + self.k(x).sum()
        v = F.linear(x, self.v)
        return (v + a) @ self.out.T


def test_weights_with_one_input_share_one_hessian() -> None:
    model, x = Attention(), rand(3, 5, 8)
    statistics = collected(model, x)
    assert statistics.members["q.weight"] == statistics.members["k.weight"] == "q.weight"
    assert statistics.members["v"] == "q.weight"
    assert set(statistics.hessians) == {"q.weight", "out"}
    check(statistics, "k.weight", x)
    a = model.q(x).sum() + model.k(x).sum()
    check(statistics, "out", F.linear(x, model.v) + a)


def test_same_storage_changed_in_between_is_another_input() -> None:
    class InPlace(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            y = x.clone()
            first = self.a(y)
            y.mul_(3)
            return first + self.b(y)

    x = rand(6, 4)
    statistics = collected(InPlace(), x)
    assert statistics.members["a.weight"] != statistics.members["b.weight"]
    check(statistics, "b.weight", 3 * x)


def test_recurrence_counts_every_use() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.inner(self.inner(x))

    model, x = Twice(), rand(10, 4)
    check(collected(model, x), "inner.weight", torch.cat([x, model.inner(x)]))


def test_tied_embedding_takes_the_heads_input() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.emb = nn.Embedding(16, 8)
            self.mid = nn.Linear(8, 8)

        def forward(self, tokens: Tensor) -> Tensor:
            return F.linear(self.mid(self.emb(tokens)), self.emb.weight)

    model = Tied()
    tokens = torch.randint(16, (2, 7), generator=GENERATOR)
    check(collected(model, tokens), "emb.weight", model.mid(model.emb(tokens)))


@pytest.mark.parametrize(
    ("conv", "shape"),
    [
        (lambda: nn.Conv2d(3, 5, 3, stride=2, padding=1), (2, 3, 9, 8)),
        (lambda: nn.Conv2d(3, 5, (1, 2), dilation=2), (2, 3, 9, 8)),
        (lambda: nn.Conv1d(3, 5, 4, padding=2, stride=3), (2, 3, 17)),
    ],
)
def test_convolutions_see_their_patches(
    conv: Callable[[], nn.Module], shape: tuple[int, ...]
) -> None:
    module = conv()
    model = nn.Sequential(module)
    x = rand(*shape)
    statistics = collected(model, x)
    H = statistics.hessian("0.weight")
    assert H is not None
    weight = module.weight.flatten(1)  # type: ignore[union-attr, operator]
    # tr(W H W^T) is the output's energy without bias: an independent check of the patches.
    with torch.no_grad():
        bias = module.bias.reshape(1, -1, *([1] * (x.ndim - 2)))  # type: ignore[union-attr, operator]
        energy = (module(x) - bias).square().sum()
    assert torch.allclose((weight @ H * weight).sum(), energy, rtol=1e-4)


def test_fused_attention_projection_is_seen() -> None:
    model = nn.MultiheadAttention(8, 2, batch_first=True)

    class Self(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention = model

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.attention(x, x, x, need_weights=False)[0]
            return out

    x = rand(2, 5, 8)
    check(collected(Self(), x), "attention.in_proj_weight", x)


def test_grouped_convolution_has_no_hessian() -> None:
    assert collected(nn.Sequential(nn.Conv2d(4, 4, 3, groups=2)), rand(1, 4, 5, 5)).members == {}


def test_wide_inputs_accumulate_by_blocks() -> None:
    X = rand(50, 800)
    H = torch.zeros(800, 800)
    add_outer(H, X, X)
    assert torch.allclose(H.triu(), (X.T @ X).triu(), atol=1e-3)
    model = nn.Sequential(nn.Linear(800, 8))
    check(collected(model, X[:20], X[20:]), "0.weight", X)


def test_batches_add_up_and_mode_is_restored() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.9))
    model.train()
    x = rand(12, 4)
    state = torch.random.get_rng_state()
    one, many = collected(model, x), collected(model, x[:5], x[5:6], x[6:])
    assert torch.allclose(one.hessians["0.weight"], many.hessians["0.weight"], atol=1e-4)
    assert model.training
    assert torch.equal(state, torch.random.get_rng_state())


def test_empty_set_and_bad_activations_are_refused() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2))
    for batches in ([], [torch.empty(0, 4)]):
        with pytest.raises(CalibrationError, match="empty"):
            collect(model, batches, fingerprint="f")
    with pytest.raises(CalibrationError) as caught:
        collected(model, torch.full((2, 4), float("nan")))
    assert caught.value.items == ("0.weight", "1.weight")


def test_unused_weights_have_no_statistics() -> None:
    model = nn.ModuleDict({"used": nn.Linear(4, 4), "idle": nn.Linear(4, 4)})
    model.forward = model["used"].forward  # type: ignore[method-assign]
    assert collected(model, rand(9, 4)).members == {"used.weight": "used.weight"}


def test_a_transposed_view_is_another_input() -> None:
    class Mixer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.channels, self.tokens = nn.Linear(16, 16), nn.Linear(16, 16)

        def forward(self, x: Tensor) -> Tensor:
            return self.channels(x) + self.tokens(x.transpose(1, 2)).transpose(1, 2)

    x = rand(3, 16, 16)
    statistics = collected(Mixer(), x)
    check(statistics, "channels.weight", x)
    check(statistics, "tokens.weight", x.transpose(1, 2))


def test_routed_experts_count_what_reached_them() -> None:
    class Routed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.experts = nn.ModuleList(nn.Linear(4, 4) for _ in range(3))

        def forward(self, x: Tensor) -> Tensor:
            out = torch.zeros_like(x)
            for i in range(2):  # the third is never chosen
                chosen = (x[:, 0] > 0) == bool(i)
                if chosen.any():
                    out[chosen] = self.experts[i](x[chosen])
            return out

    x = rand(40, 4)
    x[:8, 0] = 1.0  # the first batches reach one expert alone
    statistics = collected(Routed(), x[:4], x[4:8], x[8:])
    check(statistics, "experts.0.weight", x[x[:, 0] <= 0])
    check(statistics, "experts.1.weight", x[x[:, 0] > 0])
    assert statistics.hessian("experts.2.weight") is None


def test_few_inputs_are_warned_about() -> None:
    log = RunLog()
    collect(nn.Sequential(nn.Linear(8, 2)), [rand(5, 8)], fingerprint="f", progress=log)
    assert "0.weight from 5 for 8" in log.warnings[0]
