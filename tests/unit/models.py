"""Small models and architectures for tests of everything around them."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import EntryPoint, EntryPoints
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from qpack import plugins
from qpack.checkpoint import Checkpoint
from qpack.plugins import ARCHITECTURES, load_plugin

GPT_CONFIG: dict[str, Any] = {
    "vocab_size": 19,
    "num_layers": 2,
    "model_dim": 8,
    "num_heads": 2,
    "num_kv_heads": 1,
    "mlp_mult": 2.0,
}


def gpt_checkpoint(*, seed: int = 0, dtype: torch.dtype = torch.bfloat16) -> Checkpoint:
    """A random GPT of `GPT_CONFIG`."""
    model = load_plugin(ARCHITECTURES, "gpt")(GPT_CONFIG)
    generator = torch.Generator().manual_seed(seed)
    tensors = {
        name: torch.randn(tensor.shape, generator=generator).to(dtype)
        for name, tensor in model.state_dict().items()
    }
    return Checkpoint(
        tensors=tensors,
        architecture="gpt",
        config=model.config.to_dict(),
        aliases={},
        name="tiny",
    )


class Tied(nn.Module):
    """Two heads over one table: `ties` says whether the module itself ties them."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__()
        self.vocab_size = int(config["vocab_size"])
        self.table = nn.Embedding(self.vocab_size, 4)
        self.head = nn.Linear(4, self.vocab_size, bias=False)
        self.register_buffer("offset", torch.arange(self.vocab_size), persistent=False)
        self.register_buffer("count", torch.tensor(0))
        if config.get("ties"):
            self.head.weight = self.table.weight

    def forward(self, tokens: Tensor) -> Tensor:
        logits: Tensor = self.head(self.table(tokens)) + self.offset
        return logits


def register_tied(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make `Tied` the architecture `tied`, as an installed package would."""
    point = EntryPoint("tied", f"{__name__}:Tied", ARCHITECTURES)
    monkeypatch.setattr(
        plugins, "entry_points", lambda *, group: EntryPoints([point]).select(group=group)
    )
