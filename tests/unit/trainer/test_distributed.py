"""Two ranks over gloo train what one process trains."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from qpack.checkpoint import read_checkpoint
from qpack.tokenizer import Tokenizer

from .runs import metrics, run, tables, write_text

SECTIONS: dict[str, Any] = {
    "model": {"smear_gate": True, "bigram_vocab_size": 64, "bigram_dim": 8},
    "optim": {"normalize": "rows"},
    "data": {"curriculum": 0.1},
    "average": {"ema_decay": 0.9, "ship": "ema"},
    "qat": {"start_progress": 0.5},
    "pack": {"budget": 60_000, "recipe": "record"},
    "phase": [{"step": 4, "layer_order": [0, 1, 0, 1]}],
    "loop": {"validations": 2, "val_tokens": 300},
}


@pytest.fixture(scope="module")
def config(
    tmp_path_factory: pytest.TempPathFactory, tokenizer_path: Path, sentences: list[str]
) -> dict[str, Any]:
    folder, tokenizer = tmp_path_factory.mktemp("data"), Tokenizer.load(tokenizer_path)
    shard = write_text(folder / "text.bin", sentences * 30, tokenizer)
    val = write_text(folder / "val.bin", sentences[::-1] * 6, tokenizer)
    made = tables(shard, tokenizer_path, **SECTIONS)
    made["data"] |= {"val": [val]}
    return made


def launch(config: dict[str, Any], folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """`torchrun` of two processes on the configuration, which is written as JSON-like TOML."""
    path = folder.parent / f"{folder.name}.toml"
    path.write_text(toml(config))
    launcher = ["torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    program = ["-m", "qpack.trainer", str(path), "-o", str(folder), *options]
    return subprocess.run(
        [sys.executable, "-m", *launcher, *program],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def toml(config: dict[str, Any]) -> str:
    """Tables of plain values as TOML: JSON's values are TOML's, on one line."""
    lines = []
    for section, values in config.items():
        entries = values if isinstance(values, list) else [values]
        head = f"[[{section}]]" if isinstance(values, list) else f"[{section}]"
        for entry in entries:
            lines += [head, *(f"{k} = {json.dumps(v, default=path)}" for k, v in entry.items())]
    return "\n".join(lines)


def path(value: Any) -> str:
    return str(value)


def test_two_ranks_equal_one(config: dict[str, Any], tmp_path: Path) -> None:
    alone = run(config, tmp_path / "one")
    done = launch(config, tmp_path / "two")
    assert done.returncode == 0, done.stderr
    losses = [
        {row["step"]: row["loss"] for row in metrics(tmp_path / name) if "loss" in row}
        for name in ("one", "two")
    ]
    assert losses[0].keys() == losses[1].keys()
    for step, loss in losses[0].items():
        assert losses[1][step] == pytest.approx(loss, rel=2e-4), step
    scores = [
        [row["val_bpb"] for row in metrics(tmp_path / name) if "val_bpb" in row]
        for name in ("one", "two")
    ]
    assert scores[1] == pytest.approx(scores[0], rel=2e-4)
    tensors = [
        read_checkpoint(folder / "model.safetensors").tensors
        for folder in (alone.checkpoint.parent, tmp_path / "two")
    ]
    for name, tensor in tensors[0].items():
        torch.testing.assert_close(tensors[1][name], tensor, rtol=0.02, atol=2e-4)


def test_a_problem_is_told_once_and_nobody_waits(config: dict[str, Any], tmp_path: Path) -> None:
    beyond = {**config, "model": {**config["model"], "vocab_size": 100}}
    done = launch(beyond, tmp_path / "run")
    assert done.returncode != 0
    assert done.stderr.count("error: ") == 1, done.stderr


def test_ranks_agree_on_the_time(config: dict[str, Any], tmp_path: Path) -> None:
    """With a budget of time the clock decides rates, phases, checkpoints and the end."""
    loop = {"max_seconds": 2.0, "checkpoint_every": 3, "validations": 8, "log_every": 1}
    timed = {**config, "loop": {**config["loop"], **loop}}
    timed["loop"].pop("max_steps")
    timed["phase"] = [{"at": 0.4, "layer_order": [0, 1, 0, 1]}]
    done = launch(timed, tmp_path / "run")
    assert done.returncode == 0, done.stderr
    rows = metrics(tmp_path / "run")
    assert [row["step"] for row in rows if "loss" in row][-1] >= 3
