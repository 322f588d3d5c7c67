"""The curve of a small checkpoint: points that agree with the files that a pack would write."""

from __future__ import annotations

from pathlib import Path

import pytest

from qpack.errors import BudgetError, ConfigError
from qpack.options import PackOptions
from qpack.pipeline import pack_checkpoint
from qpack.sweep import sweep

from .test_pipeline import with_out

FINE = """
[knob]
name = "k"
[[rule]]
match = ["class:embedding", "class:matrix"]
scale = "sigma"
bits = 6
knob = true
[[rule]]
match = ["class:vector", "class:buffer"]
type = "keep"
"""


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("recipe") / "own.toml"
    path.write_text(FINE)
    return path


def test_points_are_whole_files(given: PackOptions, own: Path, tmp_path: Path) -> None:
    options = with_out(given, tmp_path / "c.qpk", codecs=("rans",))
    curve = sweep(options, [30_000, 30_000], recipes=["default", own])
    assert not list(tmp_path.iterdir())
    ours, packed = curve["points"]
    assert (ours["recipe"], packed["recipe"]) == ("default", "own.toml")
    for point in curve["points"]:
        assert 0.98 * 30_000 < point["bytes"] <= point["budget_bytes"] == 30_000
        assert point["bits_per_weight"] == 8 * point["bytes"] / curve["weights"]
        assert point["gap"] == point["bpb"] - point["bpb_float"]
    assert ours["bpb_float"] == packed["bpb_float"] and ours["kl"] != packed["kl"] > 0
    assert set(curve["recipes"]) == {"default", "own.toml"}
    assert curve["choices"]["own.toml"] is None
    assert len(curve["choices"]["default"]["options"]) == 2
    assert curve["skipped"] == []
    report = pack_checkpoint(with_out(options, tmp_path / "m.qpk", recipe=own, budget_bytes=30_000))
    assert (packed["bytes"], packed["kl"]) == (report["artifact_bytes"], report["kl"])


def test_what_cannot_be_reached_is_skipped_with_its_reason(given: PackOptions, own: Path) -> None:
    curve = sweep(given, [1_000, 40_000], recipes=[own])
    assert [p["budget_bytes"] for p in curve["points"]] == [40_000]
    (skip,) = curve["skipped"]
    assert skip["budget_bytes"] == 1_000 and "smallest possible" in skip["reason"]
    assert any("1,000 B" in warning for warning in curve["warnings"])
    with pytest.raises(BudgetError, match="smallest possible"):
        sweep(given, [1_000, 2_000], recipes=[own])


@pytest.mark.parametrize(
    ("budgets", "recipes", "message"),
    [
        ([], ["record"], "needs budgets"),
        ([0], ["record"], "at least 1 byte"),
        ([40_000], [], "at least one recipe"),
        ([40_000], ["record", "record"], "same name"),
        ([40_000], ["rekord"], "record"),
    ],
)
def test_requests_that_make_no_sense(
    given: PackOptions, budgets: list[int], recipes: list[str], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        sweep(given, budgets, recipes=recipes)
