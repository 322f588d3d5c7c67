"""Each document has adapters of its own, which learn from it alone and from what was scored."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from qpack.errors import ConfigError, DataError
from qpack.eval import lora
from qpack.eval.lora import LoraAdapted
from qpack.eval.lora_settings import LoraSettings
from qpack.eval.network import Network
from qpack.eval.predictor import Predictor
from tests.unit.trainer.model.tiny import BOS, tiny
from tests.unit.trainer.model.variants import NTK, RECUR, variant_id

VOCAB = 37
CHUNK = 6
LENGTHS = (30, 7, 1, 19, 13)
"""Of documents, BOS included."""


def document(length: int, seed: int) -> NDArray[np.uint16]:
    """Few different tokens, so that there is something to learn."""
    tokens = np.random.default_rng(seed).choice([3, 4, 7, 11], length).astype(np.uint16)
    tokens[0] = BOS
    return tokens


def documents() -> list[NDArray[np.uint16]]:
    return [document(length, seed) for seed, length in enumerate(LENGTHS)]


def stream(parts: list[NDArray[np.uint16]]) -> NDArray[np.uint16]:
    """The documents one after another, and the BOS that ends the last."""
    return np.concatenate([*parts, np.array([BOS], dtype=np.uint16)])


def adapted(overrides: dict[str, Any] | None = None, **changes: Any) -> LoraAdapted:
    usual = {"chunk_tokens": CHUNK, "rank": 2, "learning_rate": 0.05}
    model = tiny(dtype=torch.float32, **(overrides or {"num_layers": 2}))
    network = Network(model, window=12, isolate=BOS)
    return LoraAdapted(network, LoraSettings(**{**usual, **changes}))


def read(predictor: Predictor, tokens: NDArray[np.uint16]) -> NDArray[np.float64]:
    """The rows of a session, (n - 1, V)."""
    session = predictor.start(int(tokens[0]))
    rows = []
    for token in tokens[1:].tolist():
        rows.append(session.log_probs())
        session.observe(token)
    return np.stack(rows)


class Plain(nn.Module):
    """A model of other names, without a cache, a softcap or anything to skip."""

    vocab_size = VOCAB

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.table = nn.Embedding(VOCAB, 8)
        self.middle, self.out = nn.Linear(8, 8), nn.Linear(8, VOCAB)
        for parameter in self.parameters():
            nn.init.normal_(parameter, generator=generator)

    def forward(self, tokens: Tensor) -> Tensor:
        logits: Tensor = self.out(self.middle(self.table(tokens)).cumsum(1))
        return logits


@pytest.mark.parametrize(
    ("overrides", "changes"),
    [
        ({}, {}),
        ({}, {"polyak": 0.8, "temperature": 0.9, "targets": ("*.proj", "*.fc", "head")}),
        ({**RECUR, "xsa_layers": [1, 4], "smear_mask_bos": True, "bos_token": BOS}, {}),
        ({"num_layers": 2, **NTK, "engram": "logit", "engram_rows": 31, "engram_dim": 5}, {}),
    ],
    ids=variant_id,
)
def test_both_forms_agree(overrides: dict[str, Any], changes: dict[str, Any]) -> None:
    tokens, predictor = stream(documents()), adapted(overrides, **changes)
    scores, rows = predictor.score(tokens), read(predictor, tokens)
    np.testing.assert_allclose(np.exp(rows).sum(1), 1.0, atol=1e-9)
    targets = tokens[1:].astype(np.int64)
    np.testing.assert_allclose(scores, rows[np.arange(len(targets)), targets], atol=1e-3)
    assert np.abs(scores - predictor.control.score(tokens)).max() > 0.05, "it has learned"


@pytest.mark.parametrize("changes", [{}, {"polyak": 0.9}], ids=str)
def test_without_a_rate_documents_are_scored_alone(changes: dict[str, float]) -> None:
    tokens = stream(documents())
    predictor = adapted(learning_rate=0.0, **changes)
    np.testing.assert_allclose(predictor.score(tokens), predictor.control.score(tokens), atol=2e-5)


@pytest.mark.parametrize("batch_tokens", [12, 24, 1000])
def test_documents_do_not_touch_each_other(
    monkeypatch: pytest.MonkeyPatch, batch_tokens: int
) -> None:
    """In another order, alone, and in batches of another number, a document scores the same."""
    monkeypatch.setitem(lora.BATCH_TOKENS, "cpu", batch_tokens)
    predictor, parts = adapted(clip=0.01), documents()
    alone = [predictor.score(stream([part])) for part in parts]
    together = predictor.score(stream(parts))
    np.testing.assert_allclose(together, np.concatenate(alone), atol=2e-5)
    order = [3, 1, 4, 0, 2]
    moved = predictor.score(stream([parts[i] for i in order]))
    np.testing.assert_allclose(moved, np.concatenate([alone[i] for i in order]), atol=2e-5)


def test_it_learns_what_a_document_is_like() -> None:
    tokens, predictor = stream([document(300, 0)]), adapted()
    scores, control = predictor.score(tokens), predictor.control.score(tokens)
    np.testing.assert_allclose(scores[:CHUNK], control[:CHUNK], atol=2e-5)
    assert scores[150:].mean() > control[150:].mean() + 1.0


def test_no_score_depends_on_what_follows() -> None:
    """Tokens are changed from one on, and it is the first document's last."""
    predictor, tokens = adapted(), stream(documents())
    scores = predictor.score(tokens)
    for i in [1, CHUNK, CHUNK + 1, 2 * CHUNK, 29, 33, 40]:
        other = tokens.copy()
        other[i:] = 20
        changed = predictor.score(other)
        np.testing.assert_allclose(changed[: i - 1], scores[: i - 1], atol=2e-5)
        assert changed[i - 1] != scores[i - 1]
        cut = predictor.score(tokens[: i + 1])
        np.testing.assert_allclose(cut, scores[:i], atol=2e-5)


