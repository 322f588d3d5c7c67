from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from qpack.errors import CheckpointError, ConfigError
from qpack.trainer.model.lineage import import_state

from .tiny import CONFIG, tiny
from .variants import VARIANTS, variant_id

UNSEEN = (
    "logit_softcap", "rope_base", "rope_dims", "train_seq_len", "rope_ntk", "smear_mask_bos",
    "bos_token", "ln_scale", "mlp_slope", "document_mask", "layer_order",
)  # fmt: skip
"""Configuration that no tensor tells."""
HALF_SEEN = ("xsa_layers", "parallel", "parallel_from", "engram_heads")
"""Told by tensors in some of the variants."""


def state(**overrides: Any) -> dict[str, Tensor]:
    return dict(tiny(dtype=torch.bfloat16, **overrides).state_dict())


@pytest.mark.parametrize("overrides", VARIANTS, ids=variant_id)
def test_names_and_shapes_tell_the_configuration(overrides: dict[str, Any]) -> None:
    config = tiny(**overrides).config.to_dict()
    tensors = state(**overrides)
    hints = {key: config[key] for key in (*UNSEEN, *HALF_SEEN) if key in config}
    found, inferred = import_state(tensors, hints)
    assert inferred == config
    assert found.keys() == tensors.keys()
    assert all(found[name] is tensors[name] for name in found)


def test_parts_of_blocks_tell_which_blocks() -> None:
    told = {
        "xsa_layers": [1, 4], "xsa_gated": True, "value_embed_layers": [0, 2],
        "value_embed_dim": 5, "parallel": "routed", "parallel_from": 3, "skip_gates": True,
        "trigram_vocab_size": 41, "trigram_dim": 3, "engram": "stem", "engram_rows": 23,
        "engram_dim": 3, "engram_heads": 1,
    }  # fmt: skip
    _, config = import_state(state(**told), {})
    assert {key: config[key] for key in told} == told
    with pytest.raises(ConfigError, match=r"xsa_layers = \[1, 2\], but the tensors say \[1, 4\]"):
        import_state(state(**told), {"xsa_layers": [1, 2]})


def test_a_merge_of_lanes_needs_a_hint_where_they_begin() -> None:
    tensors = state(parallel="lanes", parallel_from=3)
    with pytest.raises(ConfigError, match=r"parallel = 'lanes', parallel_from = None"):
        import_state(tensors, {})
    _, config = import_state(tensors, {"parallel_from": 3})
    assert (config["parallel"], config["parallel_from"]) == ("lanes", 3)


def test_an_order_of_layers_is_told_by_a_hint_and_checked_by_the_skips() -> None:
    tensors = state(layer_order=[0, 1, 2, 1, 2, 3, 4])
    with pytest.raises(CheckpointError, match=r"skip_weights: shape \(3, 24\), expected \(2, 24\)"):
        import_state(tensors, {})
    _, config = import_state(tensors, {"layer_order": [0, 1, 2, 1, 2, 3, 4]})
    assert config["layer_order"] == [0, 1, 2, 1, 2, 3, 4]


def test_what_tensors_do_not_tell_has_the_lineages_defaults() -> None:
    _, config = import_state(state(), {})
    expected = {"logit_softcap": 30.0, "rope_base": 10_000.0, "rope_dims": None}
    assert {key: config[key] for key in expected} == expected
    assert config["train_seq_len"] == 1_024


def test_a_head_equal_to_the_embedding_is_tied() -> None:
    tensors = state()
    tensors["lm_head.weight"] = tensors["tok_emb.weight"].clone()
    found, config = import_state(tensors, {})
    assert config["tie_embeddings"] is True
    assert "lm_head.weight" not in found
    assert "lm_head.weight" in tensors  # the caller's own is left alone


def test_hints_that_agree_are_welcome() -> None:
    _, config = import_state(state(), CONFIG)
    assert {key: config[key] for key in CONFIG} == CONFIG


