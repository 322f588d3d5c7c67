"""A training run before its first step: everything loaded, checked and put together."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from qpack.artifact.writer import write_atomic
from qpack.device import choose
from qpack.distributed import on_first, rank, world_size
from qpack.environment import provenance
from qpack.eval.bpb import Score
from qpack.progress import Progress
from qpack.quant.qat import LateQAT
from qpack.tokenizer import Tokenizer
from qpack.tokens import read_shard

from . import resume as checkpoints
from .average import Averages
from .checks import (
    RECORD,
    attention_backend,
    check_data,
    check_folder,
    is_compiled,
    rows_per_pass,
)
from .clock import Clock
from .config import TrainConfig
from .data.curriculum import Curriculum
from .data.loader import Loader
from .data.prefetch import Prefetcher
from .data.prepare import Prepared, prepare_data
from .metrics import check_tensorboard
from .model.gpt import GPT
from .model.init import initialize
from .optim.optimizers import Optimizers
from .qat import build_qat
from .rules import unused
from .step import Micro, Order, Passes
from .validate import validate


@dataclass(slots=True)
class Run:
    """A run under way: what it is made of, and where it stands."""

    config: TrainConfig
    folder: Path
    data: Prepared
    model: GPT
    tokenizer: Tokenizer
    loader: Loader
    batches: Prefetcher
    curriculum: Curriculum | None
    validation: NDArray[np.uint16] | None  # (tokens,)
    passes: Passes
    optimizers: Optimizers
    averages: Averages
    qat: LateQAT | None
    clock: Clock
    device: torch.device
    dtype: torch.dtype
    progress: Progress
    known: dict[str, str]
    """the fingerprint that a resumed run must share"""
    record: dict[str, Any]
    """what `train.json` says"""
    trained: tuple[int, ...] | None = None
    """the order of layers of the last step"""
    qat_from: int | None = None
    """step at which late QAT switched on"""
    loss: float = math.nan
    """mean of the losses looked at last, nats a token"""
    pending: list[Tensor] = field(default_factory=list)
    """losses of the steps since the last that were looked at, on the device"""

    def parts(self, step: int) -> Iterator[Micro]:
        """The parts of this rank's share of a step's batch, on the device."""
        pairs = self.batches.step(step)
        if self.curriculum is None:
            yield from ((inputs, targets, None) for inputs, targets in pairs)
            return
        parts = list(pairs)
        for (inputs, targets), weights in zip(parts, self.curriculum.weigh(parts), strict=True):
            yield inputs, targets, weights

    @property
    def order(self) -> Order:
        """The order of layers that is due."""
        if not self.config.phase:
            return None
        order: Order = tuple(range(self.model.config.num_layers))
        for phase in self.config.phase:
            at, step = phase.at, phase.step
            if (step is not None and self.clock.steps >= step) or (
                at is not None and self.clock.progress >= at
            ):
                order = phase.layer_order
        return order


def prepare_run(
    config: TrainConfig, folder: Path, *, resume: bool, force: bool, progress: Progress
) -> Run:
    """Load and check everything that the run needs; a resumed one stands where it stopped.

    Raises `QpackError` before anything slow.
    """
    device, reason = choose(config.loop.device)
    gpt = config.model_config_of_gpt()
    rows_per_pass(config)
    attention_backend(config, device)
    if config.loop.tensorboard:
        check_tensorboard()
    check_folder(folder, resume=resume, force=force)
    for setting in unused(config):
        progress.warn(f"{setting}: not used")
    model = GPT(gpt)
    data = prepare_data(
        config.data,
        vocab_size=gpt.vocab_size,
        folder=folder,
        progress=progress,
    )
    tokenizer = Tokenizer.load(data.tokenizer)
    fitting = f"set model.vocab_size = {tokenizer.vocab_size}, or give another tokenizer"
    tokenizer.check_model(gpt.vocab_size, hint=fitting)
    check_data(config, gpt, data, tokenizer, progress)
    files = [*data.train, *data.val, data.tokenizer]
    known = on_first(lambda: checkpoints.fingerprint(config, files))
    saved = checkpoints.load(folder, known) if resume else None
    progress.note(f"training on {device} ({reason})")
    initialize(model, torch.Generator().manual_seed(config.loop.seed), q_gain=config.loop.q_gain)
    run = _assemble(config, folder, data, model.to(device), tokenizer=tokenizer, known=known)
    run.progress = progress
    run.record = _describe(run, reason)
    if run.qat is not None:
        for name, why in run.qat.skipped.items():
            progress.note(f"late QAT leaves {name} as it is: {why}")
    if saved is not None:
        restore(run, saved)
    elif rank() == 0:  # else a later resume could take an earlier run's checkpoint for this one's
        shutil.rmtree(folder / checkpoints.FOLDER, ignore_errors=True)
        write_record(run)
    return run


def _assemble(
    config: TrainConfig,
    folder: Path,
    data: Prepared,
    model: GPT,
    *,
    tokenizer: Tokenizer,
    known: dict[str, str],
) -> Run:
    loop, device = config.loop, next(model.parameters()).device
    half = loop.dtype == "bfloat16" or (loop.dtype == "auto" and device.type == "cuda")
    dtype = torch.bfloat16 if half else torch.float32
    model.compute_dtype = dtype if half else None
    model.attention_backend = attention_backend(config, device)
    compiled = is_compiled(config, device)
    rows = rows_per_pass(config)
    loader = Loader(
        [read_shard(path) for path in data.train],
        sequence=loop.sequence,
        batch=loop.batch_tokens // loop.sequence,
        seed=loop.seed,
        windows=config.data.windows,
        mixed=config.data.order == "random",
        bos=tokenizer.bos,
        rank=rank(),
        world_size=world_size(),
    )
    curriculum = None
    if config.data.curriculum:
        curriculum = Curriculum.from_tokens(
            read_shard(data.train[0]),
            vocab_size=model.config.vocab_size,
            power=config.data.curriculum,
            device=device,
        )
    return Run(
        config=config,
        folder=folder,
        data=data,
        model=model,
        tokenizer=tokenizer,
        loader=loader,
        batches=Prefetcher(loader, parts=loop.accumulate, device=device),
        curriculum=curriculum,
        validation=_validation(data),
        passes=Passes(
            model,
            masked=config.data.windows == "documents",
            tokens=rows * loop.sequence * loop.accumulate,
            compiled=compiled,
        ),
        optimizers=Optimizers(model, config.optim, compiled=compiled),
        averages=Averages(model, config.average),
        qat=build_qat(model, config, data.train[0]),
        clock=Clock(loop, device),
        device=device,
        dtype=dtype,
        progress=None,  # type: ignore[arg-type]  # set by the caller, as the record is
        known=known,
        record={},
    )


def _validation(data: Prepared) -> NDArray[np.uint16] | None:
    """All validation shards in a row; one stays memory-mapped."""
    shards = [read_shard(path) for path in data.val]
    if not shards:
        return None
    return shards[0] if len(shards) == 1 else np.concatenate(shards)


def _describe(run: Run, reason: str) -> dict[str, Any]:
    """What the run is, for whoever finds its folder."""
    counts = {name: p.numel() for name, p in run.model.named_parameters()}
    return {
        "schema": "qpack.train/1",
        "config": run.config.model_dump(mode="json"),
        "model": run.model.config.to_dict(),
        "parameters": sum(counts.values()),
        "device": {"value": str(run.device), "reason": reason, "ranks": world_size()},
        "dtype": str(run.dtype).removeprefix("torch."),
        "attention": run.model.attention_backend,
        "data": run.data.report,
        "fingerprint": run.known,
        **provenance(run.device),
    }


def write_record(run: Run) -> None:
    """Write `train.json`."""
    text = json.dumps(run.record, indent=1) + "\n"
    write_atomic(run.folder / RECORD, text.encode("ascii"), force=True)


def score_now(run: Run) -> Score:
    """Bits per byte of the model's present weights on the validation tokens, which exist."""
    assert run.validation is not None
    return validate(
        run.model,
        run.validation,
        run.tokenizer,
        window=run.config.loop.sequence,
        max_tokens=run.config.loop.val_tokens,
        device=run.device,
    )


