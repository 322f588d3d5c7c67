"""A network that learns from what was scored, and from nothing else."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from qpack.errors import ConfigError
from qpack.eval.adapt import Adapted
from qpack.eval.adapt_settings import AdaptSettings
from qpack.eval.network import Network
from qpack.eval.predictor import Predictor, RowPredictor
from tests.unit.trainer.model.tiny import BOS, tiny
from tests.unit.trainer.model.variants import RECUR

VOCAB = 37
CHUNK = 24
READINGS: list[dict[str, Any]] = [
    {"window": 12},
    {"window": 10},  # does not divide the chunk
    {"window": 12, "stride": 5},
    {"window": 40, "stride": 8},  # longer than the chunk
    {"window": 12, "stride": 4, "isolate": BOS},
]


def text(length: int = 110, *, seed: int = 3) -> NDArray[np.uint16]:
    """Few different tokens, so that there is something to learn; BOS now and then."""
    tokens = np.random.default_rng(seed).choice([3, 4, 7, 11], length).astype(np.uint16)
    tokens[[i for i in (30, 31, 77) if i < length]] = BOS
    return tokens


def settings(**changes: Any) -> AdaptSettings:
    usual = {"learning_rate": 0.05, "chunk_tokens": CHUNK, "epochs": 2, "batch": 2}
    return AdaptSettings(**{**usual, **changes})


def network(overrides: dict[str, Any] | None = None, **reading: Any) -> Network:
    model = tiny(dtype=torch.float32, **(overrides or {"num_layers": 2}))
    return Network(model, **(reading or {"window": 12}))


def read(predictor: Predictor, tokens: NDArray[np.uint16]) -> NDArray[np.float64]:
    """The rows of a session, (n - 1, V)."""
    session = predictor.start(int(tokens[0]), num_tokens=len(tokens))
    rows = []
    for token in tokens[1:].tolist():
        rows.append(session.log_probs())
        session.observe(token)
    return np.stack(rows)


@pytest.mark.parametrize(
    ("reading", "changes"),
    [
        *((reading, {}) for reading in READINGS),
        (READINGS[0], {"optimizer": "adamw", "learning_rate": 0.003}),
        (READINGS[2], {"reset": "chunk"}),
    ],
    ids=str,
)
def test_all_forms_agree(reading: dict[str, Any], changes: dict[str, Any]) -> None:
    tokens = text()
    adapted = Adapted(network(**reading), settings(**changes))
    scores = adapted.score(tokens)
    rows = read(adapted, tokens)
    blocks = list(adapted.rows(tokens))
    batched = np.concatenate([part for part, _ in blocks])
    np.testing.assert_array_equal(np.concatenate([goals for _, goals in blocks]), tokens[1:])
    np.testing.assert_allclose(np.exp(rows).sum(1), 1.0, atol=1e-9)
    np.testing.assert_allclose(batched, rows, atol=1e-3)
    targets = tokens[1:].astype(np.int64)
    np.testing.assert_allclose(scores, batched[np.arange(len(targets)), targets], atol=1e-6)
    assert np.abs(scores - adapted.control.score(tokens)).max() > 0.05, "it has learned"


@pytest.mark.parametrize(
    ("reading", "optimizer"),
    [*((reading, "sgd") for reading in READINGS), (READINGS[0], "adamw")],
    ids=str,
)
def test_without_a_rate_it_is_the_network(reading: dict[str, Any], optimizer: str) -> None:
    tokens = text()
    adapted = Adapted(network(batch=1, **reading), settings(optimizer=optimizer, learning_rate=0.0))
    np.testing.assert_array_equal(adapted.score(tokens), adapted.control.score(tokens))


def test_it_learns_what_the_text_is_like() -> None:
    tokens = text(600)
    adapted = Adapted(network(), settings(epochs=4))
    scores, control = adapted.score(tokens), adapted.control.score(tokens)
    np.testing.assert_array_equal(scores[:CHUNK], control[:CHUNK])
    assert scores[300:].mean() > control[300:].mean() + 1.0


@pytest.mark.parametrize(
    ("reading", "reset"),
    [*((reading, "never") for reading in READINGS), (READINGS[-1], "document")],
    ids=str,
)
def test_no_score_depends_on_what_follows(reading: dict[str, Any], reset: str) -> None:
    """All tokens from one on are changed: its own score changes, and none before it."""
    if reset == "document" and "isolate" not in reading:
        pytest.skip("documents are not isolated")
    tokens = text(80)
    adapted = Adapted(network(**reading), settings(reset=reset))
    scores = adapted.score(tokens)
    for i in [1, CHUNK - 1, CHUNK, CHUNK + 1, 2 * CHUNK, 79]:
        other = tokens.copy()
        other[i:] = 20
        changed = adapted.score(other)
        np.testing.assert_allclose(changed[: i - 1], scores[: i - 1], atol=1e-6)
        assert changed[i - 1] != scores[i - 1]


def test_a_chunk_is_learned_from_before_the_next_target_and_not_earlier() -> None:
    """The last target of a chunk, changed, changes the very next score, and itself, alone."""
    tokens = text(80)
    tokens[tokens == BOS] = 3
    adapted = Adapted(network(), settings())
    other = tokens.copy()
    other[CHUNK] = 20  # target CHUNK - 1; a window ends there, so that it is in no later context
    changed = np.flatnonzero(adapted.score(tokens) != adapted.score(other))
    assert changed.tolist()[:2] == [CHUNK - 1, CHUNK]
    still = Adapted(network(), settings(learning_rate=0.0, chunk_tokens=CHUNK))
    changed = np.flatnonzero(still.score(tokens) != still.score(other))
    assert changed.max() == CHUNK + 11, "the window that begins with it"


def test_the_model_given_is_not_changed() -> None:
    net = network()
    before = copy.deepcopy(net.model.state_dict())
    Adapted(net, settings()).score(text())
    for name, value in net.model.state_dict().items():
        assert torch.equal(value, before[name]), name
    assert net.model.training


def test_a_reset_forgets_all_that_came_before() -> None:
    """Under reset by chunk, chunk 2 is scored by a model that has seen chunk 1 alone."""
    tokens, net = text(3 * CHUNK + 1), network()
    tokens[tokens == BOS] = 3
    constant = {"schedule": "constant", "optimizer": "adamw", "learning_rate": 0.01}
    whole = Adapted(net, settings(reset="chunk", **constant)).score(tokens)
    later = Adapted(net, settings(reset="never", **constant)).score(tokens[CHUNK:])
    np.testing.assert_allclose(whole[2 * CHUNK :], later[CHUNK:], atol=1e-6)
    kept = Adapted(net, settings(reset="never", **constant)).score(tokens)
    assert np.abs(whole[2 * CHUNK :] - kept[2 * CHUNK :]).max() > 1e-3


def test_a_new_document_is_scored_by_the_model_as_given() -> None:
    tokens, reading = text(), {"window": 12, "isolate": BOS}
    adapted = Adapted(network(**reading), settings(reset="document", chunk_tokens=6))
    scores, control = adapted.score(tokens), adapted.control.score(tokens)
    at_start = [*range(12), *range(31, 43), *range(77, 89)]  # a window, before any lesson
    np.testing.assert_allclose(scores[at_start], control[at_start], atol=1e-6)
    assert np.abs(scores[12:30] - control[12:30]).max() > 0.01
    np.testing.assert_allclose(read(adapted, tokens)[at_start, tokens[1:][at_start]],
                               control[at_start], atol=1e-5)  # fmt: skip


def test_the_schedule_needs_the_length_of_the_stream() -> None:
    with pytest.raises(ConfigError, match="num_tokens"):
        Adapted(network(), settings()).start(3)
    Adapted(network(), settings(schedule="constant")).start(3).log_probs()


def test_a_prefix_scores_the_same_where_the_rate_is_constant() -> None:
    tokens = text()
    adapted = Adapted(network(window=12, stride=5), settings(schedule="constant"))
    np.testing.assert_allclose(adapted.score(tokens[:70]), adapted.score(tokens)[:69], atol=1e-6)


def test_it_says_what_it_is() -> None:
    adapted = Adapted(network(RECUR), settings())
    assert isinstance(adapted, RowPredictor)
    assert adapted.name == "disjoint + sgd"
    assert adapted.settings["adapt"]["chunk_tokens"] == CHUNK
    with pytest.raises(ConfigError, match="isolate"):
        Adapted(network(), settings(reset="document"))


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"optimizer": "muon", "schedule": "line"}, ["optimizer", "schedule"]),
        ({"epochs": 0, "batch": 0, "chunk_tokens": -1}, ["chunk_tokens", "epochs", "batch"]),
        ({"learning_rate": -0.1, "clip": float("nan")}, ["clip", "learning_rate"]),
        ({"momentum": 1.0, "block_factors": (1.0, -1.0)}, ["block_factors[1]", "momentum"]),
    ],
)
def test_settings_out_of_range(changes: dict[str, Any], named: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        AdaptSettings(**changes)
    assert [item.partition(" = ")[0] for item in caught.value.items] == named
