"""Bits per byte: total nats / ln 2 / UTF-8 bytes of the scored text, and KL to another model.

Every target is scored once, by a full normalised distribution over the vocabulary: log-softmax in
float64 of the model's float32 logits, summed in float64. Bytes are exact integers from the
tokenizer. A sum over windows does not depend on how windows are batched. Logits are reduced in
row blocks, so memory beyond the model's own logits stays constant whatever the vocabulary.
Source: `techniques.md` 8.1 and 8.2.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from qpack.errors import ConfigError, DataError
from qpack.eval.modes import evaluating
from qpack.eval.windows import Window, windows
from qpack.progress import SILENT, Progress, Task
from qpack.tokenizer import Tokenizer
from qpack.tokens import check_vocab

BATCH_TOKENS = {"cpu": 2048, "cuda": 65_536}
"""Tokens of one forward pass: on a CPU more of them leave its caches and run slower."""
LOGITS_BYTES = 1 << 30
"""Most bytes of float32 logits that one forward pass may give."""
BLOCK_ELEMENTS = {"cpu": 1 << 17, "cuda": 1 << 26}
"""Logits reduced at a time in float64: 1 MiB stays in a core's cache."""


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
    device = _device_of(models[0]) if device is None else torch.device(device)
    batch = batch or _batch_size(device, window, tokenizer.vocab_size)
    began = time.perf_counter()
    with progress.stage("score", total=len(tokens) - 1, unit="tokens") as task:
        nats, divergence = _accumulate(models, tokens, _batches(plan, batch), device, task)
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
    # MPS has no float64.
    precise = torch.float32 if device.type == "mps" else torch.float64
    nats = torch.zeros(len(models), dtype=precise, device=device)
    divergence = torch.zeros((), dtype=precise, device=device)
    with torch.no_grad(), evaluating(*models):
        for group in batches:
            inputs, targets = _gather(tokens, group, device)
            skip = group[0].skip
            logits = [_logits(model, inputs)[:, skip:] for model in models]
            for rows, goal in _blocks(logits, targets[:, skip:]):
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


def _batch_size(device: torch.device, window: int, vocab_size: int) -> int:
    """Windows a forward pass: enough for the device's speed, within the limit of memory."""
    fast = BATCH_TOKENS.get(device.type, BATCH_TOKENS["cuda"])
    return max(1, min(fast, LOGITS_BYTES // (4 * vocab_size)) // window)


def _batches(plan: Sequence[Window], batch: int) -> Iterator[list[Window]]:
    """Groups of up to `batch` windows of one shape, in order."""
    for _, same in groupby(plan, key=lambda item: (item.length, item.skip)):
        group = list(same)
        for i in range(0, len(group), batch):
            yield group[i : i + batch]


def _gather(
    tokens: NDArray[np.uint16], group: Sequence[Window], device: torch.device
) -> tuple[Tensor, Tensor]:
    """Inputs and targets of a group of windows: (B, T) int64 each, on `device`."""
    rows = np.stack([tokens[item.start : item.start + item.length + 1] for item in group])
    both = torch.from_numpy(rows.astype(np.int64)).to(device)
    return both[:, :-1], both[:, 1:]


def _logits(model: nn.Module, inputs: Tensor) -> Tensor:
    """Logits of `inputs` (B, T): (B, T, V). Raises `DataError` when they are something else."""
    logits = model(inputs)
    wanted = (*inputs.shape, model.vocab_size)
    if not isinstance(logits, Tensor) or logits.shape != wanted:
        got = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise DataError(f"{type(model).__name__} gave {got}, not logits of shape {wanted}")
    return logits


def _blocks(logits: Sequence[Tensor], targets: Tensor) -> Iterator[tuple[list[Tensor], Tensor]]:
    """Pieces of rows of every model's `logits` (B, T, V) beside their targets (B, T)."""
    vocab_size = logits[0].shape[-1]
    limit = BLOCK_ELEMENTS.get(targets.device.type, BLOCK_ELEMENTS["cuda"])
    flat = [item.reshape(-1, vocab_size) for item in logits]
    goals = targets.reshape(-1)
    step = max(1, limit // vocab_size)
    for i in range(0, len(goals), step):
        yield [item[i : i + step] for item in flat], goals[i : i + step]


def _device_of(model: nn.Module) -> torch.device:
    for tensor in (*model.parameters(), *model.buffers()):
        return tensor.device
    return torch.device("cpu")
