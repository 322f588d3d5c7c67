"""Documents cover a stream's targets once, and windows stay inside them."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qpack.errors import DataError
from qpack.eval.documents import document_starts, document_windows, documents


def test_by_hand() -> None:
    tokens = np.array([5, 3, 1, 4, 4, 4, 1, 1, 2], dtype=np.uint16)
    assert document_starts(tokens, 1) == [0, 2, 6, 7]
    assert documents(tokens, 1) == [(0, 2), (2, 4), (6, 1), (7, 1)]
    found = [(w.start, w.length, w.skip) for w in document_windows(tokens, 1, window=3, stride=2)]
    assert found == [(0, 2, 0), (2, 3, 0), (4, 2, 1), (6, 1, 0), (7, 1, 0)]


def test_a_bos_at_the_end_is_a_target_alone() -> None:
    assert documents(np.array([1, 2, 1]), 1) == [(0, 2)]


@given(
    tokens=st.lists(st.integers(0, 2), min_size=2, max_size=40),
    window=st.integers(1, 9),
    data=st.data(),
)
def test_every_target_once_within_its_document(
    tokens: list[int], window: int, data: st.DataObject
) -> None:
    stream = np.array(tokens)
    stride = data.draw(st.integers(1, window))
    plan = document_windows(stream, 1, window=window, stride=stride)
    targets = [i for w in plan for i in range(w.start + w.skip, w.start + w.length)]
    assert targets == list(range(len(tokens) - 1))
    for item in plan:
        assert not (stream[item.start + 1 : item.start + item.length] == 1).any()


def test_too_short() -> None:
    with pytest.raises(DataError, match="no target"):
        document_windows(np.array([1]), 1, window=4)
