"""The training loop: entry point `reference` of `qpack.trainers`.

    loss = mean cross-entropy of the next token;  clip;  AdamW at the schedule's rate;  repeat

Everything that can be wrong is found before the first step; only metrics are written before the
last.
Random choices (starting weights, order of the data) come from the config's seed alone.
"""

from __future__ import annotations

import contextlib
import json
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from qpack.checkpoint import Checkpoint, write_checkpoint
from qpack.device import choose
from qpack.errors import ConfigError, OutputExistsError, ResourceError
from qpack.eval.bpb import Score, score
from qpack.progress import SILENT, Progress
from qpack.tokenizer import Tokenizer
from qpack.tokens import check_vocab, read_shard

from .config import TrainConfig
from .data.loader import Loader
from .data.prepare import check_source, prepare
from .model.gpt import GPT, build
from .model.init import initialize
from .optimizer import lr_scale, make_optimizer, set_lr_scale


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainResult:
    """What a run did."""

    checkpoint: Path
    steps: int
    tokens: int
    """Targets trained on."""
    seconds: float
    """Wall clock of the steps, validation not counted."""
    loss: float
    """Mean training loss since the last logged step, nats a token."""
    score: Score | None
    """Of the final model; None without a validation shard."""
    device: str
    dtype: str


@dataclass(slots=True)
class _Run:
    """A run under way."""

    config: TrainConfig
    model: GPT
    tokenizer: Tokenizer
    loader: Loader
    val: Any  # (tokens,) uint16, or None
    device: torch.device
    dtype: torch.dtype
    progress: Progress
    metrics: TextIO | None = None
    steps: int = 0
    seconds: float = 0.0

    @property
    def done(self) -> float:
        """Part of the budget used, 0 to 1."""
        steps, seconds = self.config.max_steps, self.config.max_seconds
        parts = (self.steps / steps if steps else 0.0, self.seconds / seconds if seconds else 0.0)
        return min(1.0, max(parts))

    def log(self, **row: float) -> None:
        """Add a line to the metrics."""
        if self.metrics is not None:
            self.metrics.write(json.dumps({"step": self.steps, "seconds": self.seconds} | row))
            self.metrics.write("\n")
            self.metrics.flush()


def train(config: TrainConfig | Mapping[str, Any], *, progress: Progress = SILENT) -> TrainResult:
    """Train a GPT as `config` (or the fields of one) says and write its checkpoint.

    Raises `ConfigError`, `DataError`, `SetupError` or `OutputExistsError` before the first step,
    and `ConfigError` when the loss stops being finite (then nothing is written).
    """
    config = config if isinstance(config, TrainConfig) else TrainConfig.from_mapping(config)
    run = _prepare(config, progress)
    with contextlib.ExitStack() as stack:
        if config.metrics is not None:
            run.metrics = stack.enter_context(_open_metrics(config.metrics))
        loss, last = _steps(run)
        return _finish(run, loss, last)


def _steps(run: _Run) -> tuple[float, Score | None]:
    """Train to the end of the budget: the last logged loss and the last validation."""
    config = run.config
    optimizer = make_optimizer(run.model, config)
    timed = config.max_seconds is not None
    loss, last, due = math.nan, None, 1
    pending: list[Tensor] = []
    with run.progress.stage(
        "train",
        total=config.max_seconds if timed else config.max_steps,
        unit="s" if timed else "steps",
    ) as task:
        while run.done < 1.0:
            began = time.perf_counter()
            rate = lr_scale(
                run.steps, run.done, warmup_steps=config.warmup_steps, warmdown=config.warmdown
            )
            set_lr_scale(optimizer.param_groups, rate)
            pending.append(_step(run, optimizer))
            run.steps += 1
            if run.steps % config.log_every == 0:
                loss = _mean(run, pending)
                run.log(loss=loss, lr_scale=rate)
            spent = time.perf_counter() - began
            run.seconds += spent
            known = f", loss {loss:.3f}" if math.isfinite(loss) else ""
            task.advance(spent if timed else 1.0, note=f"step {run.steps}{known}")
            if run.done >= due / config.validations:
                due += 1
                last = _validate(run)
    return (_mean(run, pending) if pending else loss), last


