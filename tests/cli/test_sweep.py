"""`qpack sweep` as typed; the library's work is a fake here."""

from __future__ import annotations

import json
import sys
import types
from pathlib import Path
from typing import Any

import pytest

from .conftest import Runner

CURVE = {
    "schema": "qpack.sweep/1",
    "model": "tiny",
    "tokens": 4,
    "points": [
        {"recipe": name, "budget_bytes": 1000, "bytes": 990, "bits_per_weight": 3.5, "bpb": 1.5,
         "gap": 0.002, "kl": 0.01, "value": 1.0}
        for name in ("default", "record")
    ],
}  # fmt: skip


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    seen: list[Any] = []

    def run(options: Any, budgets: list[int], **more: Any) -> dict[str, Any]:
        seen.append((options, budgets, more))
        return CURVE

    monkeypatch.setitem(sys.modules, "qpack.sweep", types.SimpleNamespace(sweep=run))
    return seen


@pytest.fixture
def given(tmp_path: Path) -> Path:
    path = tmp_path / "given"
    path.write_bytes(b"x")
    return path


def test_what_is_next_packs_from_the_same_statistics(
    qpack: Runner, asked: list[Any], given: Path, tmp_path: Path
) -> None:
    outcome = qpack(
        "sweep", given, "8MB", "--calib", given, "--tokenizer", given, "-o", tmp_path / "c.json",
        "--calib-tokens", "5000", "--sens-tokens", "3000", "--stats", given,
    )  # fmt: skip
    assert len(asked) == 1
    line = outcome.err.partition("next: ")[2]
    assert f"--calib-tokens 5000 --sens-tokens 3000 --tokenizer {given} --stats {given}" in line


def test_what_is_asked_and_what_is_left(
    qpack: Runner, asked: list[Any], given: Path, tmp_path: Path
) -> None:
    outcome = qpack(
        "sweep", given, "8MB", "10_000_000", "11.5MiB", "--calib", given, "--tokenizer", given,
        "--val", given, "-o", tmp_path / "c.json", "--plot", tmp_path / "c.svg",
        "--recipes", "default, mine.toml",
    )  # fmt: skip
    assert outcome.code == 0, outcome.err
    ((options, budgets, more),) = asked
    assert budgets == [8_000_000, 10_000_000, 12_058_624]
    assert more["recipes"] == ("default", "mine.toml")
    assert (options.calib, options.val, options.calib_tokens) == (given, given, 65_536)
    assert options.out.suffix == ".pyz"
    assert json.loads((tmp_path / "c.json").read_text()) == CURVE
    assert (tmp_path / "c.svg").read_text().startswith("<?xml")
    header, first, second = outcome.out.splitlines()
    assert header.split("  ")[0] == "recipe" and "bits per weight" in header
    assert (first.split()[0], second.split()[:3]) == ("default", ["record", "1,000", "990"])


def test_json(qpack: Runner, asked: list[Any], given: Path, tmp_path: Path) -> None:
    outcome = qpack(
        "sweep", given, "1MB", "--calib", "self", "--tokenizer", given, "--val", given,
        "-o", tmp_path / "c.json", "--json", "-q",
    )  # fmt: skip
    assert (outcome.code, outcome.err, outcome.document) == (0, "", CURVE)
    assert asked[0][0].calib is None
    assert asked[0][2]["recipes"] == ("default", "record")


@pytest.mark.parametrize(
    ("change", "code"),
    [
        (("1parsec",), 2),
        ((), 2),
        (("1MB", "--plot", "c.pdf"), 3),
        (("1MB", "--val", "gone"), 3),
    ],
)
def test_refusals_come_before_the_work(
    qpack: Runner,
    asked: list[Any],
    given: Path,
    tmp_path: Path,
    change: tuple[str, ...],
    code: int,
) -> None:
    data = ("--calib", given, "--tokenizer", given, "-o", tmp_path / "c.json")
    assert qpack("sweep", given, *change, *data).code == code
    assert asked == []


def test_an_input_is_never_the_output(qpack: Runner, asked: list[Any], given: Path) -> None:
    data = ("--calib", given, "--tokenizer", given, "-o", given)
    assert qpack("sweep", given, "1MB", *data).code == 3
    assert qpack("sweep", given, "1MB", *data, "--force").code == 3
    assert asked == []
