from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from qpack.checkpoint import build_model
from qpack.errors import ConfigError, DataError
from qpack.eval import batches
from qpack.eval.bpb import compare, score
from qpack.importing import import_file
from qpack.tokenizer import Tokenizer
from qpack.tokens import read_shard

MakeModel = Callable[[Tensor], nn.Module]

# Three tokens: <s>, "_a" (a space and a letter) and "bc".
TABLE = [[0.0, 1.0, 2.0], [0.5, -1.0, 0.25], [3.0, 0.0, -2.0]]
STREAM = np.array([0, 1, 2, 2, 1, 0, 2], dtype=np.uint16)


@pytest.fixture
def three() -> Tokenizer:
    return Tokenizer(
        path=Path("three.model"),
        sha256="",
        piece_texts=(b"", b"a", b"bc"),
        piece_bytes=np.array([0, 1, 2]),
        leading_space=np.array([False, True, False]),
        boundary=np.array([True, False, False]),
        _processor=None,
    )


def nll(prev: int, target: int, table: list[list[float]] = TABLE) -> float:
    row = table[prev]
    return math.log(sum(math.exp(value) for value in row)) - row[target]


def pairs() -> list[tuple[int, int]]:
    values = STREAM.tolist()
    return list(pairwise(values))


class Recurrent(nn.Module):
    """Logits depend on every earlier token: windows matter, and so does causality."""

    def __init__(self, vocab_size: int, width: int, generator: torch.Generator) -> None:
        super().__init__()
        self.vocab_size = vocab_size
        self.embed = nn.Parameter(torch.randn(vocab_size, width, generator=generator))
        self.head = nn.Parameter(torch.randn(width, vocab_size, generator=generator))

    def forward(self, tokens: Tensor) -> Tensor:
        return self.embed[tokens].cumsum(1).tanh() @ self.head


def stream(size: int, vocab_size: int, generator: torch.Generator) -> np.ndarray:
    return torch.randint(vocab_size, (size,), generator=generator).numpy().astype(np.uint16)


def test_three_tokens_by_hand(three: Tokenizer, table_model: MakeModel) -> None:
    got = score(table_model(torch.tensor(TABLE)), STREAM, three, window=4)
    nats = math.fsum(nll(prev, target) for prev, target in pairs())
    # <s> "_a" (1: no space after a boundary) "bc" "bc" "_a" (2) <s> "bc"
    assert got.bytes == 1 + 2 + 2 + 2 + 0 + 2
    assert got.tokens == 6
    assert got.nats == pytest.approx(nats, rel=1e-12, abs=0)
    assert got.bpb == pytest.approx(nats / math.log(2) / 9, rel=1e-12, abs=0)
    assert got.kl is None
    assert (got.window, got.stride) == (4, 4)


def test_kl_by_hand(three: Tokenizer, table_model: MakeModel) -> None:
    other = [[0.1 * (i + j) for j in range(3)] for i in range(3)]
    other = torch.tensor(other).tolist()  # what float32 holds
    reference, candidate = (table_model(torch.tensor(table)) for table in (TABLE, other))
    kl = math.fsum(
        math.exp(-nll(prev, v)) * (nll(prev, v, other) - nll(prev, v))
        for prev, _ in pairs()
        for v in range(3)
    )
    first, second = compare(reference, candidate, STREAM, three, window=4)
    assert second.kl == pytest.approx(kl / 6, rel=1e-12, abs=0)
    assert first.kl is None
    assert first.nats == score(reference, STREAM, three, window=4).nats
    assert second.nats == score(candidate, STREAM, three, window=4).nats
    assert score(candidate, STREAM, three, window=4, against=reference).kl == second.kl


def test_a_model_is_at_no_distance_from_itself(three: Tokenizer, table_model: MakeModel) -> None:
    model = table_model(torch.tensor(TABLE))
    assert compare(model, model, STREAM, three)[1].kl == 0.0


