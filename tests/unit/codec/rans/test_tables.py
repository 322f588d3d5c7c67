"""Frequencies against exhaustive search, windows against what they cost, decoding arrays."""

from __future__ import annotations

import math
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qpack.codec.rans.tables import (
    LISTED_MAX,
    NO_MAIN_TABLE,
    SCALE,
    code_bits,
    code_table,
    decode_arrays,
    integer_frequencies,
    main_table,
)


def bits(counts: list[int], frequencies: list[int]) -> float:
    return sum(c * math.log2(SCALE / f) for c, f in zip(counts, frequencies, strict=True) if c)


@given(st.lists(st.integers(0, 10**6), min_size=1, max_size=60).filter(any))
@settings(deadline=None)
def test_frequencies_are_complete(counts: list[int]) -> None:
    f = integer_frequencies(np.array(counts)).tolist()
    assert sum(f) == SCALE
    assert all((c > 0) == (x > 0) for c, x in zip(counts, f, strict=True))


@pytest.mark.parametrize(
    "counts", [[1, 10**6], [1, 1, 1, 10**6], [5, 3, 2], [10**5, 1, 7, 300, 9], [1] * 50]
)
def test_no_unit_moved_makes_the_code_shorter(counts: list[int]) -> None:
    """The cost is convex in each frequency, so this is the optimum."""
    f = integer_frequencies(np.array(counts)).tolist()
    best = bits(counts, f)
    for i, j in combinations(range(len(f)), 2):
        for give, take in ((i, j), (j, i)):
            if f[give] > 1:
                moved = list(f)
                moved[give] -= 1
                moved[take] += 1
                assert bits(counts, moved) >= best - 1e-6


def test_a_full_table_of_rare_symbols() -> None:
    counts = np.ones(LISTED_MAX, np.int64)
    counts[0] = 10**9
    f = integer_frequencies(counts)
    assert f[1:].max() == 1
    assert f.sum() == SCALE


def test_rare_tails_are_escaped() -> None:
    """A frequency of 1 in 2^14 would be taken from a million symbols for a few."""
    counts = np.array([1, 0, 0, 1, 0, 1, 10**6, 10**6, 10**6, 1, 0, 0, 0, 1])
    table = main_table(-6, counts)
    assert (table.lowest, table.listed) == (0, 3)
    assert (table.frequencies[-2:] > 0).all()
    assert table.places(np.array([-1, 0, 2, 3, 8])).tolist() == [4, 0, 2, 4, 3]
    spent = sum(
        int(count) * (14 - math.log2(int(table.frequencies[place])))
        for count, place in zip(counts, table.places(np.arange(-6, 8)), strict=True)
    )
    assert code_bits(table, -6, counts) == pytest.approx(spent)


def test_symbols_that_pay_are_listed() -> None:
    counts = np.array([40, 300, 2000, 300, 40])
    assert main_table(-2, counts).listed == 5
    assert main_table(-2, counts).frequencies[-2:].tolist() == [0, 0]


@pytest.mark.parametrize("seed", range(3))
def test_a_window_is_the_best_of_all(seed: int) -> None:
    """Up to what its estimate of code lengths, which knows no integers, cannot see."""
    rng = np.random.default_rng(seed)
    counts = np.bincount(np.rint(rng.laplace(0, 3, 20_000)).astype(int) + 60, minlength=121)
    table = main_table(-60, counts)

    def cost(first: int, last: int) -> float:
        outside = counts.sum() - counts[first : last + 1].sum()
        listed = [*counts[first : last + 1].tolist(), int(outside)]
        frequencies = integer_frequencies(np.array(listed)).tolist()
        return bits(listed, frequencies) + 10 * sum(c > 0 for c in listed[:-1]) + 11 * int(outside)

    first = table.lowest + 60
    chosen = cost(first, first + table.listed - 1)
    best = min(cost(60 - i, 60 + j) for i in range(5, 40, 3) for j in range(5, 40, 3))
    assert chosen < best + 40


def test_wide_alphabets_keep_their_middle() -> None:
    counts = np.ones(65_535, np.int64)
    table = main_table(-32_767, counts)
    assert table.listed <= LISTED_MAX
    assert table.lowest < 0 < table.lowest + table.listed
    assert table.frequencies.sum() == SCALE


def test_nothing_to_code_is_no_table() -> None:
    assert main_table(0, np.zeros(5, np.int64)) is NO_MAIN_TABLE
    assert not code_table(np.zeros(64, np.int64)).used


def test_code_tables_are_trimmed() -> None:
    counts = np.zeros(64, np.int64)
    counts[[3, 5]] = 2, 6
    table = code_table(counts)
    assert (table.lowest, table.frequencies.tolist()) == (3, [4096, 0, 12288])


def test_decode_arrays() -> None:
    """Slots of a table of parity 1: k = 0, 1 and an odd escape; nothing is said by the others."""
    empty = main_table(0, np.zeros(1, np.int64))
    odd = main_table(0, np.array([3, 1]))
    odd.frequencies[:] = [8192, 4096, 0, 4096]
    codes = code_table(np.bincount([7], minlength=64))
    entries, values = decode_arrays([empty, empty, odd, codes, codes], np.int8)
    assert entries.shape == values.shape == (5 * SCALE,)
    assert not entries[: 2 * SCALE].any()
    assert (values[: 2 * SCALE] == -128).all()
    for slot, frequency, start, k, m in [
        (0, 8192, 0, 0, 1),
        (8191, 8192, 0, 0, 1),
        (8192, 4096, 8192, 1, 3),
        (12288, 4096, 12288, 1, -128),
        (16383, 4096, 12288, 1, -128),
    ]:
        entry = int(entries[2 * SCALE + slot])
        assert (entry >> 15, entry >> 1 & 0x3FFF, entry & 1) == (frequency, slot - start, k)
        assert values[2 * SCALE + slot] == m
    assert (values[3 * SCALE :] == 7).all()
