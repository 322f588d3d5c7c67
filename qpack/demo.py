"""The whole line in one call, with no download and no account.

    Python's own documentation -> tokenizer and shards -> a small GPT -> artifact -> report

It is `qpack run` of the preset `tiny`, beside what token frequencies alone would give.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qpack.progress import SILENT, Progress
from qpack.runs.document import read_document
from qpack.runs.run import run
from qpack.tokenizer import Tokenizer
from qpack.tokens import read_shard

PRESET = "tiny"


def run_demo(
    out_dir: Path,
    *,
    train_seconds: float | None = None,
    budget_bytes: int | None = None,
    progress: Progress = SILENT,
    force: bool = False,
) -> dict[str, Any]:
    """Make everything in `out_dir` and return the report of the run, with a section `demo`.

    What is not given is the preset's. Raises `QpackError`; a run already there is kept unless
    `force`.
    """
    chosen = {"loop.max_seconds": train_seconds, "pack.budget": budget_bytes}
    overrides = [f"{key}={value}" for key, value in chosen.items() if value is not None]
    outcome = run(
        read_document(PRESET, overrides=overrides), out_dir, force=force, progress=progress
    )
    report, trained = outcome.report, outcome.trained
    assert report is not None and trained.validation is not None
    baseline = unigram_bpb(
        read_shard(trained.calibration),
        read_shard(trained.validation),
        Tokenizer.load(trained.tokenizer),
    )
    details = trained.details
    tell = progress.note if report["bpb_decoded"] < baseline else progress.warn
    tell(
        f"{details['steps']:,} steps of training; validation {report['bpb_decoded']:.4f} bits per"
        f" byte as packed, {baseline:.4f} for token frequencies alone"
    )
    figures = {
        "steps": details["steps"],
        "tokens": details["tokens"],
        "seconds": details["train_seconds"],
        "loss": details["loss"],
        "bpb_unigram": baseline,
    }
    return {**report, "demo": figures}


def unigram_bpb(train: NDArray[np.uint16], val: NDArray[np.uint16], tokenizer: Tokenizer) -> float:
    """Bits per byte of `val[1:]` under the token frequencies of `train` (each count plus 1).

    What a model must beat to have learnt anything about order.
    """
    counts = np.bincount(train, minlength=tokenizer.vocab_size) + 1.0
    nats = -np.log(counts / counts.sum())[val[1:]].sum()
    return float(nats) / math.log(2) / tokenizer.text_bytes(val)
