"""Starting weights (techniques.md 1.1): orthogonal matrices, except those flagged to start at zero.

The lineage zeroes some projections in their constructors and then overwrites one of them (the
bigram's) in a global pass that looks for a flag. Here every table and matrix carries its own rule,
`Linear.zero` and `Embedding.std`, and this is the one place that applies them.
"""

from __future__ import annotations

import torch
from torch import nn

from .attention import Attention
from .layers import Embedding, Linear


@torch.no_grad()
def initialize(model: nn.Module, generator: torch.Generator, *, q_gain: float = 1.5) -> None:
    """Draw every matrix and table of `model` from `generator` (of the model's device), in place.

    Gains, scales and gates keep the constants of their constructors; `q_gain` is the queries' gain
    (1.5 in the lineage's first systems, 5 in later ones).
    """
    for module in model.modules():
        if isinstance(module, Linear):
            if module.zero:
                module.weight.zero_()
            else:
                nn.init.orthogonal_(module.weight, generator=generator)
        elif isinstance(module, Embedding):
            module.weight.normal_(0.0, module.std, generator=generator)
        elif isinstance(module, Attention):
            module.q_gain.fill_(q_gain)
