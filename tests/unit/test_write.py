"""Text goes on as the model says, the same for the same seed."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from qpack.checkpoint import load
from qpack.errors import ConfigError, DataError
from qpack.options import PackOptions
from qpack.progress import Silent, Task
from qpack.tokenizer import Tokenizer
from qpack.write import WriteSettings, choose, write

GREEDY = WriteSettings(num_tokens=30, temperature=0.0)


class Script(nn.Module):
    """Says what follows each token; without parameters or a cache."""

    def __init__(self, vocab_size: int, after: dict[int, int]) -> None:
        super().__init__()
        self.vocab_size = vocab_size
        self.after = after

    def forward(self, tokens: Tensor) -> Tensor:
        following = tokens.clone().apply_(lambda token: self.after.get(token, 0))
        return 50.0 * nn.functional.one_hot(following, self.vocab_size).float()


def script(tokenizer: Tokenizer, text: str) -> Script:
    tokens = [tokenizer.bos, *tokenizer.encode(text)]
    assert len(set(tokens)) == len(tokens), "each token may have one successor"
    return Script(tokenizer.vocab_size, dict(pairwise(tokens)))


def test_it_goes_on_to_the_end_of_the_document(tokenizer: Tokenizer) -> None:
    text = "jumps over the"
    assert "".join(write(script(tokenizer, text), tokenizer, "", GREEDY)) == text
    assert "".join(write(script(tokenizer, text), tokenizer, "jumps", GREEDY)) == " over the"
    assert "".join(write(script(tokenizer, text), tokenizer, "jumps ", GREEDY)) == "over the"


def test_it_says_how_far_it_is(tokenizer: Tokenizer) -> None:
    steps: list[float | None] = []

    class Steps(Silent):
        @contextmanager
        def stage(self, name: str, *, total: float | None = None, unit: str = "") -> Iterator[Task]:
            steps.append(total)
            yield self

        def advance(self, amount: float = 1.0, *, note: str = "") -> None:
            steps.append(amount)

    text = "jumps over the"
    list(write(script(tokenizer, text), tokenizer, "jumps", GREEDY, progress=Steps()))
    written = len(tokenizer.encode(text)) - len(tokenizer.encode("jumps"))
    assert steps == [30, *[1.0] * written]


def test_pieces_are_whole_characters(tokenizer: Tokenizer) -> None:
    """U+1F600 is four byte pieces to this tokenizer: they come as one."""
    text = "\U0001f600"
    assert len(tokenizer.encode(text)) >= 4
    *_, last = write(script(tokenizer, text), tokenizer, "", GREEDY)
    assert last == text


def test_a_character_that_is_cut_is_shown_as_such(tokenizer: Tokenizer) -> None:
    model = script(tokenizer, "\U0001f600")
    short = replace(GREEDY, num_tokens=2)
    assert "".join(write(model, tokenizer, "", short)) == "\ufffd"


def test_the_same_seed_gives_the_same_text(given: PackOptions, tokenizer: Tokenizer) -> None:
    model = load(given.checkpoint)

    def text(**more: Any) -> str:
        settings = WriteSettings(num_tokens=40, window=16, temperature=1.5, **more)
        return "".join(write(model, tokenizer, "The dog", settings))

    assert text() == text()
    assert text() != text(seed=1)
    assert text(top_k=1) == text(top_k=1, seed=1)


def test_top_k_and_ties() -> None:
    logs = torch.tensor([0.1, 0.4, 0.1, 0.4]).log()
    generator = torch.Generator().manual_seed(0)
    two = WriteSettings(top_k=2, temperature=5.0)
    drawn = {choose(logs, two, generator) for _ in range(60)}
    assert drawn == {1, 3}
    assert choose(logs, WriteSettings(top_k=1), generator) == 1
    assert choose(logs, WriteSettings(temperature=0.0), generator) == 1


def test_temperature_is_an_exponent() -> None:
    logs = torch.tensor([0.8, 0.2]).log()
    generator = torch.Generator().manual_seed(0)
    settings = WriteSettings(temperature=2.0)
    share = sum(choose(logs, settings, generator) for _ in range(4000)) / 4000
    expected = math.sqrt(0.2) / (math.sqrt(0.2) + math.sqrt(0.8))
    assert share == pytest.approx(expected, abs=0.03)


@pytest.mark.parametrize("temperature", [1e-320, 1e-9])
def test_a_small_temperature_takes_the_likeliest(temperature: float) -> None:
    logs = torch.tensor([0.2, 0.5, 0.3], dtype=torch.float64).log()
    settings = WriteSettings(temperature=temperature)
    assert choose(logs, settings, torch.Generator().manual_seed(0)) == 1


def test_bad_settings_are_all_named() -> None:
    with pytest.raises(ConfigError) as caught:
        WriteSettings(num_tokens=0, temperature=-1.0, top_k=0, window=0, seed=-1)
    assert len(caught.value.items) == 5
    with pytest.raises(ConfigError) as caught:
        WriteSettings(window=1 << 17, seed=1 << 64)
    assert [item.split()[0] for item in caught.value.items] == ["window", "seed"]


def test_models_that_cannot_write(tokenizer: Tokenizer) -> None:
    with pytest.raises(DataError, match="tokens"):
        list(write(Script(7, {}), tokenizer, "", GREEDY))
    with pytest.raises(DataError, match="no text"):
        list(write(script(tokenizer, "The"), tokenizer, "The\udcff", GREEDY))
    with pytest.raises(DataError, match="not finite"):
        choose(torch.tensor([math.nan, 0.0]), GREEDY, torch.Generator())
