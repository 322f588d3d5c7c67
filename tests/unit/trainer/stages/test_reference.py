from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from qpack.checkpoint import read_checkpoint
from qpack.errors import ConfigError
from qpack.progress import SILENT
from qpack.runs.document import Document, read_document
from qpack.runs.run import run
from qpack.tokenizer import Tokenizer
from qpack.trainer.resume import FOLDER
from qpack.trainer.stages import reference as stage
from qpack.training import TrainRequest, load_trainer
from tests.unit.trainer.runs import tables, write_text


@pytest.fixture(scope="module")
def shard(
    tmp_path_factory: pytest.TempPathFactory, sentences: list[str], tokenizer: Tokenizer
) -> Path:
    """Some thousand tokens of the sentences over and over."""
    return write_text(tmp_path_factory.mktemp("shard") / "text.bin", sentences * 60, tokenizer)


@pytest.fixture(scope="module")
def held_out(shard: Path, sentences: list[str], tokenizer: Tokenizer) -> Path:
    return write_text(shard.with_name("val.bin"), sentences[::-1] * 10, tokenizer)


@pytest.fixture
def config(shard: Path, held_out: Path, tokenizer_path: Path) -> dict[str, Any]:
    pack = {"budget": 30_000, "calib_tokens": 512, "val_tokens": 256, "device": "cpu"}
    return tables(shard, tokenizer_path, data={"val": [str(held_out)]}, pack=pack)


def test_it_is_the_installed_plugin() -> None:
    assert load_trainer("reference") is stage


def test_what_decides_the_result(
    config: dict[str, Any], shard: Path, held_out: Path, tokenizer_path: Path, tmp_path: Path
) -> None:
    checked = stage.check(TrainRequest(config=config, folder=tmp_path))
    assert checked.files == {
        "data.train.0": shard, "data.val.0": held_out, "data.tokenizer.0": tokenizer_path,
    }  # fmt: skip
    assert checked.settings["loop"]["max_steps"] == 12
    assert checked.settings["model"]["vocab_size"] == 384
    assert "pack" not in checked.settings and "train" not in checked.settings["data"]
    json.dumps(checked.settings)


def test_all_missing_files_at_once(config: dict[str, Any], tmp_path: Path) -> None:
    config["data"] |= {"train": ["a.bin", "none_*.bin"], "val": "v.bin", "tokenizer": "t.model"}
    with pytest.raises(ConfigError, match="no such file") as caught:
        stage.check(TrainRequest(config=config, folder=tmp_path))
    assert caught.value.items == (
        "data.train: a.bin", "data.train: none_*.bin", "data.val: v.bin", "data.tokenizer: t.model",
    )  # fmt: skip
    config["data"] = {"text": ["standard-libary"]}
    with pytest.raises(ConfigError) as caught:
        stage.check(TrainRequest(config=config, folder=tmp_path))
    assert caught.value.items == ('data.text: standard-libary (did you mean "standard-library"?)',)


def test_all_bad_keys_at_once(config: dict[str, Any], tmp_path: Path) -> None:
    config["optim"]["matrix_rl"] = 1.0
    config["modle"] = {}
    config["loop"]["max_steps"] = "many"
    with pytest.raises(ConfigError) as caught:
        stage.check(TrainRequest(config=config, folder=tmp_path))
    text = str(caught.value)
    assert 'optim.matrix_rl: unknown (did you mean "matrix_lr"?)' in text
    assert 'modle: unknown (did you mean "model"?)' in text
    assert "loop.max_steps = 'many'" in text


def test_a_checkpoint_with_its_figures(
    config: dict[str, Any], shard: Path, held_out: Path, tmp_path: Path
) -> None:
    trained = stage.train(TrainRequest(config=config, folder=tmp_path), progress=SILENT)
    assert trained.checkpoint == tmp_path / "model.safetensors"
    assert read_checkpoint(trained.checkpoint).config["vocab_size"] == 384
    assert (trained.calibration, trained.validation, trained.sequence) == (shard, held_out, 32)
    assert (trained.details["steps"], trained.details["tokens"]) == (12, 12 * 128)
    assert trained.details["bpb"] > 0
    json.dumps(dict(trained.details), allow_nan=False)


def test_resuming_what_kept_no_checkpoint_starts_again(
    config: dict[str, Any], tmp_path: Path
) -> None:
    asked = TrainRequest(config=config, folder=tmp_path, resume=True)
    assert stage.train(asked, progress=SILENT).details["steps"] == 12


def test_starting_anew_forgets_the_earlier_checkpoint(
    config: dict[str, Any], tmp_path: Path
) -> None:
    stage.train(TrainRequest(config=config, folder=tmp_path), progress=SILENT)
    mark = tmp_path / FOLDER / "of-the-earlier-run"
    mark.parent.mkdir(exist_ok=True)
    mark.write_bytes(b"")
    asked = TrainRequest(config=config, folder=tmp_path, force=True)
    stage.train(asked, progress=SILENT)
    assert not mark.exists()


def document(config: dict[str, Any], **loop: Any) -> Document:
    made = {**config, "loop": {**config["loop"], **loop}}
    return Document(source="c.toml", name="reference", trainer=stage, tables=made)


def test_the_whole_line_resumed_and_refused(config: dict[str, Any], tmp_path: Path) -> None:
    folder = tmp_path / "run"
    run(document(config), folder, pack=False)
    with pytest.raises(ConfigError) as caught:
        run(document(config, seed=1, max_steps=13), folder, resume=True)
    assert caught.value.items == ("loop.max_steps: 12 -> 13", "loop.seed: 0 -> 1")
    report = run(document(config), folder, resume=True).report
    assert report is not None
    assert report["artifact_bytes"] <= 30_000
    assert report["quality"]["window"] == 32
    assert report["training"]["details"]["steps"] == 12
    assert (folder / "model.pyz").stat().st_size == report["artifact_bytes"]


def test_changed_data_is_refused(
    config: dict[str, Any], tmp_path: Path, sentences: list[str], tokenizer: Tokenizer
) -> None:
    own = write_text(tmp_path / "own.bin", sentences * 40, tokenizer)
    config["data"] |= {"train": [str(own)]}
    folder = tmp_path / "run"
    run(document(config), folder, pack=False)
    write_shard_again(own, sentences, tokenizer)
    with pytest.raises(ConfigError) as caught:
        run(document(config), folder, resume=True)
    (line,) = caught.value.items
    assert line.startswith("data.train.0 (own.bin): sha256 ") and " -> sha256 " in line


def write_shard_again(path: Path, sentences: list[str], tokenizer: Tokenizer) -> None:
    path.unlink()
    write_text(path, sentences[1:] * 40, tokenizer)


def test_the_preset_of_the_demo_is_sound(tmp_path: Path) -> None:
    made = read_document("tiny", overrides=["loop.device=cpu"])
    checked = made.trainer.check(TrainRequest(config=made.tables, folder=tmp_path))
    assert dataclasses.asdict(checked)["files"] == {}
    assert checked.settings["data"]["text"] == ["standard-library"]
    assert made.tables["pack"]["budget"] == 400_000
