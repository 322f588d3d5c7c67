"""Documents to token shards, on every core, in bounded memory: BOS before each document.

Chunks of documents go to threads, and come back in order: the tokenizer works outside Python's
lock, so threads scale as processes would, with nothing to start, copy or guard. Shards are the same
bytes for any number of them. A shard ends where the next document would make it longer than it may
be; a document longer than a shard is cut.

A tokenizer normalises text before it cuts it, so what its tokens stand for can be other text: how
many documents that happens to is counted, and the bytes of what the tokens do stand for, which are
those that bits per byte count (`techniques.md` 8.1).
"""

from __future__ import annotations

import os
import shutil
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from qpack.artifact.writer import write_pieces
from qpack.errors import DataError, OutputExistsError, ResourceError
from qpack.tokenizer import Tokenizer
from qpack.tokens import render_header

from .documents import Document

CHUNK_BYTES = 1 << 18
"""Text that a thread takes at a time: tens of milliseconds of work."""
MAX_VOCAB = 1 << 16
"""Shards hold uint16."""
STAGING = ".qpack-shards"
"""Folder in which shards wait until all are whole."""

Part = tuple[str, Document]
"""A document and the name of the part that it belongs to, such as `train`."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Encoded:
    """A document's tokens, and what they stand for."""

    part: str
    tokens: NDArray[np.uint16]  # (tokens,), BOS first
    num_bytes: int
    """of the document"""
    decoded_bytes: int
    """of the text that the tokens stand for"""
    changed: bool
    """whether that is another text"""


@dataclass(kw_only=True, slots=True)
class Written:
    """What became of a part's documents."""

    files: list[str] = field(default_factory=list)
    """names of its shards"""
    documents: int = 0
    tokens: int = 0
    """BOS of each document included"""
    text_bytes: int = 0
    decoded_bytes: int = 0
    """of the text that the tokens stand for"""
    changed: int = 0
    """documents for which that is another text"""
    left_out: int = 0
    """documents not written, for that reason; counted nowhere else"""

    def add(self, encoded: Encoded) -> None:
        """Count a document that is written."""
        self.documents += 1
        self.tokens += len(encoded.tokens)
        self.text_bytes += encoded.num_bytes
        self.decoded_bytes += encoded.decoded_bytes
        self.changed += encoded.changed


def write_parts(
    documents: Iterable[Part],
    tokenizer: Tokenizer,
    folder: Path,
    *,
    parts: Sequence[str],
    shard_tokens: int,
    workers: int = 0,
    lossless_only: bool = False,
    force: bool = False,
) -> dict[str, Written]:
    """Write the shards `PART_000000.bin`, ... of each of `parts` into `folder`, all or none.

    A shard has at most `shard_tokens` tokens. `workers` threads encode, 0 for one a core.
    `lossless_only` leaves out documents that the tokenizer changes. Raises `OutputExistsError`
    where shards are there and `force` is not given, `DataError` for a tokenizer without BOS or with
    more tokens than uint16 holds or for a part without documents, and whatever `documents` raises.
    """
    check_no_shards(folder, parts, force=force)
    staging = folder / STAGING
    shutil.rmtree(staging, ignore_errors=True)
    try:
        staging.mkdir()
        writers = {part: ShardWriter(staging, part, shard_tokens) for part in parts}
        written = {part: Written() for part in parts}
        for encoded in encode(documents, tokenizer, workers=workers):
            if encoded.changed and lossless_only:
                written[encoded.part].left_out += 1
                continue
            written[encoded.part].add(encoded)
            writers[encoded.part].add(encoded.tokens)
        for part, writer in writers.items():
            written[part].files = writer.finish()
        _check_none_empty(written)
        for old in shards_of(folder, parts):
            old.unlink()
        for path in sorted(staging.iterdir()):
            path.replace(folder / path.name)
    except OSError as error:
        raise ResourceError(f"cannot write shards in {folder}: {error.strerror}") from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return written


