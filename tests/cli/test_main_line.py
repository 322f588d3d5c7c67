"""The commands one after the other, as a user would type them, on a model of 30,000 weights."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from safetensors.torch import load_file

from .conftest import Runner
from .given import Files


def test_import(qpack: Runner, files: Files, checkpoint: Path, tmp_path: Path) -> None:
    out = tmp_path / "model.safetensors"
    outcome = qpack("import", files.foreign, "-o", out, "--set", "rope_base=5000", "--json")
    assert outcome.code == 0, outcome.err
    document = outcome.document
    assert document["architecture"] == "gpt"
    assert document["config"]["rope_base"] == 5000
    assert document["parameters"] == sum(value.numel() for value in load_file(out).values())
    again = qpack("import", files.foreign, "-o", out)
    assert (again.code, again.out) == (3, "")
    assert qpack("import", files.foreign, "-o", out, "--force").code == 0
    assert out.read_bytes() == checkpoint.read_bytes()


def test_import_refuses_before_it_reads(qpack: Runner, files: Files, tmp_path: Path) -> None:
    outcome = qpack("import", tmp_path / "gone.pt", "-o", tmp_path / "m.safetensors")
    assert outcome.code == 3 and "gone.pt" in outcome.err
    outcome = qpack("import", files.foreign, "-o", tmp_path / "m", "--set", "layers")
    assert outcome.code == 3 and "KEY=VALUE" in outcome.err


def evaluate(qpack: Runner, files: Files, model: Path, *more: object) -> dict[str, float]:
    outcome = qpack(
        "eval", model, "--tokens", files.shard, "--tokenizer", files.tokenizer,
        "--window", 64, "--max-tokens", 640, "--device", "cpu", "--json", *more,
    )  # fmt: skip
    assert outcome.code == 0, outcome.err
    return outcome.document


def test_pack_and_everything_after(
    qpack: Runner, files: Files, checkpoint: Path, tmp_path: Path
) -> None:
    artifact, report = tmp_path / "model.qpk", tmp_path / "report.json"
    packed = qpack(
        "pack", checkpoint, "--budget", "36kB", "--calib", files.shard, "--calib-tokens", 1024,
        "--tokenizer", files.tokenizer, "--val-tokens", 640, "--window", 64, "--device", "cpu",
        "--report", report, "--code", __file__, "--progress", "none", "-o", artifact, "--json",
    )  # fmt: skip
    assert packed.code == 0, packed.err
    document = packed.document
    keys = "artifact_bytes budget_bytes bpb_float bpb_decoded gap kl bits_per_weight sha256"
    assert all(key in document for key in keys.split())
    assert document["artifact_bytes"] == artifact.stat().st_size <= 36_000
    assert sum(row["bytes"] for row in document["ledger"]) == artifact.stat().st_size
    assert document["command"][:2] == ["qpack", "pack"]
    assert json.loads(report.read_text()) == document
    assert document["sha256"] in report.with_suffix(".md").read_text()

    assert qpack("verify", artifact, "--sha256", document["sha256"]).code == 0
    weights = tmp_path / "weights.safetensors"
    assert qpack("unpack", artifact, "-o", weights).code == 0
    whole = evaluate(qpack, files, checkpoint)
    decoded = evaluate(qpack, files, artifact, "--against", checkpoint)
    assert whole["kl"] is None and decoded["kl"] > 0
    assert evaluate(qpack, files, weights)["nats"] == decoded["nats"]
    assert decoded["tokens"] == whole["tokens"] == 640


def test_pack_says_what_it_made(
    qpack: Runner, files: Files, checkpoint: Path, tmp_path: Path
) -> None:
    outcome = qpack(
        "pack", checkpoint, "--budget", 60_000, "--calib", "self", "--calib-tokens", 128,
        "--val", files.shard, "--tokenizer", files.tokenizer, "--val-tokens", 128,
        "--window", 64, "--stdlib-codecs", "-o", tmp_path / "model.pyz",
    )  # fmt: skip
    assert outcome.code == 0, outcome.err
    assert "of 60,000 B" in outcome.out and "bits per byte" in outcome.out
    assert f"next: qpack verify {tmp_path / 'model.pyz'} --sha256 " in outcome.err


@pytest.mark.parametrize(
    ("changes", "code", "words"),
    [
        ({"--budget": 900}, 5, "largest tensors"),
        ({"--calib": "gone.bin"}, 3, "gone.bin"),
        ({"--knob": "q"}, 3, "knob"),
        ({"--codecs": "broti"}, 3, "brotli"),
        ({"-o": "model.zip"}, 3, ".qpk"),
        ({"--calib-tokens": 10_000_000}, 3, "tokens"),
    ],
)
def test_what_pack_refuses(
    qpack: Runner, files: Files, checkpoint: Path, tmp_path: Path, monkeypatch, changes, code, words
) -> None:
    monkeypatch.chdir(tmp_path)
    options = {
        "--budget": 60_000, "--calib": files.shard, "--calib-tokens": 512, "-o": "model.qpk",
        "--tokenizer": files.tokenizer, "--val-tokens": 128, "--window": 64, **changes,
    }  # fmt: skip
    outcome = qpack("pack", checkpoint, *(word for pair in options.items() for word in pair))
    assert (outcome.code, outcome.out) == (code, ""), outcome.err
    assert words in outcome.err
    assert list(tmp_path.iterdir()) == []


def test_dry_run_writes_nothing(
    qpack: Runner, files: Files, checkpoint: Path, tmp_path: Path
) -> None:
    outcome = qpack(
        "pack", checkpoint, "--budget", 60_000, "--calib", files.shard, "--calib-tokens", 512,
        "--val-tokens", 128, "--window", 64, "--tokenizer", files.tokenizer, "--dry-run",
        "-o", tmp_path / "model.qpk",
    )  # fmt: skip
    assert outcome.code == 0, outcome.err
    assert "tok_emb.weight" in outcome.out and "of 60,000 B" in outcome.out
    assert list(tmp_path.iterdir()) == []
