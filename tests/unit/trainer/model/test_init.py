"""Starting weights, and that training moves all of them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from qpack.trainer.model.gpt import GPT, build
from qpack.trainer.model.init import initialize
from qpack.trainer.model.layers import Embedding, Linear

from .tiny import CONFIG, some_documents
from .variants import LOGIT, MIXED, SINGLE, STEM, TRIGRAM, VALUES, variant_id


def started(seed: int = 0, **overrides: Any) -> GPT:
    model = build({**CONFIG, **overrides})
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


TABLES = {**TRIGRAM, **VALUES, "tie_embeddings": False}


@pytest.mark.parametrize("engram", [STEM, LOGIT], ids=["stem", "logit"])
def test_of_a_table_and_its_projection_one_starts_at_zero(engram: dict[str, Any]) -> None:
    """Both at zero would never move; the lineage's flags say otherwise than its programs do."""
    model = started(**TABLES, **engram)
    stds = {name: m.std for name, m in model.named_modules() if isinstance(m, Embedding)}
    zeros = {name: m.zero for name, m in model.named_modules() if isinstance(m, Linear)}
    expected = {
        "tok_emb": (0.005, None),
        "bigram.embed": (0.0, False),
        "trigram.embed": (0.0, False),
        "engram.embed": (0.01, True),
        "value_embed.embed": (0.01, False),
    }
    assert stds == {name: std for name, (std, _) in expected.items()}
    for name, (std, zero) in expected.items():
        drawn = model.get_submodule(name).weight.detach()
        assert drawn.std().item() == pytest.approx(std, rel=0.2)
        if zero is not None:
            proj = name.replace("embed", "proj") if "value" not in name else "value_embed.proj"
            assert zeros[proj] is zero
            assert model.get_submodule(proj).weight.any().item() is not zero
            assert bool(std) is not False or not zero
    assert zeros["lm_head"] is True
    assert not model.lm_head.weight.any()


def test_gains_and_gates_start_where_the_techniques_say() -> None:
    model = started(
        **TABLES, **LOGIT, skip_gates=True, xsa_layers=[1], xsa_gated=True, parallel="routed",
        parallel_from=4,
    )  # fmt: skip
    block = model.blocks[4]
    starts = {
        model.bigram.scale: 0.05, model.trigram.scale: 0.03, model.value_embed.scale: 0.1,
        model.engram.gate: -1.0, model.smear.gate: 0.0, model.skip_weights: 1.0,
        model.skip_gates: 0.0, model.blocks[1].attn.xsa_gate: 0.0, block.attn.value_scale: 1.0,
        block.lane_keep: 1.1**0.5, block.lane_route: 1.0, block.attn_scale: 1.0,
        block.mlp_scale: 1.0, block.attn.q_gain: 2.0,
    }  # fmt: skip
    for parameter, value in starts.items():
        assert torch.equal(parameter, torch.full_like(parameter, value))
    assert block.resid_mix[0].eq(1).all() and block.resid_mix[1].eq(0).all()
    assert started(parallel="lanes", parallel_from=2).lane_merge.item() == 0.5


def test_a_new_model_is_the_same_without_the_tables_that_start_at_zero() -> None:
    tokens = some_documents(2, 9)
    none = {"bigram_vocab_size": 0, "bigram_dim": 0}
    plain = started(**none)
    for overrides in ({}, {**none, **TRIGRAM}, {**none, **STEM}, {**none, **LOGIT}):
        model = started(**overrides)
        model.load_state_dict(plain.state_dict(), strict=False)
        torch.testing.assert_close(model(tokens), plain(tokens), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("overrides", [{}, *SINGLE, *MIXED], ids=variant_id)
def test_a_new_model_learns_in_every_part(overrides: dict[str, Any]) -> None:
    """Zero starts must not lock each other: after some steps every parameter has moved."""
    model = started(**overrides).double()  # so that a small step is not lost
    start = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    tokens = some_documents(4, 33)
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
