"""Any bytes come back, and what the tokenizer keeps costs nothing."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qpack.errors import CorruptError
from qpack.eval.residual import join, split
from qpack.tokenizer import Tokenizer

AWKWARD = st.sampled_from(
    [
        "\n", "\r\n", "\t", "  ", " ", "\u2581", "\ufb01", "\ufdfa", "\u3000", "\ufffd", "\x00",
        "\x01", "e\u0301", "\u00e9", "\U0001f600", "<s>", "<0x41>", "\u0130", "the ", "dog",
        ". ", "\ufeff",
    ]
)  # fmt: skip
TEXTS = st.lists(AWKWARD | st.characters(exclude_categories=("Cs",)), max_size=30).map("".join)
BYTES = st.lists(TEXTS.map(str.encode) | st.binary(max_size=6), max_size=6).map(b"".join)


@settings(max_examples=300)
@given(data=BYTES)
def test_any_bytes_come_back(tokenizer: Tokenizer, data: bytes) -> None:
    tokens, residual = split(data, tokenizer)
    assert join(tokens, residual, tokenizer) == data


@pytest.mark.parametrize("model", ["fineweb_1024_bpe", "fineweb_8192_bpe"])
def test_any_bytes_come_back_with_the_shared_tokenizers(shared_data: Path, model: str) -> None:
    tokenizer = Tokenizer.load(shared_data / f"tokenizers/{model}.model")

    @settings(max_examples=150)
    @given(data=BYTES)
    def check(data: bytes) -> None:
        tokens, residual = split(data, tokenizer)
        assert join(tokens, residual, tokenizer) == data

    check()


def test_what_the_tokenizer_keeps_needs_no_residual(
    tokenizer: Tokenizer, sentences: list[str]
) -> None:
    tokens, residual = split(" ".join(sentences).encode(), tokenizer)
    assert residual == b""
    assert tokens[0] == tokenizer.bos
    assert tokens[1:].tolist() == tokenizer.encode(" ".join(sentences))


def test_an_empty_file(tokenizer: Tokenizer) -> None:
    tokens, residual = split(b"", tokenizer)
    assert (tokens.tolist(), residual) == ([tokenizer.bos], b"")
    assert join(tokens, residual, tokenizer) == b""


def test_a_newline_costs_four_numbers(tokenizer: Tokenizer) -> None:
    """One edit: 3 bytes stay, one gives way to one, which is a newline."""
    _, residual = split(b"The\ndog", tokenizer)
    assert residual == bytes([1, 3, 1, 1]) + b"\n"


def test_invalid_bytes_are_no_tokens(tokenizer: Tokenizer) -> None:
    tokens, residual = split(b"The\xff\xfe dog\xc3", tokenizer)
    assert tokens[1:].tolist() == tokenizer.encode("The dog")
    assert join(tokens, residual, tokenizer) == b"The\xff\xfe dog\xc3"


@pytest.mark.parametrize(
    "residual",
    [
        b"\x00",  # edits that are none
        b"\x02\x00",  # ends inside its numbers
        b"\xff" * 12,  # a number without end
        bytes([1, 3, 1, 2]) + b"\n",  # fewer bytes than said
        bytes([1, 3, 1, 1]) + b"\n\n",  # more bytes than said
        bytes([1, 99, 1, 0]),  # beyond the text
        bytes([1, 3, 0, 0]),  # an edit that changes nothing
    ],
)
def test_a_residual_that_does_not_fit(tokenizer: Tokenizer, residual: bytes) -> None:
    tokens, _ = split(b"The dog", tokenizer)
    with pytest.raises(CorruptError):
        join(tokens, residual, tokenizer)
