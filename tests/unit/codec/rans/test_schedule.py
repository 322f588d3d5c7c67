"""The order of symbols against its definition, one column and one row at a time."""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from qpack.codec.rans.schedule import (
    batches,
    blocks,
    classes,
    code_steps,
    num_lanes,
    num_steps,
)

Shapes = list[tuple[int, int]]
SHAPES = st.lists(st.tuples(st.integers(0, 7), st.integers(0, 7)), max_size=6)
LANES = st.sampled_from([1, 2, 4, 8, 16])
Step = list[tuple[int, int, int]]


def defined(shapes: Shapes, lanes: int) -> list[Step]:
    """(member, row, column) of every lane, step after step."""
    columns = [(i, j) for i, (rows, cols) in enumerate(shapes) if rows for j in range(cols)]
    columns.sort(key=lambda column: -shapes[column[0]][0])
    steps = []
    for first in range(0, len(columns), lanes):
        batch = columns[first : first + lanes]
        for t in range(shapes[batch[0][0]][0]):
            steps.append([(i, t, j) for i, j in batch if shapes[i][0] > t])
    return steps


def scheduled(shapes: Shapes, lanes: int) -> list[Step]:
    steps = []
    for spans in batches(shapes, lanes):
        for block in blocks(spans, shapes):
            for t in range(block.first, block.last):
                step = [(s.member, t, j) for s in block.spans for j in range(s.first, s.last)]
                assert len(step) == block.lanes
                steps.append(step)
    return steps


@given(SHAPES, LANES)
def test_order(shapes: Shapes, lanes: int) -> None:
    assert scheduled(shapes, lanes) == defined(shapes, lanes)


@given(SHAPES, LANES)
def test_steps_are_counted(shapes: Shapes, lanes: int) -> None:
    filled = [shape for shape in shapes if shape[0] and shape[1]]
    codes = sum(len(list(code_steps(sum(s[axis] for s in filled), lanes))) for axis in (0, 1))
    assert num_steps(shapes, lanes) == codes + len(defined(shapes, lanes))


def test_blocks_of_many_steps_are_cut(monkeypatch: Any) -> None:
    shapes = [(9, 3), (5, 4)]
    whole = scheduled(shapes, 8)
    monkeypatch.setattr("qpack.codec.rans.schedule.BLOCK_SYMBOLS", 10)
    (spans,) = batches(shapes, 8)
    assert max(block.last - block.first for block in blocks(spans, shapes)) < 5
    assert scheduled(shapes, 8) == whole


def test_classes_are_sums_of_codes() -> None:
    shapes = [(3, 2), (2, 3)]
    rows = [np.array([0, 10, 20]), np.array([100, 200])]
    cols = [np.array([1, 2]), np.array([3, 4, 5])]
    (spans,) = batches(shapes, 8)
    first, second = (classes(block, rows, cols).tolist() for block in blocks(spans, shapes))
    assert first == [[1, 2, 103, 104, 105], [11, 12, 203, 204, 205]]
    assert second == [[21, 22]]


def test_lanes_follow_the_size() -> None:
    assert num_lanes([]) == num_lanes([(0, 5), (5, 0), (3, 3)]) == 1
    assert num_lanes([(512, 512)]) == 32
    assert num_lanes([(1 << 18, 8)]) == 8  # more than columns would be idle
    assert num_lanes([(512, 512)] * 1000) == 2048
    assert num_lanes([(1 << 19, 1 << 13)]) == 1 << 13  # fewer would be too many steps
