from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qpack.errors import ConfigError, DataError
from qpack.progress import Silent
from qpack.tokenizer import Tokenizer
from qpack.tokens import read_shard, write_shard
from qpack.trainer.config import DataSection
from qpack.trainer.data import prepare as module
from qpack.trainer.data.prepare import Prepared, prepare_data
from tests.unit.trainer.runs import Told as Notes

from .corpus import TEXTS, write_text


def prepare(folder: Path, *, vocab_size: int = 320, progress: Any = None, **keys: Any) -> Prepared:
    return prepare_data(
        DataSection(**keys),
        vocab_size=vocab_size,
        folder=folder,
        progress=progress or Silent(),
    )


def shard(path: Path, *, top: int = 319, size: int = 5000, seed: int = 0) -> Path:
    tokens = np.random.default_rng(seed).integers(4, top, size).astype(np.uint16)
    tokens[-1] = top
    write_shard(path, tokens)
    return path


def test_text_becomes_a_tokenizer_and_shards(tmp_path: Path) -> None:
    text = write_text(tmp_path / "a.jsonl.xz", TEXTS)
    data = prepare(tmp_path / "run", text=text)
    assert data.tokenizer == tmp_path / "run/data/tokenizer.model"
    tokenizer = Tokenizer.load(data.tokenizer)
    assert tokenizer.vocab_size == 320
    texts = [tokenizer.decode(read_shard(path)) for (path,) in (data.train, data.val)]
    held_out = TEXTS[10::20]
    assert texts == ["".join(t for t in TEXTS if t not in held_out), "".join(held_out)]
    assert data.report["order"]["value"] == "random"
    assert data.report["made"]["tokenizer_sha256"] == tokenizer.sha256


def test_a_tokenizer_and_validation_text_of_ones_own(tmp_path: Path, model_path: Path) -> None:
    text = write_text(tmp_path / "a.txt", TEXTS)
    val = write_text(tmp_path / "b.txt", ["the weight of text"])
    data = prepare(tmp_path, text=text, val_text=val, tokenizer=model_path)
    assert data.tokenizer == model_path
    assert not (tmp_path / "data/tokenizer.model").exists()
    tokenizer = Tokenizer.load(model_path)
    assert tokenizer.decode(read_shard(data.val[0])) == "the weight of text"


def test_shards_that_are_given(tmp_path: Path, model_path: Path) -> None:
    paths = [shard(tmp_path / f"train_{i}.bin", seed=i) for i in range(3)]
    val = shard(tmp_path / "val.bin")
    keys = {"tokenizer": model_path, "val": val}
    data = prepare(tmp_path, train=(tmp_path / "train_*.bin", paths[0]), **keys)
    assert (data.train, data.val, data.tokenizer) == (paths, [val], model_path)
    assert data.report["made"] is None
    ordered = prepare(tmp_path, train=tuple(paths), order="hard", **keys)
    assert sorted(ordered.train) == paths
    nats = ordered.report["order"]["mean_nats"]
    assert nats == sorted(nats, reverse=True)
    assert not (tmp_path / "data").exists()


def test_shards_to_train_on_and_text_to_validate_on(tmp_path: Path, model_path: Path) -> None:
    text = write_text(tmp_path / "b.txt", ["the weight of text"])
    train = shard(tmp_path / "train.bin")
    data = prepare(tmp_path, train=train, val_text=text, tokenizer=model_path)
    assert data.train == [train]
    assert [path.name for path in data.val] == ["val_000000.bin"]


def test_text_to_train_on_and_shards_to_validate_on(tmp_path: Path, model_path: Path) -> None:
    text = write_text(tmp_path / "a.jsonl", TEXTS)
    val = shard(tmp_path / "val.bin")
    data = prepare(tmp_path, text=text, val=val, tokenizer=model_path)
    assert data.val == [val]
    assert data.report["made"]["parts"]["train"]["documents"] == len(TEXTS)


