from __future__ import annotations

import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from qpack import demo
from qpack.demo import run_demo, unigram_bpb
from qpack.errors import OutputExistsError, ResourceError
from qpack.runs.document import Document
from qpack.tokenizer import Tokenizer


def test_unigram_baseline_by_hand(tokenizer: Tokenizer) -> None:
    letter = tokenizer.encode("xe")[-1]
    train = np.array([letter] * 3, dtype=np.uint16)
    val = np.array([1, letter, letter], dtype=np.uint16)
    nats = -2 * math.log(4 / (3 + 384))
    assert unigram_bpb(train, val, tokenizer) == pytest.approx(nats / math.log(2) / 2, rel=1e-12)


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(ResourceError, match="cannot make the folder"):
        run_demo(tmp_path / "file" / "demo")


def test_files_already_there_are_kept(tmp_path: Path) -> None:
    (tmp_path / "model.pyz").write_bytes(b"mine")
    with pytest.raises(OutputExistsError, match=r"model\.pyz"):
        run_demo(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["model.pyz"]


def test_what_is_given_changes_the_preset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Document] = []

    def run(document: Document, folder: Path, **more: object) -> None:
        asked.append(document)
        raise OutputExistsError("enough")

    monkeypatch.setattr(demo, "run", run)
    for options in ({}, {"train_seconds": 5.0, "budget_bytes": 300_000}):
        with pytest.raises(OutputExistsError, match="enough"):
            run_demo(tmp_path, **options)
    plain, changed = (document.tables for document in asked)
    assert (plain["loop"]["max_seconds"], plain["pack"]["budget"]) == (120, 400_000)
    assert (changed["loop"]["max_seconds"], changed["pack"]["budget"]) == (5.0, 300_000)


@pytest.mark.slow
def test_the_whole_line(tmp_path: Path) -> None:
    report = run_demo(tmp_path, train_seconds=20.0)
    artifact = tmp_path / "model.pyz"
    assert artifact.stat().st_size == report["artifact_bytes"] <= report["budget_bytes"] == 400_000
    assert report["budget_use"] > 0.99
    assert report["bpb_float"] < report["demo"]["bpb_unigram"]
    assert report["gap"] < 0.01
    weights = tmp_path / "weights.safetensors"
    subprocess.run([sys.executable, "-I", artifact, "-o", weights], check=True)
    assert set(load_file(weights)) == set(load_file(tmp_path / "model.safetensors"))
