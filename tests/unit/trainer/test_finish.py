from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from qpack.checkpoint import build_model, read_checkpoint
from qpack.eval.bpb import score
from qpack.tokenizer import Tokenizer
from qpack.tokens import read_shard, sha256_file

from .runs import Told, changed, metrics, run


def test_the_record_says_what_the_run_was(
    config: dict[str, Any], tmp_path: Path, val: Path
) -> None:
    result = run(changed(config, data={"val": [val]}), tmp_path / "run")
    record = json.loads((tmp_path / "run" / "train.json").read_text())
    assert record["config"]["optim"]["matrix_lr"] == 0.02
    assert record["model"]["model_dim"] == 32
    assert record["packages"]["torch"]
    assert record["result"]["sha256"] == result.sha256
    assert result.score is not None
    assert record["result"]["score"]["bpb"] == result.score.bpb


@pytest.mark.parametrize("ship", ["last", "ema", "swa", "mixture"])
def test_what_is_shipped(config: dict[str, Any], ship: str, tmp_path: Path, val: Path) -> None:
    average = {"ema_decay": 0.9, "swa_every": 1, "swa_below": 1.0, "ship": ship, "mix": 0.25}
    config = changed(config, average=average, data={"val": [val]}, loop={"val_tokens": 64})
    result = run(config, tmp_path / "run")
    assert result.shipped == ship
    rows = {row["weights"]: row["val_bpb"] for row in metrics(tmp_path / "run") if "weights" in row}
    assert set(rows) == {"last", "ema", "swa", "mixture"}
    assert len(set(rows.values())) == 4
    assert result.score is not None
    assert rows[ship] == pytest.approx(result.score.bpb, rel=1e-12)


def test_the_best_after_quantization_is_shipped(
    config: dict[str, Any], tmp_path: Path, val: Path
) -> None:
    config = changed(
        config,
        average={"ema_decay": 0.9, "ship": "best"},
        data={"val": [val]},
        loop={"val_tokens": 64, "select_tokens": 256},
        pack={"budget": 60_000},
    )
    result = run(config, tmp_path / "run")
    record = json.loads((tmp_path / "run" / "train.json").read_text())
    rows = {row["weights"]: row["select_bpb_quantized"] for row in record["result"]["candidates"]}
    assert result.shipped == min(rows, key=lambda name: rows[name])


def test_an_interrupt_after_the_last_step_loses_nothing(
    config: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = run(config, tmp_path / "whole" / "run")

    def interrupt(*args: Any) -> None:
        raise KeyboardInterrupt

    folder = tmp_path / "parts" / "run"
    with monkeypatch.context() as patch:
        patch.setattr("qpack.trainer.finish.ship", interrupt)
        with pytest.raises(KeyboardInterrupt):
            run(config, folder)
    parts = run(config, folder, resume=True)
    assert sha256_file(parts.checkpoint) == sha256_file(whole.checkpoint)
    assert (parts.steps, parts.loss) == (whole.steps, whole.loss)


def test_an_order_that_was_never_trained_is_not_shipped(
    config: dict[str, Any], tmp_path: Path, val: Path, tokenizer: Tokenizer
) -> None:
    phases = [
        {"step": 3, "layer_order": [0, 1, 1]},
        {"at": 0.5, "layer_order": [0, 1, 0, 1, 0, 1]},
    ]
    config = changed(config, phase=phases, data={"val": [val]}, model={"skip_gates": True})
    # The clock's progress never passes a half: the budget of time is far away.
    config = changed(config, loop={"max_steps": 6, "max_seconds": 1e9})
    phases[1]["at"] = 1.0
    told = Told()
    result = run(config, tmp_path / "run", progress=told)
    assert any("the run ended before its last phase" in warning for warning in told.warnings)
    assert any("step 3: 3 steps of layers" in note for note in told.notes)
    checkpoint = read_checkpoint(result.checkpoint)
    assert checkpoint.config["layer_order"] == [0, 1, 1]
    again = score(build_model(checkpoint), read_shard(val), tokenizer, window=32)
    assert result.score is not None
    assert again.nats == pytest.approx(result.score.nats, rel=1e-9)


@pytest.mark.parametrize(
    "average",
    [
        {"ship": "swa", "swa_every": 50},
        {"ship": "ema", "ema_decay": 0.9, "ema_from_step": 100},
        {"ship": "mixture", "ema_decay": 0.9, "swa_every": 50},
    ],
    ids=["swa", "ema", "mixture"],
)
def test_an_average_that_never_began_is_not_shipped(
    config: dict[str, Any], average: dict[str, Any], tmp_path: Path
) -> None:
    told = Told()
    result = run(changed(config, average=average), tmp_path / "run", progress=told)
    assert result.shipped == "last"
    assert any("that average never began" in warning for warning in told.warnings)


def test_late_qat_that_never_starts_is_told(config: dict[str, Any], tmp_path: Path) -> None:
    sections = {"qat": {"start_step": 100}, "pack": {"budget": 60_000, "recipe": "record"}}
    told = Told()
    run(changed(config, **sections), tmp_path / "run", progress=told)
    assert "late QAT never switched on: its start was not reached" in told.warnings
    record = json.loads((tmp_path / "run" / "train.json").read_text())
    assert record["result"]["qat_from"] is None
