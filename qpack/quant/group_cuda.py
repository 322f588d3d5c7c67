"""The CUDA kernel of `group.py`: one program a block of rows, one warp, all columns of the group.

A program takes its columns one after the other, and in each column the rows: thousands of steps,
each waits for the one before. What they wait for is kept in registers, as memory would take longer
than the steps: the weights are a tile of which a lane holds whole rows. The search of `tcq.py` is
laid out for a warp:

    pairs      Two states that differ by BRANCH are reached from the same two states, which differ
               by 2 BRANCH. A lane holds such a pair, a first and a second state, named so that of
               the two states before one is a first and one is a second. So a row fetches two costs.
    edges      What the four cosets cost is worked out for all rows of a column before the search.
    words      Nothing walks back row by row. A word goes with every path: the state before a chunk
               of rows, and in which rows it came by second states. The walk back takes chunks. The
               trellis is linear over GF(2): the coset of a row is a sum of bits, `_decoding`.

The operations are those of a CPU in the same order, in float32 and without fused multiply-adds, so
equal targets give equal integers to the last bit, ties included. A CPU may fuse the multiply-adds
of targets and feedback (`torch.addcmul`): there a target differs in its last bits, and an integer
where it was that close to a tie.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache

import torch
import triton
import triton.language as tl
from torch import Tensor

from qpack.quant import grid
from qpack.quant.columns import LARGEST
from qpack.quant.group import Group
from qpack.quant.tcq import REBASE_ROWS, links
from qpack.quant.tcq_cuda import nearest
from qpack.trellis import next_states

_CHUNK = tl.constexpr(REBASE_ROWS)
"""Rows of a word. Bit i: whether the state before row i is a second state; i = _CHUNK: the state
after the last row. Above them the state before the first row."""

_STATE = tl.constexpr(REBASE_ROWS + 1)
_END = tl.constexpr(1 << REBASE_ROWS)

_LANES = tl.constexpr(32)

_LARGEST = tl.constexpr(LARGEST)
_UNCLIPPED_MAX = tl.constexpr(float(grid.UNCLIPPED_MAX))

_ROUNDER = tl.constexpr(1.5 * 2.0**23)
"""Floats of this size are integers: adding it rounds half to even, subtracting it is exact."""

_WARP_WEIGHTS = 4096
"""Weights that one warp can hold in registers. Only a larger tile is shared by several: each of
them does the whole search, and they wait for each other."""

_MOST_WARPS = 8

_REGISTERS = 255
"""All that a thread can have. Without a limit the assembler may schedule the search for more warps
at a time, and worse."""


@triton.constexpr_function
def _levels(rows):
    return rows.bit_length() - 1


@triton.jit
def _pick(tile, k, ROWS: tl.constexpr, COLS: tl.constexpr):
    """Row k of a tile in registers: halves it until one is left, as registers have no index."""
    for level in tl.static_range(_levels(ROWS)):
        pairs = tile.reshape(ROWS >> (level + 1), 2, COLS)
        even, odd = tl.split(pairs.permute(0, 2, 1))
        tile = tl.where((k >> level) & 1 == 1, odd, even)
    return tile.reshape(COLS)


@triton.jit
def _edges(target, weight, begin, SIZE: tl.constexpr):
    """(chunk, 4 i + q): the cost of coset q in row begin + i of a chunk, for half its rows."""
    place = tl.arange(0, 2 * SIZE)
    row = place // _LANES * _CHUNK + begin + place % _LANES // 4
    target, weight = tl.gather(target, row, 0), tl.gather(weight, row, 0)
    error = target - nearest(target, (place % 4).to(tl.float32))
    return (weight * error * error).reshape(SIZE // _CHUNK, _LANES)


@triton.jit
def _is_second(state, BRANCH: tl.constexpr):
    """A sum over GF(2) of two bits, chosen so that both BRANCH and 2 BRANCH change it."""
    PIVOT: tl.constexpr = BRANCH & -BRANCH
    return ((state // PIVOT) ^ (state // (2 * PIVOT))) & 1


@triton.jit
def _first_of(lane, BRANCH: tl.constexpr):
    """The first state of the pair that a lane holds; `_lane_of` is its inverse."""
    PIVOT: tl.constexpr = BRANCH & -BRANCH
    below = lane & (PIVOT - 1)
    state = 2 * (lane - below) + below
    return state ^ (_is_second(state, BRANCH) * BRANCH)


@triton.jit
def _lane_of(state, BRANCH: tl.constexpr):
    PIVOT: tl.constexpr = BRANCH & -BRANCH
    state ^= (state // PIVOT & 1) * BRANCH
    below = state & (PIVOT - 1)
    return (state - below) // 2 + below


@triton.jit
def _bits(cost):
    """Integers in the order of the costs, which are not negative."""
    return cost.to(tl.int32, bitcast=True)


@triton.jit
def _step(i, cost_1, cost_2, word_1, word_2, edges, row, straight, swapped, from_1, from_2):
    """One row, `row` of `edges`: costs and words of the first and of the second states.

    The coset `straight` leads from first to first and from second to second states, the other of
    its parity across. Ties go to branch bit 0: straight, or across where `swapped`.
    """
    before_1, before_2 = tl.gather(cost_1, from_1, 0), tl.gather(cost_2, from_2, 0)
    path_1, path_2 = tl.gather(word_1, from_1, 0), tl.gather(word_2, from_2, 0) | (1 << i)
    along = tl.gather(edges, 4 * row + straight, 0)
    across = tl.gather(edges, 4 * row + (straight ^ 2), 0)
    along_1, across_1 = before_1 + along, before_2 + across
    along_2, across_2 = before_2 + along, before_1 + across
    word_1 = tl.where(_bits(across_1) < _bits(along_1) + swapped, path_2, path_1)
    word_2 = tl.where(_bits(across_2) < _bits(along_2) + swapped, path_1, path_2)
    return tl.minimum(along_1, across_1), tl.minimum(along_2, across_2), word_1, word_2


@triton.jit
def _least(cost_1, cost_2):
    """As integers: for these a warp has an instruction."""
    return tl.min(_bits(tl.minimum(cost_1, cost_2)), 0).to(tl.float32, bitcast=True)


@triton.jit
def _search(
    target, weight, state, length,
    HALF: tl.constexpr, ODD: tl.constexpr, BRANCH: tl.constexpr, SIZE: tl.constexpr,
):  # fmt: skip
    """The best path from `state` through `length` rows: the word of each row's chunk, (SIZE,), and
    the last state."""
    first = _first_of(tl.arange(0, _LANES) & (HALF - 1), BRANCH)  # few states: lanes repeat them
    second = first ^ BRANCH
    parity = first // HALF
    zero = 2 * ((first & (HALF - 1)) ^ (parity * ODD)) + parity  # leads to `first` by branch bit 0
    swapped = _is_second(zero, BRANCH)
    straight = parity + 2 * swapped
    before = zero ^ (2 * BRANCH * swapped)
    from_1, from_2 = _lane_of(before, BRANCH), _lane_of(before ^ (2 * BRANCH), BRANCH)

    CHUNKS: tl.constexpr = SIZE // _CHUNK
    MIDDLE: tl.constexpr = _CHUNK // 2
    number = tl.arange(0, CHUNKS)[:, None]
    words_1 = tl.zeros([CHUNKS, _LANES], tl.int32)
    words_2 = tl.zeros([CHUNKS, _LANES], tl.int32)
    uppers, lowers = _edges(target, weight, 0, SIZE), _edges(target, weight, MIDDLE, SIZE)
    cost_1 = tl.where(first == state, 0.0, float("inf"))
    cost_2 = tl.where(second == state, 0.0, float("inf"))
    whole, rest = length // _CHUNK, length % _CHUNK
    for chunk in range(whole):
        edges = _pick(uppers, chunk, CHUNKS, _LANES)
        word_1, word_2 = first << _STATE, second << _STATE
        for i in tl.static_range(MIDDLE):
            cost_1, cost_2, word_1, word_2 = _step(
                i, cost_1, cost_2, word_1, word_2, edges, i, straight, swapped, from_1, from_2
            )
        edges = _pick(lowers, chunk, CHUNKS, _LANES)
        for i in tl.static_range(MIDDLE, _CHUNK):
            cost_1, cost_2, word_1, word_2 = _step(
                i, cost_1, cost_2, word_1, word_2,
                edges, i - MIDDLE, straight, swapped, from_1, from_2,
            )  # fmt: skip
        least = _least(cost_1, cost_2)
        cost_1 -= least
        cost_2 -= least
        words_1 = tl.where(number == chunk, word_1[None, :], words_1)
        words_2 = tl.where(number == chunk, word_2[None, :] | _END, words_2)
    edges = _pick(uppers, whole, CHUNKS, _LANES)
    word_1, word_2 = first << _STATE, second << _STATE
    for i in range(tl.minimum(rest, MIDDLE)):
        cost_1, cost_2, word_1, word_2 = _step(
            i, cost_1, cost_2, word_1, word_2, edges, i, straight, swapped, from_1, from_2
        )
    edges = _pick(lowers, whole, CHUNKS, _LANES)
    for i in range(MIDDLE, rest):
        cost_1, cost_2, word_1, word_2 = _step(
            i, cost_1, cost_2, word_1, word_2, edges, i - MIDDLE, straight, swapped, from_1, from_2
        )
    words_1 = tl.where(number == whole, word_1[None, :], words_1)
    words_2 = tl.where(number == whole, word_2[None, :] | (1 << rest), words_2)

    least = _least(cost_1, cost_2)
    last_1 = tl.where(cost_1 == least, first, 2 * HALF)
    last_2 = tl.where(cost_2 == least, second, 2 * HALF)
    last = tl.min(tl.minimum(last_1, last_2), 0)
    state = last
    chunk_of = tl.arange(0, SIZE) // _CHUNK
    found = tl.zeros([SIZE], tl.int32)
    for chunk in tl.static_range(CHUNKS - 1, -1, -1):
        word_1 = tl.sum(tl.where(number == chunk, words_1, 0), 0)
        word_2 = tl.sum(tl.where(number == chunk, words_2, 0), 0)
        word = tl.where(first == state, word_1, tl.where(second == state, word_2, 0))
        word = tl.max(word, 0)
        found = tl.where(chunk_of == chunk, word, found)
        state = tl.where(length > chunk * _CHUNK, word >> _STATE, state)
    return found, last


@triton.jit
def _coset(word, parities, branches):
    """Parity and branch bit of a row, each the sum over GF(2) of the bits in its mask."""
    low, high = word & parities, word & branches
    low ^= low >> 16
    high ^= high >> 16
    both = (low & 0xFFFF) | (high << 16)
    both ^= both >> 8
    both ^= both >> 4
    both ^= both >> 2
    both ^= both >> 1
    return (both & 1) | ((both >> 15) & 2)


# One kernel for all sizes. Nothing is said of what divides sizes and addresses: lanes would load
# neighbouring rows at once, where the search wants them in different lanes.
@triton.jit(
    do_not_specialize=["blocks", "width", "size"], do_not_specialize_on_alignment=["decoding_ptr"]
)
def _round(  # noqa: PLR0913  one parameter a tensor
    w_ptr, moved_ptr, U_ptr, rows_ptr, shrink_ptr, cols_ptr, states_ptr, decoding_ptr,
    lengths_ptr, integers_ptr, errors_ptr, blocks, width, size,
    HALF: tl.constexpr, ODD: tl.constexpr, BRANCH: tl.constexpr,
    WIDTH: tl.constexpr, SIZE: tl.constexpr,
):  # fmt: skip
    place = tl.program_id(0).to(tl.int64)
    number = place % blocks
    at = ((place - number) * width + number) * size  # of the block in a column
    column = blocks * size
    U_ptr += place * width * width
    diagonal_ptr = U_ptr
    cols_ptr += place * width
    states_ptr += place * width
    i, r = tl.arange(0, WIDTH), tl.arange(0, SIZE)
    inside = r < size
    tile = at + i[:, None] * column + r[None, :]
    w = tl.load(w_ptr + tile, mask=(i < width)[:, None] & inside[None, :], other=0.0)
    rows = tl.load(rows_ptr + place * size + r, mask=inside, other=1.0)
    if HALF:
        length = tl.load(lengths_ptr + number)  # rows after it fill the block up
        shrink = tl.load(shrink_ptr + place * size + r, mask=inside, other=0.0)
        masks = decoding_ptr + r % _CHUNK
        parities, branches = tl.load(masks), tl.load(masks + _CHUNK)
    # What a column needs is loaded while the one before is searched.
    next_moved = tl.load(moved_ptr + at + r, mask=inside, other=0.0)
    next_col, next_diagonal, next_state = tl.load(cols_ptr), tl.load(U_ptr), tl.load(states_ptr)
    for j in range(width):
        moved, col, diagonal, state = next_moved, next_col, next_diagonal, next_state
        feedback = tl.load(U_ptr + i, mask=(i > j) & (i < width), other=0.0)
        step = tl.minimum(width - 1 - j, 1)
        cols_ptr += step
        U_ptr += step * width
        diagonal_ptr += step * (width + 1)
        next_moved = tl.load(moved_ptr + at + step * column + r, mask=inside, other=0.0)
        next_col, next_diagonal, next_state = (
            tl.load(cols_ptr), tl.load(diagonal_ptr), tl.load(states_ptr + step)
        )  # fmt: skip

        own = _pick(w, j, WIDTH, SIZE)
        u = tl.div_rn(own + moved * diagonal, rows * col)
        if HALF:
            u = tl.clamp(u, -_LARGEST, _LARGEST, propagate_nan=tl.PropagateNan.ALL)
            weight = 1.0 + shrink * (col * col)
            target = tl.div_rn(u, weight)
            word, state = _search(target, weight, state, length, HALF, ODD, BRANCH, SIZE)
            tl.store(states_ptr, state)
            coset = _coset(word, parities, branches).to(tl.float32)
            m = tl.where(r < length, nearest(target, coset), 0.0)
        else:
            u = tl.clamp(u, -_UNCLIPPED_MAX, _UNCLIPPED_MAX, propagate_nan=tl.PropagateNan.ALL)
            m = (u + _ROUNDER) - _ROUNDER
        error = tl.div_rn(own - (m * rows) * col, diagonal)
        tl.store(integers_ptr + at + r, m, mask=inside)
        tl.store(errors_ptr + at + r, error, mask=inside)
        at += column
        states_ptr += 1
        w -= feedback[:, None] * error[None, :]


def round_on_device(group: Group) -> tuple[Tensor, Tensor]:
    """As `group.round_group`, for tensors on a GPU; leaves `w` as it is."""
    batch, width, n, size = group.w.shape
    integers = torch.empty(group.w.shape, dtype=torch.float32, device=group.w.device)
    errors = torch.empty_like(integers)
    if not integers.numel():
        return integers, errors
    half, odd, branch = links(group.trellis) if group.trellis else (0, 0, 0)
    states = group.states.contiguous()
    columns, lanes = triton.next_power_of_2(width), max(32, triton.next_power_of_2(size))
    _round[(batch * n,)](
        group.w.contiguous(), group.moved.contiguous(), group.U.contiguous(),
        group.rows.contiguous(), group.shrink.contiguous(), group.cols.contiguous(),
        states, _decoding(group.trellis, states.device),
        _on_device(group.lengths, states.device), integers, errors, n, width, size,
        HALF=half, ODD=odd, BRANCH=branch, WIDTH=columns, SIZE=lanes,
        num_warps=min(max(columns * lanes // _WARP_WEIGHTS, 1), _MOST_WARPS),
        maxnreg=_REGISTERS, enable_fp_fusion=False,
    )  # fmt: skip
    group.states.copy_(states)
    return integers, errors


@lru_cache(maxsize=16)
def _decoding(states: int, device: torch.device) -> Tensor:
    """(2, REBASE_ROWS) int32: which bits of a word sum up to a row's parity, and which to its
    branch bit. On the device once: a copy for every group would make each of them wait."""
    masks = torch.zeros((2, REBASE_ROWS), dtype=torch.int32)
    if states:
        for bit in range(REBASE_ROWS + states.bit_length()):
            for row, coset in enumerate(_walk(1 << bit, states)):
                masks[:, row] += torch.tensor(coset) << bit
    return masks.to(device)


@lru_cache(maxsize=4096)
def _on_device(lengths: tuple[int, ...], device: torch.device) -> Tensor:
    """Once, as `_decoding`: the same blocks are on their way in every pass."""
    return torch.tensor(lengths, dtype=torch.int32, device=device)


def _walk(word: int, states: int) -> Iterator[tuple[int, int]]:
    """Parity and branch bit of each row of the path that a word describes; linear in its bits."""
    pivot = links(states)[2]
    pivot &= -pivot
    following = next_states(states).tolist()
    state = word >> (REBASE_ROWS + 1)
    for row in range(REBASE_ROWS):
        zero = following[state][0]
        branch = (zero // pivot ^ zero // (2 * pivot) ^ word >> (row + 1)) & 1
        yield state & 1, branch
        state = following[state][branch]
