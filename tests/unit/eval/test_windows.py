from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qpack.errors import ConfigError, DataError
from qpack.eval.windows import Window, windows


def test_disjoint_by_hand() -> None:
    assert windows(11, window=4) == [Window(0, 4, 0), Window(4, 4, 0), Window(8, 2, 0)]
    assert windows(9, window=4) == [Window(0, 4, 0), Window(4, 4, 0)]


def test_sliding_by_hand() -> None:
    assert windows(10, window=4, stride=2) == [
        Window(0, 4, 0),
        Window(2, 4, 2),
        Window(4, 4, 2),
        Window(6, 3, 2),
    ]


@given(st.integers(2, 300), st.integers(1, 40), st.data())
def test_every_target_once_with_the_context_it_can_have(
    num_tokens: int, window: int, data: st.DataObject
) -> None:
    stride = data.draw(st.integers(1, window))
    found = windows(num_tokens, window=window, stride=stride)
    scored = [i for w in found for i in range(w.start + w.skip, w.start + w.length)]
    assert scored == list(range(num_tokens - 1))
    for item in found:
        assert 0 <= item.skip < item.length <= window
        assert item.skip == (window - stride if item.start else 0)


@pytest.mark.parametrize(("window", "stride"), [(0, None), (4, 0), (4, 5), (-1, -1)])
def test_impossible_windows(window: int, stride: int | None) -> None:
    with pytest.raises(ConfigError, match="impossible"):
        windows(10, window=window, stride=stride)


@pytest.mark.parametrize("num_tokens", [0, 1])
def test_nothing_to_score(num_tokens: int) -> None:
    with pytest.raises(DataError, match="no target"):
        windows(num_tokens, window=4)
