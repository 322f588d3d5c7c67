from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from qpack.errors import DataError, OutputExistsError
from qpack.tokenizer import Tokenizer
from qpack.tokens import read_shard
from qpack.trainer.data import tokenize as module
from qpack.trainer.data.documents import Document
from qpack.trainer.data.tokenize import ShardWriter, write_parts

LIGATURE = "a \ufb01ne document"
"""Text that normalisation changes: two letters take the place of one of three bytes."""


def parts(texts: Iterable[str], part: str = "train") -> Iterator[tuple[str, Document]]:
    for text in texts:
        yield part, Document(text, len(text.encode()), 0)


def test_each_document_follows_a_bos(
    tmp_path: Path, tokenizer: Tokenizer, sentences: list[str]
) -> None:
    documents = [*parts(sentences), *parts(sentences[:1], "val")]
    written = write_parts(documents, tokenizer, tmp_path, parts=("train", "val"), shard_tokens=999)
    assert written["train"].files == ["train_000000.bin"]
    tokens = read_shard(tmp_path / "train_000000.bin")
    expected = [token for text in sentences for token in (1, *tokenizer.encode(text))]
    assert tokens.tolist() == expected
    assert read_shard(tmp_path / "val_000000.bin").tolist() == [1, *tokenizer.encode(sentences[0])]
    counts = written["train"]
    num_bytes = sum(len(text.encode()) for text in sentences)
    assert (counts.documents, counts.tokens) == (len(sentences), len(expected))
    assert counts.text_bytes == counts.decoded_bytes == num_bytes == tokenizer.text_bytes(tokens)
    assert (counts.changed, counts.left_out) == (0, 0)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "train_000000.bin",
        "val_000000.bin",
    ]


def test_any_number_of_threads_gives_the_same_bytes(
    tmp_path: Path, tokenizer: Tokenizer, sentences: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "CHUNK_BYTES", 300)
    texts = [f"{i} {text}" for i in range(200) for text in sentences]
    found = []
    for workers in (1, 2, 7):
        folder = tmp_path / str(workers)
        folder.mkdir()
        written = write_parts(
            parts(texts),
            tokenizer,
            folder,
            parts=("train",),
            shard_tokens=5000,
            workers=workers,
        )
        assert len(written["train"].files) > 3
        found.append({path.name: path.read_bytes() for path in folder.iterdir()})
    assert found[0] == found[1] == found[2]
    tokens = np.concatenate([read_shard(tmp_path / "1" / name) for name in sorted(found[0])])
    assert tokens.tolist() == [t for text in texts for t in (1, *tokenizer.encode(text))]


def test_memory_holds_a_few_chunks(
    tmp_path: Path, tokenizer: Tokenizer, sentences: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "CHUNK_BYTES", 1)
    real, done, ahead = module._encode_chunk, [], []

    def encode_chunk(*arguments: object) -> object:
        done.append(1)
        return real(*arguments)

    def documents() -> Iterator[tuple[str, Document]]:
        for number, part in enumerate(parts(sentences * 20)):
            ahead.append(number - len(done))
            yield part

    monkeypatch.setattr(module, "_encode_chunk", encode_chunk)
    options = {"parts": ("train",), "shard_tokens": 999, "workers": 2}
    write_parts(documents(), tokenizer, tmp_path, **options)
    assert len(done) == len(sentences) * 20
    assert max(ahead) <= 5


def test_documents_that_the_tokenizer_changes(
    tmp_path: Path, challenge_tokenizer: Tokenizer
) -> None:
    texts = ["a plain one", LIGATURE]
    options = {"parts": ("train",), "shard_tokens": 999}
    kept = write_parts(parts(texts), challenge_tokenizer, tmp_path, **options)["train"]
    assert (kept.documents, kept.changed, kept.left_out) == (2, 1, 0)
    tokens = read_shard(tmp_path / "train_000000.bin")
    assert kept.text_bytes == sum(len(text.encode()) for text in texts)
    assert kept.decoded_bytes == kept.text_bytes - 1 == challenge_tokenizer.text_bytes(tokens)
    less = write_parts(
        parts(texts), challenge_tokenizer, tmp_path, force=True, lossless_only=True, **options
    )["train"]
    assert (less.documents, less.changed, less.left_out) == (1, 0, 1)
    tokens = read_shard(tmp_path / "train_000000.bin")
    assert challenge_tokenizer.decode(tokens) == texts[0]


def test_shards_end_with_documents_unless_one_is_too_long(tmp_path: Path) -> None:
    writer = ShardWriter(tmp_path, "x", 5)
    for first, length in ((10, 2), (20, 3), (30, 3), (40, 3), (50, 13)):
        writer.add(np.arange(first, first + length, dtype=np.uint16))
    names = writer.finish()
    assert names == [f"x_{i:06d}.bin" for i in range(6)]
    assert [read_shard(tmp_path / name).tolist() for name in names] == [
        [10, 11, 20, 21, 22],
        [30, 31, 32],
        [40, 41, 42],
        [50, 51, 52, 53, 54],
        [55, 56, 57, 58, 59],
        [60, 61, 62],
    ]


def test_other_shards_are_kept_or_replaced_whole(
    tmp_path: Path, tokenizer: Tokenizer, sentences: list[str]
) -> None:
    for name in ("train_000000.bin", "train_000001.bin", "other_000000.bin"):
        (tmp_path / name).write_bytes(b"mine")
    options = {"parts": ("train",), "shard_tokens": 999}
    with pytest.raises(OutputExistsError) as caught:
        write_parts(parts(sentences), tokenizer, tmp_path, **options)
    assert [Path(item).name for item in caught.value.items] == [
        "train_000000.bin",
        "train_000001.bin",
    ]
    write_parts(parts(sentences), tokenizer, tmp_path, force=True, **options)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "other_000000.bin",
        "train_000000.bin",
    ]


def test_nothing_is_written_when_reading_fails(
    tmp_path: Path, tokenizer: Tokenizer, sentences: list[str]
) -> None:
    def broken() -> Iterator[tuple[str, Document]]:
        yield from parts(sentences)
        raise DataError("line 7")

    (tmp_path / "train_000000.bin").write_bytes(b"mine")
    with pytest.raises(DataError, match="line 7"):
        write_parts(broken(), tokenizer, tmp_path, parts=("train",), shard_tokens=9, force=True)
    assert [path.name for path in tmp_path.iterdir()] == ["train_000000.bin"]
    assert (tmp_path / "train_000000.bin").read_bytes() == b"mine"


def test_parts_without_text_are_named(tmp_path: Path, challenge_tokenizer: Tokenizer) -> None:
    documents = [*parts(["some text"]), *parts([LIGATURE], "val")]
    with pytest.raises(DataError, match="no text for these shards") as caught:
        write_parts(
            documents,
            challenge_tokenizer,
            tmp_path,
            parts=("train", "val", "test"),
            shard_tokens=99,
            lossless_only=True,
        )
    assert caught.value.items == (
        "val: 1 documents, all changed by the tokenizer's normalisation",
        "test: no documents",
    )
    assert not any(tmp_path.iterdir())


def test_more_tokens_than_a_shard_can_name(tmp_path: Path, tokenizer: Tokenizer) -> None:
    huge = replace(tokenizer, piece_bytes=np.zeros(65_537, dtype=np.int64))
    with pytest.raises(DataError, match="65,537"):
        write_parts(parts(["a"]), huge, tmp_path, parts=("train",), shard_tokens=9)
