from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from qpack.errors import CheckpointError, ConfigError
from qpack.trainer.config import TrainConfig
from qpack.trainer.resume import FOLDER, STATE, Saved, fingerprint, load, save, saved_step

MODEL = {"vocab_size": 64, "num_layers": 1, "model_dim": 8, "num_heads": 1, "num_kv_heads": 1}
MODEL |= {"unet_skips": False}


def config(**loop: Any) -> TrainConfig:
    return TrainConfig.from_mapping(
        {
            "model": MODEL,
            "data": {"train": "a.bin", "tokenizer": "t.model"},
            "loop": {"max_steps": 5, "sequence": 8, "batch_tokens": 16, **loop},
        }
    )


def saved(steps: int) -> Saved:
    generator = torch.Generator().manual_seed(steps)
    tensors = {
        "model.w": torch.randn(3, 4, generator=generator),
        "optim.step": torch.tensor(steps),
        "model.half": torch.randn(5, generator=generator).bfloat16(),
    }
    return Saved(tensors=tensors, record={"steps": steps, "seconds": 1.5, "loss": None})


KNOWN = {"loop.max_steps": "5", "data file 0 (a.bin)": "f" * 64}


def test_what_is_loaded_is_what_was_saved(tmp_path: Path) -> None:
    assert saved_step(tmp_path) is None
    save(tmp_path, saved(3), KNOWN)
    got = load(tmp_path, KNOWN)
    assert saved_step(tmp_path) == got.record["steps"] == 3
    assert got.record["seconds"] == 1.5
    assert got.tensors.keys() == saved(3).tensors.keys()
    for name, tensor in saved(3).tensors.items():
        assert got.tensors[name].dtype == tensor.dtype
        assert torch.equal(got.tensors[name], tensor)


def test_the_last_one_counts_and_older_ones_go(tmp_path: Path) -> None:
    for steps in (3, 6, 9):
        save(tmp_path, saved(steps), KNOWN)
    assert load(tmp_path, KNOWN).record["steps"] == 9
    assert len(list((tmp_path / FOLDER).glob("*.safetensors"))) == 1


def test_a_crash_before_the_new_state_leaves_the_old(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(tmp_path, saved(3), KNOWN)

    def crash(*args: Any, **keys: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("qpack.trainer.resume.write_atomic", crash)
    for steps in (6, 3):  # the same step again has a file of its own
        other = Saved(tensors={"x": torch.ones(steps)}, record=saved(steps).record)
        with pytest.raises(KeyboardInterrupt):
            save(tmp_path, other, KNOWN)
        assert load(tmp_path, KNOWN).record["steps"] == 3
        assert load(tmp_path, KNOWN).tensors.keys() == saved(3).tensors.keys()


def test_every_difference_is_named(tmp_path: Path) -> None:
    save(tmp_path, saved(3), KNOWN)
    with pytest.raises(ConfigError, match="another configuration") as caught:
        load(tmp_path, {"loop.max_steps": "6", "data file 0 (a.bin)": "e" * 64, "loop.seed": "1"})
    assert caught.value.items == (
        "loop.max_steps: 5 -> 6",
        "data file 0 (a.bin): ffffffffffff... -> eeeeeeeeeeee...",
        "loop.seed: absent -> 1",
    )


def test_nothing_there_or_damaged(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no checkpoint to resume from"):
        load(tmp_path, KNOWN)
    save(tmp_path, saved(3), KNOWN)
    (file,) = (tmp_path / FOLDER).glob("*.safetensors")
    file.write_bytes(file.read_bytes()[:-1] + b"\0")
    with pytest.raises(CheckpointError, match="missing or damaged"):
        load(tmp_path, KNOWN)
    state = json.loads((tmp_path / FOLDER / STATE).read_text())
    for damage in ({"schema": "other"}, {**state, "steps": "many"}, {**state, "tensors": None}, []):
        (tmp_path / FOLDER / STATE).write_text(json.dumps(damage))
        with pytest.raises(CheckpointError, match="not the state of a run"):
            load(tmp_path, KNOWN)


def test_the_fingerprint_names_settings_and_contents_not_places(tmp_path: Path) -> None:
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "a.bin").write_bytes(b"tokens")
    first = fingerprint(config(), [tmp_path / "one" / "a.bin"])
    assert first == fingerprint(config(), [tmp_path / "two" / "a.bin"])
    assert first["loop.max_steps"] == "5"
    assert first["model.vocab_size"] == "64"
    assert not any(key.startswith("data.train") for key in first)
    (tmp_path / "two" / "a.bin").write_bytes(b"others")
    changed = fingerprint(config(seed=1), [tmp_path / "two" / "a.bin"])
    assert {key for key in first if first[key] != changed[key]} == {
        "loop.seed", "data file 0 (a.bin)",
    }  # fmt: skip