def _prepare(config: TrainConfig, progress: Progress) -> _Run:
    """Load and check everything that the run needs."""
    device, reason = choose(config.device)
    model = build({"train_seq_len": config.sequence} | dict(config.model))
    _check_outputs(config)
    if config.text is not None and config.val is not None:
        prepare(
            config.text,
            tokenizer=config.tokenizer,
            train=config.train,
            val=config.val,
            vocab_size=model.vocab_size,
            force=config.force,
            progress=progress,
        )
    tokenizer = Tokenizer.load(config.tokenizer)
    tokenizer.check_model(model.vocab_size)
    tokens = read_shard(config.train)
    check_vocab(tokens, model.vocab_size, config.train)
    val = None
    if config.val is not None:
        val = read_shard(config.val)
        check_vocab(val, model.vocab_size, config.val)
    loader = Loader(tokens, sequence=config.sequence, batch=config.batch, seed=config.seed)
    progress.note(f"training on {device} ({reason})")
    initialize(model, torch.Generator().manual_seed(config.seed))
    half = config.dtype == "bfloat16" or (config.dtype == "auto" and device.type == "cuda")
    return _Run(
        config=config,
        model=model.to(device),
        tokenizer=tokenizer,
        loader=loader,
        val=val,
        device=device,
        dtype=torch.bfloat16 if half else torch.float32,
        progress=progress,
    )


def _check_outputs(config: TrainConfig) -> None:
    """Raise unless every output can be written, before anything slow."""
    if config.text is not None:
        check_source(config.text)
    existing = [str(path) for path in config.outputs if path.exists()]
    if existing and not config.force:
        raise OutputExistsError("output exists", items=existing, hint="use --force to overwrite")
    lost = [str(path) for path in config.outputs if not path.parent.is_dir()]
    if lost:
        raise ConfigError("no folder to write these files in", items=lost)


def _open_metrics(path: Path) -> TextIO:
    try:
        return path.open("w", encoding="ascii")
    except OSError as error:
        raise ResourceError(f"cannot write {path}: {error.strerror}") from error


def _step(run: _Run, optimizer: torch.optim.Optimizer) -> Tensor:
    """One step of the optimizer; the loss before it, on the device."""
    inputs, targets = (part.to(run.device) for part in run.loader.batch(run.steps))
    with _autocast(run):
        logits = run.model(inputs)
    loss = cross_entropy(logits.flatten(0, 1), targets.flatten())
    loss.backward()  # type: ignore[no-untyped-call]
    nn.utils.clip_grad_norm_(run.model.parameters(), run.config.clip)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return loss.detach()


def _autocast(run: _Run) -> contextlib.AbstractContextManager[Any]:
    if run.dtype == torch.float32:
        return contextlib.nullcontext()
    return torch.autocast(run.device.type, dtype=run.dtype)


def _mean(run: _Run, pending: list[Tensor]) -> float:
    """Mean of the losses not logged yet, which it takes. Raises when it is not finite."""
    loss = float(torch.stack(pending).mean())
    if not math.isfinite(loss):
        raise ConfigError(
            f"the loss became {loss} between steps {run.steps - len(pending) + 1} and {run.steps}",
            hint="lower matrix_lr, embedding_lr and scalar_lr, or clip harder",
        )
    pending.clear()
    return loss


def _validate(run: _Run) -> Score | None:
    """Bits per byte of the model as it is; its time does not count as training."""
    if run.val is None:
        return None
    got = score(
        run.model,
        run.val,
        run.tokenizer,
        window=run.config.sequence,
        max_tokens=run.config.val_tokens,
        device=run.device,
    )
    run.log(val_bpb=got.bpb)
    run.progress.note(f"step {run.steps}: validation {got.bpb:.4f} bits per byte")
    return got


def _finish(run: _Run, loss: float, last: Score | None) -> TrainResult:
    """Write the checkpoint."""
    config = run.config
    write_checkpoint(
        config.out,
        Checkpoint(
            tensors={name: t.detach().cpu() for name, t in run.model.state_dict().items()},
            architecture="gpt",
            config=run.model.config.to_dict(),
            aliases={},
            name=config.out.stem,
            tokenizer_sha256=run.tokenizer.sha256,
        ),
        force=config.force,
    )
    return TrainResult(
        checkpoint=config.out,
        steps=run.steps,
        tokens=run.steps * config.batch * config.sequence,
        seconds=run.seconds,
        loss=loss,
        score=last,
        device=str(run.device),
        dtype=str(run.dtype).removeprefix("torch."),
    )
