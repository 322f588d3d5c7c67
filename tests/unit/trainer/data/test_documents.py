from __future__ import annotations

import json
import lzma
from pathlib import Path

import pytest
import zstandard

from qpack.errors import DataError
from qpack.trainer.data import documents as module
from qpack.trainer.data.documents import find_sources, read_documents

from .corpus import write_text

TEXTS = ["One.", "Two\nlines, caf\u00e9.", "\U0001f600 three"]


def texts_of(*entries: Path) -> list[str]:
    return [d.text for source in find_sources(entries) for d in read_documents(source)]


@pytest.mark.parametrize("suffix", ["", ".xz", ".zst"])
def test_every_form_gives_the_same_documents(tmp_path: Path, suffix: str) -> None:
    lines = write_text(tmp_path / f"a.jsonl{suffix}", TEXTS)
    whole = write_text(tmp_path / f"a.txt{suffix}", TEXTS)
    assert texts_of(lines) == TEXTS
    assert texts_of(whole) == ["\n".join(TEXTS)]
    (source,) = find_sources([lines])
    found = list(read_documents(source))
    assert [d.num_bytes for d in found] == [len(text.encode()) for text in TEXTS]
    assert found[-1].done_bytes == source.num_bytes == lines.stat().st_size


def test_several_frames_and_streams_are_one_file(tmp_path: Path) -> None:
    parts = [f"{json.dumps({'text': text})}\n".encode() for text in TEXTS * 200]
    (tmp_path / "a.jsonl.zst").write_bytes(
        b"".join(zstandard.ZstdCompressor().compress(part) for part in parts)
    )
    (tmp_path / "b.jsonl.xz").write_bytes(b"".join(map(lzma.compress, parts)))
    assert texts_of(tmp_path / "a.jsonl.zst") == texts_of(tmp_path / "b.jsonl.xz") == TEXTS * 200


def test_blank_lines_and_blank_documents_are_none(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'\n{"text": "a", "id": 3}\n  \n{"text": " \\n"}\r\n{"text": "b"}')
    assert texts_of(path) == ["a", "b"]


def test_patterns_are_sorted_and_files_come_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("b", "a", "c"):
        write_text(tmp_path / f"{name}.jsonl", [name])
    assert texts_of(tmp_path / "c.jsonl", tmp_path / "*.jsonl") == ["c", "a", "b"]
    monkeypatch.chdir(tmp_path)
    assert texts_of(Path("[ab].jsonl"), Path("./a.jsonl")) == ["a", "b"]


def test_a_name_with_wildcards_in_it(tmp_path: Path) -> None:
    write_text(tmp_path / "a.jsonl", ["a"])
    write_text(tmp_path / "[a].jsonl", ["b"])
    assert texts_of(tmp_path / "[a].jsonl") == ["b"]


def test_all_offenders_are_named(tmp_path: Path) -> None:
    write_text(tmp_path / "a.jsonl", ["a"])
    (tmp_path / "b.parquet").write_bytes(b"")
    (tmp_path / "c.jsonl").mkdir()
    names = ("a.jsonl", "b.parquet", "c.jsonl", "standard-libary", "*.txt")
    with pytest.raises(DataError, match="validation text cannot be used") as caught:
        find_sources([tmp_path / name for name in names], what="validation text")
    assert caught.value.items == (
        f"{tmp_path}/b.parquet: neither .txt nor .jsonl",
        f"{tmp_path}/c.jsonl: not a file",
        f'{tmp_path}/standard-libary: no such file (did you mean "standard-library"?)',
        f"{tmp_path}/*.txt: matches no file",
    )


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b'{"text": "a"}\n{"text": 3}', r'line 2: no JSON object with a string "text"'),
        (b'{"text": "a"}\n["b"]', r'line 2: no JSON object with a string "text"'),
        (b'\n{"text": "a"', r"line 2: Expecting ',' delimiter"),
        (b'{"text": "\xff"}', r"line 1: not UTF-8 \(byte 10\)"),
        (b'{"text": "ab\\ud800"}', r"line 1: half a surrogate pair \(character 2\)"),
        (b"[" * 100_000, r"line 1: "),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, data: bytes, message: str) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(data)
    with pytest.raises(DataError, match=r"a\.jsonl, " + message):
        texts_of(path)


@pytest.mark.parametrize("name", ["a.jsonl.xz", "a.jsonl.zst"])
@pytest.mark.parametrize("damage", ["cut", "bit", "no such thing"])
def test_damaged_files(tmp_path: Path, name: str, damage: str) -> None:
    path = write_text(tmp_path / name, (f"{i} words of text" for i in range(3000)))
    data = bytearray(path.read_bytes())
    if damage == "cut":
        del data[-20:]
    elif damage == "bit":
        data[len(data) // 2 :] = bytes(len(data) // 4)
    else:
        data = bytearray(b"plain text")
    path.write_bytes(data)
    with pytest.raises(DataError, match=f"{name} is damaged"):
        texts_of(path)


def test_text_that_is_not_utf8(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"abc\xe9")
    with pytest.raises(DataError, match=r"a\.txt: not UTF-8 \(byte 3\)"):
        texts_of(tmp_path / "a.txt")


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl"])
def test_a_document_that_no_tokenizer_takes(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MAX_DOCUMENT_BYTES", 100)
    path = write_text(tmp_path / name, ["x" * 100])
    assert texts_of(path) == ["x" * 100]
    write_text(path, ["x" * 101])
    with pytest.raises(DataError, match="a document of more than 100 B"):
        texts_of(path)


def test_the_standard_library_is_a_source(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_standard_library", lambda: ("a", "b"))
    assert texts_of(Path("standard-library"), Path("some/folder/standard-library")) == ["a", "b"]
