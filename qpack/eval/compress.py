"""Files through a language model and back: lossless for any bytes.

    compress:    bytes -> tokens and residual -> code of the tokens, codec of the residual -> .qpz
    decompress:  the same backwards, with the same model, tokenizer, settings and arithmetic

The code costs what the predictor's nats say (`coding.py`), so the size of a file is a measurement
of the model that rests on nobody's arithmetic. Both directions run token by token, on one thread of
the CPU. Memory is the predictor's and some hundred bytes a token.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from qpack.artifact.writer import write_atomic
from qpack.codec.base import ByteCodec
from qpack.codec.registry import codecs
from qpack.errors import (
    ConfigError,
    CorruptError,
    DataError,
    InputError,
    MismatchError,
    UnsupportedError,
)
from qpack.eval import coding
from qpack.eval.coder import Coder, open_coder
from qpack.eval.fingerprint import differences, fingerprint, single_thread
from qpack.eval.qpz import TEXT_BYTES_MAX, WORD_MAX, Compressed, Header, may_expand, parse
from qpack.eval.residual import join, split
from qpack.progress import SILENT, Progress
from qpack.tokens import sha256_file


def compress(data: bytes, coder: Coder, *, progress: Progress = SILENT) -> Compressed:
    """`data` as a compressed file. Raises `DataError` where it is too long for one, and what the
    predictor and its packages do."""
    if len(data) > TEXT_BYTES_MAX:
        raise DataError(
            f"{len(data):,} bytes are more than the {TEXT_BYTES_MAX:,} of a compressed file",
            hint="compress it in parts",
        )
    tokens, residual = split(data, coder.tokenizer)
    return compress_tokens(tokens, coder, residual=residual, progress=progress)


def compress_tokens(
    tokens: Sequence[int] | NDArray[Any],
    coder: Coder,
    *,
    residual: bytes = b"",
    progress: Progress = SILENT,
) -> Compressed:
    """A compressed file of `tokens`, (n + 1,), of which the first is context, and a residual.

    Its original is what `join` makes of them. `DataError` for tokens that the predictor lacks.
    """
    data = join(tokens, residual, coder.tokenizer)
    first, *coded = (int(token) for token in tokens)
    made_with = fingerprint(coder.predictor)
    with single_thread():
        session = coder.predictor.start(first, num_tokens=len(tokens))
        stream = coding.encode(session, coded, progress=progress)
    packed = {name: codec.encode(residual) for name, codec in _codecs().items()}
    allowed = (name for name in packed if may_expand(len(packed[name]), len(residual)))
    codec = min(allowed, key=lambda name: len(packed[name]))
    header = Header(
        model=coder.model_sha256,
        model_name="".join(c if c.isprintable() else "?" for c in coder.model_name)[:WORD_MAX],
        tokenizer=coder.tokenizer.sha256,
        predictor=coder.setup,
        fingerprint=made_with,
        first=first,
        tokens=len(coded),
        stream_bytes=len(stream),
        residual_codec=codec,
        residual_bytes=len(packed[codec]),
        residual_decoded_bytes=len(residual),
        text_bytes=len(data),
        text_sha256=hashlib.sha256(data).hexdigest(),
    )
    return Compressed(header=header, stream=stream, residual=packed[codec])


def decompress(
    data: bytes, *, model: Path, tokenizer: Path | None = None, progress: Progress = SILENT
) -> bytes:
    """The original of the compressed file `data`, by the checkpoint or artifact `model`.

    `tokenizer` None means the one that the artifact embeds. Raises `MismatchError` naming all that
    is not what the file was made with, before anything is decoded, `ArtifactError` for a damaged
    file, and what reading a model does.
    """
    compressed = parse(data)
    header = compressed.header
    _check_files(header, model, tokenizer)
    try:
        coder = open_coder(model, tokenizer, header.predictor)
    except ConfigError as error:
        raise UnsupportedError(
            "the compressed file asks for a predictor that cannot be had",
            items=[error.message, *error.items],
            hint="use the version of qpack that made it",
        ) from error
    _check_arithmetic(header, coder)
    codec = _codecs().get(header.residual_codec)
    if codec is None:
        raise UnsupportedError(f"residual codec {header.residual_codec!r} is not known")
    residual = codec.decode(compressed.residual, decoded_bytes=header.residual_decoded_bytes)
    with single_thread():
        session = coder.predictor.start(header.first, num_tokens=header.tokens + 1)
        try:
            tokens = coding.decode(session, compressed.stream, header.tokens, progress=progress)
        except DataError as error:  # the file's tokens led there
            raise CorruptError(f"the token stream is damaged: {error.message}") from error
    original = join([header.first, *tokens.tolist()], residual, coder.tokenizer)
    found = (len(original), hashlib.sha256(original).hexdigest())
    if found != (header.text_bytes, header.text_sha256):
        raise CorruptError(
            "the decoded bytes are not the original's",
            hint="the model computed something else than when the file was made",
        )
    return original


def compress_file(
    source: Path, out: Path, coder: Coder, *, force: bool = False, progress: Progress = SILENT
) -> tuple[Header, int]:
    """Compress the file `source` into `out`: its header, and the bytes written.

    Raises `OutputExistsError` if `out` exists and not `force`, and as `compress`.
    """
    made = compress(read_file(source), coder, progress=progress)
    data = made.render()
    write_atomic(out, data, force=force)
    return made.header, len(data)


def decompress_file(
    source: Path,
    out: Path,
    *,
    model: Path,
    tokenizer: Path | None = None,
    force: bool = False,
    progress: Progress = SILENT,
) -> int:
    """Decompress the file `source` into `out`: the bytes written. Raises as `decompress`.

    Nothing is written before the whole original is there and has its digest.
    """
    data = read_file(source)
    original = decompress(data, model=model, tokenizer=tokenizer, progress=progress)
    write_atomic(out, original, force=force)
    return len(original)


def read_file(path: Path) -> bytes:
    """The bytes of `path`. Raises `InputError` when it cannot be read."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from error


def _check_files(header: Header, model: Path, tokenizer: Path | None) -> None:
    """Raise `MismatchError` unless the files at hand are those of the header."""
    wrong = []
    for role, path, wanted in (
        ("model", model, header.model),
        ("tokenizer", tokenizer, header.tokenizer),
    ):
        if path is not None and (found := sha256_file(path)) != wanted:
            wrong.append(f"{role}: SHA-256 {wanted} there, {found} in {path.name}")
    if wrong:
        raise MismatchError(
            "the file was made with other files than these",
            items=wrong,
            hint=f"give the very files that it was compressed with; its model: {header.model_name}",
        )


def _check_arithmetic(header: Header, coder: Coder) -> None:
    """Raise `MismatchError` unless this machine computes what the header's did."""
    if header.tokenizer != coder.tokenizer.sha256:
        raise MismatchError(
            "the tokenizer embedded in the model is not the file's",
            hint="give with --tokenizer the one that it was compressed with",
        )
    if not header.first < coder.tokenizer.vocab_size:
        raise CorruptError(f"token {header.first} is beyond the tokenizer's")
    wrong = differences(header.fingerprint, fingerprint(coder.predictor))
    if wrong:
        raise MismatchError(
            "the file was made by other arithmetic, under which it would decode to garbage",
            items=wrong,
            hint="decompress it where it was made, with the same packages",
        )


def _codecs() -> dict[str, ByteCodec]:
    """Codecs of bytes by name, the simplest first."""
    found = codecs(plugins=False)
    return {name: codec for name, codec in found.items() if isinstance(codec, ByteCodec)}
