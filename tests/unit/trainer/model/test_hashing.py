"""Rows of the hashes against the formulas, whole and in pieces, and what tables make of them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from qpack.trainer.model.bigram import bigram_rows
from qpack.trainer.model.engram import EngramLogits, EngramStem, engram_rows
from qpack.trainer.model.hashing import HashEmbedding, History, history
from qpack.trainer.model.trigram import trigram_rows

from . import reference_stem as reference

some_ids = st.lists(st.integers(0, 65_535), min_size=1, max_size=12)
MANY = 10_007


def rows_of(name: str, seen: History, num_rows: int) -> Tensor:
    """(T, hashes) of the only sequence."""
    if name == "engram":
        return engram_rows(seen, num_rows, 2)[0].flatten(1)
    return {"bigram": bigram_rows, "trigram": trigram_rows}[name](seen, num_rows)[0][:, None]


def slow_rows(name: str, tokens: list[int], t: int, num_rows: int) -> list[int]:
    if name == "engram":
        return [row for order in reference.engram_rows(tokens, t, num_rows) for row in order]
    slow = {"bigram": reference.bigram_row, "trigram": reference.trigram_row}[name]
    return [slow(tokens, t, num_rows)]


@pytest.mark.parametrize("name", ["bigram", "trigram", "engram"])
@given(tokens=some_ids, num_rows=st.integers(2, 20_000), cut=st.integers(1, 12))
def test_rows_whole_or_in_pieces(name: str, tokens: list[int], num_rows: int, cut: int) -> None:
    wanted = [slow_rows(name, tokens, t, num_rows) for t in range(len(tokens))]
    whole = torch.tensor([tokens])
    assert rows_of(name, history(whole), num_rows).tolist() == wanted
    found = []
    for start in range(0, len(tokens), cut):
        seen = history(whole[:, start : start + cut], whole[:, :start], start)
        found += rows_of(name, seen, num_rows).tolist()
    assert found == wanted


def test_bigram_rows_by_hand() -> None:
    # 108939 ^ 54382 = 97765 = 23 * 4095 + 3580; 181565 ^ 81573 = 261016 = 63 * 4095 + 3031
    assert bigram_rows(history(torch.tensor([[2, 3, 5]])), 4096).tolist() == [[4095, 3580, 3031]]


def test_trigram_rows_by_hand() -> None:
    # 241355 ^ 108939 ^ 54382 = 185134 = 45 * 4095 + 859
    assert trigram_rows(history(torch.tensor([[2, 3, 5]])), 4096).tolist() == [[4095, 4095, 859]]


def test_engram_rows_by_hand() -> None:
    rows = engram_rows(history(torch.tensor([[2, 3, 5]])), 8192, 2)[0, 2].tolist()
    # 3 * 1009 + 5; (8157 + 314159) ^ 15685 = 317001 = 38 * 8192 + 5705
    # 72626 ^ 81573 ^ 24515 = 31444 = 3 * 8192 + 6868; 15838 ^ 13173 ^ 30755 = 30344 = ... + 5768
    assert rows == [[3032, 5705], [6868, 5768]]


def test_history_needs_no_more_than_the_last_two() -> None:
    tokens = torch.tensor([[4, 5, 6, 7, 8]])
    seen = history(tokens[:, 3:], tokens[:, 1:3], 3)
    assert seen.current.tolist() == [[7, 8]]
    assert seen.previous.tolist() == [[6, 7]]
    assert seen.earlier.tolist() == [[5, 6]]
    assert seen.positions.tolist() == [3, 4]
    assert history(tokens[:, :1]).earlier.tolist() == [[0]]


def drawn(module: torch.nn.Module) -> dict[str, np.ndarray]:
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_(generator=generator)
    return {f"x.{n}": p.detach().numpy() for n, p in module.double().named_parameters()}


def test_a_hash_embedding_is_scaled_and_projected() -> None:
    module = HashEmbedding(11, 3, 5, scale=0.05)
    assert module.scale.item() == pytest.approx(0.05)
    W = drawn(module)
    out = module(torch.tensor([[2, 10]]), torch.float64)[0].detach().numpy()
    for found, row in zip(out, (2, 10), strict=True):
        np.testing.assert_allclose(found, reference.hashed(W, "x", row), rtol=1e-12)


@pytest.mark.parametrize("heads", [1, 2])
def test_the_two_forms_of_engram(heads: int) -> None:
    config = {"engram_rows": MANY, "engram_dim": 3, "engram_heads": heads}
    tokens = [7, 1, 30, 30]
    seen = history(torch.tensor([tokens]))
    stem = EngramStem(MANY, 3, 5, num_heads=heads)
    assert (stem.gate == 0).all()
    W = {name.replace("x.", "engram."): w for name, w in drawn(stem).items()}
    out = stem(seen, torch.float64)[0].detach().numpy()
    for t in range(4):
        wanted = reference.engram_stem(W, tokens, t, config)
        np.testing.assert_allclose(out[t], wanted, rtol=1e-12)
    logit = EngramLogits(MANY, 3, 9, num_heads=heads)
    assert (logit.gate == -1).all()
    W = {name.replace("x.", "engram."): w for name, w in drawn(logit).items()}
    out = logit(seen, torch.float64)[0].detach().numpy()
    for t in range(4):
        wanted = reference.engram_logits(W, tokens, t, config)
        np.testing.assert_allclose(out[t], wanted, rtol=1e-12)
