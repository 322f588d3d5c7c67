"""What may be learned when: never from a target that is still to be scored."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from qpack.eval.lessons import IGNORED, Lesson, Moment, Timetable, sequences
from qpack.eval.windows import windows

BOS = 1


@given(
    num_tokens=st.integers(2, 200),
    window=st.integers(1, 40),
    data=st.data(),
    chunk_tokens=st.integers(1, 50),
)
def test_all_that_is_learned_was_scored_in_an_earlier_window(
    num_tokens: int, window: int, data: st.DataObject, chunk_tokens: int
) -> None:
    stride = data.draw(st.integers(1, window))
    tokens = np.zeros(num_tokens, dtype=np.uint16)
    plan = windows(num_tokens, window=window, stride=stride)
    table = Timetable(num_targets=num_tokens - 1, chunk_tokens=chunk_tokens)
    firsts = [item.start + item.skip for item in plan]
    before, learned = Moment(0, 0), []
    for first, now in zip(firsts, table.moments(tokens, firsts), strict=True):
        for lesson in table.lessons(before, now):
            assert lesson.end <= first, "target `first` is the next to be scored"
            learned += range(lesson.begin, lesson.end)
        assert now.chunk == first // chunk_tokens, "a window is of its first target's chunk"
        before = now
    assert learned == list(range(len(learned))), "once each, in order"
    assert len(learned) < num_tokens - 1, "what comes last is not learned from"


def test_a_document_that_began_inside_a_chunk_leaves_its_own_part() -> None:
    table = Timetable(num_targets=40, chunk_tokens=10, bos=BOS)
    tokens = np.zeros(41, dtype=np.uint16)
    tokens[[13, 27]] = BOS
    moments = table.moments(tokens, [0, 12, 20, 30])
    assert moments == [Moment(0, 0), Moment(1, 0), Moment(2, 13), Moment(3, 27)]
    learned = [list(table.lessons(*pair)) for pair in pairwise(moments)]
    found = [[(lesson.begin, lesson.end) for lesson in part] for part in learned]
    assert found == [[(0, 10)], [(13, 20)], [(27, 30)]]


def test_a_chunk_of_an_earlier_document_alone_is_not_learned_from() -> None:
    table = Timetable(num_targets=40, chunk_tokens=5, bos=BOS)
    assert [lesson.chunk for lesson in table.lessons(Moment(0, 0), Moment(4, 12))] == [2, 3]


def test_moments_look_at_no_token_after_their_target() -> None:
    table = Timetable(num_targets=20, chunk_tokens=5, bos=BOS)
    tokens = np.zeros(21, dtype=np.uint16)
    plain = table.moments(tokens, [0, 7, 14])
    tokens[15] = BOS
    assert table.moments(tokens, [0, 7, 14]) == plain
    tokens[14] = BOS
    assert table.moments(tokens, [0, 7, 14]) != plain


def test_rates_fall_along_a_cosine_over_the_declared_stream() -> None:
    table = Timetable(num_targets=45, chunk_tokens=10)
    rates = [table.rate(chunk) for chunk in range(5)]
    assert rates == pytest.approx([1.0, 0.5 + 0.125**0.5, 0.5, 0.5 - 0.125**0.5, 0.0])
    assert Timetable(num_targets=9, chunk_tokens=10).rate(0) == 1.0
    assert Timetable(num_targets=0, chunk_tokens=10, constant=True).rate(77) == 1.0
    assert next(table.lessons(Moment(0, 0), Moment(1, 0))) == Lesson(0, 0, 10, 1.0)


@given(
    begin=st.integers(0, 20),
    count=st.integers(0, 40),
    length=st.integers(1, 12),
    starts=st.sets(st.integers(0, 70)),
    isolated=st.booleans(),
)
def test_sequences_have_each_target_once_after_what_precedes_it(
    begin: int, count: int, length: int, starts: set[int], isolated: bool
) -> None:
    tokens = np.arange(100, 171, dtype=np.uint16)
    tokens[list(starts)] = BOS
    inputs, targets = sequences(
        tokens, begin, begin + count, length=length, bos=BOS if isolated else None
    )
    assert inputs.shape == targets.shape and inputs.size(1) <= length
    known = targets != IGNORED
    assert torch.equal(
        targets[known], torch.from_numpy(tokens.astype(np.int64))[begin + 1 :][:count]
    )
    assert torch.equal(inputs[known], torch.from_numpy(tokens.astype(np.int64))[begin:][:count])
    assert not known[:, 1:][~known[:, :-1]].any(), "padding is on the right"
    if isolated:
        assert not (inputs[:, 1:] == BOS).any(), "a document begins a row"
