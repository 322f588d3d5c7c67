"""Text that a model writes itself: calibration without data (techniques.md 4, after #1019).

Sequences start with a token drawn uniformly from the vocabulary and go on by sampling at a
temperature. All draws come from one CPU generator, in an order that does not depend on the device.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from qpack.errors import CalibrationError, ConfigError
from qpack.progress import SILENT, Progress, Task


def sample_tokens(
    model: nn.Module,
    *,
    num_tokens: int,
    sequence: int = 1_024,
    temperature: float = 0.8,
    seed: int = 0,
    batch: int = 64,
    progress: Progress = SILENT,
) -> Tensor:
    """(num_sequences, sequence) int64 tokens on the CPU: at least `num_tokens` in all.

    `model` maps tokens (B, T) to logits (B, T, V) and has `vocab_size`; with `new_cache` each token
    costs one position, without it the whole sequence is computed anew. The same model, device and
    arguments give the same tokens. `batch` sequences are written at a time. Raises ConfigError for
    arguments out of range, CalibrationError where the model's logits are not finite.
    """
    _check(num_tokens, sequence, temperature, batch)
    generator = torch.Generator().manual_seed(seed)
    num_sequences = -(-num_tokens // sequence)
    was_training = model.training
    model.eval()
    try:
        with (
            torch.no_grad(),
            progress.stage("sample", total=num_sequences * sequence, unit="tokens") as task,
        ):
            starts = range(0, num_sequences, batch)
            shapes = [(min(batch, num_sequences - start), sequence) for start in starts]
            pieces = [_sample(model, shape, temperature, generator, task) for shape in shapes]
    finally:
        model.train(was_training)
    return torch.cat(pieces)


def _sample(
    model: Any,
    shape: tuple[int, int],  # sequences, tokens in each
    temperature: float,
    generator: torch.Generator,
    task: Task,
) -> Tensor:
    num_sequences, sequence = shape
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    tokens = torch.empty(num_sequences, sequence, dtype=torch.int64)
    vocab_size = int(model.vocab_size)
    tokens[:, 0] = torch.randint(vocab_size, (num_sequences,), generator=generator)
    cache = model.new_cache(num_sequences, sequence) if hasattr(model, "new_cache") else None
    for t in range(1, sequence):
        if cache is None:
            logits = model(tokens[:, :t].to(device))
        else:
            logits = model(tokens[:, t - 1 : t].to(device), cache=cache)
        tokens[:, t] = draw(logits[:, -1].cpu().float() / temperature, generator)
        task.advance(num_sequences)
    task.advance(num_sequences)
    return tokens


def draw(logits: Tensor, generator: torch.Generator) -> Tensor:
    """One token for each row of (B, V) logits."""
    probabilities = logits.softmax(dim=-1)
    if not probabilities.isfinite().all():
        raise CalibrationError(
            "the model's logits are not finite: it cannot write text to calibrate on",
            hint="give a shard of text: --calib SHARD",
        )
    return torch.multinomial(probabilities, 1, generator=generator)[:, 0]


def _check(num_tokens: int, sequence: int, temperature: float, batch: int) -> None:
    counts = {"num_tokens": num_tokens, "sequence": sequence, "batch": batch}
    problems = [f"{name} = {n}: must be at least 1" for name, n in counts.items() if n < 1]
    if not 0.0 < temperature < float("inf"):
        problems.append(f"temperature = {temperature}: must be above 0 and finite")
    if problems:
        raise ConfigError("cannot sample text with these settings", items=problems)
