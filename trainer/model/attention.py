"""Causal grouped-query attention with normalised queries and keys (techniques.md 1.2).

Order: project, RMS norm of each query and key head, rotate, scale the queries by a learned gain a
head, attend with scale 1/sqrt(head_dim), take off what is along the own value (XSA), project.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.attention.flex_attention import BlockMask, flex_attention

from .cache import LayerCache
from .config import GPTConfig
from .context import Context
from .layers import Linear, rms_norm
from .rope import rotate
from .xsa import exclude_own_value


class Attention(nn.Module):
    """Self-attention of block `layer`."""

    value_scale: nn.Parameter | None
    xsa_gate: nn.Parameter | None

    def __init__(self, config: GPTConfig, layer: int = 0) -> None:
        super().__init__()
        self.head_dim = config.head_dim
        self.widths = [config.model_dim, config.kv_dim, config.kv_dim]
        self.xsa = layer in config.xsa_layers
        self.c_q = Linear(config.model_dim, config.model_dim)
        self.c_k = Linear(config.model_dim, config.kv_dim)
        self.c_v = Linear(config.model_dim, config.kv_dim)
        self.proj = Linear(config.model_dim, config.model_dim, zero=True)
        self.q_gain = nn.Parameter(torch.ones(config.num_heads))
        gated = self.xsa and config.xsa_gated
        gate = nn.Parameter(torch.zeros(config.num_heads)) if gated else None
        self.register_parameter("xsa_gate", gate)
        embedded = layer in config.value_embed_layers
        scale = nn.Parameter(torch.ones(())) if embedded else None
        self.register_parameter("value_scale", scale)

    def forward(
        self,
        x: Tensor,  # (B, T, D)
        context: Context,
        cache: LayerCache | None = None,
        gain: Tensor | None = None,  # (D,)
    ) -> Tensor:
        """(B, T, D), times `gain`; with a cache, x follows the positions that it holds.

        Positions before `context.read_from` are keys and values only, and not in what is returned.
        """
        first = context.read_from
        q, k, v = self._heads(x, context)
        cos, sin = context.rotation
        q = rotate(rms_norm(q), cos[first:], sin[first:]) * self.q_gain[:, None].to(q.dtype)
        k = rotate(rms_norm(k), cos, sin)
        keys, values = k.transpose(1, 2).to(v.dtype), v.transpose(1, 2)
        if cache is not None:
            keys, values = cache.append(context.start, keys, values)
        y = attend(q.transpose(1, 2).to(v.dtype), keys, values, context.mask).transpose(1, 2)
        if self.xsa:
            y = exclude_own_value(y, v[:, first:], self.xsa_gate)
        out: Tensor = self.proj(y.flatten(2), gain)
        return out

    def _heads(self, x: Tensor, context: Context) -> list[Tensor]:
        """Queries (B, T - read_from, H, d), keys and values (B, T, Hk, d).

        One product where the graph is compiled: x is read once, and its gradient written once.
        Three elsewhere, because calibration recognises weights by their storage.
        """
        if torch.compiler.is_compiling() and not context.read_from:
            layers = (self.c_q, self.c_k, self.c_v)
            weight = torch.cat([layer.weight for layer in layers]).to(x.dtype)
            q, k, v = torch.split(nn.functional.linear(x, weight), self.widths, dim=-1)
        else:
            read = x[:, context.read_from :] if context.read_from else x
            q, k, v = self.c_q(read), self.c_k(x), self.c_v(x)
        if self.value_scale is not None and context.values is not None:
            v = v + self.value_scale.to(v.dtype) * context.values
        return [part.view(*part.shape[:2], -1, self.head_dim) for part in (q, k, v)]


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | BlockMask | None) -> Tensor:
    """Attention of the last queries (B, H, T, d) over keys, values (B, Hk, S, d): (B, H, T, d).

    Query head h reads key head h // (H / Hk). `mask` is one of `masks.py`; with None, the queries
    are all positions and see those up to their own, or a single one sees everything.
    """
    num_heads, num_queries = q.shape[1:3]
    num_kv_heads = k.size(1)
    shared = num_heads != num_kv_heads
    if isinstance(mask, BlockMask):
        out = flex_attention(q, k, v, block_mask=mask, enable_gqa=shared)
        assert isinstance(out, Tensor)
        return out
    attention = nn.functional.scaled_dot_product_attention
    if num_queries == 1:  # a group's heads are that many queries of one key head
        groups = q.reshape(q.size(0), num_kv_heads, num_heads // num_kv_heads, q.size(3))
        return attention(groups, k, v, attn_mask=mask).reshape(q.shape)
    return attention(q, k, v, attn_mask=mask, is_causal=mask is None, enable_gqa=shared)
