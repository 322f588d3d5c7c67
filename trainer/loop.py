"""The training loop.

    loss and gradients of the batch's parts, at quantized weights once late QAT is on;
    clip, Muon and AdamW at the schedule's rate; averages; repeat until the budget is used

Everything that can be wrong is found before the first step. Random choices (starting weights, order
of the data) come from the config's seed alone. Losses stay on the device until they are logged, so
that the program never waits for it between two steps.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from qpack import distributed
from qpack.distributed import rank, world_size
from qpack.errors import ConfigError, ResourceError
from qpack.progress import SILENT, Progress
from qpack.quant.qat import ALL

from . import resume as checkpoints
from .config import TrainConfig
from .finish import TrainResult, finish, mfu_of
from .interrupt import Wish, stoppable
from .metrics import Metrics
from .optim.schedule import lr_scale
from .run import Run, prepare_run, restore, score_now, snapshot

DIVERGED = "lower the learning rates of [optim] or clip harder"


def train(
    config: TrainConfig,
    folder: Path,
    *,
    resume: bool = False,
    force: bool = False,
    progress: Progress = SILENT,
) -> TrainResult:
    """Train a GPT as `config` says; its checkpoint, record, metrics and data go to `folder`.

    Raises `QpackError` before the first step for everything that can be checked. In the midst of
    training: `ConfigError` when the loss stops being finite, `ResourceError` when memory is short,
    `KeyboardInterrupt` when it was asked to stop; the last checkpoint stays, to resume from.
    """
    with distributed.session(), memory_advice(config):
        run = prepare_run(config, folder, resume=resume, force=force, progress=progress)
        with contextlib.ExitStack() as stack:
            stack.enter_context(run.batches)
            metrics = None
            if rank() == 0:
                metrics = stack.enter_context(
                    Metrics(
                        folder,
                        tensorboard=config.loop.tensorboard,
                        after=run.clock.steps if resume else -1,
                    )
                )
            warm_up(run)
            _Loop(run, metrics).train()
            return finish(run, metrics)


@contextlib.contextmanager
def memory_advice(config: TrainConfig) -> Iterator[None]:
    """Turn running out of memory into an error that names the knob."""
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
        if not isinstance(error, MemoryError) and not _is_shortage(error):
            raise
        loop = config.loop
        raise ResourceError(
            "out of memory in training",
            items=[str(error).strip().partition("\n")[0]],
            hint=f"raise loop.accumulate (now {loop.accumulate}), or lower loop.batch_tokens"
            f" ({loop.batch_tokens:,}) or loop.sequence ({loop.sequence:,})",
        ) from error


def _is_shortage(error: BaseException) -> bool:
    """torch's CPU allocator raises a plain RuntimeError."""
    text = str(error).lower()
    return "out of memory" in text or "can't allocate memory" in text


def warm_up(run: Run) -> None:
    """Compile everything before the clock starts, then put every weight back."""
    if not run.passes.compiled:
        return
    before = snapshot(run)
    orders = [tuple(range(run.model.config.num_layers)), *(p.layer_order for p in run.config.phase)]
    run.passes.warm_up(
        list(dict.fromkeys(orders)) if run.config.phase else [None],
        lambda: run.parts(0),
        progress=run.progress,
    )
    run.passes(run.parts(0))
    run.optimizers.step(lr_scale=0.0, step=0)
    restore(run, before)


