from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qpack.errors import ConfigError, DataError, OutputExistsError, SetupError
from qpack.trainer.data.vocabulary import sample_documents, train_tokenizer

WORDS = "the of and model text token byte budget weight report scale window stride"
TEXTS = [f"{a} {b} {i}" for i, a in enumerate(WORDS.split()) for b in WORDS.split()]


def test_the_challenges_layout(tmp_path: Path) -> None:
    tokenizer = train_tokenizer(TEXTS, tmp_path / "a.model", vocab_size=320)
    assert tokenizer.vocab_size == 320
    assert tokenizer.bos == 1
    assert tokenizer.boundary.nonzero()[0].tolist() == [0, 1, 2, 3]
    assert tokenizer.piece_bytes[4 : 4 + 256].tolist() == [1] * 256
    assert len(tokenizer.encode("1984")) == 4, "digits are split"
    assert tokenizer.decode(tokenizer.encode("caf\u00e9 \u2603")) == "caf\u00e9 \u2603"


def test_a_document_longer_than_sentencepieces_own_limit_counts(tmp_path: Path) -> None:
    long = "zyx " * 3_000  # 12,000 characters; the default limit is 4,192 bytes
    tokenizer = train_tokenizer([*TEXTS, long], tmp_path / "a.model", vocab_size=320)
    assert len(tokenizer.encode(" zyx")) == 1


def test_same_text_same_bytes(tmp_path: Path) -> None:
    first, second = (
        train_tokenizer(TEXTS, tmp_path / f"{i}.model", vocab_size=300) for i in range(2)
    )
    assert first.sha256 == second.sha256


def test_an_existing_file_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "a.model"
    path.write_bytes(b"mine")
    with pytest.raises(OutputExistsError):
        train_tokenizer(TEXTS, path, vocab_size=300)
    assert path.read_bytes() == b"mine"
    train_tokenizer(TEXTS, path, vocab_size=300, force=True)


@pytest.mark.parametrize("vocab_size", [0, 260, 65_537])
def test_impossible_sizes(tmp_path: Path, vocab_size: int) -> None:
    with pytest.raises(ConfigError, match="impossible"):
        train_tokenizer(TEXTS, tmp_path / "a.model", vocab_size=vocab_size)


@pytest.mark.parametrize("texts", [TEXTS, ["ab"]])
def test_more_pieces_than_the_text_has(tmp_path: Path, texts: list[str]) -> None:
    with pytest.raises(ConfigError, match="no tokenizer of 5000 tokens") as caught:
        train_tokenizer(texts, tmp_path / "a.model", vocab_size=5_000)
    assert "lower the vocabulary size" in (caught.value.hint or "")
    assert "max_sentence_length" not in str(caught.value)
    assert not any(tmp_path.iterdir())


def test_fewer_pieces_than_the_text_has_characters(tmp_path: Path) -> None:
    alphabet = "".join(chr(0x4E00 + i) for i in range(200))
    with pytest.raises(ConfigError, match="no tokenizer of 300 tokens") as caught:
        train_tokenizer([alphabet], tmp_path / "a.model", vocab_size=300)
    assert caught.value.hint == "raise the vocabulary size"


@pytest.mark.parametrize("texts", [[], ["", "  "]])
def test_no_text(tmp_path: Path, texts: list[str]) -> None:
    with pytest.raises(DataError, match="no text"):
        train_tokenizer(texts, tmp_path / "a.model", vocab_size=300)


def test_without_sentencepiece(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sentencepiece", None)
    with pytest.raises(SetupError, match="need the package sentencepiece"):
        train_tokenizer(TEXTS, tmp_path / "a.model", vocab_size=300)


@given(
    st.lists(st.integers(1, 30), max_size=40),
    st.integers(1, 20),
    st.integers(1, 200),
    st.integers(0, 3),
)
def test_a_sample_is_the_lowest_draws_that_fit(
    sizes: list[int], most_documents: int, most_bytes: int, seed: int
) -> None:
    texts = [chr(97 + i % 26) * size for i, size in enumerate(sizes)]
    draws = np.random.default_rng(seed).random(len(texts))
    expected: list[int] = []
    for index in np.argsort(draws):
        total = sum(sizes[i] for i in [*expected, index])
        if expected and (len(expected) == most_documents or total > most_bytes):
            break
        expected.append(int(index))
    got = sample_documents(
        iter(texts), most_documents=most_documents, most_bytes=most_bytes, seed=seed
    )
    assert got == [texts[i] for i in sorted(expected)]


def test_a_sample_is_not_the_beginning() -> None:
    got = sample_documents(map(str, range(1000)), most_documents=50)
    assert len(got) == 50
    assert max(map(int, got)) > 900
    assert got != sample_documents(map(str, range(1000)), most_documents=50, seed=1)


def test_bytes_of_a_sample_are_those_of_utf8() -> None:
    assert len(sample_documents(["\u20ac"] * 9, most_documents=9, most_bytes=14)) == 4
