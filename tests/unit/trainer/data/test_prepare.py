from __future__ import annotations

from pathlib import Path

import pytest

from qpack.errors import ConfigError
from qpack.tokenizer import Tokenizer
from qpack.tokens import read_shard
from qpack.trainer.data import prepare as module
from qpack.trainer.data.prepare import prepare

WORDS = [
    "the",
    "of",
    "and",
    "model",
    "text",
    "token",
    "byte",
    "budget",
    "weight",
    "report",
    "scale",
    "window",
    "stride",
]
# The ligature is one that normalisation takes apart: that document must not be scored.
DOCUMENTS = [f"{a} {b} number {i}." for i, a in enumerate(WORDS) for b in WORDS]
DOCUMENTS[5] = DOCUMENTS[30] = "a \ufb01ne document"


def test_tokenizer_and_shards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(module.SOURCES, "words", lambda: list(DOCUMENTS))
    paths = {name: tmp_path / name for name in ("tokenizer", "train", "val")}
    prepare("words", **paths, vocab_size=300)
    tokenizer = Tokenizer.load(paths["tokenizer"])
    texts = {name: tokenizer.decode(read_shard(paths[name])) for name in ("train", "val")}
    held_out = DOCUMENTS[10::20]
    assert texts["val"] == "".join(text for text in held_out if "\ufb01" not in text)
    kept = [text for text in DOCUMENTS if text not in held_out and "\ufb01" not in text]
    assert texts["train"] == "".join(kept)
    assert tokenizer.text_bytes(read_shard(paths["val"])) == len(texts["val"].encode())


def test_unknown_sources_write_nothing(tmp_path: Path) -> None:
    paths = {name: tmp_path / name for name in ("tokenizer", "train", "val")}
    with pytest.raises(ConfigError, match='did you mean "standard-library"'):
        prepare("standard-libary", **paths, vocab_size=300)
    assert not any(tmp_path.iterdir())
