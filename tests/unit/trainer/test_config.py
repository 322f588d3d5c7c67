from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest

from qpack.errors import ConfigError
from qpack.trainer.config import TrainConfig
from qpack.trainer.rules import unused

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
    assert problem.startswith('model.num_kv_head: unknown (did you mean "num_kv_heads"?)')


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"qat": {"soft_rounding": [1.0, 2.0]}}, "give start_lr_scale, start_progress or"),
        (
            {
                "qat": {"start_lr_scale": 0.1},
                "schedule": {"floor": 0.3},
                "pack": {"budget": 9},
            },
            "qat.start_lr_scale = 0.1: never reached, schedule.floor is 0.3",
        ),
        (
            {"phase": [{"step": 10, "layer_order": [0, 1, 2]}]},
            "phase.0: step = 10 is never reached (loop.max_steps = 10)",
        ),
        ({"loop": {"seed": 2**63}}, "loop.seed"),
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


def test_the_model_is_looked_at_also_where_a_section_is_wrong() -> None:
    found = problems(model={"num_kv_head": 1}, optim={"matrix_lrr": 1.0})
    assert [item.partition(":")[0] for item in found] == ["optim.matrix_lrr", "model.num_kv_head"]


def test_every_contradiction_at_once() -> None:
    phases = [{"step": 20, "layer_order": [0, 1, 2]}, {"step": 10, "layer_order": [0, 1, 2]}]
    found = problems(phase=phases, data={"train": []}, qat={"start_step": 1})
    assert len(found) == 5


def test_every_phase_is_checked_before_the_run() -> None:
    phases = [
        {"step": 2, "layer_order": [0, 1, 7]},
        {"step": 4, "layer_order": [0, 1, 2, 1, 2]},
        {"step": 6, "layer_order": [0, 1, 2, 2]},
    ]
    found = problems(phase=phases)
    assert [item.partition(":")[0] for item in found] == ["phase.0", "phase.1"]
    assert "7" in found[0]
    assert "longer than the last phase's" in found[1]


def test_given_and_unused_settings_are_named() -> None:
    config = TrainConfig.from_mapping(
        with_(
            optim={"matrix": "adamw", "precondition": "mousse-kronecker", "normalize": "rows"},
            average={"ema_warmup": True, "mix": 0.3},
            loop={"reserve_seconds": 3.0},
        )
    )
    assert [item.partition(":")[0] for item in unused(config)] == [
        "optim.normalize", "optim.precondition", "average.ema_warmup", "average.mix",
        "loop.reserve_seconds",
    ]  # fmt: skip
    assert unused(TrainConfig.from_mapping(LEAST)) == []


def test_the_last_phase_is_the_models_order() -> None:
    phases = [{"at": 0.2, "layer_order": [0, 1, 1, 2]}, {"step": 9, "layer_order": [0, 1, 2, 1, 2]}]
    config = TrainConfig.from_mapping(with_(phase=phases))
    assert list(config.model_config_of_gpt().layer_order or ()) == [0, 1, 2, 1, 2]


def test_one_path_or_many() -> None:
    one = TrainConfig.from_mapping(with_(data={"train": Path("a.bin"), "val": ["b.bin", "c.bin"]}))
    assert one.data.train == (Path("a.bin"),)
    assert one.data.val == (Path("b.bin"), Path("c.bin"))
