"""Counts are those of the stream's n-grams, whatever the stream."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qpack.errors import ResourceError
from qpack.eval import ngram_table
from qpack.eval.ngram_table import NgramTable


def counted(stream: list[int], length: int) -> Counter[int]:
    """The followers of the last `length` tokens of `stream`, by looking at all of it."""
    context = stream[len(stream) - length :]
    return Counter(
        stream[i]
        for i in range(length, len(stream))
        if length <= len(stream) and stream[i - length : i] == context
    )


@given(
    st.lists(st.integers(0, 3) | st.sampled_from([7, 65_535]), min_size=1, max_size=60),
    st.integers(1, 9),
)
def test_followers_are_those_of_the_stream(stream: list[int], max_order: int) -> None:
    table = NgramTable(max_order)
    for end, token in enumerate(stream, 1):
        table.observe(token)
        for length in range(max_order):
            found = table.followers(length)
            assert found == counted(stream[:end], length)
            if found:
                best = min(found, key=lambda token: (-found[token], token))
                assert next(iter(found)) == best


def test_growing_loses_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ngram_table, "FIRST_NODES", 16)
    stream = np.random.default_rng(0).integers(5, size=2000).tolist()
    table = NgramTable(4)
    before = table.num_bytes
    for token in stream:
        table.observe(token)
    assert table.num_bytes > 8 * before
    for length in range(4):
        assert table.followers(length) == counted(stream, length)


def test_nodes_are_numbered_no_further_than_they_can_be(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ngram_table, "MAX_NODES", 20_000)
    table = NgramTable(9)
    table.reserve(1000)
    with pytest.raises(ResourceError, match="more than 20,000 n-grams"):
        table.reserve(4000)