def test_every_contradiction_with_the_tensors_is_named() -> None:
    with pytest.raises(ConfigError) as caught:
        import_state(state(), {"num_layers": 6, "tie_embeddings": False, "rope_base": 5.0})
    assert caught.value.items == (
        "num_layers = 6, but the tensors say 5",
        "tie_embeddings = False, but the tensors say True",
    )


def test_unknown_hints_are_named_with_the_likely_one() -> None:
    with pytest.raises(ConfigError) as caught:
        import_state(state(), {"rope_bse": 1e4, "flux": True, "xsa_last_n": None})
    assert caught.value.items == ('rope_bse (did you mean "rope_base"?)', "flux")
    assert "null" in (caught.value.hint or "")


def test_every_missing_unexpected_and_mis_shaped_tensor_is_named() -> None:
    tensors = state()
    del tensors["blocks.2.attn.c_k.weight"], tensors["blocks.0.attn.q_gain"]
    tensors["blocks.1.mlp_scale"] = torch.zeros(23)
    tensors["blocks.1.attn.xsa_alpha"] = torch.zeros(4)
    tensors["step"] = torch.tensor(3)
    tensors["smear.gate"] = torch.zeros(24, dtype=torch.int32)
    with pytest.raises(CheckpointError) as caught:
        import_state(tensors, {})
    assert sorted(caught.value.items) == [
        "blocks.0.attn.q_gain: missing",
        "blocks.1.attn.xsa_alpha: unexpected",
        "blocks.1.mlp_scale: shape (23,), expected (24,)",
        "blocks.2.attn.c_k.weight: missing",
        "smear.gate: torch.int32, expected floating point",
        "step: unexpected",
    ]


def test_a_layer_that_is_not_there_is_missing_whole() -> None:
    tensors = {name: t for name, t in state().items() if not name.startswith("blocks.1.")}
    with pytest.raises(CheckpointError) as caught:
        import_state(tensors, {})
    assert len(caught.value.items) == 10
    assert all(item.startswith("blocks.1.") for item in caught.value.items)


def test_half_a_bigram_is_not_enough() -> None:
    tensors = state()
    del tensors["bigram.embed.weight"]
    with pytest.raises(CheckpointError, match=r"bigram\.proj\.weight: unexpected"):
        import_state(tensors, {})
    with pytest.raises(CheckpointError, match=r"bigram\.embed\.weight: missing"):
        import_state(tensors, {"bigram_vocab_size": 53, "bigram_dim": 7})


@pytest.mark.parametrize("names", [[], ["layers.0.wq"], ["tok_emb.weight"]])
def test_another_architecture_is_refused(names: list[str]) -> None:
    with pytest.raises(CheckpointError, match="not a GPT") as caught:
        import_state({name: torch.zeros(4, 4) for name in names}, {})
    assert "blocks.N.mlp.fc.weight" in caught.value.items


def test_heads_cannot_be_told_without_q_gain() -> None:
    tensors = {name: t for name, t in state().items() if not name.endswith("q_gain")}
    with pytest.raises(CheckpointError) as caught:
        import_state(tensors, {"num_heads": 4})
    assert caught.value.items == ("blocks.N.attn.q_gain",)


def test_a_name_that_claims_many_layers_is_refused_at_once() -> None:
    tensors = state()
    tensors["blocks.9999.mlp_scale"] = torch.zeros(24)
    with pytest.raises(ConfigError, match="num_layers = 10000: must be less than or equal to 1024"):
        import_state(tensors, {})


@pytest.mark.parametrize("name", ["attn.c_k.weight", "mlp.fc.weight", "attn.q_gain"])
def test_empty_and_odd_shapes_are_errors_of_qpack(name: str) -> None:
    for shape in ((0, 24), (7, 24), (3,), ()):
        tensors = state(num_layers=2)
        for layer in range(2):
            tensors[f"blocks.{layer}.{name}"] = torch.zeros(shape)
        with pytest.raises((ConfigError, CheckpointError)):
            import_state(tensors, {})
