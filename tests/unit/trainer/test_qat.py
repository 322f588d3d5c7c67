"""Late QAT of a configuration: the recipe, knob, start and calibration are those it names."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from qpack.errors import ConfigError
from qpack.quant.qat import LateQAT
from qpack.tokens import write_shard
from qpack.trainer.config import TrainConfig
from qpack.trainer.model.gpt import GPT
from qpack.trainer.qat import build_qat

RECIPE: dict[str, Any] = {
    "knob": {"name": "qmax", "low": 3, "high": 63},
    "rule": [
        {"match": "class:embedding", "bits": 8},
        {"match": "class:matrix", "bits": 5, "knob": True},
        {"match": ["class:vector", "class:buffer"], "type": "float32"},
    ],
}


def config_of(recipe: dict[str, Any] | None = None, **qat: Any) -> TrainConfig:
    model = {"vocab_size": 64, "num_layers": 2, "model_dim": 32}
    return TrainConfig.from_mapping(
        {
            "model": {**model, "num_heads": 4, "num_kv_heads": 2},
            "data": {"train": "train.bin", "tokenizer": "t.model"},
            "loop": {"max_steps": 10, "sequence": 16},
            "pack": {"budget": 50_000, "calib_tokens": 256, "recipe": recipe or RECIPE},
            "qat": qat,
        }
    )


def model_of(config: TrainConfig) -> GPT:
    model = GPT(config.model_config_of_gpt())
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.2)
    return model


def built(config: TrainConfig, **keys: Any) -> tuple[GPT, LateQAT]:
    model = model_of(config)
    qat = build_qat(model, config, **keys)
    assert qat is not None
    return model, qat


def test_none_unless_asked_for() -> None:
    config = config_of()
    assert build_qat(model_of(config), config) is None


def test_matrices_on_the_grid_of_the_recipe_at_the_knob() -> None:
    model, qat = built(config_of(start_step=3, knob=7))
    assert {name.rpartition(".")[0].rpartition(".")[2] for name in qat.names} == {
        *("c_q", "c_k", "c_v", "proj", "fc"),
    }
    assert not any(qat.on_step(step, step / 10, 1.0) for step in range(3))
    assert qat.on_step(3, 0.3, 1.0)
    W = model.get_parameter("blocks.0.mlp.fc.weight")
    peak = W.detach().abs().amax(dim=1)
    with qat.quantized():
        levels = [len(row.unique()) for row in W.detach()]
        assert max(levels) <= 15
        assert (W.detach().abs().amax(dim=1) / peak - 1).abs().max() < 0.02


def test_match_start_and_soft_rounding_reach_it() -> None:
    section = {"start_lr_scale": 0.5, "match": ["tok_emb.weight"], "soft_rounding": [2.0, 4.0]}
    _, qat = built(config_of(**section))
    assert qat.names == ("tok_emb.weight",)
    assert not qat.on_step(0, 0.0, 1.0)
    assert qat.on_step(1, 0.5, 0.4)
    assert qat.alpha == 2.0


def test_the_knob_named_in_pack_replaces_the_recipes() -> None:
    table = config_of(start_step=0, knob=9.5).model_dump()
    table["pack"]["knob"] = "k"
    _, qat = built(TrainConfig.from_mapping(table))
    assert qat.names
    with pytest.raises(ConfigError, match=r"knob to 9.5"):
        built(config_of(start_step=0, knob=9.5))


def test_percentiles_are_chosen_on_calibrated_inputs(tmp_path: Path) -> None:
    rules: list[dict[str, Any]] = [
        {"match": "class:matrix", "qmax": 2, "scale": "percentile"},
        {"match": "re:.*", "type": "float32"},
    ]
    config = config_of({"knob": {"name": "none"}, "rule": rules}, start_step=0)
    shard = tmp_path / "train.bin"
    tokens = np.random.default_rng(0).integers(0, 64, 600).astype(np.uint16)
    write_shard(shard, tokens)
    states = []
    for keys in ({}, {"calibration": shard}):
        model, qat = built(config, **keys)
        model.compute_dtype = torch.bfloat16
        assert qat.on_step(0, 0.0, 1.0)
        assert model.compute_dtype is torch.bfloat16
        assert model.training
        states.append(qat.state_tensors())
    assert states[0].keys() == states[1].keys()
    keys_ = [key for key in states[0] if key.startswith("percentile.")]
    assert len(keys_) == 12
    assert any(not torch.equal(states[0][key], states[1][key]) for key in keys_)
