"""The tables of `qpack bench`, printed and written; the library's work is a fake here."""

from __future__ import annotations

import json
import sys
import types
from pathlib import Path
from typing import Any

import pytest

from .conftest import Runner

CODECS = {
    "schema": "qpack.bench-codecs/1",
    "rows": [
        {"stream": "blocks.*", "codec": "brotli", "filter": "none", "elements": 4, "bytes": 3,
         "bits_per_weight": 6.0, "encode_mb_s": 0.5, "decode_mb_s": 300.0},
    ],
}  # fmt: skip
BITS = {
    "schema": "qpack.bench-bits/1",
    "rows": [{"name": "int6", "qmax": 31, "bytes": 10, "bits_per_weight": 5.2, "bpb": 1.5,
              "gap": 0.001, "kl": 0.002}],
}  # fmt: skip


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    seen: list[dict[str, Any]] = []

    def answer(table: dict[str, Any]) -> Any:
        def run(path: Path, **options: Any) -> dict[str, Any]:
            seen.append({"path": path, **options})
            return table

        return run

    fake = types.SimpleNamespace(bench_codecs=answer(CODECS), bench_bits=answer(BITS))
    monkeypatch.setitem(sys.modules, "qpack.bench", fake)
    return seen


@pytest.fixture
def given(tmp_path: Path) -> Path:
    path = tmp_path / "given"
    path.write_bytes(b"x")
    return path


def test_codecs(qpack: Runner, asked, given: Path, tmp_path: Path) -> None:
    outcome = qpack("bench", "codecs", given, "--codecs", "brotli", "-o", tmp_path / "t.json")
    assert outcome.code == 0, outcome.err
    header, row = outcome.out.splitlines()
    assert header.split("  ")[0] == "stream" and "encode mb s" in header
    assert row.split() == ["blocks.*", "brotli", "none", "4", "3", "6", "0.5", "300"]
    assert json.loads((tmp_path / "t.json").read_text()) == CODECS
    assert (asked[0]["path"], asked[0]["codecs"]) == (given, ("brotli",))


def test_bits(qpack: Runner, asked, given: Path) -> None:
    outcome = qpack(
        "bench", "bits", given, "--calib", given, "--tokenizer", given, "--budget", "12MB", "--json"
    )
    assert outcome.code == 0, outcome.err
    assert outcome.document == BITS
    assert asked[0]["budget_bytes"] == 12_000_000
    assert (asked[0]["calib_tokens"], asked[0]["val"], asked[0]["val_tokens"]) == (
        65_536,
        None,
        32_768,
    )


def test_refusals_come_before_the_work(qpack: Runner, asked, given: Path) -> None:
    assert qpack("bench", "codecs", given, "-o", given).code == 3
    assert qpack("bench", "codecs", given.with_name("gone")).code == 3
    assert qpack("bench", "bits", given, "--calib", "gone", "--tokenizer", given).code == 3
    assert asked == []
