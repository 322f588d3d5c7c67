"""A small model with every part, no two sizes alike, and no parameter at a special value."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from qpack.trainer.model.gpt import GPT, build

CONFIG: dict[str, Any] = {
    "vocab_size": 37,
    "num_layers": 5,
    "model_dim": 24,
    "num_heads": 4,
    "num_kv_heads": 2,
    "mlp_mult": 2.5,
    "rope_dims": 4,
    "bigram_vocab_size": 53,
    "bigram_dim": 7,
    "smear_gate": True,
}


def tiny(*, seed: int = 0, dtype: torch.dtype = torch.float64, **overrides: Any) -> GPT:
    """The model of `CONFIG` with `overrides`, every parameter drawn."""
    model = build({**CONFIG, **overrides}).double()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            scale = 1.0 if parameter.ndim < 2 else 2.0 * parameter.shape[-1] ** -0.5
            parameter.normal_(0.0, scale, generator=generator)
    return model.to(dtype)


def some_tokens(batch: int, length: int, *, vocab_size: int = 37, seed: int = 1) -> Tensor:
    """(batch, length) int64."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(vocab_size, (batch, length), generator=generator)


BOS = 5
"""`bos_token` of the variants that have documents."""


def some_documents(batch: int, length: int, *, seed: int = 1) -> Tensor:
    """`some_tokens` with a document's beginning or two in each row, not at the same places."""
    tokens = some_tokens(batch, length, seed=seed)
    for row in range(batch):
        tokens[row, [(3 + row) % length, (8 + 2 * row) % length]] = BOS
    return tokens
