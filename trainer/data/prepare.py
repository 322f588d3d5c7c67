"""From a named source of text to what training reads: a tokenizer and two token shards."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from qpack.errors import ConfigError
from qpack.plugins import did_you_mean
from qpack.progress import SILENT, Progress
from qpack.tokens import write_shard

from .shards import tokenize
from .text import split_documents, standard_library_documents
from .vocabulary import train_tokenizer

SOURCES: dict[str, Callable[[], list[str]]] = {"standard-library": standard_library_documents}


def check_source(source: str) -> None:
    """Raise `ConfigError` unless `source` names a source of text."""
    if source not in SOURCES:
        raise ConfigError(
            f'unknown text source "{source}"{did_you_mean(source, SOURCES)}',
            hint=f"known: {', '.join(SOURCES)}",
        )


def prepare(
    source: str,
    *,
    tokenizer: Path,
    train: Path,
    val: Path,
    vocab_size: int,
    force: bool = False,
    progress: Progress = SILENT,
) -> None:
    """Write the tokenizer, trained on the training documents alone, and both shards.

    Documents that the tokenizer's normalisation would change are left out, so that bits per byte
    count the bytes of the text itself. Raises `ConfigError` for an unknown source or an impossible
    vocabulary.
    """
    check_source(source)
    with progress.stage("text", total=3, unit="steps") as task:
        parts = split_documents(SOURCES[source]())
        task.advance(note="gathered")
        made = train_tokenizer(parts[0], tokenizer, vocab_size=vocab_size, force=force)
        task.advance(note=f"tokenizer of {vocab_size:,} pieces")
        kept = [
            [text for text in texts if made.decode(made.encode(text)) == text] for texts in parts
        ]
        for path, texts in zip((train, val), kept, strict=True):
            write_shard(path, tokenize(texts, made), force=force)
        task.advance()
    num_bytes = [sum(len(text.encode()) for text in texts) for texts in kept]
    lost = sum(map(len, parts)) - sum(map(len, kept))
    progress.note(
        f"{source}: {len(kept[0]):,} documents ({num_bytes[0]:,} B) to train on,"
        f" {len(kept[1]):,} ({num_bytes[1]:,} B) held out, {lost:,} left out"
    )
