"""Documents, one at a time, from files of text: what shards and tokenizers are made from.

A `.txt` file is one document, all of it. A `.jsonl` file has one a line, the string `text` of a
JSON object (other keys are not read). Either may be compressed, `.xz` or `.zst`. `standard-library`
is text that every Python holds. Documents of white space alone are passed over.
"""

from __future__ import annotations

import functools
import io
import json
import lzma
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from glob import has_magic
from pathlib import Path
from typing import IO, Any

import zstandard

from qpack.errors import DataError
from qpack.plugins import did_you_mean

from .standard_library import standard_library_documents

STANDARD_LIBRARY = "standard-library"
"""The source that is no file."""
FORMATS = (".txt", ".jsonl")
COMPRESSIONS = (".xz", ".zst")
MAX_DOCUMENT_BYTES = 1 << 26
"""A tokenizer takes some 50 times a document's bytes of memory, and one core."""


@dataclass(frozen=True, slots=True)
class Document:
    """One text, and how far its source has been read with it."""

    text: str
    num_bytes: int
    """of the text, in UTF-8"""
    done_bytes: int
    """of the source, as it is on disk"""


@dataclass(frozen=True, kw_only=True, slots=True)
class Source:
    """A file of documents, or the standard library."""

    name: str
    path: Path | None
    num_bytes: int
    """on disk; 0 for the standard library"""


def find_sources(entries: Iterable[Path], *, what: str = "text") -> list[Source]:
    """The files that paths and patterns (`data/*.jsonl.xz`) name, each once, sorted in a pattern.

    Raises `DataError` naming every entry without a file and every file of an unknown kind; `what`
    says what they were to be.
    """
    found: dict[str, Source] = {}
    problems = []
    for entry in entries:
        if entry.name == STANDARD_LIBRARY and not entry.exists():
            found[STANDARD_LIBRARY] = Source(name=STANDARD_LIBRARY, path=None, num_bytes=0)
            continue
        for path in expand(entry):
            problem = _problem(path, entry)
            if problem is None:
                source = Source(name=path.name, path=path, num_bytes=path.stat().st_size)
                found.setdefault(str(path.resolve()), source)
            else:
                problems.append(problem)
        if has_magic(str(entry)) and not expand(entry):
            problems.append(f"{entry}: matches no file")
    if problems:
        raise DataError(
            f"{what} cannot be used",
            items=problems,
            hint=f"give {', '.join(FORMATS)}, plain or {' or '.join(COMPRESSIONS)},"
            f" or {STANDARD_LIBRARY}",
        )
    return list(found.values())


def expand(entry: Path) -> list[Path]:
    """The files of a pattern, sorted; a path without wildcards, or with its name as is, alone."""
    if entry.exists() or not has_magic(str(entry)):
        return [entry]
    root = Path(entry.anchor)
    return sorted(root.glob(str(entry.relative_to(root))))


def _problem(path: Path, entry: Path) -> str | None:
    """Why `path` holds no documents, as far as its name and kind tell."""
    if not path.exists():
        return f"{path}: no such file{did_you_mean(entry.name, [STANDARD_LIBRARY])}"
    if not path.is_file():
        return f"{path}: not a file"
    if _suffixes(path)[0] not in FORMATS:
        return f"{path}: neither {' nor '.join(FORMATS)}"
    return None


def _suffixes(path: Path) -> tuple[str, str]:
    """Format and compression: (".jsonl", ".xz")."""
    compression = path.suffix if path.suffix in COMPRESSIONS else ""
    return Path(path.name.removesuffix(compression)).suffix, compression


