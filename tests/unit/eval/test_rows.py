"""Rows by hand, beside their control, and what has none."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from qpack.errors import ConfigError, DataError, EvaluationError
from qpack.eval.checks import CheckSettings
from qpack.eval.network import Network
from qpack.eval.predictor import Mixture
from qpack.eval.registry import Contender, plain
from qpack.eval.rows import evaluate_row, evaluate_rows
from qpack.tokenizer import Tokenizer
from tests.unit.trainer.model.tiny import tiny

from .test_checks import Blending, Counts
from .test_predictor import Bigram, Unigram

STREAM = np.array([0, 1, 2, 2, 0, 1, 1, 0, 2], dtype=np.uint16)


class Processor:
    """<s>, "_a" and "bc"."""

    def bos_id(self) -> int:
        return 0

    def decode(self, tokens: list[int]) -> str:
        return "".join(
            ("", " a", "bc")[token] if token < 3 else "x" for token in tokens
        ).removeprefix(" ")


def tokenizer_of(*texts: bytes) -> Tokenizer:
    """Token 0 is <s>, 1 begins with a space, what is missing is one letter."""
    return Tokenizer(
        path=Path("few.model"),
        sha256="",
        piece_texts=texts,
        piece_bytes=np.array([len(text) for text in texts]),
        leading_space=np.arange(len(texts)) == 1,
        boundary=np.arange(len(texts)) == 0,
        _processor=Processor(),
    )


THREE = tokenizer_of(b"", b"a", b"bc")


class Unequal(Counts):
    """One row for all: 1/2, 1/3, 1/6."""

    name = "unequal"
    vocab_size = 3

    class kind:  # noqa: N801
        def __init__(self, first: int) -> None:
            del first

        def log_probs(self) -> NDArray[np.float64]:
            return -np.log([2.0, 3.0, 6.0])

        def observe(self, token: int) -> None:
            del token


class Even(Unequal):
    """A third each."""

    name = "even"

    class kind(Unequal.kind):  # noqa: N801
        def log_probs(self) -> NDArray[np.float64]:
            return -np.log([3.0, 3.0, 3.0])


def test_a_row_by_hand() -> None:
    row = evaluate_row(Unequal(), STREAM, THREE, settings={"a": 1})
    # targets 1 2 2 0 1 1 0 2; the first "_a" after <s> has no space
    nats = 2 * math.log(2) + 3 * math.log(3) + 3 * math.log(6)
    num_bytes = 1 + 2 + 2 + 0 + 1 + 2 + 0 + 2
    assert row.nats == pytest.approx(nats, rel=1e-12, abs=0)
    assert row.bpb == pytest.approx(nats / math.log(2) / num_bytes, rel=1e-12, abs=0)
    assert (row.tokens, row.bytes, row.documents) == (8, num_bytes, 3)
    assert (row.control, row.probes, row.settings) == (None, None, {"a": 1})
    assert row.bpb_error is not None
    assert "scores" not in row.to_dict()


def test_a_control_on_the_same_tokens() -> None:
    control = evaluate_row(Even(), STREAM, THREE)
    row = evaluate_row(Unequal(), STREAM, THREE, control=control)
    assert row.control is not None
    assert (row.control.name, row.control.bpb) == ("even", control.bpb)
    assert row.control.gain == pytest.approx(control.bpb - row.bpb, rel=1e-12)
    same = evaluate_row(Even(), STREAM, THREE, control=control).control
    assert same is not None
    assert (same.gain, same.gain_error) == (0.0, 0.0)


def contenders() -> Iterator[Contender]:
    for predictor in (Unequal(), Even()):
        control = None if predictor.name == "even" else Even()
        yield Contender(predictor=predictor, control=control, settings={}, rehearsal=predictor)


def test_each_control_is_scored_once() -> None:
    rows = list(evaluate_rows(contenders(), STREAM, THREE))
    assert [row.name for row in rows] == ["even", "unequal", "even"]


def test_two_rows_by_one_name_are_refused() -> None:
    """Else the second would be the control of what follows."""

    class Posing(Network):
        def __init__(self) -> None:
            super().__init__(tiny(), window=8, name="disjoint")

        @property
        def settings(self) -> dict[str, Any]:
            return {"other": True}

    tokenizer = tokenizer_of(b"", b"a", *[b"x"] * 35)
    posing = Contender(predictor=Posing(), control=None, settings={}, rehearsal=Posing())
    for reading in ({}, {"stride": 4}):  # as a row that is there, and as a control
        network = plain(Network(tiny(), window=8, **reading))
        with pytest.raises(ConfigError, match="one name") as caught:
            next(evaluate_rows([network, posing], np.arange(20), tokenizer))
        assert caught.value.items == ("disjoint",)


def test_probes_are_in_the_rows() -> None:
    settings = CheckSettings(num_tokens=5, positions=2)
    tokenizer = tokenizer_of(b"", b"a", b"bc")
    rows = list(evaluate_rows(contenders(), STREAM, tokenizer, checks=settings))
    assert all(row.probes is None or all(p.passed for p in row.probes) for row in rows)
    assert rows[1].probes is not None
    assert rows[1].to_dict()["probes"][0]["name"] == "normalisation"


def test_a_refused_predictor_has_no_row_and_nor_has_any_other() -> None:
    class Named(Blending):
        name = "blending"

    def both() -> Iterator[Contender]:
        for cheat in (Counts(), Named()):
            yield Contender(predictor=cheat, control=None, settings={}, rehearsal=cheat)

    stream = np.random.default_rng(0).integers(7, size=30)
    tokenizer = tokenizer_of(b"", b"a", b"bc", *[b"x"] * 4)
    rows = evaluate_rows(both(), stream, tokenizer, checks=CheckSettings(num_tokens=20))
    with pytest.raises(EvaluationError, match="refused"):
        next(rows)


def test_a_network_and_a_mixture() -> None:
    network = Network(tiny(), window=8)
    tokenizer = tokenizer_of(b"", b"a", *[b"x"] * 35)
    (row,) = evaluate_rows([plain(network)], np.arange(20), tokenizer)
    assert row.settings == {"window": 8, "stride": 8, "isolate": None}
    mixture = Mixture(Bigram(), Unigram())
    few = tokenizer_of(b"", b"a", b"b", b"c", b"d")
    assert evaluate_row(mixture, np.arange(5), few).name == "bigram + counts"


def test_what_has_no_row() -> None:
    with pytest.raises(DataError, match="3 tokens, the model 7"):
        evaluate_row(Counts(), STREAM, THREE)
    with pytest.raises(DataError, match="no target"):
        evaluate_row(Even(), STREAM[:1], THREE)
    with pytest.raises(DataError, match="beyond the vocabulary"):
        evaluate_row(Even(), STREAM + 1, THREE)
    with pytest.raises(DataError, match="no text"):
        evaluate_row(Even(), np.zeros(4, dtype=np.uint16), THREE)


def test_scores_that_are_none() -> None:
    class Nan(Even):
        def score(self, tokens, **_):  # type: ignore[no-untyped-def]
            return np.full(len(tokens) - 1, np.nan)

    class Few(Even):
        def score(self, tokens, **_):  # type: ignore[no-untyped-def]
            return np.zeros(2)

    with pytest.raises(DataError, match="no finite score"):
        evaluate_row(Nan(), STREAM, THREE)
    with pytest.raises(EvaluationError, match="2 scores for 8 targets"):
        evaluate_row(Few(), STREAM, THREE)
