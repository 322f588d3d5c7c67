"""Against `constriction`: the same symbols and the same integer tables through its ANS coder."""

from __future__ import annotations

import math

import constriction
import numpy as np
import pytest

from qpack.codec.rans import encode
from qpack.codec.rans.classes import choose
from qpack.codec.rans.model import Coding, payload_bits
from qpack.codec.rans.side import HEAD
from qpack.codec.rans.tables import SCALE

from .samples import gaussian


def streams(plan: Coding) -> list[tuple[np.ndarray, np.ndarray]]:
    """Places in a table, of every symbol that is coded with it, and the table's frequencies."""
    found = []
    for index, table in enumerate(plan.tables[:-2]):
        places = []
        for matrix, states, down, across in zip(
            plan.matrices, plan.trellis, plan.rows, plan.cols, strict=True
        ):
            kind = np.where(states > 0, 1 + (matrix & 1), 0)
            here = (3 * np.add.outer(down, across) + kind) == index
            symbols = matrix[here].astype(np.int64) >> bool(states)
            places.append(table.places(symbols))
        found.append((np.concatenate(places).astype(np.int32), table.frequencies))
    for table, codes in zip(plan.tables[-2:], (plan.rows, plan.cols), strict=True):
        found.append(((np.concatenate(codes) - table.lowest).astype(np.int32), table.frequencies))
    return [(symbols, frequencies) for symbols, frequencies in found if len(symbols)]


@pytest.mark.parametrize("trellis", [(0,), (8,), (0, 4, 64)])
def test_same_length_and_same_symbols(trellis: tuple[int, ...]) -> None:
    rng = np.random.default_rng(4)
    matrices = [gaussian(rng, (300, 200), s, scale=2.0, spread=0.7) for s in trellis]
    plan = choose(matrices, trellis)
    coded = streams(plan)
    assert sum(len(symbols) for symbols, _ in coded) == sum(m.size + sum(m.shape) for m in matrices)
    coder = constriction.stream.stack.AnsCoder()
    models = [
        constriction.stream.model.Categorical((f / SCALE).astype(np.float64), perfect=False)
        for _, f in coded
    ]
    for (symbols, _), model in zip(reversed(coded), reversed(models), strict=True):
        coder.encode_reverse(symbols, model)
    bits = coder.num_valid_bits()
    assert abs(bits - payload_bits(plan)) < 8 * 16
    assert abs(bits - information_bits(encode(matrices, trellis))) < 8 * 16 + 1e-4 * bits
    for (symbols, _), model in zip(coded, models, strict=True):
        assert np.array_equal(coder.decode(model, len(symbols)), symbols)
    assert coder.is_empty()


def information_bits(segment: bytes) -> float:
    """What the words and the states of a segment say, above the states at which encoding starts."""
    lanes_log, _, stored, _ = HEAD.unpack_from(segment)
    at = HEAD.size + stored
    states = np.frombuffer(segment[at : at + (4 << lanes_log)], "<u4")
    words = (len(segment) - at - 4 * len(states)) // 2
    return 16 * words + sum(math.log2(int(x)) - 16 for x in states)
