"""The benchmark of evaluation: rows beside their control, kept, and never mixed with other ones."""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from qpack.checkpoint import write_checkpoint
from qpack.errors import ConfigError
from qpack.importing import import_file
from tests.cli.given import make_files

Run = Callable[..., dict[str, Any]]


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("given")
    files = make_files(folder)
    model = folder / "model.safetensors"
    write_checkpoint(model, import_file(files.foreign), force=False)
    return [model, files.shard, files.tokenizer]


@pytest.fixture
def run(given: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    path = Path(__file__).resolve().parents[2] / "benchmarks" / "evaluation.py"
    spec = importlib.util.spec_from_file_location("evaluation", path)
    assert spec is not None and spec.loader is not None
    bench = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(bench)
    monkeypatch.setattr(bench, "WINDOW", 32)
    monkeypatch.setattr(bench, "STRIDE", 8)
    model, shard, tokenizer = map(str, given)

    def main(*more: str) -> dict[str, Any]:
        options = ["--tokens", shard, "--tokenizer", tokenizer, "--max-tokens", "200"]
        options += ["--device", "cpu", "--work", str(tmp_path / "work")]
        out = tmp_path / "out.json"
        command = ["evaluation.py", model, "--float", model, *options, "-o", str(out)]
        monkeypatch.setattr(sys, "argv", [*command, *more])
        bench.main()
        found: dict[str, Any] = json.loads(out.read_text("utf-8"))
        return found

    return main


def test_rows_stand_beside_their_control(run: Run) -> None:
    rows = run(
        "--rows", "float", "sliding", "sliding+sgd", "documents+lora",
        "--set", "lora.chunk_tokens=8", "adapt.chunk_tokens=40", "adapt.learning_rate=0.1",
    )["rows"]  # fmt: skip
    controls = {name: row["control"] and row["control"]["name"] for name, row in rows.items()}
    assert controls == {
        "float": None, "disjoint": None, "sliding": "disjoint", "sliding+sgd": "sliding by 8",
        "lora-off": "disjoint", "documents+lora": "sliding by 8, documents apart",
    }  # fmt: skip
    assert rows["float"]["nats"] == rows["disjoint"]["nats"]
    for name, control in (("sliding+sgd", "sliding"), ("documents+lora", "lora-off")):
        gain = rows[control]["bpb"] - rows[name]["bpb"]
        assert rows[name]["control"]["gain"] == pytest.approx(gain, abs=1e-12)
        assert gain != 0.0
    assert all(row["tokens"] == 200 for row in rows.values())


def test_a_kept_row_is_not_made_again_and_is_of_the_same_settings(run: Run) -> None:
    chunks = "adapt.chunk_tokens=40"
    first = run("--rows", "disjoint+sgd", "--set", chunks)
    again = run("--rows", "disjoint+sgd", "sliding", "--set", chunks)
    assert list(again["rows"]) == ["disjoint", "disjoint+sgd", "sliding"]
    assert again["rows"]["disjoint+sgd"] == first["rows"]["disjoint+sgd"]
    with pytest.raises(SystemExit, match=r"disjoint\+sgd has other settings"):
        run("--rows", "disjoint+sgd", "--set", "adapt.chunk_tokens=80")
    with pytest.raises(SystemExit, match="disjoint was not probed"):
        run("--rows", "disjoint", "--check")
    assert run("--rows", "disjoint+sgd", "--set", chunks)["rows"] == again["rows"]


def test_a_setting_that_nothing_reads_is_refused(run: Run) -> None:
    with pytest.raises(ConfigError, match="nothing here reads"):
        run("--rows", "disjoint", "--set", "ngram.max_order=3")


@pytest.mark.slow
def test_a_row_that_is_kept_can_be_proved_later(run: Run) -> None:
    assert run("--rows", "disjoint")["proofs"] == {}
    assert run("--rows", "disjoint", "--prove", "60")["proofs"]["disjoint"]["asked_bytes"] == 60