def snapshot(run: Run) -> checkpoints.Saved:
    """Everything that the run needs to go on from here; the same on every rank."""
    tensors = {f"model.{name}": p.detach() for name, p in run.model.state_dict().items()}
    tensors |= {f"optim.{k}": t for k, t in run.optimizers.state_tensors().items()}
    tensors |= {f"average.{k}": t for k, t in run.averages.state_tensors().items()}
    if run.qat is not None:
        tensors |= {f"qat.{k}": t for k, t in run.qat.state_tensors().items()}
    if run.pending:
        tensors["loop.pending"] = torch.stack(run.pending)
    loss = run.loss if math.isfinite(run.loss) else None
    record = {
        "steps": run.clock.steps,
        "seconds": run.clock.seconds,
        "loss": loss,
        "trained": None if run.trained is None else list(run.trained),
        "qat_from": run.qat_from,
    }
    return checkpoints.Saved(
        tensors={name: tensor.cpu().contiguous() for name, tensor in tensors.items()},
        record=record,
    )


def restore(run: Run, saved: checkpoints.Saved) -> None:
    """Put the run where `saved` left it."""
    parts: dict[str, dict[str, Tensor]] = {}
    for name, tensor in saved.tensors.items():
        kind, _, rest = name.partition(".")
        parts.setdefault(kind, {})[rest] = tensor
    run.model.load_state_dict(parts["model"])
    run.optimizers.load_state_tensors(parts.get("optim", {}))
    run.averages.load_state_tensors(parts.get("average", {}))
    if run.qat is not None:
        run.qat.load_state_tensors(parts.get("qat", {}))
    pending = parts.get("loop", {}).get("pending")
    run.pending = [] if pending is None else list(pending.to(run.device))
    trained = saved.record["trained"]
    run.trained = None if trained is None else tuple(trained)
    run.qat_from = saved.record["qat_from"]
    run.loss = math.nan if saved.record["loss"] is None else float(saved.record["loss"])
    run.clock.steps = int(saved.record["steps"])
    run.clock.seconds = float(saved.record["seconds"])
