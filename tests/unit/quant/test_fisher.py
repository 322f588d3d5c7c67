"""Output sensitivities against gradients taken one place at a time."""

from __future__ import annotations

import math
import subprocess
import sys
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from qpack.errors import CalibrationError
from qpack.quant.calibrate import Sensing, collect
from qpack.quant.fisher import PRIOR_LOOKUPS, _gradient
from qpack.quant.statistics import Statistics


def sensed(model: nn.Module, *batches: Tensor, likelihood: str = "categorical") -> Statistics:
    sensing = Sensing(likelihood=likelihood, seed=3)  # type: ignore[arg-type]
    return collect(model, list(batches), fingerprint="f", sensing=sensing)


def reference(
    model: nn.Module,
    batches: list[Tensor],
    outputs_of: Callable[[nn.Module], dict[str, list[Tensor]]],
    likelihood: str = "categorical",
) -> dict[str, Tensor]:
    """Mean over places of squared gradients, from autograd's own gradients of recorded outputs."""
    sums: dict[str, Tensor] = {}
    places = 0
    for index, batch in enumerate(batches):
        recorded = outputs_of(model)
        y = model(batch)
        generator = torch.Generator().manual_seed(3 * 1_000_003 + index)
        y.backward(_gradient(y.detach(), likelihood, generator))  # type: ignore[arg-type]
        places += y.numel() // y.shape[-1]
        for name, outputs in recorded.items():
            for output in outputs:
                assert output.grad is not None
                squares = output.grad.reshape(-1, output.shape[-1]).double().square().sum(0)
                sums[name] = sums.get(name, torch.zeros(())) + squares
        recorded.clear()
    return {name: (x / places).float() for name, x in sums.items()}


