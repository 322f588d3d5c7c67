"""Floating-point operations of the matrix products: what MFU is counted in.

Forward and backward, a token costs 6 operations for each weight it is multiplied by (2 forward, 4
backward) and each use counts: a block that runs twice, twice; a tied embedding, as the head. Causal
attention over T tokens costs a step 12 H d T / 2: two products of 2 H d T / 2 forward, twice that
backward. Element-wise work, table lookups and masked documents are not counted, as is customary.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from .config import GPTConfig
from .layers import Linear


def matrix_flops(
    model: nn.Module, config: GPTConfig, order: Sequence[int], num_tokens: int
) -> int:  # fmt: skip
    """Of a token in a sequence of `num_tokens`, forward and backward, in `order` of blocks."""
    outside, blocks = 0, dict.fromkeys(range(config.num_layers), 0)
    for name, module in model.named_modules():
        if isinstance(module, Linear):
            first, _, rest = name.partition(".")
            if first == "blocks":
                blocks[int(rest.partition(".")[0])] += module.weight.numel()
            else:
                outside += module.weight.numel()
    if config.tie_embeddings:
        outside += config.vocab_size * config.model_dim
    weights = outside + sum(blocks[index] for index in order)
    attention = 6 * config.num_heads * config.head_dim * num_tokens
    return 6 * weights + attention * len(order)
