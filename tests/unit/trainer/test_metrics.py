from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from qpack.errors import SetupError
from qpack.trainer import metrics
from qpack.trainer.metrics import Metrics


def rows(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_a_line_an_entry_readable_at_once(tmp_path: Path) -> None:
    with Metrics(tmp_path) as written:
        written.log(10, 1.25, loss=3.5)
        assert rows(tmp_path) == [{"step": 10, "seconds": 1.25, "loss": 3.5}]
        written.log(20, 2.5, val_bpb=1.5, weights="ema")
    assert rows(tmp_path)[1] == {"step": 20, "seconds": 2.5, "val_bpb": 1.5, "weights": "ema"}


def test_a_new_run_begins_an_empty_file(tmp_path: Path) -> None:
    for loss in (1.0, 2.0):
        with Metrics(tmp_path) as written:
            written.log(1, 0.0, loss=loss)
    assert [row["loss"] for row in rows(tmp_path)] == [2.0]


def test_a_resumed_run_drops_what_it_will_write_again(tmp_path: Path) -> None:
    with Metrics(tmp_path) as written:
        for step in (10, 20, 30):
            written.log(step, float(step), loss=1.0)
    text = (tmp_path / "metrics.jsonl").read_text()
    (tmp_path / "metrics.jsonl").write_text("not a line\n" + text)
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 40, "sec')  # the crash was here
    with Metrics(tmp_path, after=20) as written:
        written.log(30, 30.0, loss=2.0)
    assert [(row["step"], row["loss"]) for row in rows(tmp_path)] == [
        (10, 1.0), (20, 1.0), (30, 2.0),
    ]  # fmt: skip


def test_tensorboard_is_an_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "torch.utils.tensorboard", None)
    with pytest.raises(SetupError, match="needs the package tensorboard"):
        Metrics(tmp_path, tensorboard=True)


def test_tensorboard_files_hold_the_scalars(tmp_path: Path) -> None:
    loading = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    with Metrics(tmp_path, tensorboard=True) as written:
        written.log(10, 1.0, loss=3.5, weights="ema")
        written.log(20, 2.0, loss=3.25)
    events = loading.EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert events.Tags()["scalars"] == ["loss"]
    assert [(e.step, e.value) for e in events.Scalars("loss")] == [(10, 3.5), (20, 3.25)]


def test_the_check_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "torch.utils.tensorboard", None)
    with pytest.raises(SetupError, match=r"qpack-lm\[tensorboard\]"):
        metrics.check_tensorboard()
