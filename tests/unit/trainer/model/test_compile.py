"""Compiled models: the same function, one graph without breaks, and few of them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch._dynamo.testing import CompileCounter

from qpack.trainer.model.gpt import GPT

from .tiny import some_documents, tiny
from .variants import MIXED, RECUR, variant_id

pytestmark = pytest.mark.filterwarnings(
    "ignore:The .grad attribute of a Tensor:UserWarning",  # torch hides it, unless it is an error
    "ignore:.*script_method.*:DeprecationWarning",  # of torch, on importing inductor
)
RICH = MIXED[3]
"""Everything that can go together."""
WHOLE = {"fullgraph": True, "dynamic": False}


@pytest.fixture(autouse=True)
def fresh_compiler() -> None:
    torch._dynamo.reset()


def passed(model: GPT, tokens: Tensor) -> list[Tensor]:
    """Logits, and the gradient of every parameter."""
    features, weight = model.readout(model.hidden(tokens), tokens)
    logits = torch.nn.functional.linear(features, weight.to(features.dtype))
    return [logits.detach(), *torch.autograd.grad(logits.square().sum(), list(model.parameters()))]


def close(found: list[Tensor], wanted: list[Tensor]) -> None:
    for mine, theirs in zip(found, wanted, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize(
    "overrides", [RICH, pytest.param(MIXED[0], marks=pytest.mark.slow)], ids=variant_id
)
def test_regions_compute_the_same(overrides: dict[str, Any]) -> None:
    """Compiled, gains are folded into weights and q, k and v are one product."""
    model, tokens = tiny(**overrides), some_documents(2, 9)
    names = set(model.state_dict())
    wanted = passed(model, tokens)
    model.compile_regions(backend="eager")
    close(passed(model, tokens), wanted)
    assert set(model.state_dict()) == names


@pytest.mark.slow
def test_the_whole_model_is_one_graph_that_follows_the_order_of_layers() -> None:
    model, tokens = tiny(**RICH), some_documents(2, 9)
    compiled = torch.compile(passed_forward(model), backend="eager", **WHOLE)
    for order in (None, [0, 1, 2, 3, 4]):
        model.set_layer_order(order)
        torch.testing.assert_close(compiled(tokens), model(tokens), rtol=1e-5, atol=1e-5)


def passed_forward(model: GPT) -> Any:
    """`model.forward` as a function: to compile it leaves the model as it is."""
    return lambda tokens: model(tokens)


KINDS = [
    ({"ln_scale": True, "mlp_slope": [0.1, 0.2, 0.3, 0.4, 0.5], "document_mask": True}, 1),
    ({"xsa_layers": [3, 4], "skip_gates": True}, 2),
]


@pytest.mark.parametrize(("overrides", "kinds"), KINDS)
def test_blocks_of_a_kind_share_a_graph_and_orders_need_none(
    overrides: dict[str, Any], kinds: int
) -> None:
    model, counter = tiny(**RECUR, **overrides), CompileCounter()
    model.compile_regions(backend=counter)
    model.hidden(some_documents(2, 9))
    # The stem, what is left, the skips; and the first block, which reads the stem twice, and the
    # first skip, which meets itself: tensors that are one are a graph of their own.
    shared = 5 + kinds
    assert counter.frame_count == shared
    model.hidden(some_documents(2, 9, seed=7))
    model.set_layer_order([0, 1, 2, 3, 4])
    model.hidden(some_documents(2, 9))
    assert counter.frame_count == shared


@pytest.mark.parametrize("documents", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_flex_attention_is_the_dense_one(documents: bool) -> None:
    """Forward alone: on a CPU FlexAttention has no backward pass."""
    model = tiny(dtype=torch.float32, document_mask=documents, bos_token=5)
    tokens = some_documents(3, 150)
    with torch.no_grad():
        wanted = model(tokens)
        counter = CompileCounter()
        model.compile_regions(backend=counter)
        model.attention_backend = "flex"
        torch.testing.assert_close(model(tokens), wanted, rtol=1e-3, atol=1e-3)
        frames = counter.frame_count
        model(some_documents(3, 150, seed=3))
        assert counter.frame_count == frames  # other documents are other values, not other graphs


@pytest.mark.slow
def test_inductor_computes_the_same() -> None:
    options = {**RICH, "num_layers": 2, "layer_order": [0, 1, 1], "parallel_from": 1}
    options |= {"xsa_layers": [1], "value_embed_layers": [1], "mlp_slope": [0.0, 0.5]}
    model, tokens = tiny(dtype=torch.float32, **options), some_documents(2, 9)
    wanted = passed(model, tokens)
    model.compile_regions()
    for mine, theirs in zip(passed(model, tokens), wanted, strict=True):
        assert (mine - theirs).norm() < 1e-3 * theirs.norm()


@pytest.mark.gpu
@pytest.mark.parametrize("backend", ["sdpa", "flex"])
def test_masked_documents_on_cuda_in_bfloat16(backend: str) -> None:
    sizes = {"model_dim": 128, "num_heads": 4, "num_kv_heads": 2, "rope_dims": 16}
    options = {**RICH, **sizes, "engram_dim": 16, "value_embed_dim": 16, "rope_ntk": False}
    model = tiny(dtype=torch.float32, **options)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 2 and "emb" not in name:
                parameter *= 0.4  # as drawn, the last bit of an input decides much of the output
    tokens = some_documents(4, 400)
    wanted = passed(model, tokens)
    model.cuda()
    model.compute_dtype, model.attention_backend = torch.bfloat16, backend
    model.compile_regions()
    found = [part.cpu().float() for part in passed(model, tokens.cuda())]
    assert (found[0] - wanted[0]).norm() < 0.05 * wanted[0].norm()
    mine, theirs = (torch.cat([part.flatten() for part in parts[1:]]) for parts in (found, wanted))
    assert torch.nn.functional.cosine_similarity(mine, theirs, dim=0) > 0.95
