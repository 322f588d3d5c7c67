"""The benchmark beside other quantizers: what is counted, what is pinned, what peers are given."""

from __future__ import annotations

import importlib
import json
import math
import shutil
import sys
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file

from qpack.options import PackOptions

MODULES = ("environments", "gaussian", "launch", "rows", "run", "worker")


@pytest.fixture(scope="module")
def peers(root: Path) -> Iterator[dict[str, ModuleType]]:
    """The benchmark's modules, which import one another as scripts do."""
    folder = str(root / "benchmarks" / "peers")
    sys.path.insert(0, folder)
    try:
        yield {name: importlib.import_module(name) for name in MODULES}
    finally:
        sys.path.remove(folder)
        for name in MODULES:
            sys.modules.pop(name, None)


def test_each_row_has_a_script_and_pins(peers: dict[str, ModuleType], root: Path) -> None:
    folder = root / "benchmarks" / "peers"
    rows = peers["rows"]
    for name, row in rows.ROWS.items():
        assert (folder / f"with_{row.peer}.py").exists(), name
        if row.peer not in rows.OWN:
            pins = peers["environments"].pins(row.peer)
            assert {"numpy", "safetensors"} < pins.keys(), name
    used = {row.peer for row in rows.ROWS.values()}
    assert {path.stem.removeprefix("with_") for path in folder.glob("with_*.py")} == used


def test_rows_at_the_bytes_of_others_follow_them(peers: dict[str, ModuleType]) -> None:
    names = list(peers["rows"].ROWS)
    for name, row in peers["rows"].ROWS.items():
        if row.at_bytes_of is not None:
            assert names.index(row.at_bytes_of) < names.index(name)


def test_rows_are_chosen_by_name_or_peer(peers: dict[str, ModuleType]) -> None:
    chosen = peers["rows"].chosen
    assert list(chosen(["hqq", "GGUF Q4_0"])) == ["hqq 4 bit g64", "hqq 3 bit g64", "GGUF Q4_0"]
    assert chosen(None) == peers["rows"].ROWS
    with pytest.raises(SystemExit, match="no such row or peer: hqqq"):
        chosen(["hqqq"])


def test_an_environment_that_is_not_as_pinned_is_named(peers: dict[str, ModuleType]) -> None:
    differences = peers["environments"].differences
    pinned = {"torch": "2.13.0", "typing_extensions": "4.16.0", "numpy": "1.26.4", "gguf": "0.19.0"}
    installed = {"torch": "2.13.0+cpu", "typing-extensions": "4.16.0", "numpy": "2.4.6", "pip": "1"}
    assert differences(pinned, installed) == [
        "numpy 2.4.6, not 1.26.4",
        "gguf is missing, not 0.19.0",
    ]


def write_task(peers: dict[str, ModuleType], path: Path) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = {"a": (4, 3), "b": (2, 3), "c": (5, 2)}
    weights = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    H = torch.tensor([[2.0, 0.5, 0.0], [0.5, 1.0, 0.0], [0.0, 0.0, 3.0]])
    members = {"a": "a", "b": "a"}
    peers["launch"].write_task(
        path, weights, hessians={"a": H}, members=members, tables=["c"], files={"x": "y"}
    )
    return weights


def test_peers_get_weights_and_hessians(peers: dict[str, ModuleType], tmp_path: Path) -> None:
    weights = write_task(peers, tmp_path / "task.safetensors")
    task = peers["worker"].Task(tmp_path / "task.safetensors")
    assert task.weights.keys() == weights.keys()
    assert all(np.array_equal(task.weights[name], w.numpy()) for name, w in weights.items())
    assert task.hessian("a") is task.hessian("b")
    assert task.hessian("a")[0, 1] == 0.5
    assert np.array_equal(task.hessian("c"), np.eye(2))
    assert task.known["files"] == {"x": "y"}
    assert task.known["tables"] == ["c"]


