"""Errors over documents: against the formula of a mean, and what cannot be known."""

from __future__ import annotations

import math

import numpy as np
import pytest

from qpack.eval.bootstrap import bootstrap_error, by_document


def test_equal_lengths_are_a_mean() -> None:
    """Then the ratio is a mean, whose standard error has a formula."""
    rng = np.random.default_rng(0)
    nats = rng.normal(100.0, 10.0, size=200)
    lengths = np.full(200, 50)
    found = bootstrap_error(nats, lengths, np.random.default_rng(1), replicates=4_000)
    assert found is not None
    assert found == pytest.approx(nats.std() / 50 / math.log(2) / math.sqrt(200), rel=0.05)


def test_documents_in_proportion_have_no_error() -> None:
    lengths = np.array([10, 300, 45, 7])
    found = bootstrap_error(lengths * 0.7, lengths, np.random.default_rng(0))
    assert found == pytest.approx(0.0, abs=1e-12)


def test_the_generator_decides_and_a_document_alone_says_nothing() -> None:
    nats, lengths = np.array([3.0, 9.0, 4.0]), np.array([5, 8, 6])
    first, second, other = (
        bootstrap_error(nats, lengths, np.random.default_rng(seed)) for seed in (0, 0, 1)
    )
    assert first == second != other
    assert bootstrap_error(nats[:1], lengths[:1], np.random.default_rng(0)) is None


def test_documents_without_text_do_not_divide_by_nothing() -> None:
    nats, lengths = np.array([1.0, 1.0]), np.array([0, 10])
    found = bootstrap_error(nats, lengths, np.random.default_rng(0))
    assert found is not None
    assert math.isfinite(found)


def test_sums_over_documents() -> None:
    tokens = np.array([1, 4, 4, 1, 1, 4, 4, 4])
    values = np.array([1, 2, 4, 8, 16, 32, 64])  # of tokens 1 to 7
    # a document's last target is the next one's BOS
    assert by_document(values, tokens, 1).tolist() == [1 + 2 + 4, 8, 16 + 32 + 64]
    assert by_document(values, tokens, 9).tolist() == [127]
    assert by_document(values[:3], tokens[:4], 1).tolist() == [7]
