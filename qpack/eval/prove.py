"""A score proved by a file: the text is written as one, and comes back in a fresh process.

BPB is what an arithmetic coder would need; here it is what one did need. The first bytes of a text
are coded token by token through the sequential predictor (`compress.py`), decoded by a fresh Python
that has the file, the model and the tokenizer and nothing else, and compared byte for byte. The
code must be as long as the nats of the batched form say, within 0.1 % and the 64 bits of its end.
What the file has beside it, header and digest, is reported apart.
"""

from __future__ import annotations

import codecs
import math
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qpack.errors import DataError, VerifyError
from qpack.eval.coder import Setup, open_coder
from qpack.eval.compress import compress_tokens
from qpack.eval.residual import join, stream_texts
from qpack.progress import SILENT, Progress
from qpack.tokenizer import Tokenizer

SHARE, END_BITS = 0.001, 64
"""How far a code may be from what the nats say: of its bits, and at its end."""
PATIENCE_SECONDS, PATIENCE = 600.0, 20.0
"""Decoding may take so long, and so many times as long as encoding."""
PROGRAM = """
import sys
from pathlib import Path
from qpack.eval.compress import decompress_file
source, out, model, *tokenizer = map(Path, sys.argv[1:])
decompress_file(source, out, model=model, tokenizer=tokenizer[0] if tokenizer else None)
"""


@dataclass(frozen=True, kw_only=True, slots=True)
class Proof:
    """What a file showed."""

    predictor: str
    asked_bytes: int
    text_bytes: int
    """of the tokens that fit in those, cut where a character ends"""
    tokens: int
    computed_bpb: float
    """by the batched form's nats"""
    stream_bpb: float
    """by the bytes of the code"""
    file_bpb: float
    """by all bytes of the file"""
    file_bytes: int
    header_bytes: int
    """of the file: all but the code"""
    excess_bits: float
    """bits of the code less those that the nats say"""
    allowed_bits: float
    """how many that may be, either way"""
    encode_seconds: float
    decode_seconds: float
    """of the fresh process, its start included"""
    text_sha256: str

    @property
    def agrees(self) -> bool:
        """Whether the code is as long as the nats say."""
        return abs(self.excess_bits) <= self.allowed_bits

    def check(self) -> None:
        """Raise `VerifyError` unless the code is as long as the nats say."""
        if not self.agrees:
            raise VerifyError(
                f"{self.predictor}: its file is not as long as its score says",
                items=[
                    f"computed {self.computed_bpb:.6f} bits per byte",
                    f"coded    {self.stream_bpb:.6f} bits per byte",
                    f"{self.excess_bits:+,.0f} bits apart, {self.allowed_bits:,.0f} allowed",
                ],
                hint="qpack eval --check says what is wrong with the predictor",
            )


def prove(
    model: Path,
    tokens: NDArray[np.integer[Any]],  # (n,): the first is context
    setup: Setup,
    *,
    tokenizer: Path | None,
    num_bytes: int,
    progress: Progress = SILENT,
) -> Proof:
    """Prove the first `num_bytes` of the text of `tokens[1:]` by the predictor of `setup`.

    `tokenizer` None means the one that the artifact embeds. Whether the file is as long as it
    should be is left to `Proof.check`. Raises `DataError` for a text of no bytes, `VerifyError`
    where the text does not come back, and as `open_coder` and `compress_tokens`.
    """
    coder = open_coder(model, tokenizer, setup)
    tokens = tokens[: 1 + num_tokens_within(tokens, num_bytes, coder.tokenizer)]
    text = join(tokens, b"", coder.tokenizer)
    if not text:
        raise DataError(
            f"no whole character of the text is within its first {num_bytes:,} bytes",
            hint="prove more bytes",
        )
    bits = -float(coder.predictor.score(tokens, progress=progress).sum()) / math.log(2)
    began = time.perf_counter()
    made = compress_tokens(tokens, coder, progress=progress)
    data = made.render()
    encoded = time.perf_counter()
    allowed = PATIENCE_SECONDS + PATIENCE * (encoded - began)
    with progress.stage("decode elsewhere"):
        decoded = decode_elsewhere(data, model, tokenizer, timeout_seconds=allowed)
    if decoded != text:
        raise VerifyError(f"{coder.predictor.name}: the text did not come back from its file")
    coded_bits = 8 * len(made.stream)
    return Proof(
        predictor=coder.predictor.name,
        asked_bytes=num_bytes,
        text_bytes=len(text),
        tokens=len(tokens) - 1,
        computed_bpb=bits / len(text),
        stream_bpb=coded_bits / len(text),
        file_bpb=8 * len(data) / len(text),
        file_bytes=len(data),
        header_bytes=len(data) - len(made.stream),
        excess_bits=coded_bits - bits,
        allowed_bits=SHARE * bits + END_BITS,
        encode_seconds=encoded - began,
        decode_seconds=time.perf_counter() - encoded,
        text_sha256=made.header.text_sha256,
    )


def num_tokens_within(
    tokens: NDArray[np.integer[Any]], num_bytes: int, tokenizer: Tokenizer
) -> int:
    """How many of `tokens[1:]` stand for at most `num_bytes` of text and end with a character."""
    head = np.asarray(tokens[: num_bytes * 2 + 2])
    ends = np.cumsum(tokenizer.bytes_of(head[:-1], head[1:]))
    count = int(np.searchsorted(ends, num_bytes, side="right"))
    texts = stream_texts(head[: count + 1], tokenizer)
    while texts:
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        decoder.decode(b"".join(texts))
        if not decoder.getstate()[0]:  # no character has begun that has not ended
            break
        texts.pop()
    return len(texts)


def decode_elsewhere(
    data: bytes, model: Path, tokenizer: Path | None, *, timeout_seconds: float
) -> bytes:
    """What a fresh Python makes of the compressed file `data`.

    Raises `VerifyError` with its own words if it fails or takes too long.
    """
    with tempfile.TemporaryDirectory() as folder:
        source, out = Path(folder) / "text.qpz", Path(folder) / "text"
        source.write_bytes(data)
        given = [path.resolve() for path in (model, tokenizer) if path is not None]
        # -P: what lies in the current folder must not shadow qpack.
        command = [sys.executable, "-P", "-c", PROGRAM, source, out, *given]
        try:
            done = subprocess.run(
                [str(part) for part in command],
                capture_output=True,
                text=True,
                timeout=timeout_seconds,
                check=False,
            )
        except subprocess.TimeoutExpired:
            raise VerifyError(f"decoding elsewhere took over {timeout_seconds:,.0f} s") from None
        if done.returncode != 0 or not out.exists():
            raise VerifyError(
                f"decoding elsewhere failed with exit code {done.returncode}",
                items=done.stderr.strip().splitlines()[-5:],
            )
        return out.read_bytes()
