"""A SentencePiece tokenizer, and how many UTF-8 bytes of text each of its tokens stands for.

The bytes are the denominator of bits per byte, so they must sum to the length of the text:

    bytes(y | prev) = utf8(piece without its leading space mark)
                      + [piece begins with the mark and prev is not a boundary]

A boundary is a control, unknown or unused token: text begins after it, and a leading space there
is the tokenizer's own. Byte-fallback pieces stand for one byte, boundaries for none.
Source: `techniques.md` 8.1, with the four ways in which others have got this wrong.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qpack.errors import DataError, SetupError

SPACE_MARK = "\u2581"
"""SentencePiece writes a space as this character (three bytes in UTF-8, one in the text)."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Tokenizer:
    """A loaded SentencePiece model; make one with `Tokenizer.load`."""

    path: Path
    sha256: str
    """Hex digest of the model file."""
    piece_texts: tuple[bytes, ...] = field(repr=False)
    """UTF-8 text of each piece without its leading space mark; empty for boundaries"""
    piece_bytes: NDArray[np.int64]
    """(vocab,) lengths of `piece_texts`"""
    leading_space: NDArray[np.bool_]
    """(vocab,) the piece begins with the space mark"""
    boundary: NDArray[np.bool_]
    """(vocab,) control, unknown and unused tokens: they stand for no text"""
    _processor: Any = field(repr=False)

    @classmethod
    def load(cls, path: Path) -> Tokenizer:
        """Load the SentencePiece model file `path`.

        Raises `DataError` when it cannot be read or is no such model, `SetupError` when the
        `sentencepiece` package is not installed.
        """
        try:
            model = path.read_bytes()
        except OSError as error:
            raise DataError(f"cannot read tokenizer {path}: {error.strerror}") from error
        return cls.from_bytes(model, path=path)

    @classmethod
    def from_bytes(cls, model: bytes, *, path: Path) -> Tokenizer:
        """The SentencePiece model whose file holds `model`; `path` is what to call it.

        Raises as `load`.
        """
        try:
            from sentencepiece import SentencePieceProcessor
        except ImportError as error:
            raise SetupError(
                "tokenizers need the package sentencepiece", hint="pip install sentencepiece"
            ) from error
        processor = SentencePieceProcessor()
        try:
            # An empty file parses as an empty model, which aborts when it is used.
            if not model or not processor.LoadFromSerializedProto(model):
                raise RuntimeError("empty file")
        except RuntimeError as error:
            raise DataError(
                f"{path} is not a SentencePiece model", hint="give a .model file"
            ) from error
        pieces = [_piece(processor, token) for token in range(processor.vocab_size())]
        return cls(
            path=path,
            sha256=hashlib.sha256(model).hexdigest(),
            piece_texts=tuple(row[0] for row in pieces),
            piece_bytes=np.array([len(row[0]) for row in pieces], dtype=np.int64),
            leading_space=np.array([row[1] for row in pieces], dtype=np.bool_),
            boundary=np.array([row[2] for row in pieces], dtype=np.bool_),
            _processor=processor,
        )

    @property
    def vocab_size(self) -> int:
        """Number of tokens."""
        return len(self.piece_bytes)

    @property
    def bos(self) -> int:
        """The token before each document. Raises `DataError` when the model has none."""
        token = int(self._processor.bos_id())
        if token < 0:
            raise DataError(f"tokenizer {self.path} has no beginning-of-sequence token")
        return token

    def names(self) -> list[str]:
        """Each token as the model file writes it, like `<s>`, `<0x0A>` or a piece with its mark."""
        return [str(self._processor.id_to_piece(token)) for token in range(self.vocab_size)]

    def encode(self, text: str) -> list[int]:
        """Tokens of `text`, without BOS or EOS."""
        tokens: list[int] = self._processor.encode(text)
        return tokens

    def encode_aligned(self, text: str) -> tuple[list[int], list[int]]:
        """Tokens of `text`, and where in it each one's characters end: its offset, never falling.

        Characters that the tokenizer drops belong to a token beside them, or to none at the end.
        """
        found: dict[str, Any] = self._processor.encode(text, return_type="offset_mapping")
        return list(found["ids"]), [int(end) for _, end in found["offsets"]]

    def encode_batch(self, texts: Sequence[str], *, num_threads: int = -1) -> list[list[int]]:
        """Tokens of each of `texts`, in parallel (-1: one thread a core). No BOS or EOS."""
        tokens: list[list[int]] = self._processor.encode(list(texts), num_threads=num_threads)
        return tokens

    def encode_arrays(self, texts: Sequence[str]) -> list[NDArray[np.int32]]:
        """The same as arrays, (tokens,) each, on one thread that lets others run beside it."""
        rows: list[NDArray[np.int32]] = self._processor.encode(
            list(texts), return_type="numpy", num_threads=1
        )
        return rows

    def decode_arrays(self, rows: Sequence[NDArray[np.int32]]) -> list[str]:
        """The texts of such arrays, whose tokens are this tokenizer's own."""
        texts: list[str] = self._processor.decode(list(rows), num_threads=1) if rows else []
        return texts

    def decode(self, tokens: Sequence[int]) -> str:
        """The text of `tokens`; boundaries give nothing. Raises `DataError` for unknown tokens."""
        ids = [int(token) for token in tokens]
        self._check(np.array(ids, dtype=np.int64))
        text: str = self._processor.decode(ids)
        return text

    def text_after(self, prev: int, token: int) -> bytes:
        """The UTF-8 text that `token` stands for after `prev`; `bytes_of` counts it.

        Pieces of one byte make that byte, so the texts of a stream are joined before decoding.
        """
        space = b" " if self.leading_space[token] and not self.boundary[prev] else b""
        return space + self.piece_texts[token]

    def bytes_of(
        self,
        prev: NDArray[np.integer[Any]],  # any shape: the token before each target
        target: NDArray[np.integer[Any]],  # the same shape
    ) -> NDArray[np.int64]:
        """UTF-8 bytes of text that each `target` stands for after `prev`: int64, same shape.

        Raises `DataError` when a token is not in the vocabulary.
        """
        self._check(prev)
        self._check(target)
        space = self.leading_space[target] & ~self.boundary[prev]
        num_bytes: NDArray[np.int64] = self.piece_bytes[target] + space
        return num_bytes

    def text_bytes(self, tokens: NDArray[np.integer[Any]], *, chunk: int = 1 << 20) -> int:
        """UTF-8 bytes of the text of `tokens[1:]`, (tokens,), each after the token before it."""
        total = 0
        for start in range(0, len(tokens) - 1, chunk):
            piece = tokens[start : start + chunk + 1]
            total += int(self.bytes_of(piece[:-1], piece[1:]).sum())
        return total

    def check_model(self, vocab_size: int, *, hint: str | None = None) -> None:
        """Raise `DataError` unless a model of `vocab_size` tokens can use this tokenizer."""
        if vocab_size != self.vocab_size:
            raise DataError(
                f"the tokenizer {self.path} has {self.vocab_size:,} tokens,"
                f" the model {vocab_size:,}",
                hint=hint or "give the tokenizer that the model was trained with",
            )

    def _check(self, tokens: NDArray[np.integer[Any]]) -> None:
        if tokens.size and not (tokens.min() >= 0 and tokens.max() < self.vocab_size):
            raise DataError(
                f"token {int(tokens.max())} is beyond the tokenizer's {self.vocab_size:,} tokens"
            )


def _piece(processor: Any, token: int) -> tuple[bytes, bool, bool]:
    """Text without the leading space mark, whether there is one, whether it is a boundary."""
    if processor.is_control(token) or processor.is_unknown(token) or processor.is_unused(token):
        return b"", False, True
    piece: str = processor.id_to_piece(token)
    if processor.is_byte(token):
        return bytes([int(piece[1:-1], 16)]), False, False
    text = piece.removeprefix(SPACE_MARK)
    return text.replace(SPACE_MARK, " ").encode(), text != piece, False
