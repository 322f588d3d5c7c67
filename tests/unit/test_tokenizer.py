"""Byte counts must equal the UTF-8 length of the text; each known bug of the field has a test."""

from __future__ import annotations

import hashlib
import json
import lzma
import sys
from itertools import islice, pairwise
from pathlib import Path

import numpy as np
import pytest
import sentencepiece
from hypothesis import given, settings
from hypothesis import strategies as st

from qpack.errors import DataError, SetupError
from qpack.tokenizer import SPACE_MARK, Tokenizer

BOS = 1


def counted(tokenizer: Tokenizer, text: str) -> int:
    tokens = np.array([BOS, *tokenizer.encode(text)])
    return int(tokenizer.bytes_of(tokens[:-1], tokens[1:]).sum())


def token_of(tokenizer: Tokenizer, piece: str) -> int:
    return int(tokenizer._processor.piece_to_id(piece))


def one(tokenizer: Tokenizer, prev: int, target: int) -> int:
    return int(tokenizer.bytes_of(np.array([prev]), np.array([target]))[0])


def test_metadata(tokenizer: Tokenizer, tokenizer_path: Path) -> None:
    assert tokenizer.vocab_size == len(tokenizer.boundary) == 384
    assert tokenizer.bos == BOS
    assert tokenizer.sha256 == hashlib.sha256(tokenizer_path.read_bytes()).hexdigest()
    assert np.flatnonzero(tokenizer.boundary).tolist() == [0, 1, 2, 3]


def test_bytes_are_the_utf8_length(tokenizer: Tokenizer, sentences: list[str]) -> None:
    for text in sentences:
        assert tokenizer.decode(tokenizer.encode(text)) == text
        assert counted(tokenizer, text) == len(text.encode())


@settings(max_examples=200)
@given(text=st.text(max_size=40))
def test_bytes_are_those_of_the_decoded_text(tokenizer: Tokenizer, text: str) -> None:
    """The tokenizer normalises; what is counted is the text that its tokens stand for."""
    tokens = tokenizer.encode(text)
    assert counted(tokenizer, text) == len(tokenizer.decode(tokens).encode())


@settings(max_examples=200)
@given(text=st.text(max_size=40))
def test_the_texts_of_the_tokens_are_the_text(tokenizer: Tokenizer, text: str) -> None:
    tokens = tokenizer.encode(text)
    pairs = pairwise([BOS, *tokens])
    joined = b"".join(tokenizer.text_after(prev, token) for prev, token in pairs)
    assert joined.decode() == tokenizer.decode(tokens)


def test_where_tokens_end_in_the_text(tokenizer: Tokenizer) -> None:
    text = "  The\ndog  na\u00efve \u65e5 x "
    tokens, ends = tokenizer.encode_aligned(text)
    assert tokens == tokenizer.encode(text)
    assert ends == sorted(ends)
    pieces = [text[start:end] for start, end in pairwise([0, *ends])]
    assert "".join(pieces) == text[: ends[-1]]
    assert len(pieces) == len(tokens)


def test_a_lone_space_piece_is_one_byte(tokenizer: Tokenizer) -> None:
    """Left out, the count is about 20 % short."""
    space, word = token_of(tokenizer, SPACE_MARK), token_of(tokenizer, "e")
    assert one(tokenizer, word, space) == 1
    assert one(tokenizer, BOS, space) == 0


def test_a_leading_space_counts_once(tokenizer: Tokenizer) -> None:
    """Counted in the piece and again before it, the total is 17 % too large."""
    the, word = token_of(tokenizer, SPACE_MARK + "the"), token_of(tokenizer, "e")
    assert the != 3
    assert one(tokenizer, word, the) == len(" the")


def test_after_a_boundary_a_leading_space_is_not_text(tokenizer: Tokenizer) -> None:
    the = token_of(tokenizer, SPACE_MARK + "the")
    for boundary in (0, 1, 2, 3):
        assert one(tokenizer, boundary, the) == len("the")


def test_a_byte_piece_is_one_byte(tokenizer: Tokenizer) -> None:
    """Decoded alone it is U+FFFD, three bytes; spelled out as its name, six."""
    for byte in (0x00, 0x20, 0x7F, 0x80, 0xE2, 0xFF):
        assert one(tokenizer, 5, token_of(tokenizer, f"<0x{byte:02X}>")) == 1
    snowman = tokenizer.encode("\u2603")
    assert len(snowman) > 1
    assert counted(tokenizer, "\u2603") == 3


