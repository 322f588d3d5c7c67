"""Causal grouped-query attention with normalised queries and keys (techniques.md 1.2).

Order: project, RMS norm of each query and key head, rotate, scale the queries by a learned gain a
head, attend with scale 1/sqrt(head_dim), project.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .cache import LayerCache
from .config import GPTConfig
from .layers import Linear, rms_norm
from .rope import rotate


class Attention(nn.Module):
    """Self-attention of one block."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.head_dim = config.head_dim
        kv_dim = config.num_kv_heads * config.head_dim
        self.c_q = Linear(config.model_dim, config.model_dim)
        self.c_k = Linear(config.model_dim, kv_dim)
        self.c_v = Linear(config.model_dim, kv_dim)
        self.proj = Linear(config.model_dim, config.model_dim, zero=True)
        self.q_gain = nn.Parameter(torch.ones(config.num_heads))

    def forward(
        self,
        x: Tensor,  # (B, T, D)
        rotation: tuple[Tensor, Tensor],  # cos and sin of the T positions
        start: int = 0,
        cache: LayerCache | None = None,
    ) -> Tensor:
        """(B, T, D); with a cache, x follows its first `start` positions."""
        heads = (*x.shape[:2], -1, self.head_dim)
        q = rotate(rms_norm(self.c_q(x).view(heads)), *rotation) * self.q_gain[:, None]
        k = rotate(rms_norm(self.c_k(x).view(heads)), *rotation).transpose(1, 2)
        v = self.c_v(x).view(heads).transpose(1, 2)
        if cache is not None:
            k, v = cache.append(start, k, v)
        y = attend(q.transpose(1, 2).to(v.dtype), k.to(v.dtype), v, start)
        out: Tensor = self.proj(y.transpose(1, 2).flatten(2))
        return out


def attend(q: Tensor, k: Tensor, v: Tensor, start: int) -> Tensor:
    """Attention of queries (B, H, T, d) at positions `start`.. over keys, values (B, Hk, S, d).

    S is start + T; query head h reads key head h // (H / Hk). Returns (B, H, T, d).
    """
    num_heads, num_queries = q.shape[1:3]
    num_kv_heads = k.size(1)
    attention = nn.functional.scaled_dot_product_attention
    if num_queries == 1:  # nothing to mask: a group's heads are that many queries of one key head
        groups = q.reshape(q.size(0), num_kv_heads, num_heads // num_kv_heads, q.size(3))
        return attention(groups, k, v).reshape(q.shape)
    mask = None
    if start:  # keys after a query's own position are hidden
        mask = torch.ones(num_queries, k.size(2), dtype=torch.bool, device=q.device).tril(start)
    shared = num_heads != num_kv_heads
    return attention(q, k, v, attn_mask=mask, is_causal=not start, enable_gqa=shared)
