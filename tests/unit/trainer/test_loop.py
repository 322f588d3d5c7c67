from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from qpack.checkpoint import build_model, read_checkpoint
from qpack.errors import ConfigError, DataError, OutputExistsError, ResourceError
from qpack.eval.bpb import score
from qpack.plugins import TRAINERS, load_plugin
from qpack.tokenizer import Tokenizer
from qpack.tokens import read_shard, sha256_file, write_shard
from qpack.trainer.data import prepare
from qpack.trainer.data.shards import tokenize
from qpack.trainer.loop import train


@pytest.fixture(scope="module")
def shard(
    tmp_path_factory: pytest.TempPathFactory, tokenizer: Tokenizer, sentences: list[str]
) -> Path:
    path = tmp_path_factory.mktemp("shard") / "text.bin"
    write_shard(path, tokenize(sentences * 30, tokenizer))
    return path


@pytest.fixture
def config(tmp_path: Path, shard: Path, tokenizer_path: Path) -> dict[str, Any]:
    return {
        "model": {
            "vocab_size": 384,
            "num_layers": 2,
            "model_dim": 32,
            "num_heads": 2,
            "num_kv_heads": 1,
        },
        "train": shard,
        "tokenizer": tokenizer_path,
        "out": tmp_path / "model.safetensors",
        "max_steps": 40,
        "sequence": 32,
        "batch": 4,
        "warmup_steps": 4,
        "device": "cpu",
    }


def test_it_learns_and_the_checkpoint_is_what_was_scored(
    config: dict[str, Any], shard: Path, tokenizer: Tokenizer
) -> None:
    result = train(config | {"val": shard, "val_tokens": 500})
    counts = np.bincount(read_shard(shard), minlength=384) + 1e-9
    frequencies = counts / counts.sum()
    unigram = -float((frequencies * np.log(frequencies)).sum())
    assert result.loss < unigram - 1.0
    assert (result.steps, result.tokens, result.device) == (40, 40 * 4 * 32, "cpu")
    checkpoint = read_checkpoint(result.checkpoint)
    assert checkpoint.architecture == "gpt"
    assert checkpoint.config["train_seq_len"] == 32
    model = build_model(checkpoint)
    again = score(model, read_shard(shard), tokenizer, window=32, max_tokens=500)
    assert result.score is not None
    assert again.nats == result.score.nats


def test_it_is_the_plugin() -> None:
    assert load_plugin(TRAINERS, "reference") is train


def test_same_seed_same_file_and_no_global_state(config: dict[str, Any], tmp_path: Path) -> None:
    config |= {"max_steps": 6}
    before = torch.get_rng_state()
    train(config)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(99)
    train(config | {"out": tmp_path / "b.safetensors"})
    train(config | {"out": tmp_path / "c.safetensors", "seed": 1})
    first, second, third = (
        sha256_file(tmp_path / name)
        for name in ("model.safetensors", "b.safetensors", "c.safetensors")
    )
    assert first == second != third


def test_metrics_are_lines_of_json(config: dict[str, Any], tmp_path: Path, shard: Path) -> None:
    metrics = tmp_path / "metrics.jsonl"
    extra = {"metrics": metrics, "val": shard, "val_tokens": 64, "validations": 2}
    train(config | extra | {"max_steps": 20})
    rows = [json.loads(line) for line in metrics.read_text().splitlines()]
    assert [row["step"] for row in rows if "loss" in row] == [10, 20]
    assert [row["step"] for row in rows if "val_bpb" in row] == [10, 20]
    seconds = [row["seconds"] for row in rows]
    assert seconds == sorted(seconds)


def test_a_budget_of_time(config: dict[str, Any]) -> None:
    result = train(config | {"max_steps": None, "max_seconds": 0.3})
    assert result.steps >= 1
    assert 0.3 <= result.seconds < 30
    assert math.isfinite(result.loss)


def test_the_first_budget_reached_ends_the_run(config: dict[str, Any]) -> None:
    assert train(config | {"max_steps": 3, "max_seconds": 600.0}).steps == 3


def test_bfloat16_keeps_float32_weights(config: dict[str, Any]) -> None:
    result = train(config | {"max_steps": 3, "dtype": "bfloat16"})
    assert result.dtype == "bfloat16"
    tensors = read_checkpoint(result.checkpoint).tensors
    assert {tensor.dtype for tensor in tensors.values()} == {torch.float32}


def test_a_loss_that_is_not_finite_stops_and_writes_nothing(config: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="loss became nan between steps"):
        train(config | {"matrix_lr": 1e30, "embedding_lr": 1e30, "scalar_lr": 1e30})
    assert not config["out"].exists()


def test_bad_input_is_found_before_anything_is_written(
    config: dict[str, Any], tmp_path: Path
) -> None:
    folder = tmp_path / "new"
    folder.mkdir()
    config |= {"out": folder / "m.safetensors", "metrics": folder / "m.jsonl"}
    beyond = tmp_path / "beyond.bin"
    write_shard(beyond, np.full(100, 384, dtype=np.uint16))
    short = tmp_path / "short.bin"
    write_shard(short, np.ones(40, dtype=np.uint16))
    for change, error, message in (
        ({"model": config["model"] | {"vocab_size": 300}}, DataError, "384 tokens, the model 300"),
        ({"model": config["model"] | {"layers": 3}}, ConfigError, "layers: unknown"),
        ({"train": beyond}, DataError, "beyond the vocabulary"),
        ({"val": beyond}, DataError, "beyond the vocabulary"),
        ({"train": short}, DataError, "too few"),
        ({"train": tmp_path / "missing.bin"}, DataError, "cannot read"),
        ({"out": tmp_path / "nowhere" / "m.safetensors"}, ConfigError, "no folder"),
        ({"text": "poems", "val": tmp_path / "v"}, ConfigError, "unknown text source"),
        ({"device": "tpu"}, ConfigError, "unknown device"),
    ):
        with pytest.raises(error, match=message):
            train(config | change)
        assert not any(folder.iterdir())


def test_nothing_is_overwritten_unasked(config: dict[str, Any]) -> None:
    config["out"].write_bytes(b"mine")
    with pytest.raises(OutputExistsError, match=r"model\.safetensors"):
        train(config)
    assert config["out"].read_bytes() == b"mine"
    train(config | {"force": True, "max_steps": 1})
    assert read_checkpoint(config["out"]).architecture == "gpt"


def test_metrics_that_cannot_be_written(config: dict[str, Any], tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    with pytest.raises(ResourceError, match="cannot write"):
        train(config | {"metrics": folder, "force": True})


def test_from_text_to_checkpoint(
    config: dict[str, Any], tmp_path: Path, sentences: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    documents = [f"{text} Number {i}." for i in range(20) for text in sentences]
    monkeypatch.setitem(prepare.SOURCES, "sentences", lambda: documents)
    made = {name: tmp_path / name for name in ("train", "val", "tokenizer")}
    result = train(config | made | {"text": "sentences", "max_steps": 2})
    assert result.score is not None
    assert result.score.bytes == sum(len(text.encode()) for text in documents[10::20])
