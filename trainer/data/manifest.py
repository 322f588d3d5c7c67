"""What shards are made from, in a file beside them, so that the same request finds them made."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from qpack.errors import DataError
from qpack.progress import Progress
from qpack.tokens import read_shard, sha256_file

from .documents import Source, read_documents
from .vocabulary import SAMPLE_BYTES

SCHEMA = "qpack.data/1"
MANIFEST, TOKENIZER = "manifest.json", "tokenizer.model"
TRAIN, VAL = "train", "val"
HELD_OUT = 20
"""Every 20th document is for validation, where none are given for it."""
SHARD_TOKENS = 100_000_000
"""As many as the challenge's own shards have."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Request:
    """What to make."""

    text: tuple[Path, ...]
    """Documents to train on; none, with `val_text` and `tokenizer`: only validation shards."""
    val_text: tuple[Path, ...] = ()
    """None: every `val_every`-th document of `text`, from the middle of the first run on."""
    val_every: int = HELD_OUT
    """0, without `val_text`: nothing is held out."""
    repeat: tuple[tuple[str, int], ...] = ()
    """Names or patterns of files of `text`, and how often their documents are read; else once."""
    tokenizer: Path | None = None
    """None: one of `vocab_size` pieces is trained."""
    vocab_size: int | None = None
    documents_per_tokenizer: int = 20_000
    seed: int = 0
    """of the sample of documents that a tokenizer is trained on"""
    shard_tokens: int = SHARD_TOKENS
    workers: int = 0
    """threads; 0: one a core. Not a matter of what is made."""

    def times(self, source: Source) -> int:
        """How often the documents of a training source are read."""
        found = [count for pattern, count in self.repeat if fnmatchcase(source.name, pattern)]
        return found[0] if found else 1


def identity(
    request: Request, text: Sequence[Source], val_text: Sequence[Source], progress: Progress
) -> dict[str, Any]:
    """What decides every byte of the shards, as JSON carries it."""
    sources = [*text, *val_text]
    with progress.stage("read", total=sum(s.num_bytes for s in sources) or None, unit="B") as task:
        digests: list[dict[str, Any]] = []
        for source in sources:
            digests.append({"name": source.name, "sha256": _digest(source)})
            task.advance(source.num_bytes)
    for source, row in zip(text, digests, strict=False):
        if request.times(source) > 1:
            row["times"] = request.times(source)
    training = {
        "vocab_size": request.vocab_size,
        "documents": request.documents_per_tokenizer,
        "bytes": SAMPLE_BYTES,
        "seed": request.seed,
    }
    given = None if request.tokenizer is None else sha256_file(request.tokenizer)
    return {
        "schema": SCHEMA,
        "text": digests[: len(text)],
        "val_text": digests[len(text) :],
        "val_every": 0 if val_text else request.val_every,
        "tokenizer": training if given is None else {"sha256": given},
        "shard_tokens": request.shard_tokens,
    }


def find_made(folder: Path, wanted: Mapping[str, Any]) -> dict[str, Any] | None:
    """The manifest in `folder`, if it is of `wanted` and all that it names is there and whole."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text("ascii"))
        if any(manifest[key] != value for key, value in wanted.items()):
            return None
        for counts in manifest["parts"].values():
            if sum(len(read_shard(folder / name)) for name in counts["files"]) != counts["tokens"]:
                return None
        trained = "sha256" not in wanted["tokenizer"]
        if trained and sha256_file(folder / TOKENIZER) != manifest["tokenizer_sha256"]:
            return None
        return dict(manifest)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, DataError):
        return None


def _digest(source: Source) -> str:
    if source.path is not None:
        return sha256_file(source.path)
    digest = hashlib.sha256()
    for document in read_documents(source):
        digest.update(document.text.encode() + b"\0")
    return digest.hexdigest()


def tokenizer_of(shard: Path) -> str | None:
    """SHA-256 of the tokenizer that made `shard`, as a manifest beside it says; None without."""
    try:
        manifest = json.loads((shard.parent / MANIFEST).read_text("ascii"))
        files = [name for counts in manifest["parts"].values() for name in counts["files"]]
        return str(manifest["tokenizer_sha256"]) if shard.name in files else None
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
