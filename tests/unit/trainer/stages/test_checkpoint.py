from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from qpack.checkpoint import fingerprint, read_checkpoint
from qpack.errors import CheckpointError, ConfigError, DataError
from qpack.options import PackOptions
from qpack.progress import SILENT
from qpack.tokenizer import Tokenizer
from qpack.tokens import write_shard
from qpack.trainer.stages import checkpoint as stage
from qpack.training import TrainRequest, load_trainer


def table(given: PackOptions, **changes: Any) -> dict[str, Any]:
    """`[checkpoint]` for the model of `given`; a change of None takes a key out."""
    values = {
        "path": str(given.checkpoint),
        "tokenizer": str(given.tokenizer),
        "calibration": str(given.calib),
        **changes,
    }
    return {"checkpoint": {key: value for key, value in values.items() if value is not None}}


def request(given: PackOptions, folder: Path, **changes: Any) -> TrainRequest:
    return TrainRequest(config=table(given, **changes), folder=folder)


def test_it_is_the_installed_plugin() -> None:
    assert load_trainer("checkpoint") is stage


def test_the_weights_become_the_runs_checkpoint(given: PackOptions, tmp_path: Path) -> None:
    trained = stage.train(request(given, tmp_path), progress=SILENT)
    before, after = read_checkpoint(given.checkpoint), read_checkpoint(trained.checkpoint)
    assert trained.checkpoint == tmp_path / "model.safetensors"
    assert fingerprint(after.tensors) == fingerprint(before.tensors)
    assert after.config == before.config
    assert after.tokenizer_sha256 == Tokenizer.load(given.tokenizer).sha256
    assert (trained.tokenizer, trained.calibration) == (given.tokenizer, given.calib)
    assert trained.validation is None and trained.sequence == before.config["train_seq_len"]


def test_foreign_weights_are_imported(given: PackOptions, tmp_path: Path) -> None:
    tensors = read_checkpoint(given.checkpoint).tensors
    path = tmp_path / "final_model.pt"
    torch.save({"model": {f"module.{name}": value for name, value in tensors.items()}}, path)
    asked = request(given, tmp_path, path=str(path), set={"rope_base": 500.0}, sequence=32)
    trained = stage.train(asked, progress=SILENT)
    after = read_checkpoint(trained.checkpoint)
    assert fingerprint(after.tensors) == fingerprint(tensors)
    assert after.config["rope_base"] == 500.0 and trained.sequence == 32
    assert trained.details == {"weights": "final_model.pt"}


def test_what_decides_the_result(given: PackOptions, tmp_path: Path) -> None:
    checked = stage.check(request(given, tmp_path, set={"rope_base": 5.0}))
    assert checked.settings == {
        "checkpoint": {"sequence": None, "architecture": "gpt", "set": {"rope_base": 5.0}}
    }
    assert checked.files == {
        "checkpoint.path": given.checkpoint,
        "checkpoint.tokenizer": given.tokenizer,
        "checkpoint.calibration": given.calib,
    }


def test_all_missing_files_at_once(given: PackOptions, tmp_path: Path) -> None:
    gone = {"path": "a.pt", "calibration": "b.bin", "validation": str(tmp_path)}
    with pytest.raises(ConfigError, match="no such file") as caught:
        stage.check(request(given, tmp_path / "run", **gone))
    assert caught.value.items == (
        "checkpoint.path: a.pt",
        "checkpoint.calibration: b.bin",
        f"checkpoint.validation: {tmp_path} is a folder",
    )


def test_all_bad_keys_at_once(given: PackOptions, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="the checkpoint stage cannot be used") as caught:
        stage.check(request(given, tmp_path, pth="x", tokenizer=None, sequence=0))
    assert sorted(item.partition(":")[0] for item in caught.value.items) == [
        "checkpoint.pth", "checkpoint.sequence = 0", "checkpoint.tokenizer",
    ]  # fmt: skip
    assert 'did you mean "path"' in str(caught.value)


def test_all_alien_shards_at_once(given: PackOptions, tmp_path: Path) -> None:
    alien, broken = tmp_path / "alien.bin", tmp_path / "broken.bin"
    write_shard(alien, np.array([60_000], dtype=np.uint16))
    broken.write_bytes(b"no shard")
    asked = request(given, tmp_path / "run", calibration=str(alien), validation=str(broken))
    with pytest.raises(DataError) as caught:
        stage.check(asked)
    assert len(caught.value.items) == 2
    assert "beyond the vocabulary" in str(caught.value) and "broken.bin" in str(caught.value)


def test_the_own_output_is_no_input(given: PackOptions, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(given.checkpoint.read_bytes())
    with pytest.raises(ConfigError, match="is what the run writes"):
        stage.check(request(given, tmp_path, path=str(path)))


def test_weights_that_are_none(given: PackOptions, tmp_path: Path) -> None:
    path = tmp_path / "w.pt"
    path.write_bytes(b"not a file of torch's")
    with pytest.raises(CheckpointError, match="restricted reader"):
        stage.train(request(given, tmp_path, path=str(path)), progress=SILENT)
