"""A model that remembers gives what the model gives, and asks it once."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from qpack.errors import ConfigError
from qpack.eval.remember import Remembering


class Counting(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.vocab_size = 4
        self.table = nn.Parameter(torch.arange(16.0).reshape(4, 4))
        self.calls = 0

    def forward(self, tokens: Tensor) -> tuple[Tensor, str]:
        self.calls += 1
        return self.table[tokens], "more"


def test_equal_batches_are_computed_once() -> None:
    inner = Counting()
    model = Remembering(inner)
    tokens = torch.tensor([[0, 3, 1, 2]])
    first, again = model(tokens), model(tokens.clone())
    assert torch.equal(first, inner.table[tokens]) and again is first
    assert not first.requires_grad
    assert inner.calls == 1 and model.vocab_size == 4
    assert model(tokens.reshape(2, 2)).shape == (2, 2, 4)  # the same bytes, another batch
    assert not torch.equal(model(tokens.flip(1)), first)
    assert inner.calls == 3


def test_beyond_the_limit_nothing_is_kept() -> None:
    inner = Counting()
    model = Remembering(inner, limit_bytes=40)  # one token takes 16
    two, one = torch.tensor([[1, 2]]), torch.tensor([[3]])
    for _ in range(2):
        assert torch.equal(model(two), inner.table[two])
        assert torch.equal(model(one), inner.table[one])
    assert inner.calls == 3


class Mapping(nn.Module):
    def forward(self, tokens: Tensor) -> dict[str, Tensor]:
        return {"logits": tokens}


def test_what_is_no_tensor_is_refused() -> None:
    with pytest.raises(ConfigError, match="returns dict, not a tensor"):
        Remembering(Mapping())(torch.zeros(2))