def test_boundaries_stand_for_no_text(tokenizer: Tokenizer) -> None:
    for token in (0, 1, 2, 3):
        assert one(tokenizer, 5, token) == 0


def test_documents_in_a_row(tokenizer: Tokenizer, sentences: list[str]) -> None:
    stream = np.array([t for text in sentences for t in (BOS, *tokenizer.encode(text))])
    expected = sum(len(text.encode()) for text in sentences)
    for chunk in (1, 7, 1 << 20):
        assert tokenizer.text_bytes(stream, chunk=chunk) == expected
    assert tokenizer.text_bytes(stream[:1]) == 0


def test_shapes_and_dtypes(tokenizer: Tokenizer) -> None:
    tokens = np.arange(12, dtype=np.uint16).reshape(3, 4)
    got = tokenizer.bytes_of(tokens, tokens)
    assert got.shape == (3, 4)
    assert got.dtype == np.int64


def test_batches_equal_single_texts(tokenizer: Tokenizer, sentences: list[str]) -> None:
    single = [tokenizer.encode(text) for text in sentences]
    assert tokenizer.encode_batch(sentences, num_threads=2) == single


@pytest.mark.parametrize("token", [-1, 384])
def test_tokens_beyond_the_vocabulary(tokenizer: Tokenizer, token: int) -> None:
    with pytest.raises(DataError, match="beyond"):
        tokenizer.decode([5, token])
    for pair in ((5, token), (token, 5)):
        with pytest.raises(DataError, match="beyond"):
            one(tokenizer, *pair)


def test_a_model_of_another_vocabulary(tokenizer: Tokenizer) -> None:
    tokenizer.check_model(384)
    with pytest.raises(DataError, match=r"384 tokens.* 1,024"):
        tokenizer.check_model(1024)


@pytest.mark.parametrize("data", [b"", b"not a model", b"\0" * 64])
def test_bad_files(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "bad.model"
    path.write_bytes(data)
    with pytest.raises(DataError, match=r"bad\.model is not a SentencePiece model"):
        Tokenizer.load(path)
    with pytest.raises(DataError, match="cannot read"):
        Tokenizer.load(tmp_path / "missing.model")


def test_every_truncation_is_an_error_or_a_tokenizer(tokenizer_path: Path, tmp_path: Path) -> None:
    data = tokenizer_path.read_bytes()
    path = tmp_path / "cut.model"
    for size in range(0, len(data), 997):
        path.write_bytes(data[:size])
        try:
            assert Tokenizer.load(path).vocab_size <= 384
        except DataError:
            continue


def documents(shared_data: Path, limit: int | None = None) -> list[str]:
    with lzma.open(shared_data / "corpus/fineweb.val.jsonl.xz", "rt", encoding="utf-8") as file:
        return [json.loads(line)["text"] for line in islice(file, limit)]


@pytest.mark.parametrize("model", ["fineweb_1024_bpe", "fineweb_8192_bpe"])
@pytest.mark.parametrize("limit", [60, pytest.param(None, marks=pytest.mark.slow)])
def test_fineweb_documents(shared_data: Path, model: str, limit: int | None) -> None:
    tokenizer = Tokenizer.load(shared_data / f"tokenizers/{model}.model")
    texts = documents(shared_data, limit)
    assert len(texts) == (limit or 902)
    for text, tokens in zip(texts, tokenizer.encode_batch(texts, num_threads=2), strict=True):
        stream = np.array([BOS, *tokens], dtype=np.uint16)
        assert tokenizer.text_bytes(stream) == len(text.encode())


def test_without_sentencepiece(tokenizer_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sentencepiece", None)
    with pytest.raises(SetupError, match="need the package sentencepiece"):
        Tokenizer.load(tokenizer_path)


def test_without_a_beginning(sentences: list[str], tmp_path: Path) -> None:
    path = tmp_path / "no_bos.model"
    with path.open("wb") as file:
        sentencepiece.SentencePieceTrainer.Train(
            sentence_iterator=iter(sentences),
            model_writer=file,
            model_type="bpe",
            vocab_size=100,
            bos_id=-1,
            minloglevel=2,
        )
    with pytest.raises(DataError, match="no beginning-of-sequence token"):
        _ = Tokenizer.load(path).bos
