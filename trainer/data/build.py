"""From documents to what training reads: a tokenizer, shards, and a manifest of what was made.

The tokenizer is trained on training documents alone. Held out are the documents of their own
sources, or every n-th of all.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from qpack.artifact.writer import write_atomic
from qpack.errors import ConfigError, DataError, OutputExistsError, ResourceError
from qpack.progress import SILENT, Progress, Task
from qpack.tokenizer import Tokenizer

from .documents import Document, Source, find_sources, read_documents
from .manifest import (
    HELD_OUT,
    MANIFEST,
    SHARD_TOKENS,
    TOKENIZER,
    TRAIN,
    VAL,
    Request,
    find_made,
    identity,
)
from .tokenize import Part, Written, shards_of, write_parts
from .vocabulary import check_vocab_size, sample_documents, train_tokenizer


@dataclass(frozen=True, kw_only=True, slots=True)
class Built:
    """What was made, or found made."""

    tokenizer: Path
    train: tuple[Path, ...]
    val: tuple[Path, ...]
    report: dict[str, Any]
    """the manifest, with `reused`"""


def build_data(request: Request, folder: Path, *, force: bool, progress: Progress) -> Built:
    """Make what `request` asks for in `folder`, unless its manifest says that it is there.

    Everything that names and options tell is checked first. Raises `ConfigError`, `DataError` or
    `SetupError` for input that cannot be used; `OutputExistsError` where other files would be
    replaced without `force`.
    """
    text = find_sources(request.text)
    val_text = find_sources(request.val_text, what="validation text")
    _check(request, text, val_text)
    wanted = identity(request, text, val_text, progress)
    there = find_made(folder, wanted)
    if there is not None:
        progress.note(f"{folder}: made from the same text before, and used again")
        return _built(folder, there | {"reused": True}, request.tokenizer)
    _check_outputs(request, folder, force=force)
    trained = None
    if request.tokenizer is None:
        trained = _train_tokenizer(request, text, folder / TOKENIZER, progress)
    tokenizer = Tokenizer.load(request.tokenizer or folder / TOKENIZER)
    repeated = [(source, request.times(source)) for source in text]
    total = sum(source.num_bytes * times for source, times in repeated)
    total += sum(source.num_bytes for source in val_text)
    with progress.stage("tokenize", total=total or None, unit="B") as task:
        written = write_parts(
            _stream(repeated, val_text, request.val_every, task),
            tokenizer,
            folder,
            parts=_parts(request),
            shard_tokens=request.shard_tokens,
            workers=request.workers,
            lossless_only=_lossless_only(text, val_text),
            force=True,  # refused above
        )
    for part, counts in written.items():
        progress.note(_sentence(part, counts))
    manifest = wanted | {
        "tokenizer_sha256": tokenizer.sha256,
        "tokenizer_sample": trained,
        "parts": {part: asdict(counts) for part, counts in written.items()},
    }
    write_atomic(folder / MANIFEST, (json.dumps(manifest, indent=1) + "\n").encode(), force=True)
    return _built(folder, manifest | {"reused": False}, request.tokenizer)


def tokenize_text(
    text: Sequence[Path],
    out: Path,
    *,
    val_text: Sequence[Path] = (),
    val_every: int = HELD_OUT,
    tokenizer: Path | None = None,
    vocab_size: int | None = None,
    shard_tokens: int = SHARD_TOKENS,
    workers: int = 0,
    force: bool = False,
    progress: Progress = SILENT,
) -> dict[str, Any]:
    """`build_data` for the command line: plain values in, the manifest with paths out."""
    request = Request(
        text=tuple(text),
        val_text=tuple(val_text),
        val_every=val_every,
        tokenizer=tokenizer,
        vocab_size=vocab_size,
        shard_tokens=shard_tokens,
        workers=workers,
    )
    built = build_data(request, out, force=force, progress=progress)
    paths = {"tokenizer_path": str(built.tokenizer)}
    lists = {TRAIN: [str(path) for path in built.train], VAL: [str(path) for path in built.val]}
    return {**built.report, **paths, **lists}


def _parts(request: Request) -> tuple[str, ...]:
    train = (TRAIN,) if request.text else ()
    return (*train, VAL) if request.val_text or request.val_every else train


def _check(request: Request, text: list[Source], val_text: list[Source]) -> None:
    """What options and names tell, before anything is read."""
    if request.tokenizer is None:
        if request.vocab_size is None:
            raise ConfigError("give a tokenizer, or the number of pieces of a new one")
        check_vocab_size(request.vocab_size)
    else:
        tokenizer = Tokenizer.load(request.tokenizer)
        if request.vocab_size is not None:
            tokenizer.check_model(request.vocab_size)
    if request.val_every == 1:
        raise ConfigError("every document would be held out", hint="hold out every 2nd or fewer")
    if not text and not val_text:
        raise DataError("there is no text", hint="give at least one file")
    unused = [
        f"repeat: {pattern!r} matches no file of text"
        for pattern, _ in request.repeat
        if not any(fnmatchcase(source.name, pattern) for source in text)
    ]
    if unused:
        raise ConfigError(
            "files to repeat are not there",
            items=unused,
            hint=f"files of text: {', '.join(source.name for source in text)}",
        )
    both = {source.path for source in text} & {source.path for source in val_text}
    if both:
        raise DataError(
            "these would be both trained on and scored",
            items=sorted(source.name for source in text if source.path in both),
        )


def _check_outputs(request: Request, folder: Path, *, force: bool) -> None:
    """Raise unless the outputs may be written; a manifest that will be wrong goes."""
    outputs = [folder / MANIFEST, *shards_of(folder, (TRAIN, VAL))]
    if request.tokenizer is None:
        outputs.append(folder / TOKENIZER)
    there = [str(path) for path in outputs if path.exists()]
    if there and not force:
        raise OutputExistsError("other data is there", items=there, hint="--force replaces it")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / MANIFEST).unlink(missing_ok=True)
    except OSError as error:
        raise ResourceError(f"cannot write in {folder}: {error.strerror}") from error


def _built(folder: Path, manifest: dict[str, Any], tokenizer: Path | None) -> Built:
    files = {part: counts["files"] for part, counts in manifest["parts"].items()}
    return Built(
        tokenizer=tokenizer or folder / TOKENIZER,
        train=tuple(folder / name for name in files.get(TRAIN, [])),
        val=tuple(folder / name for name in files.get(VAL, [])),
        report=manifest,
    )


def _stream(
    text: Iterable[tuple[Source, int]],
    val_text: Sequence[Source],
    val_every: int,
    task: Task,
) -> Iterator[Part]:
    """All documents with their part, those of `text` as often as said, held-out ones once; `task`
    advances by the bytes read."""
    every = 0 if val_text else val_every
    index = 0
    for source, times in text:
        first = index
        for turn in range(times):
            index = first
            for document in _watched(source, task):
                held_out = every > 0 and index % every == every // 2
                index += 1
                if not (held_out and turn):
                    yield VAL if held_out else TRAIN, document
    for source in val_text:
        for document in _watched(source, task):
            yield VAL, document


def _watched(source: Source, task: Task) -> Iterator[Document]:
    done = 0
    for document in read_documents(source):
        yield document
        task.advance(document.done_bytes - done)
        done = document.done_bytes


def _train_tokenizer(
    request: Request, text: list[Source], path: Path, progress: Progress
) -> dict[str, int]:
    """Train the tokenizer that `request` asks for; what it has seen."""
    assert request.vocab_size is not None, "checked before"
    total = sum(source.num_bytes for source in text) or None
    with progress.stage("sample text", total=total, unit="B") as task:
        every = 0 if request.val_text else request.val_every
        parts = _stream([(source, 1) for source in text], (), every, task)
        sample = sample_documents(
            (document.text for part, document in parts if part == TRAIN),
            most_documents=request.documents_per_tokenizer,
            seed=request.seed,
        )
    with progress.stage("train tokenizer"):
        train_tokenizer(sample, path, vocab_size=request.vocab_size, force=True)
    seen = {"documents": len(sample), "bytes": sum(len(text.encode()) for text in sample)}
    progress.note(
        f"tokenizer of {request.vocab_size:,} pieces, trained on {seen['documents']:,} documents"
        f" ({seen['bytes']:,} B)"
    )
    return seen


def _lossless_only(*sources: Iterable[Source]) -> bool:
    """Whether documents that the tokenizer changes are left out.

    They are from the standard library, whose text is normalised already: a few are not quite, and
    without them bits per byte count the bytes of the text itself. All other text is kept whole.
    """
    return all(source.path is None for group in sources for source in group)


def _sentence(part: str, counts: Written) -> str:
    said = (
        f"{part}: {counts.documents:,} documents, {counts.text_bytes:,} B,"
        f" {counts.tokens:,} tokens in {len(counts.files):,} shards"
    )
    if counts.changed:
        lost = 100 * (1 - counts.decoded_bytes / counts.text_bytes)
        said += (
            f"; the tokenizer normalises {counts.changed:,} of them, to {lost:.2f} % fewer bytes,"
            " and bits per byte count the bytes that are left"
        )
    if counts.left_out:
        said += f"; {counts.left_out:,} more that the tokenizer would change are left out"
    return said