class Recorder(nn.Module):
    """A small language model that keeps every output of its weights, with its gradient."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.table = nn.Embedding(13, 8)
        self.once = nn.Linear(8, 8)
        self.twice = nn.Linear(8, 8, bias=False)
        self.plain = nn.Parameter(torch.randn(8, 8) / 3)
        self.unused = nn.Linear(8, 4)
        self.outputs: dict[str, list[Tensor]] = {}

    def keep(self, name: str, y: Tensor) -> Tensor:
        if y.requires_grad:
            y.retain_grad()
            self.outputs.setdefault(name, []).append(y)
        return y

    def forward(self, tokens: Tensor) -> Tensor:
        h = self.keep("looked up", self.table(tokens))
        h = h + torch.tanh(self.keep("once.weight", self.once(h)))
        for _ in range(2):
            h = h + torch.tanh(self.keep("twice.weight", self.twice(h)))
        h = h + torch.relu(self.keep("plain", h @ self.plain.T))
        return self.keep("table.weight", nn.functional.linear(h, self.table.weight))


def outputs_of(model: nn.Module) -> dict[str, list[Tensor]]:
    assert isinstance(model, Recorder)
    model.outputs = {}
    return model.outputs


@pytest.mark.parametrize("likelihood", ["categorical", "gaussian"])
def test_every_kind_of_use_has_the_gradient_that_autograd_has(likelihood: str) -> None:
    model = Recorder()
    batches = [torch.randint(0, 13, (4, 6), generator=torch.Generator().manual_seed(1))] * 2
    statistics = sensed(model, *batches, likelihood=likelihood)
    expected = reference(model, batches, outputs_of, likelihood)
    rows = expected.pop("looked up")
    assert statistics.sensitivities.keys() == expected.keys()
    for name, g in expected.items():
        found = statistics.sensitivities[name]
        if name == "table.weight" and likelihood == "categorical":  # rows of the head: test_heads
            found, g = found.sum(), g.sum()
        torch.testing.assert_close(found, g, rtol=1e-5, atol=1e-9)
    # One lookup a place: the mean over lookups is the mean over places.
    torch.testing.assert_close(
        statistics.table_sensitivities["table.weight"], rows, rtol=1e-5, atol=1e-9
    )
    counts = 2 * torch.bincount(batches[0].reshape(-1), minlength=13)
    expected = (counts + PRIOR_LOOKUPS) / (2 * batches[0].numel())
    torch.testing.assert_close(statistics.frequencies["table.weight"], expected)
    assert statistics.sensitivity_tokens == 48


def test_a_layer_that_runs_twice_counts_both_uses() -> None:
    model = Recorder()
    tokens = torch.randint(0, 13, (4, 6), generator=torch.Generator().manual_seed(1))
    statistics = sensed(model, tokens)
    H, count = statistics.hessian("twice.weight"), statistics.counts["twice.weight"]
    assert H is not None
    assert count == 2 * statistics.sensitivity_tokens


def test_the_softmax_head_has_its_closed_form() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(5, 4), nn.Linear(4, 5, bias=False))
    tokens = torch.randint(0, 5, (400, 50))
    p = torch.softmax(model(tokens), -1).reshape(-1, 5)
    expected = (p * (1 - p)).mean(0).detach()
    torch.testing.assert_close(
        sensed(model, tokens).sensitivities["1.weight"], expected, rtol=0.05, atol=0
    )


def test_convolutions_and_attention() -> None:
    torch.manual_seed(0)
    conv = nn.Sequential(nn.Conv1d(3, 5, 2), nn.ReLU(), nn.Conv1d(5, 4, 1))
    found = sensed(conv, torch.randn(6, 3, 9), likelihood="gaussian")
    assert {name: g.shape for name, g in found.sensitivities.items()} == {
        "0.weight": (5,),
        "2.weight": (4,),
    }
    # Output noise of unit variance: every output of the last layer has a mean square near 1.
    places = found.sensitivity_tokens
    assert places == 6 * 4
    torch.testing.assert_close(
        found.sensitivities["2.weight"], torch.full((4,), 6 * 8 / places), rtol=0.6, atol=0
    )

    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention = nn.MultiheadAttention(8, 2, batch_first=True)

        def forward(self, x: Tensor) -> Tensor:
            return self.attention(x, x, x)[0]  # type: ignore[no-any-return]

    names = sensed(Attention(), torch.randn(4, 5, 8), likelihood="gaussian").sensitivities.keys()
    assert names == {"attention.in_proj_weight", "attention.out_proj.weight"}


def test_a_table_that_is_indexed_by_hand() -> None:
    class Indexed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Parameter(torch.randn(7, 4))
            self.head = nn.Linear(4, 7)

        def forward(self, tokens: Tensor) -> Tensor:
            return self.head(self.table[tokens])  # type: ignore[no-any-return]

    found = sensed(Indexed(), torch.arange(14).reshape(2, 7) % 7)
    assert found.frequencies["table"].sum() == pytest.approx(1.0 + 7 * PRIOR_LOOKUPS / 14)
    assert found.table_sensitivities["table"].shape == (4,)
    assert found.sensitivities.keys() == {"head.weight"}


def test_tables_that_the_same_indices_look_up_are_told_apart() -> None:
    class Tables(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.first, self.wide, self.last = (nn.Embedding(7, n) for n in (4, 6, 4))
            self.head = nn.Linear(4, 7)

        def forward(self, tokens: Tensor) -> Tensor:
            h = self.first(tokens) + self.wide(tokens)[..., :4]
            return self.head(torch.tanh(h) + 3 * self.last(tokens))  # type: ignore[no-any-return]

    model, tokens = Tables(), torch.arange(14).reshape(2, 7) % 7
    found = sensed(model, tokens)
    generator = torch.Generator().manual_seed(3 * 1_000_003)
    looked_up = {n: getattr(model, n)(tokens).detach() for n in ("first", "wide", "last")}
    for rows in looked_up.values():
        rows.requires_grad_()
    h = looked_up["first"] + looked_up["wide"][..., :4]
    y = model.head(torch.tanh(h) + 3 * looked_up["last"])
    y.backward(_gradient(y.detach(), "categorical", generator))
    for name, rows in looked_up.items():
        assert rows.grad is not None
        expected = rows.grad.reshape(14, -1).square().mean(0)
        torch.testing.assert_close(found.table_sensitivities[f"{name}.weight"], expected)


def test_the_model_is_left_as_it_was() -> None:
    model = Recorder()
    model.once.weight.requires_grad_(False)
    before = [(p.requires_grad, p.grad) for p in model.parameters()]
    sensed(model, torch.zeros(2, 3, dtype=torch.long))
    assert [(p.requires_grad, p.grad) for p in model.parameters()] == before


def test_only_the_first_batches_have_a_backward_pass() -> None:
    batches = [torch.zeros(2, 8, dtype=torch.long)] * 5
    assert Sensing.of_tokens(batches, 17).batches == 2
    assert Sensing.of_tokens(batches, 16).batches == 1
    assert Sensing.of_tokens(batches, 10_000).batches == 5
    model = Recorder()
    few = collect(model, batches, fingerprint="f", sensing=Sensing(batches=2))
    assert few.sensitivity_tokens == 32
    assert few.counts["once.weight"] == 80
    none = collect(model, batches, fingerprint="f")
    assert none.sensitivities == {}
    assert none.sensitivity_tokens == 0
    assert all(torch.equal(none.hessians[name], H) for name, H in few.hessians.items())


def test_labels_follow_the_seed() -> None:
    model, tokens = Recorder(), torch.arange(12).reshape(2, 6)
    first, again = (sensed(model, tokens).sensitivities["once.weight"] for _ in range(2))
    other = collect(model, [tokens], fingerprint="f", sensing=Sensing(seed=4))
    assert torch.equal(first, again)
    assert not torch.equal(first, other.sensitivities["once.weight"])


def test_gradients_that_are_not_finite_are_named() -> None:
    class Broken(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Embedding(4, 3)
            self.head = nn.Linear(3, 4)

        def forward(self, tokens: Tensor) -> Tensor:
            # The value is finite; the gradient of a root at zero is not.
            return self.head(torch.sqrt((self.table(tokens) * 0).abs()))  # type: ignore[no-any-return]

    with pytest.raises(CalibrationError, match="not finite") as caught:
        sensed(Broken(), torch.zeros(1, 4, dtype=torch.long))
    assert "table.weight" in caught.value.items


def test_an_output_without_a_gradient_is_refused() -> None:
    class Detached(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Embedding(4, 3)

        def forward(self, tokens: Tensor) -> Tensor:
            return self.table(tokens).detach()  # type: ignore[no-any-return]

    with pytest.raises(CalibrationError, match="does not depend"):
        sensed(Detached(), torch.zeros(1, 4, dtype=torch.long))


def test_drawn_labels_have_the_models_distribution() -> None:
    logits = torch.log(torch.tensor([0.5, 0.3, 0.15, 0.05])).expand(20_000, 4)
    gradient = _gradient(logits, "categorical", torch.Generator().manual_seed(0))
    p = torch.softmax(logits, -1)
    drawn = (p - gradient).mean(0)
    assert torch.allclose(drawn, p[0], atol=4 * math.sqrt(0.25 / 20_000))
    torch.testing.assert_close(gradient.sum(1), torch.zeros(20_000), atol=1e-5, rtol=0)


FIRST_CALIBRATION = """
import sys, torch
from qpack.quant.calibrate import Sensing, collect
model = torch.nn.Sequential(torch.nn.Embedding(9, 4), torch.nn.Linear(4, 9))
found = collect(model, [torch.arange(9)[None]], fingerprint="f", sensing=Sensing())
assert len(found.sensitivities["1.weight"]) == 9
print(*(name for name in ("sympy", "torch._dynamo") if name in sys.modules))
"""


def test_the_first_calibration_imports_no_compiler() -> None:
    command = [sys.executable, "-W", "error", "-c", FIRST_CALIBRATION]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    assert not done.stdout.split()
