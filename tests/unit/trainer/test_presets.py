"""Every preset trains and packs, at reduced width."""

from __future__ import annotations

import argparse
import importlib.util
import re
from pathlib import Path
from typing import Any

import pytest

from qpack.checkpoint import read_checkpoint
from qpack.presets import presets, read_preset
from qpack.runs.document import Document, read_document
from qpack.runs.run import run
from qpack.tokenizer import Tokenizer
from qpack.trainer.config import TrainConfig

from .runs import write_text

NAMES = {"raki-v6", "gptq-int5", "ema-int6", "sp8192-recur3", "tiny", "h100-10min"}
WIDTHS = {
    "model_dim": 32, "num_heads": 4, "num_kv_heads": 2, "vocab_size": 384,
    "bigram_vocab_size": 64, "bigram_dim": 8, "engram_rows": 64, "engram_dim": 8,
    "value_embed_dim": 8, "rope_dims": 4,
}  # fmt: skip
"""Where a preset has the key at all."""


@pytest.fixture(scope="module")
def shard(
    tmp_path_factory: pytest.TempPathFactory, tokenizer: Tokenizer, sentences: list[str]
) -> Path:
    return write_text(tmp_path_factory.mktemp("shard") / "text.bin", sentences * 30, tokenizer)


def reduced(name: str, shard: Path, val: Path, tokenizer: Path) -> Document:
    """The preset with all its techniques, in a few steps of a narrow model."""
    document = read_document(name)
    tables: dict[str, Any] = document.tables
    tables["model"] |= {key: value for key, value in WIDTHS.items() if key in tables["model"]}
    for number, phase in enumerate(tables.get("phase", [])):
        phase.pop("at", None)
        phase["step"] = 2 * number + 2
    kept = {key: tables["data"].get(key) for key in ("windows", "order", "curriculum")}
    tables["data"] = {key: value for key, value in kept.items() if value is not None}
    tables["data"] |= {"train": [shard], "val": [val], "tokenizer": tokenizer}
    for key in ("max_seconds", "reserve_seconds"):
        tables["loop"].pop(key, None)
    tables["loop"] |= {
        "max_steps": 8, "sequence": 32, "batch_tokens": 128, "accumulate": 1, "device": "cpu",
        "val_tokens": 256,
    }  # fmt: skip
    tables["pack"] |= {"budget": 400_000, "calib_tokens": 512, "val_tokens": 256}
    return document


@pytest.mark.parametrize("name", sorted(NAMES))
def test_it_trains_and_packs(
    name: str, shard: Path, tokenizer_path: Path, sentences: list[str], tmp_path: Path
) -> None:
    val = write_text(tmp_path / "val.bin", sentences * 3, Tokenizer.load(tokenizer_path))
    document = reduced(name, shard, val, tokenizer_path)
    outcome = run(document, tmp_path / "run")
    assert outcome.report is not None
    assert outcome.report["artifact_bytes"] <= 400_000
    assert outcome.report["bpb_decoded"] < 12
    config = read_checkpoint(outcome.trained.checkpoint).config
    expected = TrainConfig.from_mapping(document.tables).model_config_of_gpt()
    assert config == expected.to_dict()


def test_these_are_all() -> None:
    assert {preset.name for preset in presets()} == NAMES


@pytest.mark.parametrize("name", sorted(NAMES))
def test_it_says_what_it_is(name: str) -> None:
    summary = read_preset(name).summary
    assert summary.endswith(".")
    if name not in ("tiny", "h100-10min"):
        assert re.match(r"Pull request \d+", summary)


@pytest.mark.parametrize(
    ("name", "keys"),
    [
        ("raki-v6", {"engram": "logit", "parallel": "lanes", "mlp_mult": 4.0}),
        ("gptq-int5", {"bigram_vocab_size": 4096, "xsa_layers": (7, 8, 9, 10), "mlp_slope": 0.9}),
        ("ema-int6", {"mlp_slope": 0.0, "xsa_layers": ()}),
        ("sp8192-recur3", {"vocab_size": 8192, "parallel": "stream"}),
    ],
)
def test_it_has_its_systems_techniques(name: str, keys: dict[str, Any]) -> None:
    config = TrainConfig.from_mapping(read_document(name).tables)
    model = config.model_config_of_gpt()
    assert {key: getattr(model, key) for key in keys} == keys


def test_raki_has_what_its_readme_says() -> None:
    config = TrainConfig.from_mapping(read_document("raki-v6").tables)
    assert config.optim.precondition == "mousse-diagonal"
    assert config.qat.enabled
    assert [len(phase.layer_order) for phase in config.phase] == [13, 17]
    assert config.pack is not None
    assert config.pack.codecs == ("brotli",)


def test_the_loop_of_pull_request_1959() -> None:
    """techniques.md 1.8: 17 steps, of which the first 8 are the encoder."""
    config = TrainConfig.from_mapping(read_document("sp8192-recur3").tables)
    (phase,) = config.phase
    assert phase.at == 0.35
    assert phase.layer_order[:8] == (0, 1, 2, 3, 4, 5, 3, 4)
    assert phase.layer_order[8:] == (5, 3, 4, 5, 6, 7, 8, 9, 10)


def test_every_row_of_the_ablation_is_a_configuration(root: Path) -> None:
    spec = importlib.util.spec_from_file_location("ablation", root / "benchmarks" / "ablation.py")
    assert spec is not None
    assert spec.loader is not None
    ablation = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(ablation)
    options = argparse.Namespace(
        preset="h100-10min", train=["a"], val=["b"], tokenizer="c", seconds=45.0, device="cpu"
    )
    configs = [
        TrainConfig.from_mapping(ablation.changed(options, switch, 0))
        for switch in ablation.SWITCHES.values()
    ]
    assert all(config != configs[0] for config in configs[1:])
    assert len(configs) >= 8