@pytest.mark.parametrize(("window", "stride"), [(16, 16), (16, 5), (64, 1)])
def test_batches_do_not_matter(
    tokenizer: Tokenizer, generator: torch.Generator, window: int, stride: int
) -> None:
    model = Recurrent(tokenizer.vocab_size, 24, generator)
    other = Recurrent(tokenizer.vocab_size, 24, generator)
    tokens = stream(161, tokenizer.vocab_size, generator)
    scores = [
        score(model, tokens, tokenizer, window=window, stride=stride, batch=batch, against=other)
        for batch in (1, 3, 32, None)
    ]
    for got in scores:
        assert got.nats == pytest.approx(scores[0].nats, rel=1e-9)
        assert got.kl == pytest.approx(scores[0].kl, rel=1e-9)
        assert (got.bytes, got.tokens) == (scores[0].bytes, 160)


def test_blocks_do_not_matter(
    tokenizer: Tokenizer, generator: torch.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = Recurrent(tokenizer.vocab_size, 8, generator)
    tokens = stream(200, tokenizer.vocab_size, generator)
    whole = score(model, tokens, tokenizer, window=50)
    monkeypatch.setitem(batches.BLOCK_ELEMENTS, "cpu", 1)
    assert score(model, tokens, tokenizer, window=50).nats == pytest.approx(whole.nats, rel=1e-13)


def test_sliding_windows_give_each_target_its_context(
    tokenizer: Tokenizer, generator: torch.Generator
) -> None:
    """Against a slow reference: one forward pass for every target."""
    model = Recurrent(tokenizer.vocab_size, 8, generator)
    tokens = stream(40, tokenizer.vocab_size, generator)
    expected = 0.0
    for target in range(1, 40):
        # Windows of 8 every 3 tokens: the window that first reaches the target.
        start = 3 * max(0, math.ceil((target - 8) / 3))
        context = torch.from_numpy(tokens[start:target].astype(np.int64))
        logs = model(context[None])[0, -1].detach().double().log_softmax(-1)
        expected -= float(logs[int(tokens[target])])
    got = score(model, tokens, tokenizer, window=8, stride=3)
    assert got.nats == pytest.approx(expected, rel=1e-7)


def test_max_tokens_counts_targets(three: Tokenizer, table_model: MakeModel) -> None:
    model = table_model(torch.tensor(TABLE))
    got = score(model, STREAM, three, max_tokens=2)
    assert (got.tokens, got.bytes) == (2, 3)
    assert got.nats == pytest.approx(nll(0, 1) + nll(1, 2), rel=1e-12)
    assert score(model, STREAM, three, max_tokens=100).tokens == 6


def test_a_score_is_a_probability(tokenizer: Tokenizer, generator: torch.Generator) -> None:
    """Over every possible last token the scored probabilities sum to 1."""
    model = Recurrent(tokenizer.vocab_size, 8, generator)
    tokens = stream(10, tokenizer.vocab_size, generator)
    before = score(model, tokens[:-1], tokenizer).nats
    total = 0.0
    for last in range(tokenizer.vocab_size):
        tokens[-1] = last
        total += math.exp(before - score(model, tokens, tokenizer).nats)
    assert total == pytest.approx(1.0, abs=1e-5)


def test_the_future_does_not_matter(tokenizer: Tokenizer, generator: torch.Generator) -> None:
    model = Recurrent(tokenizer.vocab_size, 8, generator)
    tokens = stream(100, tokenizer.vocab_size, generator)
    changed = tokens.copy()
    changed[51:] = stream(49, tokenizer.vocab_size, generator)
    options = {"window": 16, "stride": 4, "max_tokens": 50}
    first = score(model, tokens, tokenizer, **options).nats
    assert score(model, changed, tokenizer, **options).nats == first
    assert score(model, tokens[:51], tokenizer, window=16, stride=4).nats == first


def test_logits_of_a_batch_are_bounded(
    three: Tokenizer, table_model: MakeModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = table_model(torch.tensor(TABLE))
    monkeypatch.setattr(batches, "LOGITS_BYTES", (2 * 5 + 1) * 3 * 4)
    score(model, np.ones(100, dtype=np.uint16), three, window=5)
    assert max(math.prod(shape) for shape in model.shapes) == 2 * 5


def test_the_callers_state_is_unchanged(three: Tokenizer, table_model: MakeModel) -> None:
    model = nn.Sequential(table_model(torch.tensor(TABLE)), nn.Dropout(0.9)).train()
    model.vocab_size = 3
    model[0].eval()
    before = torch.get_rng_state()
    first = score(model, STREAM, three).nats
    assert score(model, STREAM, three).nats == first
    assert [part.training for part in model.modules()] == [True, False, True]
    assert torch.is_grad_enabled()
    assert torch.equal(torch.get_rng_state(), before)


def test_what_does_not_belong_together(three: Tokenizer, table_model: MakeModel) -> None:
    model = table_model(torch.tensor(TABLE))
    with pytest.raises(DataError, match="3 tokens, the model 4"):
        score(table_model(torch.zeros(4, 4)), STREAM, three)
    with pytest.raises(DataError, match="3 tokens, the model 4"):
        compare(model, table_model(torch.zeros(4, 4)), STREAM, three)
    with pytest.raises(DataError, match="beyond the vocabulary"):
        score(model, STREAM + np.uint16(1), three)
    with pytest.raises(DataError, match="no vocab_size"):
        score(nn.Linear(3, 3), STREAM, three)
    with pytest.raises(DataError, match="no target"):
        score(model, STREAM[:1], three)
    for option in ("max_tokens", "batch"):
        with pytest.raises(ConfigError, match=option):
            score(model, STREAM, three, **{option: 0})


def test_text_without_bytes_has_no_score(three: Tokenizer, table_model: MakeModel) -> None:
    with pytest.raises(DataError, match="no text"):
        score(table_model(torch.tensor(TABLE)), np.zeros(5, dtype=np.uint16), three)


def test_a_score_that_is_not_finite(three: Tokenizer, table_model: MakeModel) -> None:
    good, bad = torch.tensor(TABLE), torch.full((3, 3), math.nan)
    with pytest.raises(DataError, match="no finite score"):
        compare(table_model(good), table_model(bad), STREAM, three)


def test_what_is_no_logits(three: Tokenizer, table_model: MakeModel) -> None:
    model = table_model(torch.zeros(3, 2))
    with pytest.raises(DataError, match=r"TableModel gave \(1, 6, 2\), not .* \(1, 6, 3\)"):
        score(model, STREAM, three)


def test_bytes_of_the_reference_text(shared_data: Path) -> None:
    """The figure of the data's own description: 131,072 targets are 315,259 bytes."""
    tokenizer = Tokenizer.load(shared_data / "tokenizers/fineweb_1024_bpe.model")
    tokens = read_shard(shared_data / "shards/fineweb_val_head_sp1024.bin")
    assert tokenizer.text_bytes(tokens[: 131_072 + 1]) == 315_259


@pytest.mark.slow
def test_the_reference_score(shared_data: Path) -> None:
    """The figures of the data's own description, of a model that another program trained."""
    model = build_model(import_file(shared_data / "models/golf27m_sp1024.safetensors"))
    tokenizer = Tokenizer.load(shared_data / "tokenizers/fineweb_1024_bpe.model")
    tokens = read_shard(shared_data / "shards/fineweb_val_head_sp1024.bin")
    got = score(model, tokens, tokenizer, max_tokens=131_072)
    assert (got.tokens, got.bytes) == (131_072, 315_259)
    assert got.nats == pytest.approx(335_190.080, abs=0.5)  # float32 sums differ by machine
    assert got.bpb == pytest.approx(1.533904, abs=5e-6)
