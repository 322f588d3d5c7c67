"""What a person reads: the figures of the document, labelled."""

from __future__ import annotations

from qpack.cli.import_checkpoint import show_import
from qpack.cli.show import shorten, show_facts, show_pack, show_plan, show_score
from tests.unit.report.example import report


def test_pack() -> None:
    assert show_pack(report()).splitlines() == [
        "out/model.pyz  11,996,482 B (12.00 MB, 11.44 MiB)",
        "99.97 % of 12,000,000 B, 3,518 B to spare; k = 12.85",
        "",
        "         bits per byte  gap        KL (nats/token)",
        "float    1.533904",
        "decoded  1.537000       +0.003096  0.007100",
        "on 32,768 tokens",
        "",
        "3.542 bits a weight, everything included",
        f"sha256 {'ab' * 32}",
    ]


def test_a_plan_that_does_not_fit() -> None:
    plan = {
        "tensors": [{"name": "a", "shape": [2, 3], "rule": "int6", "predicted_bytes": 4}],
        "predicted_bytes": 14,
        "bits_per_weight": 18.667,
        "budget_bytes": 10,
        "warnings": ["pattern matched nothing"],
    }
    assert show_plan(plan).splitlines() == [
        "name  shape  rule  predicted bytes",
        "a     2 x 3  int6                4",
        "",
        "predicted 14 B of 10 B: 4 B too many; 18.67 bits a weight",
        "warning: pattern matched nothing",
    ]


def score(**changes: object) -> dict[str, object]:
    return {
        "bpb": 1.5339044, "nats": 335_190.08, "tokens": 131_072, "bytes": 315_259, "kl": None,
        "window": 1024, "stride": 1024, "seconds": 61.2, "device": {"value": "cpu"}, **changes,
    }  # fmt: skip


def test_score() -> None:
    assert show_score(score()).splitlines() == [
        "1.533904 bits per byte",
        "335190.080 nats over 131,072 tokens (2.557297 a token), 315,259 bytes of text",
        "windows of 1,024, stride 1,024, 61.2 s on cpu",
    ]
    assert "KL 0.015500 nats a token to the float model" in show_score(score(kl=0.0155))


def test_facts() -> None:
    document = {
        "schema": "x/1", "file_bytes": 120_000, "form": "pyz", "sha256_expected": None,
        "decoder": {"status": "unmodified", "num_lines": 1_300}, "requires": ["brotli", "zstd"],
        "unmodified": True, "streams": [{}], "files": [], "metadata": {"a": "b"},
    }  # fmt: skip
    assert show_facts(document).splitlines() == [
        "file bytes         120,000 B (0.12 MB, 0.11 MiB)",
        "form               pyz",
        "decoder status     unmodified",
        "decoder num lines  1,300",
        "requires           brotli, zstd",
        "unmodified         yes",
    ]


def test_long_values_are_cut_and_say_so() -> None:
    assert shorten("x" * 200) == "x" * 200
    assert shorten("x" * 210).endswith("... (10 characters more, see --json)")


def test_import() -> None:
    document = {
        "path": "m.safetensors", "parameters": 27_092_057, "tensors": 113,
        "architecture": "gpt", "config": {"layers": 11, "tied": True},
    }  # fmt: skip
    assert show_import(document).splitlines() == [
        "m.safetensors  27,092,057 parameters in 113 tensors",
        "architecture gpt",
        "  layers = 11",
        "  tied = true",
    ]
