from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from qpack.errors import ConfigError, DataError, OutputExistsError
from qpack.tokenizer import Tokenizer
from qpack.tokens import read_shard
from qpack.trainer.data import build as module
from qpack.trainer.data import documents
from qpack.trainer.data.build import Built, build_data
from qpack.trainer.data.manifest import Request

from .corpus import TEXTS, write_text
from .test_prepare import Notes
from .test_tokenize import LIGATURE


def build(
    folder: Path, *text: Path, progress: Any = None, force: bool = False, **keys: Any
) -> Built:
    request = Request(text=text, **({"vocab_size": 320} | keys))
    return build_data(request, folder, force=force, progress=progress or Notes())


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


@pytest.fixture
def text(tmp_path: Path) -> Path:
    return write_text(tmp_path / "a.jsonl", TEXTS)


def test_the_same_request_gives_the_same_bytes(tmp_path: Path, text: Path) -> None:
    folders = [tmp_path / name for name in "xy"]
    for workers, folder in enumerate(folders, start=1):
        build(folder, text, workers=workers, shard_tokens=1000)
    first, second = map(files, folders)
    assert first == second
    assert len([name for name in first if name.startswith("train_")]) > 1
    manifest = json.loads(first["manifest.json"])
    assert manifest["schema"] == "qpack.data/1"
    assert str(tmp_path) not in first["manifest.json"].decode()


def test_what_is_there_is_used_again(tmp_path: Path, text: Path) -> None:
    first = build(tmp_path / "out", text)
    times = {p.name: p.stat().st_mtime_ns for p in (tmp_path / "out").iterdir()}
    progress = Notes()
    again = build(tmp_path / "out", text, progress=progress, workers=3)
    assert {p.name: p.stat().st_mtime_ns for p in (tmp_path / "out").iterdir()} == times
    assert first.report == again.report | {"reused": False}
    assert again.report["reused"]
    assert (again.train, again.val, again.tokenizer) == (first.train, first.val, first.tokenizer)
    assert "used again" in progress.notes[0]


@pytest.mark.parametrize(
    "change", ["text", "vocab_size", "shard_tokens", "val_every", "documents_per_tokenizer", "seed"]
)
def test_another_request_is_not_the_same(tmp_path: Path, text: Path, change: str) -> None:
    build(tmp_path / "out", text)
    keys = {} if change == "text" else {change: 300}
    if change == "text":
        write_text(text, TEXTS[1:])
    with pytest.raises(OutputExistsError, match="other data is there") as caught:
        build(tmp_path / "out", text, **keys)
    assert len(caught.value.items) == 4  # manifest, two shards, tokenizer
    built = build(tmp_path / "out", text, force=True, **keys)
    assert not built.report["reused"]


@pytest.mark.parametrize("damage", ["shard", "tokenizer", "gone", "manifest"])
def test_damaged_data_is_made_again(tmp_path: Path, text: Path, damage: str) -> None:
    out = tmp_path / "out"
    build(out, text)
    whole = files(out)
    name = {"tokenizer": "tokenizer.model", "manifest": "manifest.json"}
    path = out / name.get(damage, "train_000000.bin")
    if damage == "gone":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:-2])
    built = build(out, text, force=True)
    assert not built.report["reused"]
    assert files(out) == whole


def test_the_tokenizer_sees_training_documents_alone(
    tmp_path: Path, text: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str] = []
    real = module.train_tokenizer

    def train_tokenizer(sample: list[str], *arguments: Any, **options: Any) -> Tokenizer:
        seen.extend(sample)
        return real(sample, *arguments, **options)

    monkeypatch.setattr(module, "train_tokenizer", train_tokenizer)
    built = build(tmp_path / "out", text)
    assert seen == [text for text in TEXTS if text not in TEXTS[10::20]]
    seen.clear()
    built = build(tmp_path / "out", text, force=True, documents_per_tokenizer=100)
    assert len(seen) == built.report["tokenizer_sample"]["documents"] == 100


