"""The whole line in one call, with no download and no account.

    Python's own documentation -> tokenizer and shards -> a small GPT -> artifact -> report

The training stage is the plugin `reference`. The settings were chosen by measurement (runs of
about two minutes' work of 2 CPU cores on this text): 2,048 pieces, 3 layers of 128 and no hash
table reach the lowest bits per byte; wider or deeper models see too few tokens in that time.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qpack.errors import ResourceError
from qpack.inputs import check_outputs
from qpack.pipeline import PackOptions, pack_checkpoint
from qpack.plugins import TRAINERS, load_plugin
from qpack.progress import SILENT, Progress
from qpack.tokenizer import Tokenizer
from qpack.tokens import read_shard

SEQUENCE = 256
MODEL = {
    "vocab_size": 2048,
    "num_layers": 3,
    "model_dim": 128,
    "num_heads": 4,
    "num_kv_heads": 2,
    "mlp_mult": 3.0,
    "smear_gate": True,
}
BUDGET_BYTES = 400_000
"""About 4.5 bits a weight, decoder included."""


def run_demo(
    out_dir: Path,
    *,
    train_seconds: float = 120.0,
    budget_bytes: int = BUDGET_BYTES,
    progress: Progress = SILENT,
    force: bool = False,
) -> dict[str, Any]:
    """Make everything in `out_dir` and return the report of the pack, with a section `demo`.

    Raises `QpackError`; files already there are kept unless `force`.
    """
    try:
        out_dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ResourceError(f"cannot make the folder {out_dir}: {error.strerror}") from error
    paths = {
        "tokenizer": out_dir / "tokenizer.model",
        "train": out_dir / "train.bin",
        "val": out_dir / "val.bin",
        "out": out_dir / "model.safetensors",
        "metrics": out_dir / "metrics.jsonl",
    }
    packed = [out_dir / name for name in ("model.pyz", "report.json", "report.md")]
    check_outputs([*paths.values(), *packed], inputs=[], force=force)
    config = {
        **paths,
        "text": "standard-library",
        "model": MODEL,
        "max_seconds": train_seconds,
        "sequence": SEQUENCE,
        "validations": 4,
        "force": force,
    }
    trained = load_plugin(TRAINERS, "reference")(config, progress=progress)
    val = read_shard(paths["val"])
    report = pack_checkpoint(
        PackOptions(
            checkpoint=paths["out"],
            budget_bytes=budget_bytes,
            out=out_dir / "model.pyz",
            tokenizer=paths["tokenizer"],
            calib=paths["train"],
            val=paths["val"],
            val_tokens=len(val) - 1,
            window=SEQUENCE,
            report=out_dir / "report.json",
            force=force,
        ),
        progress=progress,
    )
    baseline = unigram_bpb(read_shard(paths["train"]), val, Tokenizer.load(paths["tokenizer"]))
    progress.note(
        f"{trained.steps:,} steps of training; validation {report['bpb_decoded']:.4f} bits per"
        f" byte as packed, {baseline:.4f} for token frequencies alone"
    )
    figures = {
        "steps": trained.steps,
        "tokens": trained.tokens,
        "seconds": trained.seconds,
        "loss": trained.loss,
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