def read_documents(source: Source) -> Iterator[Document]:
    """The documents of `source`, in order; memory holds one.

    Raises `DataError` with file and line where it cannot be read, decompressed or decoded, is no
    JSON with a string `text`, or is longer than a tokenizer takes.
    """
    if source.path is None:
        for text in _standard_library():
            yield Document(text, len(text.encode()), 0)
        return
    with ExitStack() as stack:
        try:
            raw = stack.enter_context(source.path.open("rb"))
            file = _decompressed(raw, _suffixes(source.path)[1])
            pieces = _whole(file) if _suffixes(source.path)[0] == ".txt" else _lines(file)
            for where, data in pieces:
                text = _text(data, source.path, where)
                if text and not text.isspace():
                    yield Document(text, len(text.encode()), raw.tell())
        except (lzma.LZMAError, zstandard.ZstdError, EOFError) as error:
            raise DataError(
                f"{source.path} is damaged: {error}", hint="fetch or write it again"
            ) from error
        except OSError as error:
            raise DataError(f"cannot read {source.path}: {error.strerror or error}") from error


@functools.cache
def _standard_library() -> tuple[str, ...]:
    """Found once: it takes seconds, and what is made from it needs it three times."""
    return tuple(standard_library_documents())


def _whole(file: IO[bytes]) -> Iterator[tuple[int, bytes]]:
    yield 0, file.read(MAX_DOCUMENT_BYTES + 1)


def _lines(file: IO[bytes]) -> Iterator[tuple[int, bytes]]:
    """Lines with their numbers, from 1; blank ones are none."""
    number = 0
    # JSON can write a byte in six, so a line may be longer than the text in it.
    while line := file.readline(6 * MAX_DOCUMENT_BYTES):
        number += 1
        if not line.isspace():
            yield number, line


def _text(data: bytes, path: Path, line: int) -> str:
    """The document in `data`: a line of JSON, or with `line` 0 a file of text."""
    where = f"{path}, line {line}" if line else str(path)
    try:
        text = _field(data) if line else data.decode()
        num_bytes = len(text.encode())
    except UnicodeDecodeError as error:
        raise DataError(f"{where}: not UTF-8 (byte {error.start:,})") from error
    except UnicodeEncodeError as error:
        raise DataError(f"{where}: half a surrogate pair (character {error.start:,})") from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where}: {error}", hint='each line is {"text": "..."}') from error
    if num_bytes > MAX_DOCUMENT_BYTES:
        raise DataError(
            f"{where}: a document of more than {MAX_DOCUMENT_BYTES:,} B",
            hint="write its parts as the lines of a .jsonl file",
        )
    return text


def _field(line: bytes) -> str:
    value = json.loads(line)
    if not isinstance(value, dict) or not isinstance(value.get("text"), str):
        raise ValueError('no JSON object with a string "text"')
    text: str = value["text"]
    return text


def _decompressed(raw: IO[bytes], compression: str) -> IO[bytes]:
    if compression == ".xz":
        return lzma.open(raw)
    if compression == ".zst":
        return io.BufferedReader(_Zstandard(raw), 1 << 17)
    return raw


class _Zstandard(io.RawIOBase):
    """A .zst file of any number of frames. The package's own reader takes a cut one for whole."""

    def __init__(self, raw: IO[bytes]) -> None:
        self._raw = raw
        self._frame: Any = None
        self._ready = b""

    def readable(self) -> bool:
        """Yes."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Fill `buffer`; 0 at the end. Raises `EOFError` when the last frame is not whole."""
        while not self._ready:
            data = self._raw.read(1 << 17)
            if not data:
                if self._frame is not None:
                    raise EOFError("it ends before its contents do")
                return 0
            self._ready = b"".join(self._frames(data))
        count = min(len(buffer), len(self._ready))
        buffer[:count] = self._ready[:count]
        self._ready = self._ready[count:]
        return count

    def _frames(self, data: bytes) -> Iterator[bytes]:
        while data:
            if self._frame is None:
                self._frame = zstandard.ZstdDecompressor().decompressobj()
            yield self._frame.decompress(data)
            data = self._frame.unused_data if self._frame.eof else b""
            if self._frame.eof:
                self._frame = None
