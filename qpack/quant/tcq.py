"""Trellis-coded quantization of one column: the best path of a trellis by Viterbi's algorithm.

For a fixed column all rows are independent given the columns before it, so the column loop of GPTQ
can round a whole column at once. A path of the trellis (`qpack.trellis`) gives every row an integer
m; among all paths from state 0 the search finds one that minimises

    sum over rows of (u - m)^2 + shrink m^2,    u = weight / fine step, shrink = d / s^2

The second term is the rate: a Gaussian source of scale s (in fine steps) pays m^2 / (2 s^2 ln 2)
bits for m, and the Lagrangian of entropy-coded trellises is 2 ln 2 d a bit (Marcellin and Fischer
1990; Fischer and Wang 1992). Completing the square, a row costs, up to a constant,
(1 + shrink) (m - u / (1 + shrink))^2, so each coset of 4Z has one candidate.

The search is compiled with numba: a row needs some 40 operations in sequence, too few for a tensor
library and too many for Python. Costs are float64, so nothing is lost over long columns. The
result does not depend on the number of threads.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from qpack.errors import SetupError
from qpack.trellis import next_states


def round_column(
    u: Tensor,  # (batch, rows) float32
    shrink: Tensor,  # (batch, rows) float32
    bounds: tuple[int, ...],
    states: int,
) -> Tensor:
    """Integers (batch, rows) as float32 on the device of `u`: the best path of each segment.

    `bounds` are the rows at which segments start, the first of them 0: each starts in state 0.
    Ties go to the predecessor of the lower state. Raises `SetupError` without numba.
    """
    out = np.empty(tuple(u.shape), np.float32)
    starts = np.array((*bounds, u.shape[1]), np.int64)
    _search()(_array(u), _array(shrink), starts, *_predecessors(states), out)
    return torch.from_numpy(out).to(u.device)


def _array(x: Tensor) -> NDArray[np.float32]:
    return np.ascontiguousarray(x.detach().cpu().numpy())


@cache
def _predecessors(states: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The two states (states, 2) that lead to each state, and the coset of m on the way."""
    following = next_states(states)
    sources: list[list[int]] = [[] for _ in range(states)]
    cosets: list[list[int]] = [[] for _ in range(states)]
    for s in range(states):
        for b in range(2):
            sources[following[s, b]].append(s)
            cosets[following[s, b]].append((s & 1) + 2 * b)
    return np.array(sources, np.int64), np.array(cosets, np.int64)


@cache
def _search() -> Any:
    """The compiled search; numba is imported on first use, as it takes long to load."""
    try:
        import numba
    except ImportError as error:
        raise SetupError(
            "trellis-coded quantization needs the package numba, which cannot be imported",
            items=[str(error)],
            hint='pip install "qpack-lm[pack]", or put trellis = 0 in the recipe',
        ) from None
    path = numba.njit(nogil=True)(_best_path)

    def search(u: Any, shrink: Any, starts: Any, sources: Any, cosets: Any, out: Any) -> None:
        segments = len(starts) - 1
        for job in numba.prange(u.shape[0] * segments):
            row, part = job // segments, job % segments
            begin, end = starts[part], starts[part + 1]
            path(u[row, begin:end], shrink[row, begin:end], sources, cosets, out[row, begin:end])

    return numba.njit(parallel=True, nogil=True)(search)


def _best_path(u: Any, shrink: Any, sources: Any, cosets: Any, out: Any) -> None:
    """One segment: u, shrink, out (rows,). Compiled; plain loops on purpose."""
    rows, states = u.shape[0], sources.shape[0]
    nearest = np.empty((rows, 4), np.float32)
    chosen = np.zeros(rows, np.uint64)  # bit s: the second predecessor leads to state s
    cost, fresh = np.full(states, np.inf), np.empty(states)
    cost[0] = 0.0
    local = np.empty(4)
    for r in range(rows):
        weight = 1.0 + shrink[r]
        target = u[r] / weight
        for coset in range(4):
            m = 4.0 * np.rint((target - coset) * 0.25) + coset
            nearest[r, coset] = m
            local[coset] = weight * (m - target) * (m - target)
        bits = np.uint64(0)
        for s in range(states):
            first = cost[sources[s, 0]] + local[cosets[s, 0]]
            second = cost[sources[s, 1]] + local[cosets[s, 1]]
            if second < first:
                first = second
                bits |= np.uint64(1) << np.uint64(s)
            fresh[s] = first
        chosen[r] = bits
        cost, fresh = fresh, cost
    state = 0
    for s in range(1, states):
        if cost[s] < cost[state]:
            state = s
    for back in range(rows):
        r = rows - 1 - back
        which = (chosen[r] >> np.uint64(state)) & np.uint64(1)
        out[r] = nearest[r, cosets[state, which]]
        state = sources[state, which]
