from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from qpack.errors import ConfigError
from qpack.trainer.config import RULES, TrainConfig

LEAST: dict[str, Any] = {
    "model": {"vocab_size": 300},
    "train": Path("train.bin"),
    "tokenizer": Path("t.model"),
    "out": Path("m.safetensors"),
    "max_steps": 10,
}


def test_a_mapping_with_paths_as_strings_is_the_same_config() -> None:
    config = LEAST | {"train": "train.bin", "tokenizer": "t.model", "out": "m.safetensors"}
    assert TrainConfig.from_mapping(config) == TrainConfig(**LEAST)


def test_every_wrong_key_is_named() -> None:
    with pytest.raises(ConfigError) as caught:
        TrainConfig.from_mapping({"model": {}, "train": "x", "colour": 1, "warmdwn": 0.5})
    assert caught.value.items == (
        "colour: unknown",
        'warmdwn: unknown (did you mean "warmdown"?)',
        "tokenizer: missing",
        "out: missing",
    )


def test_every_problem_is_named_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        TrainConfig(**LEAST | {"batch": 0, "beta2": 1.0, "dtype": "float16", "text": "x"})
    assert [item.split(" = ")[0] for item in caught.value.items] == [
        "batch",
        "beta2",
        "dtype",
        "text",
    ]


def test_a_budget_is_needed() -> None:
    with pytest.raises(ConfigError, match="max_steps, max_seconds"):
        TrainConfig(**LEAST | {"max_steps": None})
    TrainConfig(**LEAST | {"max_steps": None, "max_seconds": 0.5})


@pytest.mark.parametrize("name", [name for _, _, names in RULES for name in names])
@pytest.mark.parametrize("value", [-1, "8", math.nan, math.inf, [1]])
def test_no_value_of_a_wrong_kind_gets_in(name: str, value: Any) -> None:
    if name in ("text", "device") and isinstance(value, str):
        return
    with pytest.raises(ConfigError, match=f"{name} = "):
        TrainConfig(**LEAST | {name: value})


def test_paths_and_the_model_must_be_such() -> None:
    for name, value in (("out", None), ("train", 3), ("val", 3), ("model", "gpt")):
        with pytest.raises(ConfigError, match=f"{name} = "):
            TrainConfig(**LEAST | {name: value})


def test_outputs_are_all_files_written() -> None:
    assert TrainConfig(**LEAST).outputs == (Path("m.safetensors"),)
    made = TrainConfig(**LEAST | {"text": "x", "val": Path("v"), "metrics": Path("l")}).outputs
    assert [str(path) for path in made] == ["t.model", "train.bin", "v", "m.safetensors", "l"]
