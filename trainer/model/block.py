"""One layer: mix in the stem, then attention and MLP, each scaled element by element.

    x <- m0 x + m1 x0;  x <- x + a Attn(n(x));  x <- x + b MLP(n(x))    (techniques.md 1.1)

n is the RMS norm, times 1 / sqrt(l + 1) with `ln_scale` (l the block's index, also where it is
repeated). Because queries and keys are normalised again, that acts on the values and, squared, on
the MLP. Other ways for the two branches to meet the stream: `parallel.py`.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from . import parallel
from .attention import Attention
from .cache import LayerCache
from .config import GPTConfig
from .context import Context
from .layers import rms_norm
from .mlp import MLP
from .parallel import Lanes

KEEP = 1.1**0.5
"""Where the factors of routed lanes start: two of them are 1.1 a block (#1204)."""


class Block(nn.Module):
    """Block `layer` of the model."""

    ln_scale: Tensor | None

    def __init__(self, config: GPTConfig, layer: int = 0) -> None:
        super().__init__()
        dim = config.model_dim
        first = config.parallel_from
        self.form = "off" if first is None or layer < first else config.parallel
        scale = torch.tensor((layer + 1) ** -0.5) if config.ln_scale else None
        # A tensor, so that all blocks are one graph to the compiler; not part of the state.
        self.register_buffer("ln_scale", scale, persistent=False)
        self.attn = Attention(config, layer)
        self.mlp = MLP(config, layer)
        self.attn_scale = nn.Parameter(torch.ones(dim))
        self.mlp_scale = nn.Parameter(torch.ones(dim))
        self.resid_mix = nn.Parameter(torch.ones(2, dim))
        self.resid_mix.data[1].zero_()
        if self.form == "routed":
            self.lane_keep = nn.Parameter(torch.full((2,), KEEP))
            self.lane_route = nn.Parameter(torch.ones(2, 2))

    def forward(self, x: Lanes, context: Context, cache: LayerCache | None = None) -> Lanes:
        """The stream after this layer, in as many lanes as its form has.

        With `context.read_from`, only from that position on: nothing reads the others any more, but
        attention still sees them.
        """
        first = context.read_from

        def mix(x: Tensor) -> Tensor:
            m = self.resid_mix.to(x.dtype)
            return m[0] * x + m[1] * context.x0[:, -x.size(1) :]

        def read(x: Tensor) -> Tensor:
            return x[:, first:] if first else x

        def attention(x: Tensor) -> Tensor:
            out: Tensor = self.attn(x, context, cache, self.attn_scale)
            return out

        def mlp(x: Tensor) -> Tensor:
            out: Tensor = self.mlp(x, self.mlp_scale)
            return out

        parts = {"mix": mix, "norm": self._norm, "attention": attention, "mlp": mlp, "read": read}
        match self.form:
            case "off":
                return (parallel.sequential(x[0], **parts),)
            case "stream":
                return (parallel.stream(x[0], **parts),)
            case "lanes":
                return parallel.lanes(x, **parts)
        return parallel.routed(x, keep=self.lane_keep, route=self.lane_route, **parts)

    def _norm(self, x: Tensor) -> Tensor:
        normed = rms_norm(x)
        if self.ln_scale is None:
            return normed
        wide = normed.to(torch.promote_types(x.dtype, self.ln_scale.dtype))
        return (wide * self.ln_scale).to(x.dtype)