def test_a_chunk_is_learned_from_before_the_next_target() -> None:
    """Without context, the adapters alone carry a chunk's last target to the next score."""
    network = Network(tiny(dtype=torch.float32, num_layers=2), window=CHUNK, isolate=BOS)
    settings = LoraSettings(chunk_tokens=CHUNK, rank=2, learning_rate=0.05)
    tokens = stream([document(40, 0)])
    other = tokens.copy()
    other[2 * CHUNK] = 20
    for rate, last in [(settings, 39), (LoraSettings(chunk_tokens=CHUNK, learning_rate=0.0), None)]:
        predictor = LoraAdapted(network, rate)
        changed = np.flatnonzero(np.abs(predictor.score(tokens) - predictor.score(other)) > 1e-4)
        assert changed[0] == 2 * CHUNK - 1
        assert changed[-1] == (last if last else 3 * CHUNK - 1)


def test_any_linear_of_any_model() -> None:
    model = Plain()
    before = copy.deepcopy(model.state_dict())
    settings = LoraSettings(chunk_tokens=CHUNK, rank=2, targets=("mid*", "head"))
    predictor = LoraAdapted(Network(model, window=12, isolate=BOS), settings)
    tokens = stream(documents())
    scores, rows = predictor.score(tokens), read(predictor, tokens)
    np.testing.assert_allclose(scores, rows[np.arange(len(scores)), tokens[1:]], atol=1e-3)
    assert np.abs(scores - predictor.control.score(tokens)).max() > 0.01
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not any(module._forward_hooks for module in model.modules())
    assert model.training


def test_temperature_comes_before_the_softcap() -> None:
    tokens = stream([document(CHUNK + 1, 0)])
    capped = adapted({"logit_softcap": 2.0, "num_layers": 2}, learning_rate=0.0, temperature=0.5)
    free = adapted({"logit_softcap": 0.0, "num_layers": 2}, learning_rate=0.0)
    logits = np.array(read(free, tokens))  # up to a constant, which the softcap would see
    with torch.no_grad():
        raw = free.control.model.eval()(torch.from_numpy(tokens[None, :-1].astype(np.int64)))[0]
    expected = (2.0 * torch.tanh(raw / 0.5 / 2.0)).double().log_softmax(-1).numpy()
    np.testing.assert_allclose(read(capped, tokens), expected, atol=1e-4)
    assert np.abs(logits - expected).max() > 0.1


def test_bfloat16_is_near() -> None:
    tokens = stream(documents())
    scores = [adapted(precision=name).score(tokens) for name in ("float32", "bfloat16")]
    gaps = np.abs(scores[0] - scores[1])
    assert 0.0 < gaps.mean() < 0.1
    np.testing.assert_array_equal(gaps[:CHUNK], 0.0)


def test_divergence_is_an_error() -> None:
    with pytest.raises(DataError, match="not finite"):
        adapted(learning_rate=1e30, clip=0.0).score(stream(documents()))


def test_what_cannot_be_is_refused() -> None:
    model = tiny(dtype=torch.float32)
    with pytest.raises(ConfigError) as caught:
        LoraAdapted(Network(model, window=12), LoraSettings(chunk_tokens=5))
    assert len(caught.value.items) == 2
    assert "window 12, 1 does" in caught.value.items[1]
    with pytest.raises(DataError, match="beyond the vocabulary"):
        adapted().score(np.array([BOS, VOCAB]))
    with pytest.raises(ConfigError) as caught:
        adapted(targets=("*.c_x", "*.c_q", "nothing"))
    assert [item.partition(":")[0] for item in caught.value.items] == ["*.c_x", "nothing"]
    assert "c_q" in str(caught.value.hint)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"rank": 0, "epochs": 0, "chunk_tokens": 0, "horizon_chunks": 0}, 4),
        ({"learning_rate": -1.0, "clip": float("inf"), "temperature": 0.0}, 3),
        ({"floor": 1.5, "polyak": 1.0, "targets": (), "precision": "int8"}, 4),
    ],
)
def test_settings_out_of_range(changes: dict[str, Any], named: int) -> None:
    with pytest.raises(ConfigError) as caught:
        LoraSettings(**changes)
    assert len(caught.value.items) == named


def test_the_rate_falls_by_position_alone() -> None:
    settings = LoraSettings(learning_rate=1.0, horizon_chunks=4, floor=0.1)
    rates = [settings.rate(chunk) for chunk in (0, 2, 4, 100)]
    assert rates == pytest.approx([1.0, 0.55, 0.1, 0.1])
