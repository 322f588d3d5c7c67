"""What is in token shards: tokens, documents and, with their tokenizer, bytes of text."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from qpack.errors import DataError
from qpack.progress import SILENT, Progress
from qpack.tokenizer import Tokenizer
from qpack.tokens import check_vocab, read_shard

from .packed import document_starts
from .prepare import find_shards

SCHEMA = "qpack.data-stats/1"
CHALLENGE_BOS = 1
"""What begins a document where no tokenizer says so."""


def shard_statistics(
    shards: Sequence[Path], *, tokenizer: Path | None = None, progress: Progress = SILENT
) -> dict[str, Any]:
    """A row for each shard, and `total` of several.

    Documents are counted by the tokenizer's BOS, 1 without one. Bytes are of the text that all
    tokens but the first stand for; without a tokenizer they are None. Raises `DataError` naming
    every pattern that matches nothing, or for a shard that cannot be read or has tokens that the
    tokenizer does not.
    """
    paths = find_shards(shards, "shards")
    if not paths:
        raise DataError("there are no shards")
    model = None if tokenizer is None else Tokenizer.load(tokenizer)
    rows = []
    with progress.stage("count", total=len(paths), unit="shards") as task:
        for path in paths:
            rows.append({"name": path.name, **_count(path, model)})
            task.advance()
    keys = ("tokens", "documents", *(("bytes",) if model else ()))
    sums: dict[str, Any] = {key: sum(row[key] for row in rows) for key in keys}
    total = _ratios({"bytes": None} | sums)
    return {"schema": SCHEMA, "shards": rows, "total": total}


def _count(path: Path, tokenizer: Tokenizer | None) -> dict[str, Any]:
    tokens = read_shard(path)
    bos = CHALLENGE_BOS
    num_bytes = None
    if tokenizer is not None:
        check_vocab(tokens, tokenizer.vocab_size, path)
        bos, num_bytes = tokenizer.bos, tokenizer.text_bytes(tokens)
    documents = len(document_starts(tokens, bos))
    return _ratios({"tokens": len(tokens), "documents": documents, "bytes": num_bytes})


def _ratios(counts: dict[str, Any]) -> dict[str, Any]:
    tokens, documents, num_bytes = counts["tokens"], counts["documents"], counts["bytes"]
    return {
        "tokens": tokens,
        "documents": documents,
        "tokens_per_document": tokens / documents if documents else None,
        "bytes": num_bytes,
        "bytes_per_token": None if num_bytes is None else num_bytes / tokens,
    }
