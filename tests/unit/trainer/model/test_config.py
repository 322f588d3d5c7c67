from __future__ import annotations

import json
from typing import Any

import pytest

from qpack.errors import ConfigError
from qpack.trainer.model.config import FIRST_KEYS, GPTConfig

from .tiny import CONFIG
from .variants import VARIANTS, variant_id


def test_what_is_written_is_what_is_read() -> None:
    config = GPTConfig.from_mapping(CONFIG)
    assert GPTConfig.from_mapping(config.to_dict()) == config
    assert {key: config.to_dict()[key] for key in CONFIG} == CONFIG


def test_what_is_off_is_not_written() -> None:
    """An artifact pays for every byte, and old readers know the first keys alone."""
    assert GPTConfig.from_mapping(CONFIG).to_dict().keys() == FIRST_KEYS
    config = {**CONFIG, "xsa_layers": [3, 4], "mlp_slope": [0.5] * 5, "skip_gates": True}
    written = GPTConfig.from_mapping(config).to_dict()
    assert written.keys() == FIRST_KEYS | {"xsa_layers", "mlp_slope", "skip_gates"}
    assert json.loads(json.dumps(written)) == written


@pytest.mark.parametrize("overrides", VARIANTS, ids=variant_id)
def test_every_variant_is_written_and_read(overrides: dict[str, Any]) -> None:
    config = GPTConfig.from_mapping({**CONFIG, **overrides})
    assert GPTConfig.from_mapping(json.loads(json.dumps(config.to_dict()))) == config


def test_null_is_the_default() -> None:
    nulls = {"rope_dims": None, "logit_softcap": None, "smear_gate": None}
    config = GPTConfig.from_mapping({**CONFIG, **nulls})
    assert (config.rope_dims, config.logit_softcap, config.smear_gate) == (None, 30.0, False)
    assert config.rotary_dims == config.head_dim == 6


@pytest.mark.parametrize(
    ("layers", "skips", "expected"), [(2, True, 1), (5, True, 2), (6, True, 3), (6, False, 0)]
)
def test_number_of_skips(layers: int, skips: bool, expected: int) -> None:
    config = GPTConfig.from_mapping({**CONFIG, "num_layers": layers, "unet_skips": skips})
    assert config.num_skips == expected


def test_every_wrong_key_is_named_with_the_likely_one() -> None:
    config = {**CONFIG, "logit_softcp": 30, "flux": 1}
    del config["vocab_size"]
    with pytest.raises(ConfigError) as caught:
        GPTConfig.from_mapping(config)
    assert caught.value.items == (
        "vocab_size: missing",
        'logit_softcp: unknown (did you mean "logit_softcap"?)',
        "flux: unknown",
    )


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"num_layers": 2.5}, ["num_layers = 2.5"]),
        ({"num_layers": True}, ["num_layers = True"]),
        ({"vocab_size": "1024"}, ["vocab_size = '1024'"]),
        ({"mlp_mult": float("nan")}, ["mlp_mult = nan"]),
        ({"rope_base": "x", "tie_embeddings": 1}, ["tie_embeddings = 1", "rope_base = 'x'"]),
        ({"num_layers": 0}, ["num_layers = 0"]),
        ({"num_layers": 1_025}, ["num_layers = 1025"]),
        ({"model_dim": -8, "rope_base": 0}, ["model_dim = -8", "rope_base = 0"]),
        ({"logit_softcap": -1}, ["logit_softcap = -1"]),
        ({"num_heads": 5}, ["model_dim = 24", "num_heads = 5"]),
        ({"num_heads": 4, "num_kv_heads": 3}, ["num_heads = 4"]),
        ({"mlp_mult": 1.01}, ["mlp_mult = 1.01"]),
        ({"rope_dims": 3}, ["rope_dims = 3"]),
        ({"rope_dims": 8}, ["rope_dims = 8"]),
        ({"num_heads": 8, "rope_dims": None}, ["rope_dims = 3"]),
        ({"bigram_dim": 0}, ["bigram_vocab_size = 53, bigram_dim = 0"]),
        ({"bigram_vocab_size": 1}, ["bigram_vocab_size = 1, bigram_dim = 7"]),
        ({"num_layers": 1}, ["unet_skips = True"]),
    ],
)
def test_every_contradiction_is_named(changes: dict[str, Any], named: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        GPTConfig.from_mapping({**CONFIG, **changes})
    assert len(caught.value.items) == len(named)
    for item, start in zip(sorted(caught.value.items), sorted(named), strict=True):
        assert item.startswith(start)
