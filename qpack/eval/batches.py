"""Windows through a model: how many at a time, their tokens, their logits.

A sum over windows does not depend on how windows are batched, because windows of one shape alone
share a pass and nothing is padded. Logits are reduced in blocks of rows, so memory beyond the
model's own logits stays constant whatever the vocabulary.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from qpack.errors import DataError
from qpack.eval.windows import Window

BATCH_TOKENS = {"cpu": 2048, "cuda": 65_536}
"""Tokens of one forward pass: on a CPU more of them leave its caches and run slower."""
LOGITS_BYTES = 1 << 30
"""Most bytes of float32 logits that one forward pass may give."""
BLOCK_ELEMENTS = {"cpu": 1 << 17, "cuda": 1 << 26}
"""Logits reduced at a time in float64: 1 MiB stays in a core's cache."""


def batch_size(device: torch.device, window: int, vocab_size: int) -> int:
    """Windows a forward pass: enough for the device's speed, within the limit of memory."""
    fast = BATCH_TOKENS.get(device.type, BATCH_TOKENS["cuda"])
    return max(1, min(fast, LOGITS_BYTES // (4 * vocab_size)) // window)


def batches(plan: Iterable[Window], batch: int) -> Iterator[list[Window]]:
    """Groups of up to `batch` windows of one shape, in order."""
    for _, same in groupby(plan, key=lambda item: (item.length, item.skip)):
        group = list(same)
        for i in range(0, len(group), batch):
            yield group[i : i + batch]


def gather(
    tokens: NDArray[np.integer[Any]], group: Sequence[Window], device: torch.device
) -> tuple[Tensor, Tensor]:
    """Inputs and targets of a group of windows: (B, T) int64 each, on `device`."""
    rows = np.stack([tokens[item.start : item.start + item.length + 1] for item in group])
    both = torch.from_numpy(rows.astype(np.int64))
    if device.type == "cuda":  # from pinned memory the host need not wait
        both = both.pin_memory()
    both = both.to(device, non_blocking=True)
    return both[:, :-1], both[:, 1:]


def can_skip(model: nn.Module) -> bool:
    """Whether the model leaves out what is not scored: its `forward` takes `scored_from`."""
    return "scored_from" in inspect.signature(model.forward).parameters


def scored_logits(model: nn.Module, inputs: Tensor, skip: int, **more: Any) -> Tensor:
    """Logits of `inputs` (B, T) from position `skip` on: (B, T - skip, V).

    `more` goes to the model. Raises `DataError` when it gives something else than logits.
    """
    skips = bool(skip) and can_skip(model)
    if skips:
        more["scored_from"] = skip
    logits = model(inputs, **more)
    batch, length = inputs.shape
    wanted = (batch, length - skip if skips else length, model.vocab_size)
    if not isinstance(logits, Tensor) or logits.shape != wanted:
        got = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise DataError(f"{type(model).__name__} gave {got}, not logits of shape {wanted}")
    return logits if skips else logits[:, skip:]


def blocks(logits: Sequence[Tensor], targets: Tensor) -> Iterator[tuple[list[Tensor], Tensor]]:
    """Pieces of rows of every model's `logits` (B, T, V) beside their targets (B, T)."""
    vocab_size = logits[0].shape[-1]
    limit = BLOCK_ELEMENTS.get(targets.device.type, BLOCK_ELEMENTS["cuda"])
    flat = [item.reshape(-1, vocab_size) for item in logits]
    goals = targets.reshape(-1)
    step = max(1, limit // vocab_size)
    for i in range(0, len(goals), step):
        yield [item[i : i + step] for item in flat], goals[i : i + step]


def device_of(model: nn.Module) -> torch.device:
    """Where the model's first tensor is; the CPU if it has none."""
    for tensor in (*model.parameters(), *model.buffers()):
        return tensor.device
    return torch.device("cpu")


def precise_dtype(device: torch.device) -> torch.dtype:
    """What log-probabilities are computed in: float64, where the device has it (MPS does not)."""
    return torch.float32 if device.type == "mps" else torch.float64
