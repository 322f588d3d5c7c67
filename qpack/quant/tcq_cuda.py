"""The CUDA kernel of `tcq.py`: one program a segment, one warp, a lane or two for each state. It
searches columns whole, however long; blocks of a size that registers hold are `group_cuda.py`'s.

The same operations in the same order as there, in float32 and without fused multiply-adds, so the
integers are the same to the last bit. Rows follow each other; what runs in parallel is the states,
the segments and the matrices of a batch.
"""

from __future__ import annotations

from functools import lru_cache

import torch
import triton
import triton.language as tl
from torch import Tensor

from qpack.quant.tcq import REBASE_ROWS, links


@triton.jit
def nearest(target, coset):
    """The number of 4Z + `coset` that is nearest to `target`; the upper of two."""
    return 4.0 * tl.floor((target - coset) * 0.25 + 0.5) + coset


@triton.jit
def _search(
    u_ptr, shrink_ptr, starts_ptr, at_ptr, chosen_ptr, out_ptr, num_rows,
    HALF: tl.constexpr, ODD: tl.constexpr, BRANCH: tl.constexpr, REBASE: tl.constexpr,
):  # fmt: skip
    part = tl.program_id(1)
    begin = tl.load(starts_ptr + part)
    rows = tl.load(starts_ptr + part + 1) - begin
    offset = tl.program_id(0).to(tl.int64) * num_rows + begin
    u_ptr += offset
    shrink_ptr += offset
    chosen_ptr += offset
    out_ptr += offset
    at_ptr += tl.program_id(0) * tl.num_programs(1) + part

    s = tl.arange(0, 2 * HALF)
    parity = s // HALF
    t = (s & (HALF - 1)) ^ (parity * ODD)
    from_zero, from_one = 2 * t + parity, 2 * (t ^ BRANCH) + parity
    coset = parity.to(tl.float32)
    place = tl.full([2 * HALF], 1, tl.int64) << s.to(tl.int64)
    cost = tl.where(s == tl.load(at_ptr), 0.0, float("inf"))
    for r in range(rows):
        weight = 1.0 + tl.load(shrink_ptr + r)
        target = tl.div_rn(tl.load(u_ptr + r), weight)
        zero, one = target - nearest(target, coset), target - nearest(target, coset + 2.0)
        zero = tl.gather(cost, from_zero, 0) + weight * zero * zero
        one = tl.gather(cost, from_one, 0) + weight * one * one
        tl.store(chosen_ptr + r, tl.sum(tl.where(one < zero, place, 0)))
        cost = tl.where(one < zero, one, zero)
        if r % REBASE == REBASE - 1:
            cost -= tl.min(cost)
    # What one thread has stored, all of them read.
    tl.debug_barrier()
    state = tl.argmin(cost, 0)
    tl.store(at_ptr, state)
    for back in range(rows):
        r = rows - 1 - back
        last = state // HALF
        bit = ((tl.load(chosen_ptr + r) >> state.to(tl.int64)) & 1).to(tl.int32)
        target = tl.div_rn(tl.load(u_ptr + r), 1.0 + tl.load(shrink_ptr + r))
        tl.store(out_ptr + r, nearest(target, (last + 2 * bit).to(tl.float32)))
        state = 2 * ((state & (HALF - 1)) ^ (last * ODD) ^ (bit * BRANCH)) + last


def search(u: Tensor, shrink: Tensor, bounds: tuple[int, ...], states: int, at: Tensor) -> Tensor:
    """As `tcq.round_column`: u, shrink (batch, rows) float32, at (batch, segments) int32, on the
    device; integers like u."""
    batch, rows = u.shape
    out = torch.empty((batch, rows), dtype=torch.float32, device=u.device)
    if not out.numel():
        return out
    half, odd, branch = links(states)
    _search[(batch, len(bounds))](
        u.contiguous(), shrink.contiguous(), _starts((*bounds, rows), u.device), at,
        torch.empty((batch, rows), dtype=torch.int64, device=u.device), out, rows,
        HALF=half, ODD=odd, BRANCH=branch, REBASE=REBASE_ROWS,
        num_warps=1, enable_fp_fusion=False,
    )  # fmt: skip
    return out


@lru_cache(maxsize=512)
def _starts(rows: tuple[int, ...], device: torch.device) -> Tensor:
    """On the device once: a copy for every column would make each of them wait."""
    return torch.tensor(rows, dtype=torch.int32, device=device)
