"""A whole report with made-up numbers, in the shape of `qpack.report/1`."""

from __future__ import annotations

from typing import Any


def report() -> dict[str, Any]:
    """A new copy on every call."""
    return {
        "schema": "qpack.report/1",
        "path": "out/model.pyz",
        "artifact_bytes": 11_996_482,
        "budget_bytes": 12_000_000,
        "budget_use": 11_996_482 / 12_000_000,
        "bpb_float": 1.533904,
        "bpb_decoded": 1.537,
        "gap": 0.003096,
        "kl": 0.0071,
        "bits_per_weight": 3.5425,
        "sha256": "ab" * 32,
        "command": ["qpack", "pack", "m.safetensors"],
        "config": {"recipe": {"knob": "k"}, "window": 1024},
        "seed": 0,
        "qpack_version": "0.1.0",
        "format_version": "1.0",
        "hardware": {"processor": "made up", "cores": 2},
        "packages": {"torch": "2.13.0"},
        "inputs": {
            "checkpoint": {"name": "m.safetensors", "sha256": "cd" * 32},
            "calibration": {"name": "train.bin", "sha256": "ef" * 32, "tokens": 65_536},
            "validation": {"name": "val.bin", "sha256": "01" * 32},
            "tokenizer": {"name": "t.model", "sha256": "23" * 32},
        },
        "device": {"value": "cpu", "reason": "no accelerator"},
        "knob": {"name": "k", "value": 12.85, "low": 1.0, "high": 64.0, "reason": "fits"},
        "probes": [
            {"knob": "k", "value": 12.85, "kind": "codec", "bytes": 11_996_482, "fits": True,
             "seconds": 9.5},
        ],
        "choice": {
            "chosen": "by sensitivity", "reason": "0.008000 against 0.011000 on held-out batches",
            "options": [
                {"steps": "by sensitivity", "c": 0.93, "bytes": 12_100_000,
                 "held_out_distance": 0.008, "at_equal_bytes": 0.008},
                {"steps": "equal relative", "c": 0.84, "bytes": 12_101_000,
                 "held_out_distance": 0.011, "at_equal_bytes": 0.011},
            ],
        },
        "quality": {
            "tokens": 32_768, "bytes": 78_000, "window": 1024, "stride": 1024,
            "float": {"nats": 83_000.5, "bpb": 1.533904},
            "decoded": {"nats": 83_200.25, "bpb": 1.537},
            "gap": 0.003096, "kl": 0.0071,
        },
        "weights": {"total": 27_092_057, "quantized": 26_000_000},
        "ledger": [{"part": "header", "bytes": 2_000}, {"part": "tok|emb", "bytes": 11_994_482}],
        "tensors": [
            {"name": "tok|emb", "shape": [1024, 512], "kind": "int", "rule": "int8", "qmax": 127,
             "max_abs": 90, "clipped": 0, "bits_per_weight": 6.1, "bytes": 400_000, "error": 0.5,
             "error_rtn": 1.0, "damping": 0.01, "dead_columns": 0, "fallback": None},
            {"name": "scale", "shape": [], "kind": "raw", "rule": "float16",
             "bits_per_weight": 16.0, "bytes": 2},
        ],
        "streams": [
            {"name": "int8 *", "elements": 26_000_000, "dtype": "int8", "codec": "brotli",
             "filter": "none", "raw_bytes": 26_000_000, "bytes": 11_000_000,
             "trials": [{"codec": "brotli", "filter": "none",
                         "input_bytes": 27_000_000, "bytes": 11_000_000, "seconds": 40.0,
                         "screened": False}]},
        ],
        "stages": [{"name": "calibrate", "seconds": 38.06, "peak_rss_bytes": 2_000_000_000}],
        "warnings": [],
        "fallbacks": [{"tensor": "blocks.9.mlp.fc", "reason": "singular Hessian"}],
        "decoder": {"form": "pyz", "verified": True, "process": "fresh"},
    }  # fmt: skip
