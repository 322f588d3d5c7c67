"""The GPT of the Parameter Golf lineage (techniques.md 1.1): stem, layers with U-Net skips, head.

    e = E[token] + bigram term          x0 = smear(RMS(e))
    first half of the layers: x goes on a stack; second half: x + w_i * popped, before the layer
    logits = c tanh(RMS(x) E^T / c)

B batch, T tokens, D model width, V vocabulary. Parameter names are the lineage's.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from .bigram import BigramHash
from .block import Block
from .cache import Cache, LayerCache
from .config import GPTConfig
from .layers import Embedding, Linear, rms_norm
from .rope import rotation
from .smear import SmearGate


class GPT(nn.Module):
    """`module(tokens (B, T) int64) -> logits (B, T, V) float32`."""

    skip_weights: nn.Parameter | None

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.config = config
        self.vocab_size = config.vocab_size
        dim = config.model_dim
        self.tok_emb = Embedding(config.vocab_size, dim, std=0.005)
        self.bigram = (
            BigramHash(config.bigram_vocab_size, config.bigram_dim, dim)
            if config.bigram_vocab_size
            else None
        )
        self.smear = SmearGate(dim) if config.smear_gate else None
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.num_layers))
        skips = nn.Parameter(torch.ones(config.num_skips, dim)) if config.num_skips else None
        self.register_parameter("skip_weights", skips)
        self.lm_head = None if config.tie_embeddings else Linear(dim, config.vocab_size, zero=True)

    def forward(self, tokens: Tensor, cache: Cache | None = None) -> Tensor:
        """Logits (B, T, V), float32. With a cache, `tokens` follow those it has seen."""
        hidden = self.hidden(tokens, cache)
        logits = nn.functional.linear(hidden, self._head.to(hidden.dtype)).float()
        cap = self.softcap
        return cap * torch.tanh(logits / cap) if cap else logits

    @property
    def softcap(self) -> float:
        """Bound c of the logits, `c tanh(z / c)`; 0: none."""
        return self.config.logit_softcap

    @property
    def _head(self) -> Tensor:
        """(V, D), the token embedding where it is tied."""
        return self.tok_emb.weight if self.lm_head is None else self.lm_head.weight

    def hidden(self, tokens: Tensor, cache: Cache | None = None) -> Tensor:
        """What the head reads, (B, T, D): the stream after the last layer and its RMS norm."""
        return rms_norm(self._layers(tokens, cache))

    def readout(self, hidden: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Features (B, T, F) and matrix (V, F): logits before the softcap are their product.

        For a loss that never holds all logits. `tokens` are those that gave `hidden`.
        """
        return hidden, self._head

    def new_cache(self, batch_size: int, max_tokens: int) -> Cache:
        """An empty cache for `forward`, for `batch_size` sequences of at most `max_tokens`."""
        layers = [LayerCache(max_tokens) for _ in self.blocks]
        return Cache(batch_size=batch_size, max_tokens=max_tokens, layers=layers)

    def _layers(self, tokens: Tensor, cache: Cache | None) -> Tensor:
        """The residual stream after the last layer, (B, T, D)."""
        config, start = self.config, 0
        if cache is not None:
            cache.check(tokens)
            start = cache.num_tokens
        x = x0 = self._stem(tokens, cache)
        angles = rotation(
            start,
            tokens.size(1),
            dims=config.rotary_dims,
            base=config.rope_base,
            device=tokens.device,
        )
        skips, num_encoder = self.skip_weights, config.num_skips
        stack: list[Tensor] = []
        for layer, block in enumerate(self.blocks):
            if skips is not None and num_encoder <= layer < 2 * num_encoder:
                x = x + skips[layer - num_encoder] * stack.pop()
            x = block(x, x0, angles, start, None if cache is None else cache.layers[layer])
            if layer < num_encoder:
                stack.append(x)
        if cache is not None:
            cache.num_tokens += tokens.size(1)
        return x

    def _stem(self, tokens: Tensor, cache: Cache | None) -> Tensor:
        """x0, (B, T, D)."""
        x = self.tok_emb(tokens)
        if self.bigram is not None:
            x = x + self.bigram(tokens, None if cache is None else cache.last_token)
        x = rms_norm(x)
        before = None
        if cache is not None:
            before, cache.last_token, cache.last_stem = cache.last_stem, tokens[:, -1:], x[:, -1:]
        return x if self.smear is None else self.smear(x, before)


def build(config: Mapping[str, Any]) -> GPT:
    """Entry point `gpt` of `qpack.architectures`: the model of a configuration.

    Matrices and tables are zero and gains at their starting values: fill them from a checkpoint, or
    draw them with `init.initialize`. Raises ConfigError as `GPTConfig.from_mapping`.
    """
    return GPT(GPTConfig.from_mapping(config))
