"""Deltas beside linears are the linears with other weights, row by row."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from qpack.errors import ConfigError
from qpack.eval.adapters import LowRank, delta
from tests.unit.trainer.model.tiny import some_tokens, tiny

EVERYTHING = ("*.c_q", "*.c_k", "*.c_v", "*.proj", "*.fc", "head")
VARIANTS: list[dict[str, Any]] = [
    {"tie_embeddings": False},
    {"tie_embeddings": False, "layer_order": [0, 1, 2, 1, 2, 3, 4]},
    {"tie_embeddings": False, "engram": "logit", "engram_rows": 31, "engram_dim": 5},
]


def drawn(low_rank: LowRank, count: int) -> list[Tensor]:
    """Adapters of that many documents that have learned something, each its own."""
    generator = torch.Generator().manual_seed(3)
    return [
        torch.empty_like(weight, dtype=torch.float64).normal_(0.0, 0.3, generator=generator)
        for weight in low_rank.start(count, 0)
    ]


def merged(model: nn.Module, low_rank: LowRank, weights: list[Tensor], row: int) -> nn.Module:
    """The same model with each W replaced by W + BA of document `row`."""
    with torch.no_grad():
        for i, target in enumerate(low_rank.targets):
            name = "lm_head" if target.name == "head" else target.name
            linear = model.get_submodule(name)
            linear.weight += weights[2 * i + 1][row] @ weights[2 * i][row]
    return model


@pytest.mark.parametrize("overrides", VARIANTS, ids=str)
@pytest.mark.parametrize("scored_from", [0, 3])
def test_each_row_is_the_model_with_its_own_weights(
    overrides: dict[str, Any], scored_from: int
) -> None:
    low_rank = LowRank(tiny(**overrides), EVERYTHING, rank=2, window=9)
    weights, tokens = drawn(low_rank, 3), some_tokens(3, 9)
    with torch.no_grad():
        found = low_rank.logits(tokens, weights, scored_from=scored_from)
        for row in range(3):
            model = merged(tiny(**overrides), low_rank, weights, row)
            expected = model(tokens[row : row + 1])[:, scored_from:]
            torch.testing.assert_close(found[row : row + 1], expected)


def test_fresh_adapters_change_nothing_and_no_hook_stays() -> None:
    model, tokens = tiny(), some_tokens(2, 9)
    low_rank = LowRank(model, EVERYTHING, rank=2, window=9)
    weights = [weight.double() for weight in low_rank.start(2, 0)]
    with torch.no_grad():
        torch.testing.assert_close(low_rank.logits(tokens, weights), model(tokens))
    assert not any(module._forward_hooks for module in model.modules())


def test_all_documents_begin_alike_and_by_the_seed() -> None:
    low_rank = LowRank(tiny(), ("*.c_q", "head"), rank=2, window=9)
    before = torch.get_rng_state()
    first, other, fewer = low_rank.start(3, 7), low_rank.start(3, 8), low_rank.start(1, 7)
    assert torch.equal(before, torch.get_rng_state())
    for i, target in enumerate(low_rank.targets):
        a, b = first[2 * i], first[2 * i + 1]
        assert a.shape == (3, 2, target.inputs) and b.shape == (3, target.outputs, 2)
        assert torch.equal(a[0], a[2]) and torch.equal(a[:1], fewer[2 * i])
        assert not torch.equal(a, other[2 * i]) and not b.any()
        assert a.abs().max() <= target.inputs**-0.5


def test_a_linear_that_is_never_called_is_refused() -> None:
    """A model may multiply by a weight itself: then nothing would be adapted, and nobody told."""

    class Fused(nn.Module):
        vocab_size = 7

        def __init__(self) -> None:
            super().__init__()
            self.table, self.asked = nn.Embedding(7, 4), nn.Linear(4, 4)
            self.passed_by = nn.Linear(4, 7)

        def forward(self, tokens: Tensor) -> Tensor:
            return self.asked(self.table(tokens)) @ self.passed_by.weight.T

    model = Fused()
    LowRank(model, ("asked",), rank=2, window=9)
    with pytest.raises(ConfigError, match="does not call them") as caught:
        LowRank(model, ("*",), rank=2, window=9)
    assert caught.value.items == ("passed_by",)
    assert not any(module._forward_hooks for module in model.modules())


def test_a_delta_of_any_number_of_axes() -> None:
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(shape, generator=generator) for shape in ((2, 3, 4), (2, 5, 3)))
    for shape in ((2, 4), (2, 6, 4), (2, 6, 7, 4)):
        x = torch.randn(shape, generator=generator)
        expected = torch.stack([x[row] @ a[row].T @ b[row].T for row in range(2)])
        torch.testing.assert_close(delta(x, a, b), expected)
