"""Arithmetic coding of a token stream through a session: a distribution that is one is a code.

Encoder and decoder ask a session for the distribution of the next token, code that token with it,
and tell the session which it was. So whatever the session knew when it predicted, the decoder has.

The range coder is `constriction`'s (64 bits of state, words of 32). A row of float64 probabilities
becomes integers of 24 bits whose sum is 2^24: rounded cumulative sums, plus one for every token, so
that each can be coded, which costs log2(1 / (1 - V / 2^24)) bits a token (V = 8,192: 0.0007). The
end of a stream costs up to 64 bits. Source: Bamler 2022, arXiv:2201.01741; Martin 1979.

Both sides must compute the same rows to the last bit: `fingerprint.py` sees to that.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qpack.errors import CorruptError, DataError, SetupError
from qpack.eval.predictor import Session
from qpack.progress import SILENT, Progress

WORD_BYTES = 4
"""The coder writes whole words, little-endian."""


def encode(
    session: Session, tokens: Sequence[int] | NDArray[Any], *, progress: Progress = SILENT
) -> bytes:
    """The code of `tokens`, (n,), which follow what `session` has seen; it ends having seen them.

    Raises `DataError` for a row that is no distribution, and for tokens beyond it; `SetupError`
    without `constriction`.
    """
    stream = _constriction().stream
    encoder = stream.queue.RangeEncoder()
    with progress.stage("compress", total=len(tokens), unit="tokens") as task:
        for token in map(int, tokens):
            row = probabilities(session)
            if not 0 <= token < len(row):
                raise DataError(f"token {token} is beyond the {len(row):,} of the predictor")
            encoder.encode(token, stream.model.Categorical(row, lazy=True))
            session.observe(token)
            task.advance()
    code: bytes = encoder.get_compressed().astype("<u4").tobytes()
    return code


def decode(
    session: Session, code: bytes, num_tokens: int, *, progress: Progress = SILENT
) -> NDArray[np.int64]:
    """The `num_tokens` tokens of `code`, (n,), for a session that has seen the same as `encode`'s.

    Raises `CorruptError` for a code that no encoder writes, and where its words are too few or too
    many for the tokens; `DataError` and `SetupError` as `encode`.
    """
    if len(code) % WORD_BYTES:
        raise CorruptError(f"a token stream of {len(code):,} bytes is no whole number of words")
    stream = _constriction().stream
    decoder = stream.queue.RangeDecoder(np.frombuffer(code, dtype="<u4").astype(np.uint32))
    tokens: list[int] = []  # memory is not taken on the word of a file
    with progress.stage("decompress", total=num_tokens, unit="tokens") as task:
        for i in range(num_tokens):
            try:
                model = stream.model.Categorical(probabilities(session), lazy=True)
                token = int(decoder.decode(model))
            except AssertionError as error:  # constriction's word for an impossible code
                raise CorruptError(f"the token stream is damaged at token {i:,}") from error
            session.observe(token)
            tokens.append(token)
            task.advance()
    if not decoder.maybe_exhausted():
        raise CorruptError(f"the token stream goes on after its {num_tokens:,} tokens")
    return np.array(tokens, dtype=np.int64)


def probabilities(session: Session) -> NDArray[np.float64]:
    """(V,): what the coder is given of the next token. Raises `DataError` for no distribution."""
    row: NDArray[np.float64] = np.exp(session.log_probs())
    total = float(row.sum())
    if not 0.0 < total < float("inf"):
        raise DataError(
            f"the predictor's probabilities sum to {total}", hint="qpack eval --check says where"
        )
    return row


def _constriction() -> Any:
    try:
        import constriction
    except ImportError as error:
        raise SetupError(
            "arithmetic coding needs the package constriction",
            items=[str(error)],
            hint='pip install "qpack-lm[pack]"',
        ) from error
    return constriction