def test_what_is_stored_is_counted_and_decoded(
    peers: dict[str, ModuleType], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Through the command line of a script, whose peer rounds to whole numbers."""
    worker = peers["worker"]
    weights = write_task(peers, tmp_path / "task.safetensors")

    class Whole(worker.Peer):  # type: ignore[name-defined,misc]
        def encode(self, folder: Path) -> None:
            rounded = {name: np.rint(w).astype(np.int8) for name, w in self.task.weights.items()}
            save_file(rounded, folder / "x.safetensors")
            (folder / "more.bin").write_bytes(b"123")
            self.facts["settings"] = self.settings

        def decode(self, folder: Path) -> Any:
            stored = load_file(folder / "x.safetensors")
            return {name: m.astype(np.float32) for name, m in stored.items()}

    paths = [tmp_path / name for name in ("task.safetensors", "out.safetensors", "result.json")]
    words = ["with", *map(str, paths), "--settings", '{"bits": 8}', "--threads", "1"]
    monkeypatch.setattr(sys, "argv", words)
    monkeypatch.setattr(worker.os, "sched_setaffinity", lambda *_: None)
    worker.main(Whole, ("numpy",))
    result = json.loads(paths[2].read_text())
    assert result["stored_bytes"] == sum(w.numel() for w in weights.values()) + 3
    assert result["facts"] == {"settings": {"bits": 8}}
    assert result["packages"] == {"numpy": np.__version__}
    assert result["threads"] == 1
    assert all(seconds["wall"] > 0 for seconds in result["seconds"].values())
    decoded = {name: torch.tensor(w) for name, w in load_file(paths[1]).items()}
    assert all(torch.equal(decoded[name], w.round()) for name, w in weights.items())
    lost = sum(float((w - w.round()).square().sum()) for w in weights.values())
    whole = sum(float(w.square().sum()) for w in weights.values())
    error = peers["launch"].relative_error(weights, decoded)
    assert math.isclose(error, lost / whole, rel_tol=1e-5)


def options_for(given: PackOptions, folder: Path) -> Namespace:
    return Namespace(
        checkpoint=given.checkpoint,
        tokenizer=given.tokenizer,
        calib=given.calib,
        calib_tokens=given.calib_tokens,
        val=given.calib,
        val_tokens=256,
        window=given.window,
        environments=folder,
        work=folder / "work",
        threads=1,
        out=folder / "out.json",
    )


def test_rows_are_counted_and_scored(
    peers: dict[str, ModuleType],
    given: PackOptions,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A peer that changes nothing loses nothing; its bytes and those of the rest are counted."""
    run, row = peers["run"], peers["rows"].Row
    bench = run.Bench(options_for(given, tmp_path))
    factor = 1.0
    asked = []

    def launched(peer: str, task: Path, settings: Any, **_: Any) -> Any:
        asked.append(settings)
        known = peers["worker"].Task(task)
        assert all(known.hessian(n).shape == (w.shape[1],) * 2 for n, w in known.weights.items())
        decoded = {name: torch.tensor(w) * factor for name, w in known.weights.items()}
        return decoded, {"stored_bytes": 1000, "seconds": {}}

    monkeypatch.setattr(run.launch, "run", launched)
    with pytest.raises(peers["launch"].PeerError, match="needs the row 'exact' first"):
        bench.measured(row(peer="gguf", at_bytes_of="exact"))
    exact = bench.measured(row(peer="gguf"))
    bench.add("exact", exact)
    factor = 0.7
    changed = bench.measured(row(peer="gguf", settings={"a": 1}, at_bytes_of="exact"))
    weights = bench.document["weights"] - bench.document["quantized_weights"]
    assert exact["bytes"] == 1000 + 2 * weights > 1000
    assert asked == [{}, {"a": 1, "budget_bytes": exact["bytes"]}]
    assert exact["relative_mse"] == 0
    assert abs(exact["kl"]) < 1e-6 < changed["kl"]
    assert math.isclose(changed["relative_mse"], 0.09, rel_tol=1e-4)
    again = run.Bench(options_for(given, tmp_path))
    assert again.rows == {"exact": exact}
    other = options_for(given, tmp_path)
    other.window = 32
    with pytest.raises(SystemExit, match="differs in settings"):
        run.Bench(other)


@pytest.mark.slow  # each row is a process of its own
def test_own_rows_are_whole_files(
    peers: dict[str, ModuleType], given: PackOptions, tmp_path: Path
) -> None:
    bench = peers["run"].Bench(options_for(given, tmp_path))
    rows = peers["rows"].ROWS
    for name in ("record recipe, brotli", "qpack at the record's bytes"):
        bench.add(name, bench.measured(rows[name]))
    record, ours = bench.rows.values()
    assert record["bytes"] == record["stored_bytes"] > 10_000
    assert 0.99 * record["bytes"] < ours["bytes"] <= record["bytes"]
    assert ours["facts"]["knob"] == "c"
    assert ours["kl"] > 0 and record["kl"] > 0


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("lrzip") is None, reason="needs the program lrzip")
def test_lrzip_gives_back_what_it_was_given(
    peers: dict[str, ModuleType], given: PackOptions, tmp_path: Path
) -> None:
    bench = peers["run"].Bench(options_for(given, tmp_path))
    rows = peers["rows"].ROWS
    through = bench.measured(rows["record recipe, lrzip"])
    record = bench.measured(rows["record recipe, brotli"])
    assert through["kl"] == record["kl"]
    assert through["bytes"] != record["bytes"]
    assert 0.9 < through["bytes"] / record["bytes"] < 1.2
