"""A small model with every kind of use of a weight, and coarse contents of any module."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from qpack.quant import grid
from qpack.quant.plan import classify, untied
from qpack.tensors import Contents, QuantizedTensor, StoredTensor
from qpack.torch_tensors import to_raw

VOCAB, WIDTH = 24, 16


class Net(nn.Module):
    """Tied table, products with and without bias, a convolution, a norm, buffers: logits."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        self.vocab_size = VOCAB
        self.table = nn.Embedding(VOCAB, WIDTH)
        self.up = nn.Linear(WIDTH, 2 * WIDTH, bias=False)
        self.side = nn.Linear(WIDTH, 2 * WIDTH, bias=False)
        self.down = nn.Linear(2 * WIDTH, WIDTH)
        self.conv = nn.Conv1d(WIDTH, WIDTH, 1, bias=False)
        self.norm = nn.LayerNorm(WIDTH)
        self.head = nn.Linear(WIDTH, VOCAB, bias=False)
        self.head.weight = self.table.weight
        self.register_buffer("calls", torch.tensor(0))
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.4)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.table(tokens)
        x = x + self.down(self.up(x).relu() * self.side(x))
        x = x + self.conv(x.transpose(-1, -2)).transpose(-1, -2)
        logits: Tensor = self.head(self.norm(x))
        return logits


def coarse(module: nn.Module, *, qmax: int = 3, columns: bool = True, octave: int = 16) -> Contents:
    """Matrices and tables rounded to few integers, `up` and `side` with shared column steps."""
    kinds = classify(module)
    tensors, aliases = untied(module)
    stored: list[StoredTensor] = []
    for name, tensor in tensors.items():
        if kinds[name] in ("buffer", "vector"):
            kept = tensor.half() if tensor.is_floating_point() else tensor
            stored.append(to_raw(name, kept))
            continue
        W = tensor.reshape(tensor.shape[0], -1)
        cols = W.square().mean(0).sqrt()
        if name in ("up.weight", "side.weight"):
            cols = tensors["up.weight"].square().mean(0).sqrt()
        col_codes = grid.encode_steps(cols, octave)
        if not columns:
            col_codes = torch.zeros_like(col_codes)
        scaled = W / grid.step_values(col_codes, octave)
        row_codes = grid.encode_steps(grid.absmax_steps(scaled, qmax), octave)
        steps = grid.step_values(row_codes, octave)
        integers = grid.round_to_nearest(scaled, steps, torch.full_like(steps, qmax))
        stored.append(
            QuantizedTensor(
                name=name,
                shape=tuple(tensor.shape),
                integers=integers.to(torch.int8).numpy(),
                row_codes=row_codes.numpy(),
                col_codes=col_codes.numpy() if columns else None,
                octave=octave,
            )
        )
    return Contents(tensors=tuple(stored), aliases=aliases, metadata={})


def token_batches(count: int, seed: int) -> list[Tensor]:
    """`count` batches of 4 windows of 32 random tokens."""
    rng = np.random.default_rng(seed)
    return [torch.from_numpy(rng.integers(0, VOCAB, (4, 32))) for _ in range(count)]
