from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor, nn

from qpack.checkpoint import build_model
from qpack.errors import CalibrationError, ConfigError
from qpack.generate import sample_tokens
from qpack.progress import Silent

from .models import gpt_checkpoint


class Counter(Silent):
    """Adds up what a stage reports."""

    done, total = 0.0, 0.0

    @contextmanager
    def stage(self, name: str, *, total: float | None = None, unit: str = "") -> Iterator[Counter]:
        self.total += total or 0.0
        yield self

    def advance(self, amount: float = 1.0, *, note: str = "") -> None:
        self.done += amount


class Successor(nn.Module):
    """Almost always says the next number; without parameters or a cache."""

    def __init__(self, vocab_size: int, certainty: float = 100.0) -> None:
        super().__init__()
        self.vocab_size = vocab_size
        self.certainty = certainty

    def forward(self, tokens: Tensor) -> Tensor:
        assert not self.training
        following = (tokens + 1) % self.vocab_size
        return self.certainty * nn.functional.one_hot(following, self.vocab_size).float()


class Uncached(nn.Module):
    """A model without its cache."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.vocab_size = model.vocab_size

    def forward(self, tokens: Tensor) -> Tensor:
        return self.model(tokens)


def test_each_token_follows_from_those_before() -> None:
    tokens = sample_tokens(Successor(11), num_tokens=100, sequence=8, batch=5)
    assert tokens.shape == (13, 8)  # whole sequences: at least 100 tokens
    assert tokens.dtype == torch.int64
    assert torch.equal(tokens[:, 1:], (tokens[:, :-1] + 1) % 11)
    assert len(tokens[:, 0].unique()) > 5  # starts are drawn from the whole vocabulary


def test_a_cache_changes_the_speed_alone() -> None:
    model = build_model(gpt_checkpoint())
    settings = {"num_tokens": 96, "sequence": 24, "batch": 3, "seed": 5}
    with_cache = sample_tokens(model, **settings)
    assert torch.equal(with_cache, sample_tokens(Uncached(model), **settings))


def test_the_seed_decides_and_the_global_generator_is_left_alone() -> None:
    model = build_model(gpt_checkpoint())
    before = torch.get_rng_state()
    first, again, other = (
        sample_tokens(model, num_tokens=64, sequence=16, seed=s) for s in (0, 0, 1)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(before, torch.get_rng_state())


def test_temperature_is_that_of_the_softmax() -> None:
    """Logits 0.8 ln 3 and 0 at temperature 0.8: the successor has 3 of 4 chances."""
    model = Successor(2, certainty=0.8 * torch.tensor(3.0).log().item())
    tokens = sample_tokens(model, num_tokens=8_192, sequence=64, temperature=0.8, batch=128)
    changed = (tokens[:, 1:] != tokens[:, :-1]).float().mean().item()
    assert changed == pytest.approx(0.75, abs=0.02)


def test_progress_counts_every_token() -> None:
    counter = Counter()
    sample_tokens(Successor(3), num_tokens=21, sequence=4, batch=4, progress=counter)
    assert counter.done == counter.total == 24


def test_a_model_that_overflows_is_refused() -> None:
    with pytest.raises(CalibrationError, match="not finite"):
        sample_tokens(Successor(3, certainty=float("inf")), num_tokens=4, sequence=4)


def test_the_training_mode_comes_back() -> None:
    model = Successor(3).train()
    sample_tokens(model, num_tokens=4, sequence=4)
    assert model.training


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"num_tokens": 0, "batch": 0}, ["num_tokens = 0", "batch = 0"]),
        ({"sequence": -1}, ["sequence = -1"]),
        ({"temperature": 0.0}, ["temperature = 0.0"]),
        ({"temperature": float("nan")}, ["temperature = nan"]),
        ({"temperature": float("inf")}, ["temperature = inf"]),
    ],
)
def test_settings_out_of_range(change: dict[str, float], named: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        sample_tokens(Successor(3), **{"num_tokens": 8, "sequence": 4, **change})
    assert [item.partition(":")[0] for item in caught.value.items] == named
