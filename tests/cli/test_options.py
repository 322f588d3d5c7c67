"""How values on the command line are read, and where they come from."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import typer
from hypothesis import given
from hypothesis import strategies as st

from qpack.cli.import_checkpoint import parse_assignments, read_config
from qpack.cli.options import check_input, check_output, parse_bytes, split_names
from qpack.errors import ConfigError, InputError, OutputExistsError
from qpack.options import PackOptions
from tests.unit.report import example

from .conftest import Runner


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("16000000", 16_000_000),
        ("16_000_000", 16_000_000),
        ("16,000,000", 16_000_000),
        ("16MB", 16_000_000),
        ("16 mb", 16_000_000),
        ("15.25MiB", 15_990_784),
        ("0.1GB", 100_000_000),
        ("1.9b", 1),
        ("2kib", 2048),
    ],
)
def test_bytes(text: str, expected: int) -> None:
    assert parse_bytes(text) == expected


@pytest.mark.parametrize(
    "text", ["", "MB", "-1", "1e6", "16 XB", "1.2.3", "0x10", "\N{ARABIC-INDIC DIGIT ONE}"]
)
def test_not_bytes(text: str) -> None:
    with pytest.raises(typer.BadParameter, match="write 16000000, 16MB"):
        parse_bytes(text)


@given(st.integers(0, 10**15))
def test_every_integer_is_itself(value: int) -> None:
    assert (
        parse_bytes(str(value)) == parse_bytes(f"{value:,}") == parse_bytes(f"{value:_}") == value
    )


def test_names() -> None:
    assert split_names(None) is None
    assert split_names(" brotli, lzma,") == ("brotli", "lzma")


def test_inputs_and_outputs(tmp_path: Path) -> None:
    there = tmp_path / "there"
    there.write_bytes(b"x")
    assert check_input(there) == there
    assert check_output(there, force=True) == there
    assert check_output(tmp_path / "new", force=False) == tmp_path / "new"
    with pytest.raises(OutputExistsError, match="--force"):
        check_output(there, force=False)
    for check in (check_input, lambda path: check_output(path, force=True)):
        with pytest.raises(InputError, match="is a folder"):
            check(tmp_path)
    with pytest.raises(InputError, match="no such file"):
        check_input(tmp_path / "gone")
    with pytest.raises(InputError, match="mkdir -p"):
        check_output(tmp_path / "gone" / "new", force=False)


def test_assignments() -> None:
    values = parse_assignments(["rope_base=10000", "tied=true", "name=gpt", "x=", "y=a=b"])
    assert values == {"rope_base": 10_000, "tied": True, "name": "gpt", "x": "", "y": "a=b"}
    with pytest.raises(ConfigError) as caught:
        parse_assignments(["a=1", "b", "=c"])
    assert caught.value.items == ("b", "=c")


@pytest.mark.parametrize("text", ["{", "[1]", b"\xff"])
def test_a_bad_config_file(tmp_path: Path, text: str | bytes) -> None:
    path = tmp_path / "config.json"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    with pytest.raises(ConfigError):
        read_config(path)


def test_a_config_file(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text('{"rope_base": 10000}')
    assert read_config(path) == {"rope_base": 10_000}
    assert read_config(None) == {}


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[PackOptions]:
    """What `qpack pack` asks of the library, which does nothing here."""
    seen: list[PackOptions] = []

    def plan(options: PackOptions, *, progress: Any) -> dict[str, Any]:
        seen.append(options)
        return {
            "schema": "qpack.plan/1",
            "tensors": [],
            "predicted_bytes": 10,
            "bits_per_weight": 3.5,
            "budget_bytes": 11,
            "warnings": ["odd"],
        }

    monkeypatch.setattr("qpack.pipeline.plan_checkpoint", plan)
    return seen


PACK = ("pack", "m.safetensors", "--budget", "16MB", "--tokenizer", "t.model", "--dry-run")


def test_pack_defaults(qpack: Runner, asked: list[PackOptions]) -> None:
    """An option that is not given must mean what the library's own default means."""
    outcome = qpack(*PACK, "--calib", "c.bin", "-o", "m.pyz")
    assert outcome.code == 0, outcome.err
    assert asked == [
        PackOptions(
            checkpoint=Path("m.safetensors"),
            budget_bytes=16_000_000,
            out=Path("m.pyz"),
            tokenizer=Path("t.model"),
            calib=Path("c.bin"),
            command=("qpack", *PACK, "--calib", "c.bin", "-o", "m.pyz"),
        )
    ]
    assert "predicted 10 B of 11 B: fits" in outcome.out


