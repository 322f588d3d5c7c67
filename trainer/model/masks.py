"""Who may see whom: causal, and with documents masked, only inside a document.

A document begins at each BOS token; what comes before the first one is a document too. Because
documents are runs, a block of queries can see a block of keys only if the ranges of document
numbers overlap, and sees all of it if all numbers are one: FlexAttention's block mask is made from
the first and last numbers of blocks, without looking at pairs of positions.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask

BLOCK = 128
"""FlexAttention's own block size."""


def document_numbers(tokens: Tensor, bos_token: int, before: Tensor | None = None) -> Tensor:
    """Number of each position's document, (B, T) int32, going on from `before` (B, n)."""
    numbers = (tokens == bos_token).cumsum(dim=1, dtype=torch.int32)
    return numbers if before is None else numbers + before[:, -1:]


def dense_mask(start: int, num_queries: int, documents: Tensor | None, device: torch.device) -> (
    Tensor | None
):  # fmt: skip
    """True where query t at position `start` + t sees key s, broadcastable to (B, 1, T, start + T).

    `documents` (B, start + T) as of `document_numbers`. None: plain causal attention from the first
    position, or a single query that sees every key, neither of which needs a mask.
    """
    if documents is None and (start == 0 or num_queries == 1):
        return None
    total = start + num_queries
    causal = torch.ones(num_queries, total, dtype=torch.bool, device=device).tril(start)
    if documents is None:
        return causal
    return (causal & (documents[:, start:, None] == documents[:, None]))[:, None]


def block_mask(documents: Tensor, *, masked: bool = True) -> BlockMask:
    """The causal mask of `documents` (B, T) for FlexAttention, of any T.

    Not `masked`: causal alone, with all numbers equal and a B of 1 that stands for any.
    """
    num_tokens = documents.size(1)
    missing = -num_tokens % BLOCK
    padded = torch.nn.functional.pad(documents, (0, missing), value=-1)
    if missing:  # a last block that is not full is cut by its last document
        padded = torch.where(padded < 0, documents[:, -1:], padded)
    blocks = padded.view(documents.size(0), -1, BLOCK)
    first, last = blocks[:, :, 0], blocks[:, :, -1]
    index = torch.arange(first.size(1), device=documents.device)
    overlap = (index[:, None] >= index) & (last[:, None] >= first[:, :, None])  # (B, Q, K)
    full = overlap & (index[:, None] > index) & (first[:, None] == last[:, :, None])

    def sees(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        seen = query >= key
        return seen & (padded[batch, query] == padded[batch, key]) if masked else seen

    return BlockMask.from_kv_blocks(
        *_listed(overlap & ~full),
        *_listed(full),
        BLOCK_SIZE=BLOCK,
        mask_mod=sees,
        seq_lengths=(num_tokens, num_tokens),
    )


def _listed(wanted: Tensor) -> tuple[Tensor, Tensor]:
    """(B, Q, K) bool as FlexAttention's (B, 1, Q) counts and (B, 1, Q, K) indices, wanted first."""
    counts = wanted.sum(dim=2, dtype=torch.int32)
    order = wanted.to(torch.int8).argsort(dim=2, descending=True, stable=True)
    return counts[:, None], order[:, None].to(torch.int32)
