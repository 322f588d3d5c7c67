"""The benchmark tables on a real (small) checkpoint: their numbers agree with one another."""

from pathlib import Path
from typing import Any

import pytest

from qpack.bench import bench_bits, bench_codecs
from qpack.options import PackOptions
from qpack.pipeline import pack_checkpoint

from .test_pipeline import with_out


def test_codecs(given: PackOptions, tmp_path: Path) -> None:
    table = bench_codecs(given.checkpoint)
    totals = {row["codec"]: row for row in table["rows"] if row["stream"] == "all"}
    rans = totals.pop("rans")
    assert totals.keys() == {"store", "lzma", "lzma-raw", "brotli", "zstd"}
    assert rans["elements"] == totals["store"]["elements"]
    assert rans["bytes"] < 1.1 * totals["brotli"]["bytes"]
    for codec, total in totals.items():
        own = [row for row in table["rows"] if row["codec"] == codec and row["stream"] != "all"]
        assert total["bytes"] == sum(row["bytes"] for row in own)
        assert total["elements"] == sum(row["elements"] for row in own)
        slowest = min(row["encode_mb_s"] for row in own)
        assert slowest <= total["encode_mb_s"] <= max(row["encode_mb_s"] for row in own)
    assert totals["store"]["bits_per_weight"] == 8
    assert totals["brotli"]["bits_per_weight"] < 1.2 * table["entropy_bits_per_weight"]
    pack_checkpoint(with_out(given, tmp_path / "m.qpk"))
    again = bench_codecs(tmp_path / "m.qpk", codecs=["lzma"])
    assert again["integers"] == "of the artifact"
    assert {row["codec"] for row in again["rows"]} == {"lzma"}


def bits_table(given: PackOptions, budget_bytes: int) -> dict[str, Any]:
    assert given.calib is not None
    return bench_bits(
        given.checkpoint,
        calib=given.calib,
        tokenizer=given.tokenizer,
        calib_tokens=2048,
        val_tokens=512,
        budget_bytes=budget_bytes,
        device="cpu",
    )


def test_bits(given: PackOptions) -> None:
    table = bits_table(given, 50_000)
    rows = {row["name"].partition(":")[0]: row for row in table["rows"]}
    five, six, eight = rows["int5"], rows["int6"], rows["int8"]
    assert five["bytes"] < six["bytes"] < eight["bytes"]
    assert five["kl"] > six["kl"] > eight["kl"] > 0
    searched = [row for row in table["rows"] if row["name"].startswith("Auto-QMax")]
    assert {row["knob"] for row in searched} == {"k", "qmax"}
    assert all(row["bytes"] <= 50_000 for row in searched)
    assert table["skipped"] == []


def test_a_budget_below_the_qmax_range_is_said(given: PackOptions) -> None:
    table = bits_table(given, 20_000)
    assert [skip["knob"] for skip in table["skipped"]] == ["qmax"]
    assert "smallest possible" in table["skipped"][0]["reason"]
    assert table["rows"][-1]["bytes"] == pytest.approx(20_000, rel=0.02)
