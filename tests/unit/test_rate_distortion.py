"""The benchmark of rate and distortion: every row is a recipe, and rows are not done twice."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from qpack.options import PackOptions
from qpack.recipe import read_recipe


@pytest.fixture(scope="module")
def bench() -> ModuleType:
    path = Path(__file__).resolve().parents[2] / "benchmarks" / "rate_distortion.py"
    spec = importlib.util.spec_from_file_location("rate_distortion", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look themselves up
    spec.loader.exec_module(module)
    return module


def test_every_row_changes_the_default_recipe(bench: ModuleType) -> None:
    default = read_recipe("default")
    made = {name: bench.changed(default, row.rule) for name, row in bench.ROWS.items()}
    assert not any(recipe.knob.choose for recipe in made.values())
    quantizers = {
        (tuple(recipe.rules), row.tuned, row.equal_kl)
        for recipe, row in zip(made.values(), bench.ROWS.values(), strict=True)
    }
    assert len(quantizers) == len(bench.ROWS)
    assert any(rule.trellis == 64 for rule in made["rd trellis 64"].rules)


@pytest.mark.slow
def test_rows_are_at_the_bytes_and_at_the_kl_of_the_recipe(
    bench: ModuleType, given: PackOptions, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "rd.json"
    scalar, equal = "rd scalar", "rd scalar at the recipe's KL"
    arguments = [
        given.checkpoint, "--calib", given.calib, "--val", given.calib, "--tokenizer",
        given.tokenizer, "--calib-tokens", 1024, "--val-tokens", 512, "--window", 64,
        "--device", "cpu", "--work", tmp_path, "-o", out, "--rows", scalar,
    ]  # fmt: skip

    def run(*more: str) -> dict[str, Any]:
        monkeypatch.setattr(sys, "argv", ["rate_distortion.py", *map(str, [*arguments, *more])])
        bench.main()
        document: dict[str, Any] = json.loads(out.read_text())
        return document

    monkeypatch.setattr(bench, "NEAR", 0.1)
    first = run()
    rows = first["rows"]
    assert list(rows) == ["record", scalar]
    assert rows["record"]["kl_ratio"] == 1 and rows["record"]["value"] == 12.85
    assert 0.95 * rows["record"]["bytes"] < rows[scalar]["bytes"] <= rows["record"]["bytes"]
    assert set(first["seconds"]) == {"calibrate"}
    assert {"prepare", "fit", "encode", "decode", "score"} <= set(rows[scalar]["seconds"])
    second = run(equal)
    assert second["rows"]["record"] == rows["record"] and second["seconds"] == first["seconds"]
    assert 0.85 < second["rows"][equal]["kl_ratio"] <= 1
    with pytest.raises(SystemExit, match="differs in settings"):
        run("--window", "32")
