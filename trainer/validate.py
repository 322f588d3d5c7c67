"""Bits per byte of the model in training: in float32, each rank scoring a share of the windows."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray

from qpack.distributed import rank, world_size
from qpack.eval.bpb import Score, score
from qpack.tokenizer import Tokenizer

from .model.gpt import GPT


def validate(
    model: GPT,
    tokens: NDArray[np.uint16],
    tokenizer: Tokenizer,
    *,
    window: int,
    max_tokens: int,
    device: torch.device,
) -> Score:
    """Score the first `max_tokens` targets of `tokens` in disjoint windows.

    The same number for any number of ranks, to the rounding of a sum. Raises as `score`.
    """
    num_targets = min(len(tokens) - 1, max_tokens)
    share = math.ceil(num_targets / window / world_size()) * window
    start = min(rank() * share, num_targets)
    mine = tokens[start : min(start + share, num_targets) + 1]
    with exact(model):
        if world_size() == 1:
            return score(model, mine, tokenizer, window=window, device=device)
        part = None
        if len(mine) > 1:
            part = score(model, mine, tokenizer, window=window, device=device)
    sums = torch.zeros(3, dtype=torch.float64)
    if part is not None:
        sums += torch.tensor([part.nats, part.bytes, part.tokens], dtype=torch.float64)
    slowest = torch.tensor(0.0 if part is None else part.seconds, dtype=torch.float64)
    dist.all_reduce(sums)
    dist.all_reduce(slowest, op=dist.ReduceOp.MAX)
    nats, num_bytes = float(sums[0]), int(sums[1])
    return Score(
        nats=nats,
        bytes=num_bytes,
        tokens=int(sums[2]),
        bpb=nats / math.log(2) / num_bytes,
        kl=None,
        window=window,
        stride=window,
        seconds=float(slowest),
    )


@contextmanager
def exact(model: GPT) -> Iterator[None]:
    """Within, the model computes in its parameters' own dtype, with plain attention."""
    before = model.compute_dtype, model.attention_backend
    model.compute_dtype, model.attention_backend = None, "sdpa"
    try:
        with torch.compiler.set_stance("force_eager"):
            yield
    finally:
        model.compute_dtype, model.attention_backend = before
