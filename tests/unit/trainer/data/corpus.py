"""Small text, and files of it in every form."""

from __future__ import annotations

import json
import lzma
from collections.abc import Iterable
from pathlib import Path

import zstandard

WORDS = [
    "the", "of", "and", "model", "text", "token", "byte", "budget", "weight", "report", "scale",
    "window", "stride",
]  # fmt: skip
TEXTS = [f"{a} {b} number {i}." for i, a in enumerate(WORDS) for b in WORDS]


def write_text(path: Path, texts: Iterable[str]) -> Path:
    """`texts` in the form that the name asks for; a .txt file has them in lines."""
    plain = [name for name in path.name.split(".") if name in ("txt", "jsonl")][-1]
    rows = [json.dumps({"text": text}) if plain == "jsonl" else text for text in texts]
    data = "\n".join(rows).encode()
    if path.suffix == ".xz":
        data = lzma.compress(data)
    elif path.suffix == ".zst":
        data = zstandard.ZstdCompressor().compress(data)
    path.write_bytes(data)
    return path