def test_pack_options(qpack: Runner, asked: list[PackOptions]) -> None:
    outcome = qpack(
        *PACK, "--calib", "self", "--out", "m.qpk", "--calib-tokens", 1, "--val", "v.bin",
        "--val-tokens", 2, "--window", 3, "--recipe", "r.toml", "--knob", "qmax",
        "--codecs", "lzma,zstd", "--stdlib-codecs", "--code", "a.py", "--code", "b.py",
        "--embed-tokenizer", "--save-stats", "s", "--stats", "t", "--device", "cpu",
        "--seed", 4, "--force", "--report", "r.json", "--json",
    )  # fmt: skip
    assert outcome.code == 0, outcome.err
    (options,) = asked
    expected = PackOptions(
        checkpoint=Path("m.safetensors"), budget_bytes=16_000_000, out=Path("m.qpk"),
        tokenizer=Path("t.model"), calib=None, calib_tokens=1, val=Path("v.bin"), val_tokens=2,
        window=3, recipe="r.toml", knob="qmax", codecs=("lzma", "zstd"), stdlib_codecs=True,
        code=(Path("a.py"), Path("b.py")), embed_tokenizer=True, save_stats=Path("s"),
        stats=Path("t"), device="cpu", seed=4, force=True, report=Path("r.json"),
        command=options.command,
    )  # fmt: skip
    assert options == expected
    assert outcome.document["schema"] == "qpack.plan/1"


def test_variables_stand_in_for_options(
    qpack: Runner, asked: list[PackOptions], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("QPACK_PACK_CALIB", "self")
    monkeypatch.setenv("QPACK_PACK_OUT", "m.qpk")
    monkeypatch.setenv("QPACK_PACK_WINDOW", "7")
    monkeypatch.setenv("QPACK_DEVICE", "cpu")
    outcome = qpack(*PACK, "--window", 8)
    assert outcome.code == 0, outcome.err
    (options,) = asked
    assert (options.calib, options.out, options.device) == (None, Path("m.qpk"), "cpu")
    assert options.window == 8  # what is typed wins


@pytest.mark.parametrize("budget", ["sixteen", "-5"])
def test_a_bad_budget_is_a_usage_error(qpack: Runner, budget: str) -> None:
    arguments = [word if word != "16MB" else budget for word in PACK]
    outcome = qpack(*arguments, "--calib", "self", "-o", "m.qpk", "--json")
    assert outcome.code == 2
    assert json.loads(outcome.err)["error"] == "UsageError"


def test_demo_options(qpack: Runner, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is not given is the demo's own default, not one of the command line."""
    seen: list[dict[str, Any]] = []

    def run(out_dir: Path, *, progress: Any, **options: Any) -> dict[str, Any]:
        seen.append({"out": out_dir, **options})
        return example.report()

    monkeypatch.setattr("qpack.demo.run_demo", run)
    outcome = qpack("demo")
    assert outcome.code == 0, outcome.err
    assert "99.97 % of 12,000,000 B" in outcome.out
    assert outcome.err == "next: qpack inspect out/model.pyz\n"
    assert qpack("demo", "-o", "d", "--budget", "1MB", "--train-seconds", 5, "--force").code == 0
    assert seen == [
        {"out": Path("runs/demo"), "train_seconds": 120.0, "force": False},
        {"out": Path("d"), "train_seconds": 5.0, "force": True, "budget_bytes": 1_000_000},
    ]
