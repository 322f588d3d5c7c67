"""Each part alone, against the slow reference or a hand-computed value."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from qpack.trainer.model.attention import attend
from qpack.trainer.model.hashing import history
from qpack.trainer.model.layers import Embedding, Linear, rms_norm, shift
from qpack.trainer.model.masks import dense_mask
from qpack.trainer.model.mlp import MLP
from qpack.trainer.model.rope import rotate, rotation
from qpack.trainer.model.smear import SmearGate

from . import reference
from .tiny import tiny


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("dims", [0, 2, 6, 10])
def test_rope_turns_the_halves_of_the_first_elements(dims: int) -> None:
    x = draw(2, 7, 3, 10)
    cos, sin = rotation(5, 7, dims=dims, base=50.0, device=torch.device("cpu"))
    out = rotate(x, cos, sin)
    for b in range(2):
        for t in range(7):
            for h in range(3):
                wanted = reference.rope(x[b, t, h].numpy(), 5 + t, dims, 50.0)
                np.testing.assert_allclose(out[b, t, h].numpy(), wanted, rtol=1e-6, atol=1e-6)


def test_rope_keeps_lengths_and_depends_on_distance_alone() -> None:
    q, k = draw(1, 1, 1, 16), draw(1, 1, 1, 16, seed=1)

    def turned(x: torch.Tensor, position: int) -> torch.Tensor:
        return rotate(x, *rotation(position, 1, dims=16, base=1e4, device=torch.device("cpu")))

    assert turned(q, 900).norm() == pytest.approx(q.norm().item())
    near = (turned(q, 9) * turned(k, 4)).sum()
    far = (turned(q, 805) * turned(k, 800)).sum()
    assert near.item() == pytest.approx(far.item(), abs=1e-4)


@pytest.mark.parametrize(("heads", "kv_heads"), [(1, 1), (4, 4), (4, 2), (6, 2), (4, 1)])
@pytest.mark.parametrize(("start", "queries"), [(0, 6), (4, 1), (3, 3), (0, 1)])
def test_attention_of_grouped_heads(heads: int, kv_heads: int, start: int, queries: int) -> None:
    total = start + queries
    q, k, v = draw(2, heads, queries, 5), draw(2, kv_heads, total, 5), draw(2, kv_heads, total, 5)
    out = attend(q, k, v, dense_mask(start, queries, None, q.device))
    assert out.shape == q.shape
    for b in range(2):
        for h in range(heads):
            j = h // (heads // kv_heads)
            for t in range(queries):
                seen = start + t + 1
                wanted = reference.attend(
                    q[b, h, t].numpy(), k[b, j, :seen].numpy(), v[b, j, :seen].numpy()
                )
                np.testing.assert_allclose(out[b, h, t].numpy(), wanted, rtol=1e-9, atol=1e-9)


def test_smear_gate_mixes_with_the_position_before() -> None:
    smear = SmearGate(2).double()
    smear.gate.data = torch.tensor([0.0, math.log(3.0)], dtype=torch.float64)  # g = 1/2, 3/4
    x = torch.tensor([[[4.0, 4.0], [8.0, 16.0]]], dtype=torch.float64)
    expected = torch.tensor([[[2.0, 1.0], [6.0, 7.0]]], dtype=torch.float64)
    torch.testing.assert_close(smear(x), expected)
    torch.testing.assert_close(smear(x[:, 1:], x[:, :1]), expected[:, 1:])


def test_shift_by_one() -> None:
    x = torch.arange(6).view(1, 3, 2)
    assert shift(x, None).tolist() == [[[0, 0], [0, 1], [2, 3]]]
    assert shift(x, x[:, 2:]).tolist() == [[[4, 5], [0, 1], [2, 3]]]


def test_mlp_squares_what_is_positive() -> None:
    config = tiny(model_dim=4, num_heads=1, num_kv_heads=1, mlp_mult=0.5).config
    mlp = MLP(config)
    mlp.fc.weight.data = torch.tensor([[1.0, 0, 0, 0], [0, 1, 0, 0]])
    mlp.proj.weight.data = torch.tensor([[1.0, 0], [0, 1], [1, 1], [0, 0]])
    assert mlp(torch.tensor([3.0, -5.0, 9.0, 9.0])).tolist() == [9.0, 0.0, 9.0, 0.0]


def test_rms_norm_has_no_weight_and_the_dtypes_epsilon() -> None:
    x = draw(3, 8)
    wanted = np.stack([reference.rms(row.numpy()) for row in x])
    np.testing.assert_allclose(rms_norm(x).numpy(), wanted, rtol=1e-12)
    small = torch.full((1, 4), 1e-4)
    eps = torch.finfo(torch.float32).eps
    assert rms_norm(small)[0, 0].item() == pytest.approx(1e-4 / math.sqrt(1e-8 + eps), rel=1e-4)


def test_u_net_skips_are_popped_last_in_first_out() -> None:
    """With blocks that pass x on, the stream counts which layer's output came in where."""
    model = tiny(num_layers=5, smear_gate=False, bigram_vocab_size=0, bigram_dim=0)
    for block in model.blocks:
        block.attn_scale.data.zero_()
        block.mlp_scale.data.zero_()
    for layer, mix in enumerate((1.0, 10.0, 1.0, 1.0, 1.0)):  # the second layer multiplies by 10
        model.blocks[layer].resid_mix.data = torch.tensor([[mix], [0.0]]).double().repeat(1, 24)
    model.skip_weights.data = torch.tensor([[2.0], [3.0]]).double().repeat(1, 24)
    tokens = torch.tensor([[5]])
    context = model._context(tokens, history(tokens), None)
    (x,), x0 = model._layers(context, context, None), context.x0
    # layer 2 adds 2 x (layer 1's output, 10 x0), layer 3 adds 3 x (layer 0's, x0), layer 4 nothing
    torch.testing.assert_close(x, (10 + 2 * 10 + 3) * x0)


def test_layers_are_made_without_random_numbers() -> None:
    before = torch.get_rng_state()
    assert not Linear(3, 4).weight.any()
    assert Linear(3, 4).bias is None
    assert not Embedding(3, 4, std=1.0).weight.any()
    assert torch.equal(before, torch.get_rng_state())
