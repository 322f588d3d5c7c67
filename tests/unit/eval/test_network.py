"""A network reads the same contexts in windows and token by token."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from qpack.checkpoint import build_model
from qpack.errors import ConfigError, DataError
from qpack.eval.network import Network
from qpack.eval.predictor import Predictor, RowPredictor
from qpack.importing import import_file
from qpack.tokens import read_shard
from tests.unit.trainer.model.tiny import BOS, tiny
from tests.unit.trainer.model.variants import MIXED, NTK, RECUR, variant_id

VOCAB = 37
READINGS = [
    {"window": 12},
    {"window": 12, "stride": 3},
    {"window": 12, "stride": 11},
    {"window": 64},
    {"window": 12, "isolate": BOS},
    {"window": 12, "stride": 4, "isolate": BOS},
]
MODELS = [
    {},
    {**RECUR, "xsa_layers": [1, 4], "smear_mask_bos": True, "bos_token": BOS},
    {"document_mask": True, "bos_token": BOS},
    {**NTK},
    *MIXED,
]


def text(length: int = 50, *, seed: int = 3) -> NDArray[np.uint16]:
    """A stream of four documents, one of which is a lone BOS; the first has none."""
    tokens = np.random.default_rng(seed).integers(VOCAB, size=length).astype(np.uint16)
    tokens[tokens == BOS] = 0
    tokens[[7, 8, 35]] = BOS
    return tokens


def network(overrides: dict[str, Any] | None = None, **reading: Any) -> Network:
    return Network(tiny(dtype=torch.float32, **(overrides or {})), **reading)


def read(predictor: Predictor, tokens: NDArray[np.uint16]) -> NDArray[np.float64]:
    """The rows of a session, (n - 1, V)."""
    session = predictor.start(int(tokens[0]))
    rows = []
    for token in tokens[1:].tolist():
        rows.append(session.log_probs())
        session.observe(token)
    return np.stack(rows)


class Forgetful(nn.Module):
    """Logits from the last two tokens, with no cache and nothing to skip."""

    vocab_size = VOCAB

    def __init__(self) -> None:
        super().__init__()
        table = torch.randn(2, VOCAB, VOCAB, generator=torch.Generator().manual_seed(0))
        self.table = nn.Parameter(table)

    def forward(self, tokens: Tensor) -> Tensor:
        earlier = torch.nn.functional.pad(tokens[:, :-1], (1, 0))
        return self.table[0, tokens] + self.table[1, earlier]


@pytest.mark.parametrize("reading", READINGS, ids=str)
@pytest.mark.parametrize("overrides", MODELS, ids=variant_id)
def test_both_forms_agree(overrides: dict[str, Any], reading: dict[str, Any]) -> None:
    """In float64, where only the context can make a difference."""
    tokens = text()
    predictor = Network(tiny(**overrides), **reading)
    rows = read(predictor, tokens)
    targets = tokens[1:].astype(np.int64)
    np.testing.assert_allclose(np.exp(rows).sum(1), 1.0, atol=1e-12)
    expected = rows[np.arange(len(targets)), targets]
    np.testing.assert_allclose(predictor.score(tokens), expected, atol=2e-5)
    blocks = list(predictor.rows(tokens))
    np.testing.assert_array_equal(np.concatenate([goal for _, goal in blocks]), targets)
    np.testing.assert_allclose(np.concatenate([block for block, _ in blocks]), rows, atol=2e-5)


@pytest.mark.parametrize("overrides", [{}, MIXED[1]], ids=variant_id)
def test_both_forms_agree_in_float32(overrides: dict[str, Any]) -> None:
    tokens = text()
    predictor = network(overrides, window=12, stride=4)
    rows = read(predictor, tokens)
    expected = rows[np.arange(len(tokens) - 1), tokens[1:].astype(np.int64)]
    np.testing.assert_allclose(predictor.score(tokens), expected, atol=1e-4)


@pytest.mark.parametrize("reading", READINGS, ids=str)
def test_each_target_is_scored_in_its_window(reading: dict[str, Any]) -> None:
    """Against a slow reference: the context of every target, by the definition of the windows."""
    tokens = text()
    window, isolate = reading["window"], reading.get("isolate")
    stride = reading.get("stride", window)
    model = tiny(dtype=torch.float32)
    found = Network(model, **reading).score(tokens)
    for target in range(1, len(tokens)):
        begins = 0
        if isolate is not None:
            before = np.flatnonzero(tokens[:target] == isolate)
            begins = int(before[-1]) if before.size else 0
        local = target - begins
        start = begins + stride * max(0, -(-(local - window) // stride))
        context = torch.from_numpy(tokens[start:target].astype(np.int64))
        with torch.no_grad():
            logs = model(context[None])[0, -1].double().log_softmax(-1)
        assert found[target - 1] == pytest.approx(float(logs[int(tokens[target])]), abs=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("reading", [{"window": 128}, {"window": 128, "stride": 48}], ids=str)
def test_a_real_model_reads_the_same_in_both_forms(
    shared_data: Path, reading: dict[str, Any]
) -> None:
    model = build_model(import_file(shared_data / "models/golf27m_sp1024.safetensors"))
    shard = read_shard(shared_data / "shards/fineweb_val_head_sp1024.bin")
    tokens = np.array(shard[:400])
    predictor = Network(model, **reading)
    rows = read(predictor, tokens)
    scores = predictor.score(tokens)
    np.testing.assert_allclose(rows[np.arange(399), tokens[1:]], scores, atol=1e-4)
    alone = Network(model, **reading, batch=1).score(tokens)
    assert alone.sum() == pytest.approx(scores.sum(), rel=1e-9)


def test_other_documents_do_not_matter() -> None:
    tokens, changed = text(), text(seed=4)
    changed[8:36] = tokens[8:36]  # one document with the BOS after it
    predictor = network(window=12, stride=4, isolate=BOS)
    first, second = predictor.score(tokens), predictor.score(changed)
    np.testing.assert_allclose(first[8:35], second[8:35], atol=1e-6)
    assert not np.allclose(first[:6], second[:6])
    together = network(window=12, stride=4)
    assert not np.allclose(together.score(tokens)[8:12], together.score(changed)[8:12])


@pytest.mark.parametrize("reading", READINGS, ids=str)
def test_batches_do_not_matter(reading: dict[str, Any]) -> None:
    """In float64, for the rounding of float32 products does depend on their shapes."""
    tokens, model = text(161), tiny(**MIXED[1])
    totals = [Network(model, **reading, batch=n).score(tokens).sum() for n in (1, 3, 32)]
    assert totals == pytest.approx([totals[0]] * 3, rel=1e-9)


def test_a_model_of_another_class() -> None:
    tokens = text()
    predictor = Network(Forgetful(), window=12, stride=5)
    rows = read(predictor, tokens)
    expected = rows[np.arange(len(tokens) - 1), tokens[1:].astype(np.int64)]
    np.testing.assert_allclose(predictor.score(tokens), expected, atol=1e-6)


def test_a_session_after_the_model_has_changed() -> None:
    """Both forms of learning between chunks need it: nothing of the old weights stays."""
    tokens = text()[:20].tolist()
    predictor = network(window=12, stride=4)
    session, fresh = (predictor.start(tokens[0]) for _ in range(2))
    for token in tokens[1:]:
        session.log_probs()
        session.observe(token)
        fresh.observe(token)
    with torch.no_grad():
        predictor.model.blocks[0].attn.c_k.weight.mul_(1.5)  # type: ignore[union-attr,index]
    session.reread()
    np.testing.assert_allclose(session.log_probs(), fresh.log_probs(), atol=1e-5)


def test_a_session_gives_one_row_that_cannot_be_changed() -> None:
    session = network(window=12).start(3)
    row = session.log_probs()
    assert session.log_probs() is row
    with pytest.raises(ValueError, match="read-only"):
        row[0] = 0.0


def test_modes_and_gradients_are_the_callers() -> None:
    predictor = network(window=12)
    predictor.model.train()
    for _ in predictor.rows(text()):
        assert predictor.model.training
        assert torch.is_grad_enabled()
    predictor.score(text())
    assert all(part.training for part in predictor.model.modules())


def test_what_it_is_and_says() -> None:
    predictor = network(window=12, stride=4, isolate=BOS)
    assert isinstance(predictor, RowPredictor)
    assert predictor.name == "sliding by 4, documents apart"
    assert network(window=12).name == "disjoint"
    assert predictor.settings == {"window": 12, "stride": 4, "isolate": BOS}
    other = predictor.with_model(tiny(seed=1, dtype=torch.float32))
    assert (other.settings, other.name) == (predictor.settings, predictor.name)
    assert not np.allclose(other.score(text()), predictor.score(text()))


def test_what_is_refused() -> None:
    with pytest.raises(ConfigError, match="stride 13") as caught:
        network(window=12, stride=13, batch=0)
    assert len(caught.value.items) == 2
    with pytest.raises(DataError, match="no vocab_size"):
        Network(nn.Linear(3, 3))
    with pytest.raises(DataError, match="beyond the vocabulary"):
        network().score(np.array([1, VOCAB]))
    for isolate in (None, BOS):
        with pytest.raises(DataError, match="no target"):
            network(isolate=isolate).score(np.array([1]))
