"""Trellis-coded quantization of one column: the best path of a trellis by Viterbi's algorithm.

For a fixed column all rows are independent given the columns before it, so the column loop of GPTQ
can round a whole column at once. A path of the trellis (`qpack.trellis`) gives every row an integer
m; among all paths from a first state the search finds one that minimises

    sum over rows of (u - m)^2 + shrink m^2,    u = weight / fine step, shrink = d / s^2

The second term is the rate: a Gaussian source of scale s (in fine steps) pays m^2 / (2 s^2 ln 2)
bits for m, and the Lagrangian of entropy-coded trellises is 2 ln 2 d a bit (Marcellin and Fischer
1990; Fischer and Wang 1992). Completing the square, a row costs, up to a constant,
(1 + shrink) (m - u / (1 + shrink))^2, so each coset of 4Z has one candidate.

Compiled with numba: a row is a few dozen operations that wait for the row before, too few for a
tensor library and too many for Python. The machine code is not cached on disk: it takes about
a second to make, and numba would write beside this file, which may be read-only. Costs are float32,
brought back to near zero every few rows, so nothing is lost over long columns. Every operation is
rounded as IEEE 754 says and no sum is reordered: a GPU that does the same finds the same integers.
"""

from __future__ import annotations

from collections import deque
from concurrent.futures import ThreadPoolExecutor
from functools import cache, lru_cache
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from qpack.errors import SetupError
from qpack.trellis import POLYNOMIALS

REBASE_ROWS = 16
"""Rows after which the least cost is subtracted from all."""

CHUNK_ROWS = 2048
"""Rows that a thread takes at once: tens of microseconds of work, well above the cost of taking."""


def round_column(
    u: Tensor,  # (batch, rows) float32
    shrink: Tensor,  # (batch, rows) float32
    bounds: tuple[int, ...],
    states: int,
    at: Tensor | None = None,  # (batch, segments) int32
) -> Tensor:
    """Integers (batch, rows), float32 like `u`: the best path of each segment.

    `bounds` are the rows at which segments start, the first of them 0. A segment starts in the
    state that `at` says, 0 without it; on return `at` holds the states in which they end. Ties go
    to branch bit 0, at the end to the lowest state. The result does not depend on the number of
    threads, which is torch's, nor on the device. Raises `SetupError` without numba.
    """
    if at is None:
        at = torch.zeros((len(u), len(bounds)), dtype=torch.int32, device=u.device)
    if u.is_cuda:
        from qpack.quant.tcq_cuda import search  # Triton comes with torch for CUDA alone

        return search(u, shrink, bounds, states, at)
    out = np.empty(tuple(u.shape), np.float32)
    starts = np.array((*bounds, u.shape[1]), np.int64)
    column = _Column((_array(u), _array(shrink), out, (starts, at.numpy())), states)
    column.solve(_chunks((*bounds, u.shape[1]), len(u)))
    return torch.from_numpy(out)


def _array(x: Tensor) -> NDArray[np.float32]:
    return np.ascontiguousarray(x.detach().numpy())


@lru_cache(maxsize=512)
def _chunks(starts: tuple[int, ...], batch: int) -> tuple[range, ...]:
    """All segments, numbered through the batch, in groups of at least `CHUNK_ROWS` rows each but
    for the last."""
    lengths = [end - begin for begin, end in pairwise(starts)] * batch
    cuts, rows = [0], 0
    for number, length in enumerate(lengths):
        if rows >= CHUNK_ROWS:
            cuts.append(number)
            rows = 0
        rows += length
    return tuple(range(first, last) for first, last in pairwise((*cuts, len(lengths))))


class _Column:
    """One column being searched by several threads: each takes a chunk when it is free.

    Threads of our own, as numba's wait for each other even where one has nothing to do.
    """

    def __init__(self, arrays: tuple[Any, ...], states: int) -> None:
        """`arrays` as `_search` takes them."""
        self._arrays = arrays
        self._search = _search(states)
        self._waiting: deque[range] = deque()

    def solve(self, chunks: tuple[range, ...]) -> None:
        self._waiting.extend(chunks)
        helpers = min(torch.get_num_threads(), len(chunks)) - 1
        helping = [_pool(helpers).submit(self._drain) for _ in range(helpers)]
        self._drain()
        for future in helping:
            if not future.cancel():
                future.result()

    def _drain(self) -> None:
        while True:
            try:
                chunk = self._waiting.popleft()
            except IndexError:
                return
            self._search(*self._arrays, (chunk.start, chunk.stop))


@cache
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, thread_name_prefix="trellis")


