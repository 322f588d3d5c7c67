from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from qpack.trainer.model.gpt import build
from qpack.trainer.optim.groups import parameter_groups

MODEL: dict[str, Any] = {
    "vocab_size": 300,
    "num_layers": 2,
    "model_dim": 16,
    "num_heads": 2,
    "num_kv_heads": 1,
    "bigram_vocab_size": 32,
    "bigram_dim": 8,
    "smear_gate": True,
}


def kinds(model: nn.Module) -> dict[str, set[str]]:
    return {kind: set(named) for kind, named in parameter_groups(model).items()}


def test_kinds_of_parameters() -> None:
    found = kinds(build(MODEL))
    assert found["embedding"] == {"tok_emb.weight", "bigram.embed.weight"}
    matrices = ("attn.c_q", "attn.c_k", "attn.c_v", "attn.proj", "mlp.fc", "mlp.proj")
    expected = {f"blocks.{i}.{name}.weight" for i in range(2) for name in matrices}
    assert found["matrix"] == expected | {"bigram.proj.weight"}
    assert {"blocks.0.resid_mix", "blocks.1.attn.q_gain", "skip_weights"} <= found["scalar"]
    assert found["head"] == set()


ENGRAM = {"engram_rows": 32, "engram_dim": 8}
VARIANTS: list[dict[str, Any]] = [
    {},
    {"tie_embeddings": False},
    {"parallel": "lanes", "parallel_from": 0},
    {"parallel": "routed", "parallel_from": 0},
    {"engram": "stem", **ENGRAM, "trigram_vocab_size": 64, "trigram_dim": 8},
    {"engram": "logit", **ENGRAM, "skip_gates": True},
    {"value_embed_layers": [1], "value_embed_dim": 8, "xsa_layers": [0, 1], "xsa_gated": True},
]


@pytest.mark.parametrize("extra", VARIANTS, ids=str)
def test_every_parameter_is_in_exactly_one_group(extra: dict[str, Any]) -> None:
    model = build({**MODEL, **extra})
    groups = parameter_groups(model)
    found = [id(p) for named in groups.values() for p in named.values()]
    assert len(found) == len(set(found))
    assert set(found) == {id(p) for p in model.parameters()}
    assert set(groups["head"]) == ({"lm_head.weight"} if model.lm_head is not None else set())
    for name, parameter in groups["matrix"].items():
        assert parameter.ndim == 2, name
        assert name.endswith(
            (".c_q.weight", ".c_k.weight", ".c_v.weight", "proj.weight", "fc.weight")
        )
    assert all(name.endswith(("tok_emb.weight", "embed.weight")) for name in groups["embedding"])


class Parts(nn.Module):
    """Parts that no list of names knows."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(5, 3)
        self.lm_head = nn.Linear(3, 5, bias=False)
        self.inner = nn.ModuleDict({"lm_head": nn.Linear(3, 4)})
        self.some_route = nn.Parameter(torch.ones(2, 2))
        self.frozen = nn.Parameter(torch.ones(3), requires_grad=False)
        self.kernel = nn.Conv1d(3, 3, 2)


def test_by_the_owner_not_by_name() -> None:
    found = kinds(Parts())
    assert found == {
        "embedding": {"table.weight"},
        "head": {"lm_head.weight"},
        "matrix": {"inner.lm_head.weight"},
        "scalar": {"some_route", "inner.lm_head.bias", "kernel.weight", "kernel.bias"},
    }


def test_a_tied_head_is_a_table() -> None:
    model = Parts()
    model.lm_head.weight = model.table.weight
    assert kinds(model)["embedding"] == {"table.weight"}
    assert kinds(model)["head"] == set()
