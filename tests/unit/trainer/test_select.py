"""The choice is made after quantization: what is best as floats need not be what ships best."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from qpack.codec.entropy import zero_order_bits
from qpack.errors import ConfigError, DataError
from qpack.eval.bpb import score
from qpack.inputs import token_batches
from qpack.progress import SILENT
from qpack.quant.calibrate import collect
from qpack.quant.engine import Quantizer
from qpack.quant.plan import classify, make_plan
from qpack.recipe import parse_recipe
from qpack.stages import RunLog
from qpack.tokenizer import Tokenizer
from qpack.tokens import write_shard
from qpack.torch_tensors import to_torch
from qpack.trainer.config import TrainConfig
from qpack.trainer.model.gpt import GPT
from qpack.trainer.model.init import initialize
from qpack.trainer.select import Judge, choose, choose_for

RULES = """
[[rule]]
match = "class:matrix"
bits = 4
{}
[[rule]]
match = "class:embedding"
bits = 8
[[rule]]
match = ["class:vector", "class:buffer"]
type = "float32"
"""
PLAIN = parse_recipe('[knob]\nname = "none"' + RULES.format(""), name="plain")
KNOB = parse_recipe('[knob]\nname = "k"' + RULES.format("knob = true"), name="knob")
MODEL = {"num_layers": 2, "model_dim": 32, "num_heads": 4, "num_kv_heads": 2, "mlp_mult": 2.0}
State = dict[str, Tensor]


@pytest.fixture(scope="module")
def tokens(tokenizer: Tokenizer, sentences: list[str]) -> Any:
    return np.concatenate([tokenizer.encode(text) for text in sentences * 6]).astype(np.uint16)


@pytest.fixture(scope="module")
def judge(tokenizer: Tokenizer, tokens: Any) -> Judge:
    return Judge(
        recipe=PLAIN,
        budget_bytes=60_000,
        form="qpk",
        calibration=tokens[:512],
        validation=tokens,
        tokenizer=tokenizer,
        window=64,
        max_tokens=400,
    )


@pytest.fixture(scope="module")
def trained(tokenizer: Tokenizer, tokens: Any) -> tuple[GPT, State]:
    """A model that has seen the sentences, and its weights."""
    model = GPT(
        TrainConfig.from_mapping(
            {
                "model": {**MODEL, "vocab_size": tokenizer.vocab_size},
                "data": {"train": "t.bin", "tokenizer": "t.model"},
                "loop": {"max_steps": 1, "sequence": 64},
            }
        ).model_config_of_gpt()
    )
    initialize(model, torch.Generator().manual_seed(0), q_gain=1.5)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    batch = torch.from_numpy(tokens[: 65 * 8].astype(np.int64)).reshape(8, 65)
    for _ in range(40):
        logits = model(batch[:, :-1]).flatten(0, 1)
        torch.nn.functional.cross_entropy(logits, batch[:, 1:].flatten()).backward()
        optimizer.step()
        optimizer.zero_grad()
    return model, {name: t.detach().clone() for name, t in model.state_dict().items()}


def without_one_unit(state: State, *, outlier: float) -> State:
    """Hidden unit 7 of every MLP is dead; what it would be multiplied by is `outlier`."""
    found = {name: tensor.clone() for name, tensor in state.items()}
    for i in range(2):
        found[f"blocks.{i}.mlp.fc.weight"][7] = 0.0
        found[f"blocks.{i}.mlp.proj.weight"][:, 7] = outlier
    return found


def pair(state: State, generator: torch.Generator) -> dict[str, State]:
    """`last` is better as floats, `ema` after quantization."""
    noisy = {
        name: t + 0.03 * t.std() * torch.randn(t.shape, generator=generator) if t.ndim > 1 else t
        for name, t in without_one_unit(state, outlier=0.0).items()
    }
    return {"last": without_one_unit(state, outlier=30.0), "ema": noisy}


def test_the_best_after_quantization_is_chosen(
    trained: tuple[GPT, State], judge: Judge, generator: torch.Generator
) -> None:
    model, state = trained
    verdict = choose(pair(state, generator), model, judge)
    last, ema = verdict.rows
    assert (last["weights"], ema["weights"]) == ("last", "ema")
    assert last["select_bpb"] < ema["select_bpb"]
    assert last["select_bpb_quantized"] > ema["select_bpb_quantized"]
    assert verdict.name == "ema"
    assert last["knob"] is None
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())


def test_rows_are_what_the_parts_give_one_by_one(
    trained: tuple[GPT, State], judge: Judge, tokens: Any
) -> None:
    model, state = trained
    (row,) = choose({"last": state}, model, judge).rows
    statistics = collect(model, token_batches(judge.calibration, 64), fingerprint="f")
    tensors = {name: tensor.clone() for name, tensor in state.items()}
    plan = make_plan(tensors, classify(model), {}, PLAIN)
    quantizer = Quantizer(tensors, plan, statistics)
    stored = quantizer.quantize(0.0)
    rounded = {name: to_torch(tensor) for name, tensor in stored.items()}
    bits = sum(zero_order_bits(tensor.integers) for tensor in stored.values())
    assert bits / 8 < row["estimated_bytes"] < bits / 8 + 8_000  # floats, steps and the container
    first = {"window": 64, "max_tokens": 400}
    assert row["select_bpb"] == score(model, tokens, judge.tokenizer, **first).bpb  # type: ignore[arg-type]
    model.load_state_dict(state | rounded)
    quantized = score(model, tokens, judge.tokenizer, **first).bpb  # type: ignore[arg-type]
    model.load_state_dict(state)
    assert row["select_bpb_quantized"] == pytest.approx(quantized, rel=1e-6)


def test_the_knob_goes_where_the_estimate_meets_the_budget(
    trained: tuple[GPT, State], judge: Judge
) -> None:
    model, state = trained
    rows = []
    for budget in (15_000, 24_000):
        (row,) = choose(
            {"last": state}, model, replace(judge, recipe=KNOB, budget_bytes=budget)
        ).rows
        assert 0.98 * budget < row["estimated_bytes"] <= budget
        assert row["fits"]
        rows.append(row)
    assert rows[0]["knob"] > rows[1]["knob"]
    assert rows[0]["select_bpb_quantized"] > rows[1]["select_bpb_quantized"]


@pytest.mark.parametrize("recipe", [PLAIN, KNOB], ids=lambda recipe: recipe.name)
def test_a_budget_out_of_reach_still_compares(
    recipe: Any, trained: tuple[GPT, State], judge: Judge
) -> None:
    model, state = trained
    small = replace(judge, recipe=recipe, budget_bytes=5_000)
    verdict = choose({"last": state, "ema": state}, model, small)
    assert [row["fits"] for row in verdict.rows] == [False, False]
    assert verdict.name == "last"


def test_what_diverged_is_not_chosen(trained: tuple[GPT, State], judge: Judge) -> None:
    model, state = trained
    broken = {name: torch.full_like(tensor, float("nan")) for name, tensor in state.items()}
    verdict = choose({"last": broken, "ema": state}, model, judge)
    assert verdict.name == "ema"
    assert "finite" in verdict.rows[0]["error"]
    with pytest.raises(DataError) as caught:
        choose({"last": broken, "swa": broken}, model, judge)
    assert [item.partition(":")[0] for item in caught.value.items] == ["last", "swa"]
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())


def run_of(folder: Path, model: GPT, judge: Judge, tokenizer_path: Path, **pack: Any) -> Any:
    """As much of a run as the choice looks at."""
    write_shard(folder / "train.bin", judge.calibration, force=True)
    table = {"budget": 20_000, "calib_tokens": 300, "form": "qpk", **pack}
    return SimpleNamespace(
        config=TrainConfig.from_mapping(
            {
                "model": {**MODEL, "vocab_size": model.vocab_size},
                "data": {"train": folder / "train.bin", "tokenizer": tokenizer_path},
                "loop": {"max_steps": 1, "sequence": 64, "select_tokens": 400},
                "average": {"ship": "best"},
                "pack": table,
            }
        ),
        model=model,
        validation=judge.validation,
        tokenizer=judge.tokenizer,
        data=SimpleNamespace(tokenizer=tokenizer_path, train=[folder / "train.bin"]),
        progress=RunLog(SILENT),
    )


def test_of_a_run(
    tmp_path: Path, trained: tuple[GPT, State], judge: Judge, tokenizer_path: Path
) -> None:
    model, state = trained
    code = tmp_path / "code.py"
    code.write_text("".join(f"print({i * i})\n" for i in range(1000)))
    knobs = []
    for files in ({}, {"code": [code]}):
        run = run_of(tmp_path, model, judge, tokenizer_path, **files)
        verdict = choose_for(run, {"last": state, "ema": state})
        assert verdict.name == "last"
        for row in verdict.rows:
            assert 0.98 * 20_000 < row["estimated_bytes"] <= 20_000
        knobs.append(verdict.rows[0]["knob"])
    assert knobs[1] > 1.5 * knobs[0]  # the file takes its part of the budget
    run = run_of(tmp_path, model, judge, tokenizer_path, embed_tokenizer=True)
    assert not choose_for(run, {"last": state}).rows[0]["fits"]  # it alone is larger
    run.validation = None
    with pytest.raises(ConfigError, match="validation text"):
        choose_for(run, {"last": state})
