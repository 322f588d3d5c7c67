"""A run of some steps on a few sentences, and its parts."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np

from qpack.progress import Silent
from qpack.tokenizer import Tokenizer
from qpack.tokens import write_shard
from qpack.trainer.config import TrainConfig
from qpack.trainer.loop import TrainResult, train

MODEL: dict[str, Any] = {
    "vocab_size": 384,
    "num_layers": 2,
    "model_dim": 32,
    "num_heads": 2,
    "num_kv_heads": 1,
}


def write_text(path: Path, documents: list[str], tokenizer: Tokenizer) -> Path:
    """A shard of `documents`, each after a BOS."""
    rows = [[tokenizer.bos, *tokenizer.encode(text)] for text in documents]
    write_shard(path, np.array([token for row in rows for token in row], dtype=np.uint16))
    return path


def tables(shard: Path, tokenizer: Path, **sections: dict[str, Any]) -> dict[str, Any]:
    """A configuration that trains for 12 steps, with `sections` merged in."""
    made: dict[str, Any] = {
        "model": MODEL,
        "data": {"train": [shard], "tokenizer": tokenizer},
        "optim": {"matrix_lr": 0.02, "embedding_lr": 0.02, "scalar_lr": 0.005},
        "loop": {
            "max_steps": 12,
            "sequence": 32,
            "batch_tokens": 128,
            "log_every": 3,
            "device": "cpu",
        },
    }
    for name, values in sections.items():
        made[name] = [*values] if isinstance(values, list) else {**made.get(name, {}), **values}
    return copy.deepcopy(made)


def run(config: dict[str, Any], folder: Path, **keys: Any) -> TrainResult:
    """Train as the tables say."""
    return train(TrainConfig.from_mapping(config), folder, **keys)


def metrics(folder: Path) -> list[dict[str, Any]]:
    """The lines that a run wrote."""
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def changed(config: dict[str, Any], **sections: Any) -> dict[str, Any]:
    """The tables with `sections` merged in."""
    merged = dict(config)
    for name, values in sections.items():
        merged[name] = values if isinstance(values, list) else {**config.get(name, {}), **values}
    return merged


class Told(Silent):
    """Progress that remembers what was said."""

    def __init__(self) -> None:
        self.notes: list[str] = []
        self.warnings: list[str] = []

    def note(self, message: str) -> None:
        self.notes.append(message)

    def warn(self, message: str) -> None:
        self.warnings.append(message)
