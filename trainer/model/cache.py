"""What a model must remember to go on after the tokens it has seen."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from qpack.errors import ConfigError

from .hashing import DEPTH


@dataclass(slots=True)
class LayerCache:
    """Keys and values of one attention layer, (B, kv_heads, max_tokens, head_dim) each."""

    max_tokens: int
    keys: Tensor | None = None
    values: Tensor | None = None

    def append(self, start: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Store (B, kv_heads, T, head_dim) from position `start` on; returns everything so far."""
        if self.keys is None or self.values is None:  # first use tells dtype and device
            self.keys = k.new_empty((*k.shape[:2], self.max_tokens, k.size(3)))
            self.values = torch.empty_like(self.keys)
        end = start + k.size(2)
        self.keys[:, :, start:end] = k
        self.values[:, :, start:end] = v
        return self.keys[:, :, :end], self.values[:, :, :end]


@dataclass(slots=True)
class Cache:
    """State of a batch of sequences that grow together."""

    batch_size: int
    max_tokens: int
    order: tuple[int, ...]
    """The order of layers it was made for: each step of it has keys and values of its own."""
    layers: list[LayerCache]
    num_tokens: int = 0
    """Tokens seen so far in each sequence."""
    last_tokens: Tensor | None = field(default=None, repr=False)
    """(B, 1 or 2), for the hashes"""
    last_stem: Tensor | None = field(default=None, repr=False)
    """(B, 1, D) before smearing, for the smear gate"""
    documents: Tensor | None = field(default=None, repr=False)
    """(B, num_tokens), for masked documents"""

    @classmethod
    def empty(cls, batch_size: int, max_tokens: int, order: tuple[int, ...]) -> Cache:
        """For `batch_size` sequences of at most `max_tokens`."""
        layers = [LayerCache(max_tokens) for _ in order]
        return cls(batch_size=batch_size, max_tokens=max_tokens, order=order, layers=layers)

    def check(self, tokens: Tensor, order: tuple[int, ...]) -> None:
        """Refuse tokens (B, T) of another batch size or beyond `max_tokens`, and other orders."""
        batch_size, num_new = tokens.shape
        if batch_size != self.batch_size or self.num_tokens + num_new > self.max_tokens:
            raise ConfigError(
                f"the cache holds {self.batch_size} x {self.max_tokens} tokens and has "
                f"{self.num_tokens} of each; {batch_size} x {num_new} more do not fit"
            )
        if order != self.order:
            raise ConfigError(
                f"the cache was made for layers {list(self.order)}, the model runs {list(order)}",
                hint="make a new cache after set_layer_order",
            )

    def remember(self, tokens: Tensor) -> None:
        """Count `tokens` (B, T) as seen."""
        known = tokens if self.last_tokens is None else torch.cat((self.last_tokens, tokens), dim=1)
        self.last_tokens = known[:, -DEPTH:]
        self.num_tokens += tokens.size(1)
