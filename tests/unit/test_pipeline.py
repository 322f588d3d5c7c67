"""The main line from Python: what it promises of its file, and what bad input gets."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from qpack import proof
from qpack.checkpoint import read_checkpoint, write_checkpoint
from qpack.errors import (
    BudgetError,
    CalibrationError,
    CheckpointError,
    ConfigError,
    DataError,
    OutputExistsError,
    QpackError,
    SetupError,
    VerifyError,
)
from qpack.options import PackOptions
from qpack.pipeline import pack_checkpoint, plan_checkpoint
from qpack.tokens import write_shard

from .conftest import BUDGET


def with_out(given: PackOptions, out: Path, **changes: Any) -> PackOptions:
    return dataclasses.replace(given, out=out, **changes)


def test_the_report_tells_the_truth(given: PackOptions, tmp_path: Path) -> None:
    out, report_path = tmp_path / "m.pyz", tmp_path / "r.json"
    report = pack_checkpoint(with_out(given, out, report=report_path))
    size = out.stat().st_size
    assert report["artifact_bytes"] == size <= BUDGET
    assert size >= 0.99 * BUDGET
    assert sum(row["bytes"] for row in report["ledger"]) == size
    assert report["gap"] == report["bpb_decoded"] - report["bpb_float"]
    assert report["kl"] > 0
    assert report["bits_per_weight"] == 8 * size / report["weights"]["total"]
    assert {row["kind"] for row in report["probes"]} == {"entropy", "codec"}
    assert report["probes"][-1]["kind"] == "codec"
    assert [s["name"] for s in report["stages"]] == [
        "read inputs", "calibrate", "prepare", "fit to budget", "decode elsewhere", "score",
        "report",
    ]  # fmt: skip
    assert report["quality"]["tokens"] == 512
    assert report["inputs"]["validation"]["first_token"] == 1024, "not the calibrated tokens"
    solved = [row for row in report["tensors"] if row.get("damping")]
    assert solved
    # Where few bits are left, a trellis takes more error for fewer bits.
    rich = [row for row in solved if row["bits_per_weight"] > 3]
    assert rich and all(row["error"] < row["error_rtn"] for row in rich)
    assert json.loads(report_path.read_text()) == report
    assert report_path.with_suffix(".md").exists()


def test_same_command_same_bytes(given: PackOptions, tmp_path: Path) -> None:
    first = pack_checkpoint(with_out(given, tmp_path / "a.qpk"))
    second = pack_checkpoint(with_out(given, tmp_path / "b.qpk"))
    assert (tmp_path / "a.qpk").read_bytes() == (tmp_path / "b.qpk").read_bytes()
    assert first["sha256"] == second["sha256"]


def test_saved_statistics_give_the_same_file(given: PackOptions, tmp_path: Path) -> None:
    stats = tmp_path / "stats.safetensors"
    pack_checkpoint(with_out(given, tmp_path / "a.qpk", save_stats=stats))
    pack_checkpoint(with_out(given, tmp_path / "b.qpk", stats=stats))
    assert (tmp_path / "a.qpk").read_bytes() == (tmp_path / "b.qpk").read_bytes()


def test_statistics_of_another_checkpoint(given: PackOptions, tmp_path: Path) -> None:
    stats = tmp_path / "stats.safetensors"
    pack_checkpoint(with_out(given, tmp_path / "a.qpk", save_stats=stats))
    other = read_checkpoint(given.checkpoint)
    other.tensors["tok_emb.weight"][0, 0] += 1
    write_checkpoint(tmp_path / "other.safetensors", other)
    options = with_out(
        given, tmp_path / "b.qpk", checkpoint=tmp_path / "other.safetensors", stats=stats
    )
    with pytest.raises(CalibrationError, match="another checkpoint"):
        pack_checkpoint(options)
    assert not (tmp_path / "b.qpk").exists()


def test_an_artifact_can_be_packed_again(given: PackOptions, tmp_path: Path) -> None:
    pack_checkpoint(with_out(given, tmp_path / "a.qpk"))
    options = with_out(
        given, tmp_path / "b.qpk", checkpoint=tmp_path / "a.qpk", budget_bytes=30_000
    )
    assert pack_checkpoint(options)["artifact_bytes"] <= 30_000


def test_self_calibration_reads_no_text(given: PackOptions, tmp_path: Path) -> None:
    options = with_out(given, tmp_path / "m.qpk", calib=None, val=given.calib, calib_tokens=256)
    report = pack_checkpoint(options)
    assert report["inputs"]["calibration"]["name"] == "self"
    with pytest.raises(DataError, match="none to score"):
        pack_checkpoint(with_out(given, tmp_path / "n.qpk", calib=None))


def test_standard_codecs_code_and_tokenizer_are_counted(given: PackOptions, tmp_path: Path) -> None:
    code = tmp_path / "train_gpt.py"
    code.write_text("# a comment\ndef f(value):\n    '''words'''\n    return value + 1\n" * 40)
    out = tmp_path / "m.pyz"
    report = pack_checkpoint(
        with_out(
            given, out, stdlib_codecs=True, code=(code,), embed_tokenizer=True, budget_bytes=150_000
        )
    )
    parts = {row["part"]: row["bytes"] for row in report["ledger"]}
    with pytest.raises(BudgetError, match=f"file {given.tokenizer.name}"):
        pack_checkpoint(with_out(given, tmp_path / "n.pyz", embed_tokenizer=True))
    assert parts["file train_gpt.py"] > 0
    assert parts[f"file {given.tokenizer.name}"] > 0
    assert {s["codec"] for s in report["streams"]} <= {"store", "lzma", "lzma-raw", "rans"}
    assert report["artifact_bytes"] == out.stat().st_size <= 150_000


def test_dry_run_predicts_and_writes_nothing(given: PackOptions, tmp_path: Path) -> None:
    plan = plan_checkpoint(with_out(given, tmp_path / "m.qpk"))
    assert list(tmp_path.iterdir()) == []
    assert plan["predicted_bytes"] <= BUDGET
    real = pack_checkpoint(with_out(given, tmp_path / "m.qpk"))
    assert plan["knob"]["value"] == pytest.approx(real["knob"]["value"], rel=0.5)
    assert any("an estimate" in warning for warning in plan["warnings"])
    assert plan["bits_per_weight"] == pytest.approx(real["bits_per_weight"], rel=0.05)
    assert {row["name"] for row in plan["tensors"]} == {row["name"] for row in real["tensors"]}


def test_a_budget_that_leaves_little_of_the_model_is_told(
    given: PackOptions, tmp_path: Path
) -> None:
    little, enough = (
        with_out(given, tmp_path / name, budget_bytes=budget)
        for name, budget in (("l.qpk", BUDGET // 6), ("e.qpk", BUDGET))
    )
    for run in (plan_checkpoint, pack_checkpoint):
        told, quiet = run(little), run(enough)
        assert told["bits_per_weight"] < 1 < quiet["bits_per_weight"]
        assert any("little of the model" in warning for warning in told["warnings"])
        assert not any("little of the model" in warning for warning in quiet["warnings"])


@pytest.mark.parametrize("knob", ["qmax", "qmax-floor"])
def test_integer_knobs(given: PackOptions, tmp_path: Path, knob: str) -> None:
    options = with_out(given, tmp_path / "m.qpk", knob=knob, budget_bytes=50_000)
    report = pack_checkpoint(options)
    assert 31 <= report["knob"]["value"] <= 127
    assert report["artifact_bytes"] <= 50_000


def test_a_file_that_decodes_to_something_else_is_never_left(
    given: PackOptions, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = proof.decode_elsewhere

    def tampered(path: Path) -> tuple[dict[str, torch.Tensor], str]:
        decoded, digest = real(path)
        decoded["tok_emb.weight"].reshape(-1)[7] += 1e-6
        decoded["extra"] = torch.zeros(1)
        return decoded, digest

    monkeypatch.setattr("qpack.produce.decode_elsewhere", tampered)
    with pytest.raises(VerifyError) as caught:
        pack_checkpoint(with_out(given, tmp_path / "m.qpk"))
    assert caught.value.items == ("extra: unexpected", "tok_emb.weight: other values")
    assert list(tmp_path.iterdir()) == []


def test_a_decoder_that_fails_is_reported(tmp_path: Path) -> None:
    (tmp_path / "m.qpk").write_bytes(b"not an artifact")
    with pytest.raises(VerifyError, match="its own decoder failed"):
        proof.decode_elsewhere(tmp_path / "m.qpk")


def broken_checkpoint(given: PackOptions, folder: Path) -> Path:
    bad = read_checkpoint(given.checkpoint)
    bad.tensors["tok_emb.weight"][3, 4] = float("nan")
    bad.tensors["blocks.1.mlp.fc.weight"][0, 0] = float("inf")
    write_checkpoint(folder / "bad.safetensors", bad)
    return folder / "bad.safetensors"


def shard(folder: Path, tokens: list[int]) -> Path:
    write_shard(folder / "bad.bin", np.array(tokens, np.uint16))
    return folder / "bad.bin"


def text_file(folder: Path, name: str, text: str) -> Path:
    (folder / name).write_text(text)
    return folder / name


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        (lambda g, f: {"checkpoint": broken_checkpoint(g, f)}, CheckpointError, "1 infinite"),
        (lambda g, f: {"calib": shard(f, [1, 60_000] * 1500)}, DataError, "60"),
        (lambda g, f: {"calib": shard(f, [5] * 900)}, CalibrationError, "900"),
        (lambda g, f: {"calib": text_file(f, "x.bin", "no shard")}, DataError, "not a token shard"),
        (lambda g, f: {"val": shard(f, [5] * 100)}, DataError, "100 tokens left to score"),
        (lambda g, f: {"val_tokens": 2500}, DataError, "tokens left to score"),
        (lambda g, f: {"calib_tokens": 63}, CalibrationError, "less than one window"),
        (lambda g, f: {"tokenizer": text_file(f, "t.model", "x")}, DataError, "t.model"),
        (lambda g, f: {"recipe": text_file(f, "r.toml", "[rules]")}, ConfigError, "rule"),
        (
            lambda g, f: {"recipe": text_file(f, "r.toml", '[[rule]]\nmatch = "smear.gate"')},
            ConfigError,
            "blocks.1.mlp.fc.weight: no rule matches it",
        ),
        (lambda g, f: {"codecs": ("brotly",)}, ConfigError, "brotli"),
        (lambda g, f: {"device": "cuda:7"}, SetupError, "cuda"),
        (lambda g, f: {"out": f / "model.bin"}, ConfigError, ".qpk"),
        (lambda g, f: {"out": f / "none" / "m.qpk"}, ConfigError, "folder"),
        (lambda g, f: {"report": f / "r.md"}, ConfigError, "r.json"),
        (lambda g, f: {"report": f.parent / "m.qpk"}, ConfigError, "given twice"),
        (lambda g, f: {"save_stats": g.checkpoint, "force": True}, ConfigError, "inputs too"),
        (
            lambda g, f: {"codecs": ("store",), "budget_bytes": 25_000, "recipe": "record"},
            BudgetError,
            "smallest",
        ),
        (lambda g, f: {"codecs": ("brotli",)}, ConfigError, "needs the codec rans"),
        (lambda g, f: {"budget_bytes": 0}, ConfigError, "budget"),
        (lambda g, f: {"budget_bytes": 900}, BudgetError, "smallest possible artifact"),
        (lambda g, f: {"code": (f / "gone.py",)}, QpackError, "gone.py"),
    ],
)
def test_bad_input(
    given: PackOptions, tmp_path: Path, changes: Any, error: type[QpackError], words: str
) -> None:
    inputs = tmp_path / "inputs"
    inputs.mkdir()
    out = tmp_path / "m.qpk"
    with pytest.raises(error) as caught:
        pack_checkpoint(dataclasses.replace(given, **{"out": out} | changes(given, inputs)))
    assert words in str(caught.value)
    assert not out.exists()


def test_outputs_that_exist_are_named_before_any_work(given: PackOptions, tmp_path: Path) -> None:
    out, report = tmp_path / "m.qpk", tmp_path / "r.json"
    out.write_bytes(b"mine")
    report.with_suffix(".md").write_text("mine too")
    with pytest.raises(OutputExistsError) as caught:
        pack_checkpoint(with_out(given, out, report=report))
    assert len(caught.value.items) == 2
    assert out.read_bytes() == b"mine"


def test_calibrated_tokens_are_not_scored_after_reuse(given: PackOptions, tmp_path: Path) -> None:
    stats = tmp_path / "stats.safetensors"
    pack_checkpoint(with_out(given, tmp_path / "a.qpk", save_stats=stats))
    again = with_out(given, tmp_path / "b.qpk", stats=stats, calib_tokens=64)
    report = pack_checkpoint(again)
    assert report["inputs"]["validation"]["first_token"] == 1024


def test_a_recipe_without_a_knob_is_encoded_once(given: PackOptions, tmp_path: Path) -> None:
    report = pack_checkpoint(with_out(given, tmp_path / "m.qpk", knob="none"))
    assert [probe["kind"] for probe in report["probes"]] == ["codec"]
    assert any("no rule follows the knob" in warning for warning in report["warnings"])
    with pytest.raises(BudgetError, match="which no knob turns"):
        pack_checkpoint(with_out(given, tmp_path / "n.qpk", knob="none", budget_bytes=9_000))


def test_another_tokenizer_of_the_same_size_is_refused(given: PackOptions, tmp_path: Path) -> None:
    pack_checkpoint(with_out(given, tmp_path / "a.qpk"))
    other = tmp_path / "other.model"
    other.write_bytes(given.tokenizer.read_bytes() + b"\x1a\x00")  # an empty field more
    options = with_out(given, tmp_path / "b.qpk", checkpoint=tmp_path / "a.qpk", tokenizer=other)
    with pytest.raises(DataError, match="not the tokenizer of"):
        pack_checkpoint(options)
