from __future__ import annotations

import pytest
import torch

from qpack.trainer.model.gpt import build

from .tiny import tiny
from .variants import LOGIT, RECUR, VALUES


def block_weights(dim: int = 24, kv_dim: int = 12, hidden: int = 60) -> int:
    return 2 * dim * dim + 2 * kv_dim * dim + 2 * hidden * dim


def test_weights_count_by_use_and_attention_by_length() -> None:
    model = tiny()
    outside = 7 * 24 + 37 * 24  # bigram projection, head
    expected = 6 * (outside + 5 * block_weights()) + 5 * (12 * 24 * 10 // 2)
    assert model.num_matrix_flops(10) == expected
    assert model.num_matrix_flops(20) - expected == 5 * 12 * 24 * 10 // 2


def test_a_block_that_runs_twice_counts_twice() -> None:
    model = tiny(**RECUR)
    whole = model.num_matrix_flops(10)
    model.set_layer_order([0, 1, 2, 3, 4])
    once = 6 * block_weights() + 12 * 24 * 10 // 2
    assert whole - model.num_matrix_flops(10) == 2 * once


@pytest.mark.parametrize(
    ("overrides", "more"),
    [({"tie_embeddings": False}, 0), (LOGIT, 5 * 37), (VALUES, 5 * 12)],
)
def test_projections_outside_the_blocks_count_once(overrides: dict[str, int], more: int) -> None:
    assert tiny(**overrides).num_matrix_flops(8) == tiny().num_matrix_flops(8) + 6 * more


def test_golf27m_is_what_its_parameters_say() -> None:
    """27 M weights, all but tables, skips and scales in products: about 6 a weight."""
    sizes = {
        "vocab_size": 1024, "num_layers": 11, "model_dim": 512, "num_heads": 8,
        "num_kv_heads": 4, "mlp_mult": 3.0, "bigram_vocab_size": 0, "bigram_dim": 0,
    }  # fmt: skip
    block = block_weights(512, 256, 1536)
    expected = 6 * (1024 * 512 + 11 * block) + 11 * 6 * 512 * 1024
    with torch.device("meta"):
        model = build(sizes)
    assert model.num_matrix_flops(1024) == expected
