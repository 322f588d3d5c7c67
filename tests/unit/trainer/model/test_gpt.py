"""The whole model: against the slow reference, and what must hold for every variant."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from qpack.errors import ConfigError
from qpack.trainer.model.gpt import build

from . import reference
from .tiny import CONFIG, some_documents, some_tokens, tiny
from .variants import LOGIT, MIXED, NTK, PLAIN, RECUR, SINGLE, VARIANTS, variant_id

every_variant = pytest.mark.parametrize("overrides", VARIANTS, ids=variant_id)


@every_variant
def test_logits_are_those_of_the_slow_reference(overrides: dict[str, Any]) -> None:
    model = tiny(**overrides)
    tokens = some_documents(2, 11)
    weights = {name: p.detach().numpy() for name, p in model.named_parameters()}
    config = model.config.model_dump(mode="json")
    expected = [reference.forward(weights, row.tolist(), config) for row in tokens]
    logits = model(tokens)
    assert logits.dtype == torch.float32
    assert logits.shape == (2, 11, 37)
    # float32 only in the last step and in the angles
    np.testing.assert_allclose(logits.detach().numpy(), np.stack(expected), rtol=5e-5, atol=5e-5)


@every_variant
def test_features_times_matrix_are_the_logits_before_the_softcap(overrides: dict[str, Any]) -> None:
    model = tiny(**overrides)
    tokens = some_documents(2, 9)
    hidden = model.hidden(tokens)
    features, weight = model.readout(hidden, tokens)
    assert hidden.shape == (2, 9, 24)
    assert features.shape[:2] == (2, 9)
    logits = torch.nn.functional.linear(features, weight)
    if model.softcap:
        logits = model.softcap * torch.tanh(logits / model.softcap)
    torch.testing.assert_close(logits.float(), model(tokens), rtol=1e-5, atol=1e-5)


@every_variant
def test_no_position_sees_a_later_one(overrides: dict[str, Any]) -> None:
    model = tiny(**overrides)
    tokens = some_documents(1, 12).repeat(12, 1)
    changed = (tokens + torch.eye(12, dtype=torch.int64)) % 37  # row i has another token i
    with torch.no_grad():
        before, after = model(tokens), model(changed)
    for i in range(12):
        assert torch.equal(after[i, :i], before[i, :i])
        assert (after[i, i] != before[i, i]).any()


@pytest.mark.parametrize("overrides", [v for v in VARIANTS if "rope_ntk" not in v], ids=variant_id)
def test_a_prefix_has_the_same_logits(overrides: dict[str, Any]) -> None:
    model = tiny(**overrides)
    tokens = some_documents(2, 12)
    torch.testing.assert_close(model(tokens[:, :7]), model(tokens)[:, :7], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("overrides", [{}, *MIXED], ids=variant_id)
def test_sequences_of_a_batch_are_independent(overrides: dict[str, Any]) -> None:
    model = tiny(**overrides)
    tokens = some_documents(3, 9)
    rows = torch.cat([model(row[None]) for row in tokens])
    torch.testing.assert_close(model(tokens), rows)


@every_variant
def test_what_is_not_scored_can_be_left_out(overrides: dict[str, Any]) -> None:
    model = tiny(**overrides)
    tokens = some_documents(2, 12)
    with torch.no_grad():
        whole = model(tokens)
        for first in (1, 7, 11):
            part = model(tokens, scored_from=first)
            torch.testing.assert_close(part, whole[:, first:], rtol=1e-6, atol=1e-6)
        cache = model.new_cache(2, 12)
        model(tokens[:, :5], cache=cache)
        part = model(tokens[:, 5:], cache=cache, scored_from=3)
        torch.testing.assert_close(part, whole[:, 8:], rtol=1e-6, atol=1e-6)


def test_something_must_be_scored() -> None:
    with pytest.raises(ConfigError, match="scored_from 4: there are 4 positions"):
        tiny()(some_tokens(1, 4), scored_from=4)


@every_variant
def test_gradients_reach_every_element(overrides: dict[str, Any]) -> None:
    """No weight without effect, such as skips into a stream that nobody reads any more."""
    model = tiny(**{"mlp_slope": 0.5, **overrides})  # without a slope a unit may never fire
    tokens = some_documents(16, 64)
    tokens[:, 1:3] = torch.arange(32).view(16, 2)  # pairs that no other row has
    features, weight = model.readout(model.hidden(tokens), tokens)
    generator = torch.Generator().manual_seed(3)
    wanted = torch.randn(16, 64, 37, generator=generator, dtype=torch.float64)
    (torch.nn.functional.linear(features, weight) * wanted).sum().backward()
    for name, parameter in model.named_parameters():
        grad = parameter.grad
        assert grad is not None, name
        assert grad.isfinite().all(), name
        if name.endswith("embed.weight"):  # rows of a hash table that no token hits stay
            grad = grad[(grad != 0).any(dim=1)]
            assert len(grad) > 0.6 * len(parameter), name
        assert (grad != 0).all(), name


PIECES = [[12], [1] * 12, [5, 1, 1, 5], [3, 4, 5]]
CACHED = [(overrides, PIECES[2]) for overrides in VARIANTS]
CACHED += [(overrides, pieces) for overrides in ({}, *MIXED) for pieces in PIECES]


@pytest.mark.parametrize(("overrides", "pieces"), CACHED)
def test_in_pieces_with_a_cache_as_all_at_once(
    overrides: dict[str, Any], pieces: list[int]
) -> None:
    model = tiny(**overrides)
    tokens = some_documents(3, 12)
    # with rope_ntk a cache has the base of its own length
    cache = model.new_cache(3, 12 if "rope_ntk" in overrides else 14)
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


def test_a_cache_is_for_one_order_of_layers() -> None:
    model = tiny(**RECUR)
    cache = model.new_cache(2, 4)
    assert len(cache.layers) == 7
    model.set_layer_order(range(5))
    with pytest.raises(ConfigError, match=r"made for layers \[0, 1, 2, 1, 2, 3, 4\]"):
        model(some_tokens(2, 3), cache=cache)


def test_the_stretch_of_a_cache_is_fixed_by_its_length() -> None:
    """Keys are stored rotated: the base of the first token is that of the last."""
    model = tiny(**NTK)
    tokens = some_tokens(1, 8)
    with torch.no_grad():
        long, exact = (model(tokens[:, :4], cache=model.new_cache(1, n)) for n in (8, 4))
        whole = model(tokens)[:, :4]
    torch.testing.assert_close(long, whole, rtol=1e-5, atol=1e-5)
    assert (long - exact).abs().max() > 1e-3


def test_the_projections_of_one_input_receive_one_tensor() -> None:
    """Calibration collects the Hessian of q, k and v once because of this."""
    model = tiny(ln_scale=True)
    inputs: list[Tensor] = []
    for layer in (model.blocks[0].attn.c_q, model.blocks[0].attn.c_k, model.blocks[0].attn.c_v):
        layer.register_forward_pre_hook(lambda _, args: inputs.append(args[0]))
    model(some_tokens(1, 4))
    assert inputs[0] is inputs[1] is inputs[2]


def test_a_tied_model_has_one_table() -> None:
    assert "lm_head.weight" not in build(CONFIG).state_dict()
    assert "lm_head.weight" in build({**CONFIG, "tie_embeddings": False}).state_dict()


def test_parameter_names_are_the_lineages() -> None:
    names = {name.replace(".1.", ".N.") for name in tiny(num_layers=2).state_dict()}
    assert names == {
        "tok_emb.weight", "skip_weights", "smear.gate",
        "bigram.embed.weight", "bigram.proj.weight", "bigram.scale",
        *(name.replace("N", n) for n in "0N" for name in (
            "blocks.N.attn.c_q.weight", "blocks.N.attn.c_k.weight", "blocks.N.attn.c_v.weight",
            "blocks.N.attn.proj.weight", "blocks.N.attn.q_gain", "blocks.N.mlp.fc.weight",
            "blocks.N.mlp.proj.weight", "blocks.N.attn_scale", "blocks.N.mlp_scale",
            "blocks.N.resid_mix",
        )),
    }  # fmt: skip


def test_a_variant_says_what_it_is_called() -> None:
    assert len({variant_id(v) for v in PLAIN + SINGLE}) == len(PLAIN + SINGLE)


@pytest.mark.parametrize("overrides", [{}, LOGIT, *MIXED], ids=variant_id)
def test_bfloat16_gives_float32_logits_and_gradients_near_the_exact_ones(
    overrides: dict[str, Any],
) -> None:
    model = tiny(dtype=torch.float32, **overrides)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 2 and "emb" not in name:
                parameter *= 0.4  # as drawn, the last bit of an input decides much of the output
    tokens = some_documents(4, 32)

    def passed() -> tuple[Tensor, Tensor]:
        logits = model(tokens)
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), tokens.flatten())
        grads = torch.autograd.grad(loss, list(model.parameters()))
        return logits.detach(), torch.cat([grad.flatten() for grad in grads])

    wanted, exact = passed()
    model.compute_dtype = torch.bfloat16
    assert model.hidden(tokens).dtype == torch.bfloat16
    logits, grads = passed()
    assert logits.dtype == grads.dtype == torch.float32
    assert (logits - wanted).abs().mean() < 0.05 * wanted.abs().mean()
    assert torch.nn.functional.cosine_similarity(grads, exact, dim=0) > 0.95


def test_a_bfloat16_model_and_autocast_give_float32_logits() -> None:
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
