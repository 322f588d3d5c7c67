"""PPM-D as written down, against the compiled one; what it promises of any stream."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("numba")

from qpack.errors import ConfigError
from qpack.eval.ppm import Context, Ppm, Shape, longer, predict

from .ppm_reference import Reference


@settings(max_examples=60)
@given(st.integers(0, 4), st.integers(1, 5), st.data())
def test_it_is_what_the_formulas_say(order: int, alphabet: int, data: st.DataObject) -> None:
    stream = data.draw(st.lists(st.integers(0, alphabet - 1), max_size=40))
    reference, ppm = Reference(order, alphabet), Ppm(order=order, alphabet=alphabet)
    for symbol in stream:
        expected = reference.probs()
        assert sum(expected) == 1
        np.testing.assert_allclose(ppm.probs(), np.array(expected, float), rtol=1e-13)
        reference.observe(symbol)
        ppm.observe(np.array([symbol]))
    np.testing.assert_allclose(ppm.probs(), np.array(reference.probs(), float), rtol=1e-13)


def test_nothing_escapes_where_nothing_is_left() -> None:
    ppm = Ppm(order=0, alphabet=2)
    ppm.observe(np.array([0, 0, 1]))  # c = 2 and 1, T = 3, n = 2: divided by 2T - n = 4
    np.testing.assert_allclose(ppm.probs(), [3 / 4, 1 / 4], rtol=1e-15)


def test_bytes_sum_to_one_through_all_growth() -> None:
    symbols = np.random.default_rng(0).integers(257, size=6000)
    ppm = Ppm(order=4, alphabet=257)
    capacity = len(ppm.tables.contexts)
    for block in np.split(symbols, 20):
        ppm.observe(block)
        assert ppm.probs().sum() == pytest.approx(1.0, abs=1e-12)
        assert ppm.probs().min() > 0
    assert len(ppm.tables.contexts) > capacity
    keys = ppm.tables.keys[ppm.tables.keys > 0]
    different = {tuple(symbols[i - k : i]) for k in range(5) for i in range(k, len(symbols))}
    assert len(keys) == len(set(keys.tolist())) == ppm.tables.used[0] == len(different)


def test_one_by_one_is_all_at_once() -> None:
    symbols = np.random.default_rng(0).integers(9, size=500)
    whole, single = Ppm(order=3, alphabet=9), Ppm(order=3, alphabet=9)
    whole.observe(symbols)
    for symbol in symbols:
        single.observe(np.array([symbol]))
    assert whole.probs().tolist() == single.probs().tolist()


def test_the_longest_context_is_told() -> None:
    ppm = Ppm(order=4, alphabet=3)
    out = np.empty(3)
    assert predict(ppm.tables, ppm.shape, ppm.context, out) == (-1, 0, 0)
    ppm.observe(np.array([0, 1, 0, 1, 0, 2, 0]))
    # After 0: 1 twice and 2 once, but its second 1 was known to the context (1, 0) of order 2.
    order, total, largest = predict(ppm.tables, ppm.shape, ppm.context, out)
    assert (order, total, largest) == (1, 3, 2)


def test_a_context_holds_its_last_symbols() -> None:
    shape = Shape(order=2, bits=4)
    context = Context(0, 0)
    for symbol in (1, 2, 3):
        context = longer(shape, context, symbol)
    assert context == (0x23, 2)


def test_contexts_too_long_for_an_integer_are_refused() -> None:
    with pytest.raises(ConfigError, match="order 7") as caught:
        Ppm(order=7, alphabet=257)
    assert caught.value.hint is not None
    assert "0 to 6 with 257 symbols" in caught.value.hint
