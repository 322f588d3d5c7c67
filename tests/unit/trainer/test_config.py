from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest

from qpack.errors import ConfigError
from qpack.trainer.config import TrainConfig

MODEL: dict[str, Any] = {
    "vocab_size": 300,
    "num_layers": 3,
    "model_dim": 16,
    "num_heads": 2,
    "num_kv_heads": 1,
}
LEAST: dict[str, Any] = {
    "model": MODEL,
    "data": {"train": "train.bin", "tokenizer": "t.model"},
    "loop": {"max_steps": 10},
}


def with_(**sections: Any) -> dict[str, Any]:
    table = copy.deepcopy(LEAST)
    for name, values in sections.items():
        table[name] = {**table.get(name, {}), **values} if isinstance(values, dict) else values
    return table


def problems(**sections: Any) -> tuple[str, ...]:
    with pytest.raises(ConfigError) as caught:
        TrainConfig.from_mapping(with_(**sections))
    return caught.value.items


def test_the_least_has_defaults_everywhere() -> None:
    config = TrainConfig.from_mapping(LEAST)
    assert config.data.train == (Path("train.bin"),)
    assert config.optim.matrix == "muon"
    assert not config.qat.enabled
    assert config.pack is None
    assert config.model_config_of_gpt().train_seq_len == config.loop.sequence


def test_problems_of_all_sections_at_once() -> None:
    found = problems(
        loop={"batch": 3, "warmup": 1},
        optim={"beta2": 1.0, "matrix": "sgd"},
        schedule={"warmdwn": 0.5},
        data={"order": "esay"},
    )
    assert len(found) == 6
    assert 'schedule.warmdwn: unknown (did you mean "warmdown"?)' in found
    assert any(item.startswith("optim.beta2 = 1.0: must be less than 1") for item in found)
    assert any(item.startswith("data.order = 'esay'") for item in found)


def test_problems_of_the_model_are_named_too() -> None:
    (problem,) = problems(model={"num_kv_head": 1})
    assert problem.startswith('num_kv_head: unknown (did you mean "num_kv_heads"?)')


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"loop": {"max_steps": None}}, "max_steps, max_seconds: give at least one"),
        ({"loop": {"batch_tokens": 1000}}, "must be a multiple of sequence x accumulate"),
        ({"loop": {"max_seconds": 5.0, "reserve_seconds": 5.0}}, "reserve_seconds must be below"),
        ({"average": {"ship": "ema"}}, "ship = 'ema' needs ema_decay above 0"),
        ({"average": {"ship": "mixture", "ema_decay": 0.9}}, "needs swa_every above 0"),
        ({"average": {"ship": "best"}}, "pack: missing"),
        ({"qat": {"start_progress": 0.8}}, "pack: missing"),
        ({"data": {"train": []}}, "give train (shards) or text (documents)"),
        ({"data": {"text": ["a.txt"]}}, "train and text contradict"),
        ({"data": {"train": "a.bin", "tokenizer": None}}, "data.tokenizer: missing"),
        ({"phase": [{"layer_order": [0]}]}, "give one of at and step"),
        (
            {"phase": [{"at": 0.5, "layer_order": [0]}, {"at": 0.2, "layer_order": [0]}]},
            "at = 0.5 comes before at = 0.2, not after",
        ),
        (
            {"phase": [{"at": 0.5, "layer_order": [0]}], "model": {"layer_order": [0]}},
            "model.layer_order: the last phase sets it",
        ),
    ],
)
def test_contradictions(sections: dict[str, Any], message: str) -> None:
    assert any(message in problem for problem in problems(**sections))


def test_the_last_phase_is_the_models_order() -> None:
    phases = [{"at": 0.2, "layer_order": [0, 1, 1, 2]}, {"step": 9, "layer_order": [0, 1, 2, 1, 2]}]
    config = TrainConfig.from_mapping(with_(phase=phases))
    assert list(config.model_config_of_gpt().layer_order or ()) == [0, 1, 2, 1, 2]


def test_one_path_or_many() -> None:
    one = TrainConfig.from_mapping(with_(data={"train": Path("a.bin"), "val": ["b.bin", "c.bin"]}))
    assert one.data.train == (Path("a.bin"),)
    assert one.data.val == (Path("b.bin"), Path("c.bin"))