class _Loop:
    """The steps of a run."""

    def __init__(self, run: Run, metrics: Metrics | None) -> None:
        self.run = run
        self.metrics = metrics
        self.logged = run.clock.steps
        self.logged_seconds = run.clock.seconds
        self.good: int | None = run.clock.steps or None
        """steps of the last checkpoint"""
        self.speed = 0.0
        self.mfu: float | None = None
        self.bpb: float | None = None
        self.grad_norm: Tensor | None = None

    def train(self) -> None:
        """Train to the end of the budget."""
        run = self.run
        timed = run.clock.max_seconds is not None
        total = run.clock.max_seconds if timed else run.clock.max_steps
        with (
            stoppable(run.progress) as wish,
            run.progress.stage("train", total=total, unit="s" if timed else "steps") as task,
        ):
            task.advance(run.clock.seconds if timed else run.clock.steps)
            run.clock.start()
            while run.clock.progress < 1.0:
                before = run.clock.seconds
                self._step(wish)
                task.advance(run.clock.seconds - before if timed else 1.0, note=self._note())
            run.clock.pause()
            if run.pending:
                self._look(rate=None)
            self._save()  # what follows can be interrupted

    def _step(self, wish: Wish) -> None:
        run, step = self.run, self.run.clock.steps
        done = run.clock.progress
        rate = lr_scale(
            run.config.schedule, step=step, progress=done, steps_left=run.clock.steps_left
        )
        self._set_order()
        quantized: contextlib.AbstractContextManager[Any] = contextlib.nullcontext()
        if run.qat is not None:
            if run.qat.on_step(step, done, rate):
                errors, run.qat_from = run.qat.mean_error(), step
                self._log(step, qat_mean_error=errors)
                run.progress.note(
                    f"step {step:,}: late QAT is on, mean |w - Q(w)| {errors[ALL]:.2e}"
                )
            quantized = run.qat.quantized()
        with quantized:
            run.pending.append(run.passes(run.parts(step)))
        self.grad_norm = run.optimizers.step(lr_scale=rate, step=step)
        run.averages.update(step=step, progress=done, lr_scale=rate)
        stop = run.clock.tick(stop=wish.stop)
        if run.clock.steps % run.config.loop.log_every == 0:
            self._look(rate=rate)
        if stop:
            self._save()
            raise KeyboardInterrupt
        self._pauses(done)

    def _set_order(self) -> None:
        """Run the layers in the order that is due, and say when it changes."""
        run = self.run
        order = run.order
        run.model.set_layer_order(order)
        if order is not None and run.trained not in (None, order):
            run.progress.note(f"step {run.clock.steps:,}: {len(order)} steps of layers from now on")
            self._log(run.clock.steps, layer_order=list(order))
        run.trained = order

    def _pauses(self, before: float) -> None:
        """What happens now and then between steps, off the clock."""
        run, loop = self.run, self.run.config.loop
        every = loop.checkpoint_every
        if every and run.clock.steps % every == 0:
            self._save()
        parts = loop.validations
        due = int(run.clock.progress * parts) > int(before * parts)
        if due and run.clock.progress < 1.0 and run.validation is not None:
            run.clock.pause()
            got = score_now(run)
            self.bpb = got.bpb
            self._log(run.clock.steps, val_bpb=got.bpb, weights="last")
            run.progress.note(f"step {run.clock.steps}: validation {got.bpb:.4f} bits per byte")
            run.clock.start()

    def _save(self) -> None:
        """A checkpoint to resume from, if every loss so far is finite."""
        run = self.run
        run.clock.pause()
        self._check()
        self._check_weights()
        saved = snapshot(run)
        if rank() == 0:
            checkpoints.save(run.folder, saved, run.known)
        self.good = run.clock.steps
        run.clock.start()

    def _look(self, *, rate: float | None) -> None:
        """Log the mean of the losses since the last look, and the speed."""
        run = self.run
        losses = self._check()
        run.pending.clear()
        run.loss = float(losses.mean())
        steps, seconds = run.clock.steps - self.logged, run.clock.seconds - self.logged_seconds
        self.logged, self.logged_seconds = run.clock.steps, run.clock.seconds
        speed = steps * run.config.loop.batch_tokens / seconds if seconds else 0.0
        self.speed, self.mfu = speed, mfu_of(run, speed)
        values: dict[str, Any] = {"loss": run.loss}
        if rate is not None:
            values["lr_scale"] = rate
        if self.grad_norm is not None:
            values["grad_norm"] = float(self.grad_norm)
        self._log(run.clock.steps, **values, tokens_per_second=round(speed, 1), mfu=self.mfu)

    def _check(self) -> Tensor:
        """Losses not logged yet, means over ranks, on the CPU. Raises when one is not finite."""
        run = self.run
        losses = torch.stack(run.pending).cpu().double() if run.pending else torch.zeros(0)
        if world_size() > 1 and len(losses):
            dist.all_reduce(losses)
            losses /= world_size()
        bad = torch.nonzero(~losses.isfinite()).flatten()
        if len(bad):
            step = run.clock.steps - len(losses) + int(bad[0])
            raise ConfigError(
                f"the loss became {float(losses[bad[0]])} at step {step + 1}",
                items=[f"batch: {run.loader.describe(step)}", self._kept()],
                hint=DIVERGED,
            )
        return losses

    def _check_weights(self) -> None:
        """Raises where a weight is not finite: the losses would be, one step later."""
        run = self.run
        finite = torch.stack([p.detach().isfinite().all() for p in run.model.parameters()])
        if not bool(finite.all()):
            named = zip(run.model.named_parameters(), finite.tolist(), strict=True)
            bad = [name for (name, _), good in named if not good]
            raise ConfigError(
                f"weights are not finite after step {run.clock.steps}",
                items=[*bad, self._kept()],
                hint=DIVERGED,
            )

    def _kept(self) -> str:
        if self.good is None:
            if self.run.config.loop.checkpoint_every:
                return "no checkpoint was kept yet"
            return "no checkpoint was kept: set loop.checkpoint_every"
        return f"the checkpoint of step {self.good} is kept"

    def _log(self, step: int, **values: Any) -> None:
        if self.metrics is not None:
            clock = self.run.clock
            self.metrics.log(step, clock.seconds, **values)

    def _note(self) -> str:
        """The live line: the progress bar adds the time left."""
        run = self.run
        parts = [f"step {run.clock.steps:,}"]
        if self.speed:
            parts += [f"loss {run.loss:.3f}", f"{self.speed:,.0f} tokens/s"]
            if self.mfu is not None:
                parts.append(f"MFU {self.mfu:.1%}")
        if self.bpb is not None:
            parts.append(f"BPB {self.bpb:.4f}")
        return ", ".join(parts)