def test_every_bad_shard_is_named(tmp_path: Path, model_path: Path) -> None:
    good = shard(tmp_path / "good.bin")
    high = shard(tmp_path / "high.bin", top=320)
    (tmp_path / "none.bin").write_bytes(b"short")
    with pytest.raises(DataError, match="3 of 4 shards cannot be used") as caught:
        prepare(
            tmp_path,
            train=(good, high, tmp_path / "none.bin"),
            val=tmp_path / "gone.bin",
            tokenizer=model_path,
        )
    high_line, none_line, gone_line = caught.value.items
    assert "high.bin: 1 of 5,000 tokens are beyond the vocabulary of 320" in high_line
    assert "none.bin is not a token shard" in none_line
    assert "gone.bin: No such file" in gone_line
    assert "model.vocab_size" in (caught.value.hint or "")


def test_a_shard_of_a_smaller_vocabulary_is_doubted(tmp_path: Path, model_path: Path) -> None:
    progress = Notes()
    keys = {"train": shard(tmp_path / "a.bin", top=100), "val": shard(tmp_path / "b.bin")}
    prepare(tmp_path, tokenizer=model_path, progress=progress, **keys)
    (warning,) = progress.warnings
    assert warning.startswith("a.bin: no token is above 100 of a vocabulary of 320")
    assert "made with another tokenizer?" in warning


def test_a_manifest_knows_the_tokenizer(tmp_path: Path, model_path: Path) -> None:
    text = write_text(tmp_path / "a.jsonl", TEXTS)
    made = prepare(tmp_path / "made", text=text)
    keys = {"train": made.train, "val": made.val}
    prepare(tmp_path / "x", tokenizer=made.tokenizer, **keys)
    with pytest.raises(DataError, match="not the tokenizer of these shards") as caught:
        prepare(tmp_path / "x", tokenizer=model_path, **keys)
    assert len(caught.value.items) == len(made.train) + len(made.val)


def test_patterns_that_match_nothing(tmp_path: Path, model_path: Path) -> None:
    with pytest.raises(DataError, match=r"data\.train: shards are missing") as caught:
        prepare(tmp_path, train=(tmp_path / "a*", tmp_path / "b*"), tokenizer=model_path)
    assert caught.value.items == (
        f"{tmp_path}/a*: matches no file",
        f"{tmp_path}/b*: matches no file",
    )


def test_a_shard_is_not_both_trained_on_and_scored(tmp_path: Path, model_path: Path) -> None:
    paths = [shard(tmp_path / f"{i}.bin", seed=i) for i in range(3)]
    with pytest.raises(DataError, match="both trained on and scored") as caught:
        prepare(tmp_path, train=tmp_path / "*.bin", val=paths[1], tokenizer=model_path)
    assert caught.value.items == (str(paths[1]),)


def test_nothing_to_validate_on_is_a_warning(tmp_path: Path, model_path: Path) -> None:
    progress = Notes()
    prepare(tmp_path, train=shard(tmp_path / "a.bin"), tokenizer=model_path, progress=progress)
    assert progress.warnings == ["there are no validation shards: nothing will be scored"]


def test_keys_that_contradict_each_other(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        prepare(tmp_path, val=tmp_path / "a.bin", val_text=tmp_path / "a.txt")
    assert caught.value.items == (
        "val, val_text: give one of them",
        "tokenizer: missing (the SentencePiece model of the shards)",
        "train, text: give one of them",
    )


def test_a_tokenizer_of_another_size(tmp_path: Path, model_path: Path) -> None:
    text = write_text(tmp_path / "a.jsonl", TEXTS)
    with pytest.raises(DataError, match="has 320 tokens, the model 384"):
        prepare(tmp_path, text=text, tokenizer=model_path, vocab_size=384)


def test_other_ranks_read_nothing(
    tmp_path: Path, model_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent: list[str] = []

    def on_first(work: Any) -> Any:
        """Rank 0 at the first call, another one at the second."""
        if not sent:
            sent.append(json.dumps(work()))
        return json.loads(sent[0])

    monkeypatch.setattr(module, "on_first", on_first)
    keys = {"train": shard(tmp_path / "a.bin"), "tokenizer": model_path}
    first = prepare(tmp_path, **keys)
    keys["train"].unlink()
    assert prepare(tmp_path, **keys) == first