def _check_none_empty(written: Mapping[str, Written]) -> None:
    empty = [
        f"{part}: {counts.left_out:,} documents, all changed by the tokenizer's normalisation"
        if counts.left_out
        else f"{part}: no documents"
        for part, counts in written.items()
        if not counts.files
    ]
    if empty:
        raise DataError("there is no text for these shards", items=empty, hint="give more text")


def shards_of(folder: Path, parts: Iterable[str]) -> list[Path]:
    """Shards of `parts` that are in `folder`."""
    return [path for part in parts for path in sorted(folder.glob(f"{part}_[0-9]*.bin"))]


def check_no_shards(folder: Path, parts: Iterable[str], *, force: bool) -> None:
    """Raise `OutputExistsError` where shards of `parts` would be replaced without `force`."""
    there = [str(path) for path in shards_of(folder, parts)]
    if there and not force:
        raise OutputExistsError("shards exist", items=there, hint="--force replaces them")


def encode(
    documents: Iterable[Part], tokenizer: Tokenizer, *, workers: int = 0
) -> Iterator[Encoded]:
    """Each document's tokens, in order; a few chunks a worker are under way at a time."""
    if tokenizer.vocab_size > MAX_VOCAB:
        raise DataError(f"a shard holds tokens below {MAX_VOCAB:,}; got {tokenizer.vocab_size:,}")
    bos, count = tokenizer.bos, workers or os.cpu_count() or 1
    under_way: deque[Future[list[Encoded]]] = deque()
    with ThreadPoolExecutor(count, thread_name_prefix="qpack-tokens") as pool:
        try:
            for chunk in chunks(documents):
                under_way.append(pool.submit(_encode_chunk, chunk, tokenizer, bos))
                if len(under_way) > 2 * count:
                    yield from under_way.popleft().result()
            while under_way:
                yield from under_way.popleft().result()
        finally:
            for future in under_way:
                future.cancel()


def chunks(documents: Iterable[Part]) -> Iterator[list[Part]]:
    """Runs of documents of about `CHUNK_BYTES`."""
    chunk: list[Part] = []
    num_bytes = 0
    for part in documents:
        chunk.append(part)
        num_bytes += part[1].num_bytes
        if num_bytes >= CHUNK_BYTES:
            yield chunk
            chunk, num_bytes = [], 0
    if chunk:
        yield chunk


def _encode_chunk(chunk: Sequence[Part], tokenizer: Tokenizer, bos: int) -> list[Encoded]:
    rows = tokenizer.encode_arrays([document.text for _, document in chunk])
    texts = tokenizer.decode_arrays(rows)
    return [
        Encoded(
            part=part,
            tokens=np.concatenate([[bos], row]).astype(np.uint16),
            num_bytes=document.num_bytes,
            decoded_bytes=len(text.encode()),
            changed=text != document.text,
        )
        for (part, document), row, text in zip(chunk, rows, texts, strict=True)
    ]


class ShardWriter:
    """Collects the tokens of a part and writes its shards; memory holds one."""

    def __init__(self, folder: Path, part: str, shard_tokens: int) -> None:
        self._folder, self._part, self._most = folder, part, shard_tokens
        self._waiting: list[NDArray[np.uint16]] = []
        self._count = 0
        self._names: list[str] = []

    def add(self, tokens: NDArray[np.uint16]) -> None:
        """Add a document, (tokens,)."""
        if self._count + len(tokens) > self._most:
            self._write()
        while len(tokens) > self._most:
            self._waiting, self._count = [tokens[: self._most]], self._most
            self._write()
            tokens = tokens[self._most :]
        self._waiting.append(tokens)
        self._count += len(tokens)

    def finish(self) -> list[str]:
        """Write what is left; the names of all shards, in order."""
        self._write()
        return self._names

    def _write(self) -> None:
        if not self._count:
            return
        name = f"{self._part}_{len(self._names):06d}.bin"
        pieces = (tokens.astype("<u2").tobytes() for tokens in self._waiting)
        write_pieces(self._folder / name, chain([render_header(self._count)], pieces), force=True)
        self._names.append(name)
        self._waiting, self._count = [], 0
