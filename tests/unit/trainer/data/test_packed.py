from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qpack.errors import DataError
from qpack.trainer.data.packed import DocumentWindows, best_fit, document_starts, pack

from .test_loader import documents


def rows(shard: np.ndarray, sequence: int) -> list[tuple[list[int], list[int]]]:
    """Inputs and targets of every window."""
    windows = DocumentWindows([shard], sequence, bos=1)
    found = []
    for window in range(int(windows.counts[0])):
        out = np.full((2, sequence), -7, dtype=np.int32)
        windows.fill(out, 0, window, offset=0)
        found.append((out[0].tolist(), out[1].tolist()))
    return found


def test_long_documents_are_cut_and_short_ones_share_a_window() -> None:
    # Tokens:  1 2 3 4 5 6 7 8 9 | 1 10 11 | 1 12 | 1 13
    shard = documents(9, 3, 2, 2)
    assert rows(shard, 4) == [
        ([1, 2, 3, 4], [2, 3, 4, 5]),
        ([5, 6, 7, 8], [6, 7, 8, 9]),
        # The tail of the first document has found room with the second, and is in front of it.
        ([9, 1, 10, 11], [1, 10, 11, 1]),
        # The last token has none after it; room at the end is filled with BOS.
        ([1, 12, 1, 1], [12, 1, 13, -1]),
    ]


def test_room_in_front_of_a_tail_is_filled_with_what_came_before() -> None:
    assert rows(documents(6, 4), 4) == [
        ([1, 2, 3, 4], [2, 3, 4, 5]),
        ([1, 7, 8, 1], [7, 8, 9, -1]),
        ([3, 4, 5, 6], [-1, -1, 6, 1]),
    ]


def test_room_without_a_tail_is_filled_with_ignored_bos() -> None:
    assert rows(documents(3, 4), 4) == [
        ([1, 2, 3, 1], [2, 3, 1, -1]),
        ([1, 4, 5, 1], [4, 5, 6, -1]),
    ]


def test_tokens_before_the_first_document_continue_another_shards() -> None:
    shard = np.array([7, 8, 9, 1, 2, 3], dtype=np.uint16)
    # The context of a tail cannot reach back beyond the shard.
    assert rows(shard, 5) == [([7, 8, 9, 1, 2], [8, 9, 1, 2, 3])]
    assert rows(shard, 6) == [([7, 8, 9, 1, 2, 1], [8, 9, 1, 2, 3, -1])]


@given(st.lists(st.integers(1, 30), min_size=1, max_size=30), st.integers(1, 12), st.integers(0, 5))
def test_every_pair_once_in_windows_that_make_sense(
    lengths: list[int], sequence: int, before: int
) -> None:
    shard = np.concatenate([np.arange(2000, 2000 + before), documents(*lengths)]).astype(np.uint16)
    if len(shard) < 2:
        return
    starts = document_starts(shard, 1)
    first, pieces = pack(starts, len(shard) - 1, sequence)
    covered = np.concatenate([np.arange(s, s + n) for s, n, _ in pieces])
    assert sorted(covered) == list(range(len(shard) - 1))
    for window in range(len(first) - 1):
        inside = pieces[first[window] : first[window + 1]]
        assert 0 < inside[:, 1].sum() <= sequence
        for number, (start, count, continues) in enumerate(inside):
            assert (start in starts) == (not continues)
            assert number == 0 or not continues
            assert not np.isin(np.arange(start + 1, start + count), starts).any()


@given(st.lists(st.tuples(st.integers(1, 20), st.booleans()), max_size=60))
def test_best_fit_against_a_slow_reference(pieces: list[tuple[int, bool]]) -> None:
    room = 20
    sizes = np.array([size for size, _ in pieces], dtype=np.int64)
    first = np.array([flag for _, flag in pieces], dtype=np.bool_)
    bins = best_fit(sizes, first, room)
    assert sorted(piece for group in bins for piece in group) == list(range(len(pieces)))
    assert all(sizes[group].sum() <= room and not first[group[1:]].any() for group in bins)
    # Room in bins, and whether they have a piece that is first, as a plain list.
    slow: list[list[int]] = []
    for piece in np.argsort(-sizes, kind="stable"):
        fits = [
            (group[0], group[1])
            for group in slow
            if group[0] >= sizes[piece] and not (first[piece] and group[1])
        ]
        if fits:
            group = slow[slow.index(list(min(fits)))]
        else:
            slow.append(group := [room, 0])
        group[0] -= int(sizes[piece])
        group[1] |= int(first[piece])
    fast = [[room - int(sizes[group].sum()), int(first[group].any())] for group in bins]
    assert sorted(fast) == sorted(slow)


def test_little_room_is_wasted_on_documents_of_many_lengths() -> None:
    lengths = np.random.default_rng(0).lognormal(6.5, 1.0, size=2000).astype(int) + 2
    starts = np.concatenate([[0], np.cumsum(lengths)[:-1]])
    first, _ = pack(starts, int(lengths.sum()), 1024)
    # A window holds one tail at most, and half of these documents leave one.
    assert (len(first) - 1) * 1024 < 1.05 * lengths.sum()


def test_chunks_find_the_same_documents() -> None:
    shard = documents(5, 3, 9)
    assert document_starts(shard, 1, chunk=4).tolist() == [0, 5, 8]


def test_shards_without_documents_are_all_named() -> None:
    none = np.arange(5, 50, dtype=np.uint16)
    with pytest.raises(DataError, match="no document begins") as caught:
        DocumentWindows([documents(9), none, none[:7]], 4, bos=1)
    assert caught.value.items == ("shard 1: 45 tokens", "shard 2: 7 tokens")
