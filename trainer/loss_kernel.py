"""The CUDA kernel of `loss.py`: one program a token, two passes over its row of logits.

The first pass finds the log-sum-exp of the capped logits online, the second writes the gradient
over them. A row of 8,192 bfloat16 is 16 KiB, so the second read comes from the cache: the floor is
one read and one write of the logits.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

MAX_BLOCK = 8_192


@triton.jit
def _tanh(u):
    # One rounding of 1: the capped logit is off by at most 4e-6, far below bfloat16's own step.
    return 2.0 * tl.sigmoid(2.0 * u) - 1.0


@triton.jit
def _kernel(
    logits_ptr, targets_ptr, weights_ptr, nll_ptr, vocab_size, softcap,
    CAPPED: tl.constexpr, WEIGHTED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    logits_ptr += row * vocab_size
    target = tl.load(targets_ptr + row)
    peak, total, at_target = -float("inf"), 0.0, 0.0
    for start in range(0, vocab_size, BLOCK):
        columns = start + tl.arange(0, BLOCK)
        inside = columns < vocab_size
        z = tl.load(logits_ptr + columns, mask=inside, other=0.0).to(tl.float32)
        if CAPPED:
            z = softcap * _tanh(z / softcap)
        at_target += tl.sum(tl.where(columns == target, z, 0.0))
        z = tl.where(inside, z, -float("inf"))
        higher = tl.maximum(peak, tl.max(z))
        total = total * tl.exp(peak - higher) + tl.sum(tl.exp(z - higher))
        peak = higher
    lse = peak + tl.log(total)
    weight = 1.0
    if WEIGHTED:
        weight = tl.load(weights_ptr + row)
    weight = tl.where(target < 0, 0.0, weight)
    tl.store(nll_ptr + row, weight * (lse - at_target))
    for start in range(0, vocab_size, BLOCK):
        columns = start + tl.arange(0, BLOCK)
        inside = columns < vocab_size
        z = tl.load(logits_ptr + columns, mask=inside, other=0.0).to(tl.float32)
        slope = 1.0
        if CAPPED:
            bent = _tanh(z / softcap)
            slope = 1.0 - bent * bent
            z = softcap * bent
        gradient = tl.exp(z - lse) - tl.where(columns == target, 1.0, 0.0)
        tl.store(logits_ptr + columns, weight * gradient * slope, mask=inside)


def reduce_block(logits: Tensor, targets: Tensor, weights: Tensor | None, softcap: float) -> Tensor:
    """As `loss.reduce_reference`: logits (tokens, V), contiguous, become their gradient."""
    num_tokens, vocab_size = logits.shape
    nll = torch.empty(num_tokens, dtype=torch.float32, device=logits.device)
    block = min(MAX_BLOCK, triton.next_power_of_2(vocab_size))
    _kernel[(num_tokens,)](
        logits, targets, nll if weights is None else weights, nll, vocab_size, softcap,
        CAPPED=bool(softcap), WEIGHTED=weights is not None, BLOCK=block,
        num_warps=max(1, min(8, block // 512)),
    )  # fmt: skip
    return nll.sum()
