"""What is compared: each row of the tables is one peer with its settings.

SETTINGS are what the peer's script (`with_PEER.py`) takes. Rows of qpack itself may ask for the
bytes of another row, which must come before them.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

OWN = ("qpack", "lrzip")
"""Run by the interpreter that qpack itself is installed in."""

RECORD: dict[str, Any] = {"recipe": "record", "value": 12.85}


@dataclass(frozen=True, kw_only=True)
class Row:
    """One way to store the weights."""

    peer: str
    settings: dict[str, Any] = field(default_factory=dict)
    at_bytes_of: str | None = None


def _gptq(bits: int, **more: int) -> Row:
    return Row(peer="llmcompressor", settings={"num_bits": bits, "group_size": 128, **more})


def _default(at_bytes_of: str) -> Row:
    return Row(peer="qpack", settings={"recipe": "default"}, at_bytes_of=at_bytes_of)


ROWS: dict[str, Row] = {
    "record recipe, brotli": Row(peer="qpack", settings={**RECORD, "codecs": ["brotli"]}),
    "record recipe, lrzip": Row(peer="lrzip", settings=RECORD),
    "llm-compressor GPTQ W4 g128": _gptq(4),
    "llm-compressor GPTQ W4 g128, table 8": _gptq(4, table_bits=8),
    "llm-compressor GPTQ W3 g128": _gptq(3),
    "llm-compressor GPTQ W3 g128, table 8": _gptq(3, table_bits=8),
    "nncodec qp -22": Row(peer="nncodec", settings={"qp": -22}),
    "nncodec qp -20": Row(peer="nncodec", settings={"qp": -20}),
    "nncodec qp -18": Row(peer="nncodec", settings={"qp": -18}),
    "hqq 4 bit g64": Row(peer="hqq", settings={"nbits": 4, "group_size": 64}),
    "hqq 3 bit g64": Row(peer="hqq", settings={"nbits": 3, "group_size": 64}),
    "torchao int4 g32": Row(peer="torchao", settings={"group_size": 32}),
    "torchao int4 g128": Row(peer="torchao", settings={"group_size": 128}),
    "quanto qint4 g128": Row(peer="quanto", settings={"weights": "qint4"}),
    "quanto qint2 g128": Row(peer="quanto", settings={"weights": "qint2"}),
    "GGUF Q8_0": Row(peer="gguf", settings={"type": "Q8_0"}),
    "GGUF Q5_0": Row(peer="gguf", settings={"type": "Q5_0"}),
    "GGUF Q4_1": Row(peer="gguf", settings={"type": "Q4_1"}),
    "GGUF Q4_0": Row(peer="gguf", settings={"type": "Q4_0"}),
    "qpack at the record's bytes": _default("record recipe, brotli"),
    "qpack at W4's bytes": _default("llm-compressor GPTQ W4 g128"),
    "qpack at W3's bytes": _default("llm-compressor GPTQ W3 g128"),
}


def chosen(only: list[str] | None) -> dict[str, Row]:
    """Rows by their names or their peers', all without any; SystemExit for what is neither."""
    if not only:
        return ROWS
    known = {*ROWS, *(row.peer for row in ROWS.values())}
    alien = [name for name in only if name not in known]
    if alien:
        raise SystemExit(f"no such row or peer: {', '.join(alien)}; there are {', '.join(known)}")
    return {name: row for name, row in ROWS.items() if name in only or row.peer in only}
