"""Adapters of a batch learn as torch's AdamW would teach each document's alone."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from qpack.errors import DataError
from qpack.eval.adapter_training import BETAS, EPSILON, Documents, clipped, document_losses
from qpack.eval.adapters import LowRank
from qpack.eval.lessons import IGNORED
from qpack.eval.lora_settings import LoraSettings
from tests.unit.trainer.model.tiny import some_tokens, tiny

SETTINGS = LoraSettings(
    rank=2, epochs=2, learning_rate=0.05, clip=0.3, polyak=0.7, horizon_chunks=3
)


def lesson(seed: int) -> tuple[Tensor, Tensor]:
    """Windows of three documents and the targets of their last four tokens; one has three."""
    tokens = some_tokens(3, 10, seed=seed)
    targets = tokens[:, 6:].clone()
    targets[2, 3:] = IGNORED
    return tokens[:, :-1], targets


def test_each_document_learns_as_it_would_alone() -> None:
    low_rank = LowRank(tiny(dtype=torch.float32), ("*.c_q", "head"), rank=2, window=9)
    together = Documents(low_rank, SETTINGS, 3)
    alone = [Documents(low_rank, SETTINGS, 1) for _ in range(3)]
    for chunk, active in enumerate((3, 3, 2)):  # the last document ends before the last lesson
        tokens, targets = lesson(chunk)
        together.learn(tokens[:active], targets[:active], scored_from=5, chunk=chunk)
        for row in range(active):
            one = slice(row, row + 1)
            alone[row].learn(tokens[one], targets[one], scored_from=5, chunk=chunk)
    for row in range(2):
        for batched, single in zip(together.scoring(3), alone[row].scoring(1), strict=True):
            torch.testing.assert_close(batched[row], single[0], rtol=1e-3, atol=1e-5)


def test_steps_and_averages_are_those_of_the_formulas() -> None:
    low_rank = LowRank(tiny(dtype=torch.float32), ("*.c_q", "head"), rank=2, window=9)
    documents = Documents(low_rank, SETTINGS, 1)
    weights = [weight.clone().requires_grad_() for weight in low_rank.start(1, SETTINGS.seed)]
    optimizer = torch.optim.AdamW(weights, lr=1.0, betas=BETAS, eps=EPSILON, weight_decay=0.0)
    history = []
    for chunk in range(2):
        tokens, targets = (tensor[:1] for tensor in lesson(chunk))
        documents.learn(tokens, targets, scored_from=5, chunk=chunk)
        optimizer.param_groups[0]["lr"] = SETTINGS.rate(chunk)
        for _ in range(SETTINGS.epochs):
            optimizer.zero_grad()
            logits = low_rank.logits(tokens, weights, scored_from=5)
            torch.nn.functional.cross_entropy(logits[0], targets[0]).backward()
            torch.nn.utils.clip_grad_norm_(weights, SETTINGS.clip)
            optimizer.step()
            history.append([weight.detach().clone() for weight in weights])
    shares = torch.tensor([SETTINGS.polyak**age for age in range(len(history))]).flip(0)
    shares /= shares.sum()
    for i, found in enumerate(documents.scoring(1)):
        stack = torch.stack([step[i] for step in history])
        expected = (shares.view(-1, 1, 1, 1) * stack).sum(0)
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-5)


def test_an_average_of_what_stays_is_that() -> None:
    low_rank = LowRank(tiny(dtype=torch.float32), ("*.c_v",), rank=2, window=9)
    settings = LoraSettings(rank=2, polyak=0.998, learning_rate=0.0)
    documents = Documents(low_rank, settings, 2)
    start = [weight.clone() for weight in documents.scoring(2)]
    tokens, targets = (tensor[:2] for tensor in lesson(0))
    documents.learn(tokens, targets, scored_from=5, chunk=0)
    for before, after in zip(start, documents.scoring(2), strict=True):
        torch.testing.assert_close(after, before)


def test_losses_and_clipping_are_each_documents_own() -> None:
    logits = torch.randn(2, 4, 7, generator=torch.Generator().manual_seed(0))
    targets = torch.tensor([[1, 2, 3, 4], [5, IGNORED, IGNORED, IGNORED]])
    losses = document_losses(logits, targets)
    whole = torch.nn.functional.cross_entropy(logits[0], targets[0])
    first = torch.nn.functional.cross_entropy(logits[1, :1], targets[1, :1])
    torch.testing.assert_close(losses, torch.stack([whole, first]))

    gradients = [torch.ones(2, 3, 3), torch.ones(2, 4, 4)]
    gradients[0][1] *= 0.01
    gradients[1][1] *= 0.01
    found = clipped(gradients, 1.0)
    torch.testing.assert_close(found[0][0], torch.full((3, 3), 0.2))
    assert torch.equal(found[1][1], gradients[1][1])
    assert torch.equal(clipped(gradients, 0.0)[0], gradients[0])
    gradients[0][1, 0, 0] = float("nan")
    with pytest.raises(DataError, match="not finite"):
        clipped(gradients, 1.0)
