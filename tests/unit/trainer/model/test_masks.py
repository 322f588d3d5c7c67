"""Documents, dense masks and FlexAttention's block masks, against the rule position by position."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from qpack.trainer.model.masks import BLOCK, block_mask, dense_mask, document_numbers

BOS = 1


def allowed(tokens: list[int], query: int, key: int) -> bool:
    """Not later, and no document begins between the two, the query's own position included."""
    return key <= query and BOS not in tokens[key + 1 : query + 1]


def drawn(batch: int, length: int, *, share: float, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.where(torch.rand(batch, length, generator=generator) < share, BOS, 9)


@pytest.mark.parametrize("start", [0, 3, 8])
def test_a_dense_mask_keeps_to_the_document(start: int) -> None:
    tokens = drawn(3, 9, share=0.3)
    mask = dense_mask(start, 9 - start, document_numbers(tokens, BOS), tokens.device)
    assert mask is not None
    assert mask.shape == (3, 1, 9 - start, 9)
    for b, row in enumerate(tokens.tolist()):
        wanted = [[allowed(row, start + q, k) for k in range(9)] for q in range(9 - start)]
        assert mask[b, 0].tolist() == wanted


def test_without_documents_a_mask_is_made_where_there_is_something_to_hide() -> None:
    cpu = torch.device("cpu")
    assert dense_mask(0, 5, None, cpu) is None
    assert dense_mask(4, 1, None, cpu) is None
    mask = dense_mask(2, 2, None, cpu)
    assert mask is not None
    assert mask.tolist() == [[True, True, True, False], [True, True, True, True]]


def test_documents_go_on_from_what_a_cache_has() -> None:
    tokens = drawn(2, 12, share=0.4)
    whole = document_numbers(tokens, BOS)
    first = document_numbers(tokens[:, :5], BOS)
    assert torch.equal(document_numbers(tokens[:, 5:], BOS, first), whole[:, 5:])


def as_dense(tokens: Tensor, *, masked: bool) -> tuple[Tensor, Tensor, Tensor]:
    """What a kernel would look at: allowed pairs, blocks looked at, and blocks without a mask."""
    batch, length = tokens.shape
    documents = document_numbers(tokens, BOS) if masked else torch.zeros_like(tokens[:1])
    mask = block_mask(documents, masked=masked)
    num_blocks = -(-length // BLOCK)
    visited = torch.zeros(batch, num_blocks, num_blocks, dtype=torch.bool)
    full = torch.zeros_like(visited)
    for target, counts, indices in (
        (visited, mask.kv_num_blocks, mask.kv_indices),
        (full, mask.full_kv_num_blocks, mask.full_kv_indices),
    ):
        assert counts is not None and indices is not None
        for b in range(batch):
            for q in range(num_blocks):
                source = min(b, len(counts) - 1)
                target[b, q, indices[source, 0, q, : counts[source, 0, q]].long()] = True
    assert not (visited & full).any()
    b, q, k = torch.meshgrid(
        torch.arange(batch), torch.arange(length), torch.arange(length), indexing="ij"
    )
    pairs = mask.mask_mod(b, torch.zeros_like(b), q, k)
    spread = [m.repeat_interleave(BLOCK, 1).repeat_interleave(BLOCK, 2) for m in (visited, full)]
    inside = [m[:, :length, :length] for m in spread]
    return (pairs & inside[0]) | inside[1], visited, full


@pytest.mark.parametrize("length", [BLOCK, 3 * BLOCK, 3 * BLOCK + 17, 50])
@pytest.mark.parametrize("share", [0.0, 0.004, 0.05])
def test_a_block_mask_is_the_dense_mask(length: int, share: float) -> None:
    tokens = drawn(3, length, share=share)
    pairs, visited, full = as_dense(tokens, masked=True)
    dense = dense_mask(0, length, document_numbers(tokens, BOS), tokens.device)
    assert dense is not None
    assert torch.equal(pairs, dense[:, 0])
    if share == 0.05:  # documents shorter than a block: what is far is not even looked at
        assert visited.sum() + full.sum() < 3 * (visited.size(1) * (visited.size(1) + 1)) / 2 + 1
        assert not full.any()


def test_far_blocks_of_other_documents_are_skipped_and_long_documents_are_full() -> None:
    tokens = torch.full((1, 4 * BLOCK), 9)
    tokens[0, 2 * BLOCK] = BOS
    _, visited, full = as_dense(tokens, masked=True)
    assert visited[0].nonzero().tolist() == [[0, 0], [1, 1], [2, 2], [3, 3]]
    assert full[0].nonzero().tolist() == [[1, 0], [3, 2]]


def test_without_documents_a_block_mask_is_causal_for_any_batch() -> None:
    tokens = drawn(3, 2 * BLOCK + 5, share=0.05)
    pairs, _, _ = as_dense(tokens, masked=False)
    assert torch.equal(pairs, torch.ones_like(pairs).tril())