def test_what_a_tokenizer_changes_is_kept_and_said(tmp_path: Path, model_path: Path) -> None:
    text = write_text(tmp_path / "a.jsonl", [*TEXTS, LIGATURE])
    val = write_text(tmp_path / "b.jsonl", [LIGATURE, TEXTS[0]])
    progress = Notes()
    built = build(tmp_path / "out", text, val_text=(val,), tokenizer=model_path, progress=progress)
    parts = built.report["parts"]
    assert [parts[name]["changed"] for name in ("train", "val")] == [1, 1]
    assert parts["val"]["documents"] == 2
    scored = Tokenizer.load(model_path).text_bytes(read_shard(built.val[0]))
    assert parts["val"]["decoded_bytes"] == scored == parts["val"]["text_bytes"] - 1
    assert "normalises 1 of them" in progress.notes[-1]


def test_the_standard_librarys_are_left_out(
    tmp_path: Path, model_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(documents, "_standard_library", lambda: (*TEXTS, LIGATURE))
    progress = Notes()
    built = build(
        tmp_path / "out", Path("standard-library"), tokenizer=model_path, progress=progress
    )
    train = built.report["parts"]["train"]
    assert (train["changed"], train["left_out"]) == (0, 1)
    assert "1 more that the tokenizer would change are left out" in progress.notes[0]


def test_nothing_held_out_when_that_is_asked_for(tmp_path: Path, text: Path) -> None:
    built = build(tmp_path / "out", text, val_every=0)
    assert built.val == ()
    assert built.report["parts"]["train"]["documents"] == len(TEXTS)


def test_too_few_documents_to_hold_one_out(tmp_path: Path, model_path: Path) -> None:
    text = write_text(tmp_path / "a.jsonl", TEXTS[:10])
    with pytest.raises(DataError, match="no text for these shards") as caught:
        build(tmp_path / "out", text, tokenizer=model_path)
    assert caught.value.items == ("val: no documents",)
    assert not (tmp_path / "out/manifest.json").exists()


def test_files_are_read_as_often_as_asked_and_held_out_ones_once(
    tmp_path: Path, text: Path
) -> None:
    other = write_text(tmp_path / "b.jsonl", [f"{line} Again." for line in TEXTS])
    once = build(tmp_path / "once", text, other)
    twice = build(tmp_path / "twice", text, other, repeat=(("b.*", 3),), tokenizer=once.tokenizer)
    decoded = [
        Tokenizer.load(once.tokenizer).decode(read_shard(built.train[0]).tolist())
        for built in (once, twice)
    ]
    assert decoded[1].count("Again.") == 3 * decoded[0].count("Again.") > 0
    assert len(decoded[1]) < 3 * len(decoded[0])
    assert read_shard(once.val[0]).tolist() == read_shard(twice.val[0]).tolist()
    assert [row.get("times") for row in twice.report["text"]] == [None, 3]


def test_a_file_to_repeat_must_be_there(tmp_path: Path, text: Path) -> None:
    with pytest.raises(ConfigError, match="files to repeat") as caught:
        build(tmp_path / "out", text, repeat=(("fineweb*", 2), ("a.jsonl", 2)))
    assert caught.value.items == ("repeat: 'fineweb*' matches no file of text",)


def test_wrong_requests(tmp_path: Path, text: Path) -> None:
    with pytest.raises(ConfigError, match="give a tokenizer"):
        build(tmp_path / "out", text, vocab_size=None)
    with pytest.raises(ConfigError, match="impossible"):
        build(tmp_path / "out", text, vocab_size=3)
    with pytest.raises(ConfigError, match="every document"):
        build(tmp_path / "out", text, val_every=1)
    with pytest.raises(DataError, match="both trained on and scored"):
        build(tmp_path / "out", text, val_text=(text,))
    with pytest.raises(DataError, match="there is no text"):
        build(tmp_path / "out")
    assert not (tmp_path / "out").exists()
