"""Bits per byte: total nats / ln 2 / UTF-8 bytes of the scored text, and KL to another model.

Every target is scored once, by a full normalised distribution over the vocabulary: log-softmax in
float64 of the model's float32 logits, summed in float64. Bytes are exact integers from the
tokenizer. Windows are batched as `batches.py` says.
Source: `techniques.md` 8.1 and 8.2.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from qpack.errors import ConfigError, DataError
from qpack.eval.batches import (
    batch_size,
    batches,
    blocks,
    device_of,
    gather,
    precise_dtype,
    scored_logits,
)
from qpack.eval.modes import evaluating
from qpack.eval.windows import Window, windows
from qpack.progress import SILENT, Progress, Task
from qpack.tokenizer import Tokenizer
from qpack.tokens import check_vocab


@dataclass(frozen=True, kw_only=True, slots=True)
class Score:
    """What a model scores on a text."""

    nats: float
    """Total negative log-likelihood of the targets."""
    bytes: int
    """UTF-8 bytes of the targets' text."""
    tokens: int
    """Targets scored."""
    bpb: float
    """Bits per byte."""
    kl: float | None
    """Mean KL(reference || this model) a token, in nats; None when there was no reference."""
    window: int
    stride: int
    seconds: float
    """Wall clock of the pass, shared by all models scored in it."""


def score(
    model: nn.Module,
    tokens: NDArray[np.uint16],  # (tokens,)
    tokenizer: Tokenizer,
    *,
    window: int = 1024,
    stride: int | None = None,
    max_tokens: int | None = None,
    against: nn.Module | None = None,
    device: torch.device | str | None = None,
    batch: int | None = None,
    progress: Progress = SILENT,
) -> Score:
    """Score the text of `tokens[1:]` under `model`: `LongTensor (B, T) -> logits (B, T, V)`.

    `stride` None means disjoint windows; `max_tokens` limits the scored targets; `against` is the
    reference of the KL; `device` None means the model's; `batch` is windows a forward pass.
    Raises `DataError` when the tokenizer, the tokens and the model do not belong together or the
    score is not finite, `ConfigError` for impossible windows.
    """
    models = [model] if against is None else [against, model]
    return _score_all(
        models,
        tokens,
        tokenizer,
        window=window,
        stride=stride,
        max_tokens=max_tokens,
        device=device,
        batch=batch,
        progress=progress,
    )[-1]


def compare(
    reference: nn.Module,
    candidate: nn.Module,
    tokens: NDArray[np.uint16],  # (tokens,)
    tokenizer: Tokenizer,
    *,
    window: int = 1024,
    stride: int | None = None,
    max_tokens: int | None = None,
    device: torch.device | str | None = None,
    batch: int | None = None,
    progress: Progress = SILENT,
) -> tuple[Score, Score]:
    """Score both models on the same batches in one pass; `candidate`'s Score carries the KL.

    Arguments and errors as in `score`.
    """
    first, second = _score_all(
        [reference, candidate],
        tokens,
        tokenizer,
        window=window,
        stride=stride,
        max_tokens=max_tokens,
        device=device,
        batch=batch,
        progress=progress,
    )
    return first, second


def _score_all(
    models: Sequence[nn.Module],  # one, or the reference and the candidate
    tokens: NDArray[np.uint16],
    tokenizer: Tokenizer,
    *,
    window: int,
    stride: int | None,
    max_tokens: int | None,
    device: torch.device | str | None,
    batch: int | None,
    progress: Progress,
) -> list[Score]:
    tokens = _checked(models, tokens, tokenizer, max_tokens=max_tokens, batch=batch)
    plan = windows(len(tokens), window=window, stride=stride)
    num_bytes = tokenizer.text_bytes(tokens)
    if num_bytes == 0:
        raise DataError("the tokens to score stand for no text")
    device = device_of(models[0]) if device is None else torch.device(device)
    batch = batch or batch_size(device, window, tokenizer.vocab_size)
    began = time.perf_counter()
    with progress.stage("score", total=len(tokens) - 1, unit="tokens") as task:
        nats, divergence = _accumulate(models, tokens, batches(plan, batch), device, task)
    seconds = time.perf_counter() - began
    if not all(map(math.isfinite, (*nats, divergence))):
        raise DataError("a model gives no finite score", hint="look for NaN or Inf in its weights")
    return [
        Score(
            nats=total,
            bytes=num_bytes,
            tokens=len(tokens) - 1,
            bpb=total / math.log(2) / num_bytes,
            kl=divergence / (len(tokens) - 1) if index else None,
            window=window,
            stride=stride or window,
            seconds=seconds,
        )
        for index, total in enumerate(nats)
    ]


def _accumulate(
    models: Sequence[nn.Module],
    tokens: NDArray[np.uint16],
    batches: Iterable[Sequence[Window]],
    device: torch.device,
    task: Task,
) -> tuple[list[float], float]:
    """Total nats of each model, and total KL of the last to the first (0 for one model)."""
    precise = precise_dtype(device)
    nats = torch.zeros(len(models), dtype=precise, device=device)
    divergence = torch.zeros((), dtype=precise, device=device)
    with torch.no_grad(), evaluating(*models):
        for group in batches:
            inputs, targets = gather(tokens, group, device)
            skip = group[0].skip
            logits = [scored_logits(model, inputs, skip) for model in models]
            for rows, goal in blocks(logits, targets[:, skip:]):
                logs = [row.log_softmax(-1, dtype=precise) for row in rows]
                nats -= torch.stack([log.gather(-1, goal[:, None]).sum() for log in logs])
                if len(logs) == 2:
                    # In place: half the memory traffic of the plain formula.
                    fall = logs[1].sub_(logs[0])
                    divergence -= torch.dot(logs[0].exp_().flatten(), fall.flatten())
            task.advance(targets[:, skip:].numel())
    return nats.tolist(), float(divergence)


def _checked(
    models: Sequence[nn.Module],
    tokens: NDArray[np.uint16],
    tokenizer: Tokenizer,
    *,
    max_tokens: int | None,
    batch: int | None,
) -> NDArray[np.uint16]:
    """The tokens to read: one more than the targets. Raises unless everything fits together."""
    for name, value in (("max_tokens", max_tokens), ("batch", batch)):
        if value is not None and value < 1:
            raise ConfigError(f"{name} must be at least 1, got {value}")
    for model in models:
        vocab_size = getattr(model, "vocab_size", None)
        if not isinstance(vocab_size, int):
            raise DataError(f"{type(model).__name__} is no language model: it has no vocab_size")
        tokenizer.check_model(vocab_size)
    if max_tokens is not None:
        tokens = tokens[: max_tokens + 1]
    check_vocab(tokens, tokenizer.vocab_size, getattr(tokens, "filename", None) or "tokens")
    return tokens
