from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from qpack.errors import ConfigError
from qpack.trainer.model.gpt import GPT, build
from qpack.trainer.model.init import initialize

from . import reference
from .tiny import CONFIG, some_tokens, tiny

VARIANTS: list[dict[str, Any]] = [
    {},
    {"num_layers": 6},
    {"num_layers": 1, "unet_skips": False},
    {"unet_skips": False},
    {"bigram_vocab_size": 0, "bigram_dim": 0},
    {"smear_gate": False},
    {"tie_embeddings": False},
    {"logit_softcap": 0.0},
    {"rope_dims": None, "rope_base": 100.0},
    {"rope_dims": 0},
    {"num_kv_heads": 1},
    {"num_kv_heads": 4},
]


def variant_id(overrides: dict[str, Any]) -> str:
    return ",".join(f"{key}={value}" for key, value in overrides.items()) or "all parts"


@pytest.mark.parametrize("overrides", VARIANTS, ids=variant_id)
def test_logits_are_those_of_the_slow_reference(overrides: dict[str, Any]) -> None:
    model = tiny(**overrides)
    tokens = some_tokens(2, 11)
    weights = {name: p.detach().numpy() for name, p in model.named_parameters()}
    expected = [reference.forward(weights, row.tolist(), model.config.to_dict()) for row in tokens]
    logits = model(tokens)
    assert logits.dtype == torch.float32
    assert logits.shape == (2, 11, 37)
    # float32 only in the last step and in the angles
    np.testing.assert_allclose(logits.detach().numpy(), np.stack(expected), rtol=2e-5, atol=2e-5)


def test_no_position_sees_a_later_one() -> None:
    model = tiny()
    tokens = some_tokens(1, 12)
    before = model(tokens)
    for i in range(12):
        changed = tokens.clone()
        changed[0, i] = (changed[0, i] + 1) % 37
        after = model(changed)
        assert torch.equal(after[:, :i], before[:, :i])
        assert (after[:, i] != before[:, i]).any()


def test_a_prefix_has_the_same_logits() -> None:
    model = tiny()
    tokens = some_tokens(2, 12)
    torch.testing.assert_close(model(tokens[:, :7]), model(tokens)[:, :7])


def test_sequences_of_a_batch_are_independent() -> None:
    model = tiny()
    tokens = some_tokens(3, 9)
    rows = torch.cat([model(row[None]) for row in tokens])
    torch.testing.assert_close(model(tokens), rows)


@pytest.mark.parametrize("tied", [True, False])
def test_gradients_reach_every_element_that_takes_part(tied: bool) -> None:
    model = tiny(tie_embeddings=tied)
    tokens = some_tokens(8, 64)
    model(tokens).square().sum().backward()
    dead = [
        name
        for name, p in model.named_parameters()
        if p.grad is None or not p.grad.isfinite().all() or (p.grad == 0).all()
    ]
    assert dead == []
    for name in ("skip_weights", "smear.gate", "blocks.0.attn.q_gain", "blocks.3.resid_mix"):
        assert (model.get_parameter(name).grad != 0).all(), name


@pytest.mark.parametrize("pieces", [[12], [1] * 12, [5, 1, 1, 5], [3, 4, 5]])
@pytest.mark.parametrize("overrides", VARIANTS[:6], ids=variant_id)
def test_in_pieces_with_a_cache_as_all_at_once(
    overrides: dict[str, Any], pieces: list[int]
) -> None:
    model = tiny(**overrides)
    tokens = some_tokens(3, 12)
    cache = model.new_cache(3, 14)
    with torch.no_grad():
        parts = [model(piece, cache=cache) for piece in tokens.split(pieces, dim=1)]
        torch.testing.assert_close(torch.cat(parts, dim=1), model(tokens), rtol=1e-5, atol=1e-5)
    assert cache.num_tokens == 12


def test_a_cache_refuses_what_does_not_fit() -> None:
    model = tiny()
    cache = model.new_cache(2, 4)
    model(some_tokens(2, 3), cache=cache)
    for batch, length in ((2, 2), (1, 1)):
        with pytest.raises(ConfigError, match="do not fit"):
            model(some_tokens(batch, length), cache=cache)
    assert cache.num_tokens == 3


