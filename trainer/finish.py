"""The end of a run: choose what to ship, score it, write the checkpoint and the record."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from qpack.checkpoint import Checkpoint, write_checkpoint
from qpack.distributed import barrier, rank, world_size
from qpack.eval.bpb import Score
from qpack.tokens import sha256_file

from .checks import MODEL
from .metrics import Metrics
from .model.config import GPTConfig
from .run import Run, write_record
from .ship import ship
from .throughput import utilization

SKIPS = ("skip_weights", "skip_gates")
"""Tensors with a row for each skip."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainResult:
    """What a run did."""

    checkpoint: Path
    sha256: str
    """of the checkpoint file"""
    steps: int
    tokens: int
    """Targets trained on, over all ranks."""
    seconds: float
    """Wall clock of the steps."""
    tokens_per_second: float
    mfu: float | None
    loss: float
    """Mean training loss since the last logged step, nats a token."""
    score: Score | None
    """Of the shipped weights; None without validation tokens."""
    shipped: str
    """`last`, `ema`, `swa` or `mixture`"""
    tokenizer: Path
    train: tuple[Path, ...]
    """Training shards, in the order in which they are read."""
    val: tuple[Path, ...]
    device: str
    dtype: str


def mfu_of(run: Run, tokens_per_second: float) -> float | None:
    """Model flops utilisation of each rank's device at that speed over all ranks."""
    flops = run.model.num_matrix_flops(run.config.loop.sequence)
    return utilization(tokens_per_second / world_size(), flops, run.device, run.dtype)


def finish(run: Run, metrics: Metrics | None) -> TrainResult:
    """Ship: choose the weights, score them, write the checkpoint and the record."""
    config, clock = run.config, run.clock
    run.model.set_layer_order(run.trained)
    choice = ship(run)
    shipped, tensors = as_trained(run, choice.tensors)
    if run.qat is not None and run.qat_from is None:
        run.progress.warn("late QAT never switched on: its start was not reached")
    path = run.folder / MODEL
    if rank() == 0:
        write_checkpoint(
            path,
            Checkpoint(
                tensors={name: t.detach().cpu().contiguous() for name, t in tensors.items()},
                architecture="gpt",
                config=shipped.to_dict(),
                aliases={},
                name=run.folder.name,
                tokenizer_sha256=run.tokenizer.sha256,
            ),
            force=True,
        )
    barrier()
    speed = clock.steps * config.loop.batch_tokens / clock.seconds if clock.seconds else 0.0
    result = TrainResult(
        checkpoint=path,
        sha256=sha256_file(path),
        steps=clock.steps,
        tokens=clock.steps * config.loop.batch_tokens,
        seconds=clock.seconds,
        tokens_per_second=speed,
        mfu=mfu_of(run, speed),
        loss=run.loss,
        score=choice.score,
        shipped=choice.name,
        tokenizer=run.data.tokenizer,
        train=tuple(run.data.train),
        val=tuple(run.data.val),
        device=str(run.device),
        dtype=str(run.dtype).removeprefix("torch."),
    )
    if metrics is not None:
        _record(run, metrics, result, choice.rows)
    return result


def as_trained(run: Run, tensors: dict[str, Tensor]) -> tuple[GPTConfig, dict[str, Tensor]]:
    """Configuration and tensors of the model that was trained.

    Where the run ended before its last phase, that is a shorter order of layers, with the skip
    weights of as many steps: an order that was never trained is not shipped.
    """
    config, order = run.model.config, run.trained
    if order is None or order == config.virtual_order:
        return config, tensors
    run.progress.warn(
        f"the run ended before its last phase: the model has the {len(order)} steps of layers that"
        f" it was trained with, not {len(config.virtual_order)}"
    )
    trained = GPTConfig.from_mapping({**config.to_dict(), "layer_order": list(order)})
    cut = {name: t[: trained.num_skips] for name, t in tensors.items() if name in SKIPS}
    return trained, {**tensors, **cut}


def _record(run: Run, metrics: Metrics, result: TrainResult, rows: list[dict[str, Any]]) -> None:
    """Add the outcome to the metrics and to `train.json`."""
    if result.score is not None:
        for row in rows:
            metrics.log(result.steps, result.seconds, val_bpb=row["bpb"], weights=row["weights"])
        run.progress.note(
            f"step {result.steps:,}: validation {result.score.bpb:.4f} bits per byte,"
            f" shipped weights: {result.shipped}"
        )
    score = result.score
    run.record["result"] = {
        "sha256": result.sha256,
        "steps": result.steps,
        "tokens": result.tokens,
        "seconds": result.seconds,
        "tokens_per_second": result.tokens_per_second,
        "mfu": result.mfu,
        "loss": result.loss,
        "shipped": result.shipped,
        "layer_order": None if run.trained is None else list(run.trained),
        "qat_from": run.qat_from,
        "candidates": rows,
        "score": None
        if score is None
        else {"nats": score.nats, "bytes": score.bytes, "tokens": score.tokens, "bpb": score.bpb},
    }
    write_record(run)
