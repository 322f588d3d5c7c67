from __future__ import annotations

from typing import Any

import pytest

from qpack.errors import ConfigError
from qpack.trainer.model.config import GPTConfig
from qpack.trainer.model.rules import order_problems

from .tiny import CONFIG, tiny
from .variants import LOGIT, RECUR

LANES = {"parallel": "lanes", "parallel_from": 3}


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"trigram_dim": 3}, ["trigram_vocab_size = 0, trigram_dim = 3"]),
        ({"engram": "stem"}, ["engram = 'stem', engram_rows = 0, engram_dim = 0"]),
        ({"engram_rows": 8, "engram_dim": 2}, ["engram = 'off', engram_rows = 8"]),
        ({**LOGIT, "engram_dim": 0}, ["engram = 'logit', engram_rows = 31, engram_dim = 0"]),
        ({"engram": "both"}, ["engram = 'both': must be 'off', 'stem' or 'logit'"]),
        ({"engram_heads": 3}, ["engram_heads = 3"]),
        ({"value_embed_dim": 3}, ["value_embed_layers, value_embed_dim = 3"]),
        ({"value_embed_layers": [1]}, ["value_embed_layers, value_embed_dim = 0"]),
        ({"rope_ntk": True, "rope_dims": 2}, ["rope_ntk = True: needs at least 4"]),
        ({"document_mask": True, "bos_token": 37}, ["bos_token = 37: is not below"]),
        ({"smear_mask_bos": True, "smear_gate": False}, ["smear_mask_bos = True"]),
        ({"xsa_gated": True}, ["xsa_gated = True: needs xsa_layers"]),
        ({"skip_gates": True, "unet_skips": False}, ["skip_gates = True: needs unet_skips"]),
        ({"xsa_layers": [1, 1]}, ["xsa_layers = [1, 1]: must be different blocks of 0 to 4"]),
        ({"xsa_layers": [5]}, ["xsa_layers = [5]"]),
        ({"xsa_layers": [-1]}, ["xsa_layers.0 = -1"]),
        ({"mlp_slope": [0.5] * 4}, ["mlp_slope: has 4 slopes for num_layers = 5"]),
        ({"mlp_slope": "steep"}, ["mlp_slope.one = 'steep': must be a valid number"]),
        ({"mlp_slope": [0.5, 2.0]}, ["mlp_slope.each.1 = 2.0"]),
        ({"parallel": "lanes"}, ["parallel = 'lanes', parallel_from = None"]),
        ({"parallel_from": 2}, ["parallel = 'off', parallel_from = 2"]),
        ({"parallel": "stream", "parallel_from": 5}, ["parallel_from = 5: must be below"]),
        ({"layer_order": []}, ["layer_order: is empty", "unet_skips"]),
        ({"layer_order": [0, 1, 7, 9]}, ["layer_order: [7, 9] is not among the blocks 0 to 4"]),
        ({"layer_order": [0, 1, 3, 4, 4]}, ["layer_order: blocks [2] never run"]),
        ({"layer_order": [*range(5)] * 300}, ["layer_order: has 1500 steps, more than 1,024"]),
        ({**LANES, "layer_order": [0, 1, 2, 3, 2, 4]}, ["layer_order: goes back below block 3"]),
        ({**LANES, "xsa_gated": True, "mlp_slope": [1.0]}, ["mlp_slope", "xsa_gated"]),
    ],
)
def test_every_contradiction_is_named(changes: dict[str, Any], named: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        GPTConfig.from_mapping({**CONFIG, **changes})
    assert len(caught.value.items) == len(named)
    for item, start in zip(sorted(caught.value.items), sorted(named), strict=True):
        assert item.startswith(start)


def test_lanes_may_repeat_and_a_single_stream_may_go_back() -> None:
    lanes = GPTConfig.from_mapping({**CONFIG, **LANES, "layer_order": [0, 1, 0, 1, 2, 3, 4, 3, 4]})
    assert order_problems(lanes, [0, 1, 2, 3, 4]) == []
    stream = {"parallel": "stream", "parallel_from": 3, "layer_order": [0, 1, 2, 3, 2, 3, 4]}
    assert GPTConfig.from_mapping({**CONFIG, **stream}).num_skips == 3


@pytest.mark.parametrize(
    ("order", "named"),
    [
        ([0, 5], r"\[5\] is not among the blocks 0 to 4"),
        ([-1, 0], r"\[-1\] is not among"),
        ([], "is empty"),
        ([0, 1, 2, 1, 2, 3, 4, 4], "has 8 steps, the configuration's 7"),
    ],
)
def test_orders_that_a_model_refuses(order: list[int], named: str) -> None:
    model = tiny(**RECUR)
    with pytest.raises(ConfigError, match=named):
        model.set_layer_order(order)
    assert model.layer_order == (0, 1, 2, 1, 2, 3, 4)


def test_lanes_refuse_an_order_that_leaves_them() -> None:
    model = tiny(**LANES)
    with pytest.raises(ConfigError, match="goes back below block 3"):
        model.set_layer_order([0, 1, 3, 2, 4])