def test_bfloat16_and_autocast_give_float32_logits_near_the_exact_ones() -> None:
    exact = tiny(dtype=torch.float32)
    tokens = some_tokens(2, 16)
    with torch.no_grad():
        wanted = exact(tokens)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            cast = exact(tokens)
        half = tiny(dtype=torch.bfloat16)(tokens)
    for logits in (cast, half):
        assert logits.dtype == torch.float32
        assert (logits - wanted).abs().mean() < 0.05 * wanted.abs().mean()


def test_the_projections_of_one_input_receive_one_tensor() -> None:
    """Calibration collects the Hessian of q, k and v once because of this."""
    model = tiny()
    inputs = []
    for layer in (model.blocks[0].attn.c_q, model.blocks[0].attn.c_k, model.blocks[0].attn.c_v):
        layer.register_forward_pre_hook(lambda _, args: inputs.append(args[0]))
    model(some_tokens(1, 4))
    assert inputs[0] is inputs[1] is inputs[2]


def test_a_tied_model_has_one_table() -> None:
    assert "lm_head.weight" not in build(CONFIG).state_dict()
    assert "lm_head.weight" in build({**CONFIG, "tie_embeddings": False}).state_dict()


def test_parameter_names_are_the_lineages() -> None:
    names = {name.replace(".1.", ".N.") for name in tiny(num_layers=2).state_dict()}
    assert names >= {
        "tok_emb.weight", "skip_weights", "smear.gate",
        "bigram.embed.weight", "bigram.proj.weight", "bigram.scale",
        "blocks.N.attn.c_q.weight", "blocks.N.attn.c_k.weight", "blocks.N.attn.c_v.weight",
        "blocks.N.attn.proj.weight", "blocks.N.attn.q_gain", "blocks.N.mlp.fc.weight",
        "blocks.N.mlp.proj.weight", "blocks.N.attn_scale", "blocks.N.mlp_scale",
        "blocks.N.resid_mix",
    }  # fmt: skip


def started(seed: int = 0) -> GPT:
    model = build(CONFIG)
    initialize(model, torch.Generator().manual_seed(seed), q_gain=2.0)
    return model


def test_building_and_starting_leave_the_global_generator_alone() -> None:
    before = torch.get_rng_state()
    first, again, other = started(), started(), started(seed=1)
    assert torch.equal(before, torch.get_rng_state())
    same = [torch.equal(p, q) for p, q in zip(first.parameters(), again.parameters(), strict=True)]
    assert all(same)
    assert not torch.equal(first.tok_emb.weight, other.tok_emb.weight)


def test_each_matrix_starts_by_its_own_rule() -> None:
    model = started()
    zero = {n for n, p in model.named_parameters() if p.ndim == 2 and not p.any()}
    layers = range(CONFIG["num_layers"])
    assert zero == {
        "bigram.embed.weight",
        *(f"blocks.{i}.attn.proj.weight" for i in layers),
        *(f"blocks.{i}.mlp.proj.weight" for i in layers),
    }
    for name in ("blocks.0.attn.c_q", "blocks.0.attn.c_k", "blocks.4.mlp.fc", "bigram.proj"):
        weight = model.get_parameter(f"{name}.weight").detach()
        short = weight if weight.shape[0] < weight.shape[1] else weight.T
        torch.testing.assert_close(
            short @ short.T, torch.eye(len(short)), rtol=0, atol=1e-5, msg=name
        )
    assert 0.004 < model.tok_emb.weight.std() < 0.006
    assert (model.blocks[2].attn.q_gain == 2.0).all()


def test_a_new_model_learns_in_every_part() -> None:
    """Zero starts must not lock each other: after some steps every parameter has moved."""
    model = started()
    start = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    tokens = some_tokens(4, 33)
    losses = []
    for _ in range(4):
        logits = model(tokens[:, :-1]).flatten(0, 1)
        loss = torch.nn.functional.cross_entropy(logits, tokens[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[0] == pytest.approx(np.log(37), abs=0.01)
    assert losses[-1] < losses[0]
    stuck = [n for n, p in model.named_parameters() if torch.equal(p.detach(), start[n])]
    assert stuck == []