@cache
def _search(states: int) -> Any:
    """The compiled search: u, shrink, out (batch, rows); starts (segments + 1,) and states (batch,
    segments) of the paths; which segments."""
    njit = _njit()
    nearest = njit(_nearest)
    forward = njit(_forward(states, nearest, njit(_lowest)))
    back = njit(_back(states, nearest))

    def search(u: Any, shrink: Any, out: Any, paths: Any, which: Any) -> None:
        starts, at = paths
        segments = len(starts) - 1
        chosen = np.empty(u.shape[1], np.uint64)
        for number in range(which[0], which[1]):
            entry, part = number // segments, number % segments
            begin, end = starts[part], starts[part + 1]
            values, weights = u[entry, begin:end], shrink[entry, begin:end]
            state = forward(values, weights, at[entry, part], chosen)
            back(values, weights, chosen, state, out[entry, begin:end])
            at[entry, part] = state

    matrix = "float32[:, ::1]"
    paths = "Tuple((int64[::1], int32[:, ::1]))"
    types = f"void({matrix}, {matrix}, {matrix}, {paths}, UniTuple(int64, 2))"
    return njit(types, nogil=True)(search)


def _njit() -> Any:
    """numba's compiler, imported on first use, as it takes long to load."""
    try:
        from numba import njit
    except ImportError as error:
        raise SetupError(
            "trellis-coded quantization needs the package numba, which cannot be imported",
            items=[str(error)],
            hint='pip install "qpack-lm[pack]", or put trellis = 0 in the recipe',
        ) from None
    return njit


# -- what is compiled: plain loops over scalars, constants in float32 ------------------------------

_ZERO, _QUARTER, _HALF, _ONE, _FOUR = (np.float32(x) for x in (0, 0.25, 0.5, 1, 4))
_COSETS = tuple(np.float32(coset) for coset in range(4))


def _nearest(target: Any, coset: Any) -> Any:
    """The number of 4Z + `coset` that is nearest to `target`; the upper of two."""
    return _FOUR * np.floor((target - coset) * _QUARTER + _HALF) + coset


def _lowest(cost: Any) -> int:
    best = 0
    for s in range(1, len(cost)):
        if cost[s] < cost[best]:
            best = s
    return best


def links(states: int) -> tuple[int, int, int]:
    """half, odd, branch: state s' comes from state 2 t + p by branch b, where p = s' >= half and
    t = (s' mod half) ^ (p odd) ^ (b branch)."""
    h0, h1 = POLYNOMIALS[states]
    half = states // 2
    return half, (h0 >> 1) & (half - 1), h1 >> 1


def _forward(states: int, nearest: Any, lowest: Any) -> Any:
    half, odd, branch = links(states)
    unreached = np.float32(np.inf)

    def forward(u: Any, shrink: Any, start: int, chosen: Any) -> Any:
        """Fill `chosen` (rows,): bit s is the branch by which state s is reached; the last state.

        `from_even` and `from_odd` are costs of the row before, by t.
        """
        cost = np.full(states, unreached, np.float32)
        from_even, from_odd = np.empty(half, np.float32), np.empty(half, np.float32)
        cost[start] = _ZERO
        for r in range(len(u)):
            weight = _ONE + shrink[r]
            target = u[r] / weight
            e0 = target - nearest(target, _COSETS[0])
            e1 = target - nearest(target, _COSETS[1])
            e2 = target - nearest(target, _COSETS[2])
            e3 = target - nearest(target, _COSETS[3])
            e0, e1, e2, e3 = weight * e0 * e0, weight * e1 * e1, weight * e2 * e2, weight * e3 * e3
            for t in range(half):
                from_even[t], from_odd[t] = cost[2 * t], cost[2 * t + 1]
            bits = np.uint64(0)
            for s in range(half):
                zero, one = from_even[s] + e0, from_even[s ^ branch] + e2
                bits |= np.uint64(one < zero) << np.uint64(s)
                cost[s] = one if one < zero else zero
            for s in range(half):
                zero, one = from_odd[s ^ odd] + e1, from_odd[s ^ odd ^ branch] + e3
                bits |= np.uint64(one < zero) << np.uint64(s + half)
                cost[s + half] = one if one < zero else zero
            chosen[r] = bits
            if r % REBASE_ROWS == REBASE_ROWS - 1:
                least = cost[lowest(cost)]
                for s in range(states):
                    cost[s] -= least
        return lowest(cost)

    return forward


def _back(states: int, nearest: Any) -> Any:
    half, odd, branch = links(states)

    def back(u: Any, shrink: Any, chosen: Any, state: int, out: Any) -> None:
        """Walk the path that ends in `state` from the last row to the first."""
        for r in range(len(u) - 1, -1, -1):
            parity = int(state >= half)
            bit = int((chosen[r] >> np.uint64(state)) & np.uint64(1))
            out[r] = nearest(u[r] / (_ONE + shrink[r]), np.float32(parity + 2 * bit))
            state = 2 * ((state & (half - 1)) ^ (parity * odd) ^ (bit * branch)) + parity

    return back
