"""`qpack data`: the command line's part, with real work for `tokenize` and `stats`."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qpack.tokens import read_shard, write_shard

from .conftest import Runner

TEXTS = [f"the {a} of the {b}, number {i}" for i, a in enumerate("abcdefgh") for b in "stuvwxyz"]


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "a.jsonl"
    path.write_text("\n".join(json.dumps({"text": text}) for text in TEXTS))
    return path


def test_tokenize_then_stats(qpack: Runner, tmp_path: Path, text: Path) -> None:
    arguments = ("data", "tokenize", text, "-o", tmp_path / "out", "--vocab-size", 290, "--json")
    made = qpack(*arguments).document
    assert made["schema"] == "qpack.data/1"
    assert not made["reused"]
    assert [Path(path).name for path in made["train"] + made["val"]] == [
        "train_000000.bin",
        "val_000000.bin",
    ]
    assert qpack(*arguments).document == made | {"reused": True}
    stats = ("data", "stats", *made["train"], *made["val"])
    counted = qpack(*stats, "--tokenizer", made["tokenizer_path"], "--json").document
    assert counted["schema"] == "qpack.data-stats/1"
    assert counted["total"]["documents"] == len(TEXTS)
    assert counted["total"]["bytes"] == sum(map(len, TEXTS))
    assert counted["total"]["bytes_per_token"] == pytest.approx(
        counted["total"]["bytes"] / counted["total"]["tokens"]
    )
    plain = qpack(*stats).out.splitlines()
    assert plain[0].split()[:3] == ["name", "tokens", "documents"]
    assert plain[-1].split()[0] == "total"


def test_tokenize_says_what_it_made_and_what_is_next(
    qpack: Runner, tmp_path: Path, text: Path
) -> None:
    val = tmp_path / "b.txt"
    val.write_text("something else")
    options = ("--vocab-size", 290, "--val", val, "--shard-tokens", 300, "--workers", 2)
    outcome = qpack("data", "tokenize", text, "-o", tmp_path / "out", *options)
    assert outcome.code == 0, outcome.err
    header, train, held_out = outcome.out.splitlines()[:3]
    assert header.split()[:4] == ["part", "shards", "documents", "tokens"]
    assert train.split()[2] == str(len(TEXTS))
    assert held_out.split()[:3] == ["val", "1", "1"]
    assert int(train.split()[1]) > 1
    assert all(len(read_shard(p)) <= 300 for p in (tmp_path / "out").glob("*.bin"))
    assert outcome.err.splitlines()[-1].startswith("next: qpack data stats ")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ((), "give one of --tokenizer and --vocab-size"),
        (("--tokenizer", "a", "--vocab-size", 300), "give one of --tokenizer and --vocab-size"),
        (("--vocab-size", 300, "--val", "a", "--val-every", 3), "give one of --val and --val"),
    ],
)
def test_options_that_contradict(
    qpack: Runner, tmp_path: Path, text: Path, options: Any, message: str
) -> None:
    outcome = qpack("data", "tokenize", text, "-o", tmp_path / "out", *options)
    assert (outcome.code, outcome.out) == (2, "")
    assert message in outcome.err
    assert not (tmp_path / "out").exists()


def test_bad_input_is_named(qpack: Runner, tmp_path: Path, text: Path) -> None:
    text.write_text(text.read_text() + "\n{}")
    options = ("-o", tmp_path / "out", "--vocab-size", 290)
    outcome = qpack("data", "tokenize", text, *options)
    assert (outcome.code, outcome.out) == (3, "")
    assert f'a.jsonl, line {len(TEXTS) + 1}: no JSON object with a string "text"' in outcome.err
    outcome = qpack("data", "tokenize", tmp_path / "b.jsonl", tmp_path / "c.jsonl", *options)
    assert outcome.code == 3
    assert "b.jsonl: no such file" in outcome.err and "c.jsonl: no such file" in outcome.err


def test_what_is_there_is_kept(qpack: Runner, tmp_path: Path, text: Path) -> None:
    (tmp_path / "train_000000.bin").write_bytes(b"mine")
    options = ("-o", tmp_path, "--vocab-size", 290)
    outcome = qpack("data", "tokenize", text, *options)
    assert outcome.code == 3
    assert "train_000000.bin" in outcome.err and "--force" in outcome.err
    assert (tmp_path / "train_000000.bin").read_bytes() == b"mine"
    assert qpack("data", "tokenize", text, *options, "--force").code == 0


def test_stats_of_what_is_no_shard(qpack: Runner, tmp_path: Path) -> None:
    (tmp_path / "a.bin").write_bytes(b"short")
    outcome = qpack("data", "stats", tmp_path / "a.bin")
    assert (outcome.code, outcome.out) == (3, "")
    assert "is not a token shard" in outcome.err


def test_stats_without_documents_or_tokenizer(qpack: Runner, tmp_path: Path) -> None:
    write_shard(tmp_path / "a.bin", np.full(10, 7, dtype=np.uint16))
    (row,) = qpack("data", "stats", tmp_path / "a.bin", "--json").document["shards"]
    assert row == {
        "name": "a.bin",
        "tokens": 10,
        "documents": 0,
        "tokens_per_document": None,
        "bytes": None,
        "bytes_per_token": None,
    }


def test_fineweb_asks_for_what_the_options_say(
    qpack: Runner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: dict[str, Any] = {}

    def download(out: Path, **options: Any) -> dict[str, Any]:
        asked.update(out=out, **options)
        part = {"shards": [str(out / "a b.bin")], "tokens": 5}
        return {
            "schema": "qpack.fineweb/1",
            "repository": "r",
            "commit": "c",
            "tokenizer": {"path": "t.model", "sha256": "0"},
            "train": part,
            "val": part,
        }

    monkeypatch.setattr("qpack.plugins.load_plugin", lambda group, name: download)
    options = ("--variant", "sp4096", "--train-shards", 3, "--repo", "a/b")
    outcome = qpack("data", "fineweb", "-o", tmp_path, *options, "--endpoint", "http://x")
    assert outcome.code == 0, outcome.err
    assert asked.pop("progress") is not None
    assert asked == {
        "out": tmp_path,
        "variant": "sp4096",
        "train_shards": 3,
        "repository": "a/b",
        "endpoint": "http://x",
        "force": False,
    }
    assert "commit     c of r" in outcome.out
    assert f"next: qpack data stats '{tmp_path}/a b.bin'" in outcome.err


def test_fineweb_without_the_client(
    qpack: Runner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    outcome = qpack("data", "fineweb", "-o", tmp_path / "out")
    assert (outcome.code, outcome.out) == (8, "")
    assert "pip install 'qpack-lm[hub]'" in outcome.err
    assert not (tmp_path / "out").exists()
