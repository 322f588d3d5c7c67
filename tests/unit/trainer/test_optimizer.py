from __future__ import annotations

from pathlib import Path

import pytest

from qpack.trainer.config import TrainConfig
from qpack.trainer.model.gpt import build
from qpack.trainer.optimizer import lr_scale, make_optimizer, parameter_groups, set_lr_scale

MODEL = {
    "vocab_size": 300,
    "num_layers": 2,
    "model_dim": 16,
    "num_heads": 2,
    "num_kv_heads": 1,
    "bigram_vocab_size": 32,
    "bigram_dim": 8,
    "smear_gate": True,
}


def test_kinds_of_parameters() -> None:
    model = build(MODEL)
    names = {id(p): name for name, p in model.named_parameters()}
    kinds = {kind: {names[id(p)] for p in ps} for kind, ps in parameter_groups(model).items()}
    assert sum(map(len, kinds.values())) == len(names)
    assert kinds["embedding"] == {"tok_emb.weight", "bigram.embed.weight"}
    matrices = ("attn.c_q", "attn.c_k", "attn.c_v", "attn.proj", "mlp.fc", "mlp.proj")
    expected = {f"blocks.{i}.{name}.weight" for i in range(2) for name in matrices}
    assert kinds["matrix"] == expected | {"bigram.proj.weight"}
    assert {"blocks.0.resid_mix", "blocks.1.attn.q_gain", "skip_weights"} <= kinds["scalar"]


def test_rates_and_decay_by_kind() -> None:
    config = TrainConfig(
        model=MODEL, train=Path("a"), tokenizer=Path("b"), out=Path("c"), max_steps=1
    )
    optimizer = make_optimizer(build(MODEL), config)
    rates = [(group["base_lr"], group["weight_decay"]) for group in optimizer.param_groups]
    assert rates == [(0.004, 0.1), (0.02, 0.1), (0.005, 0.0)]
    set_lr_scale(optimizer.param_groups, 0.5)
    assert [group["lr"] for group in optimizer.param_groups] == [0.002, 0.01, 0.0025]


def test_schedule_rises_stays_and_falls() -> None:
    def at(step: int, progress: float) -> float:
        return lr_scale(step, progress, warmup_steps=4, warmdown=0.5)

    assert [at(step, 0.0) for step in range(5)] == [0.25, 0.5, 0.75, 1.0, 1.0]
    assert [at(100, p) for p in (0.25, 0.5, 0.75, 1.0)] == pytest.approx([1.0, 1.0, 0.5, 0.0])
    assert lr_scale(0, 0.9, warmup_steps=0, warmdown=0.0) == 1.0
