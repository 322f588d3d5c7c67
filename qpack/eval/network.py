"""A network as a predictor: what it sees of a stream, in windows or with a key/value cache.

The batched form reads the windows of `windows.py` (disjoint, or sliding every `stride` tokens) or,
with `isolate`, of `documents.py`. The sequential form reads exactly the same contexts: a window
that is full gives way to one that begins with its last `window - stride` tokens, and with `isolate`
a BOS begins an empty one. Both are log-softmax in float64 of float32 logits; they differ by the
rounding of the network's own products, whose shapes differ.

A short window runs with a cache of the full window's length where the model has one, so that a
context whose rotation depends on its length (`rope_ntk`) is the same in both forms, and does not
depend on what follows.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from qpack.distributed import rank, world_size
from qpack.errors import ConfigError, DataError
from qpack.eval.batches import (
    batch_size,
    batches,
    blocks,
    device_of,
    gather,
    precise_dtype,
    scored_logits,
)
from qpack.eval.documents import document_windows
from qpack.eval.modes import evaluating
from qpack.eval.predictor import LogProbs, Tokens
from qpack.eval.ranks import sum_array
from qpack.eval.windows import Window, windows
from qpack.progress import SILENT, Progress
from qpack.tokens import check_vocab


class Network:
    """A model that maps tokens (B, T) to logits (B, T, V), as a `RowPredictor`."""

    def __init__(
        self,
        model: nn.Module,
        *,
        window: int = 1024,
        stride: int | None = None,
        isolate: int | None = None,
        batch: int | None = None,
        name: str | None = None,
    ) -> None:
        """`window` tokens of context at most, a new window every `stride` (None: disjoint ones).

        `isolate` is the BOS token at which contexts begin anew, None where context goes over
        documents; `batch` is windows a forward pass, on the device where the model is. Raises
        `ConfigError` for numbers out of range, `DataError` for a model without `vocab_size`.
        """
        self.model, self.window, self.isolate = model, window, isolate
        self.stride = window if stride is None else stride
        self.device = device_of(model)
        vocab_size = getattr(model, "vocab_size", None)
        if not isinstance(vocab_size, int):
            raise DataError(f"{type(model).__name__} is no language model: it has no vocab_size")
        self.vocab_size = vocab_size
        problems = []
        if not 1 <= self.stride <= window:
            problems.append(f"window {window} with stride {self.stride}: use 1 <= stride <= window")
        if batch is not None and batch < 1:
            problems.append(f"batch {batch}: must be at least 1")
        if problems:
            raise ConfigError("no network can read so", items=problems)
        self.batch = batch or batch_size(self.device, window, vocab_size)
        self.name = name or self._described()

    def _described(self) -> str:
        kind = "disjoint" if self.stride == self.window else f"sliding by {self.stride}"
        return f"{kind}, documents apart" if self.isolate is not None else kind

    @property
    def settings(self) -> dict[str, Any]:
        """What a report says of it."""
        return {"window": self.window, "stride": self.stride, "isolate": self.isolate}

    @property
    def kept(self) -> int:
        """Tokens of a full window that the next one begins with."""
        return self.window - self.stride

    def with_model(self, model: nn.Module) -> Network:
        """The same windows through another model."""
        return Network(
            model,
            window=self.window,
            stride=self.stride,
            isolate=self.isolate,
            batch=self.batch,
            name=self.name,
        )

    def start(self, first: int, *, num_tokens: int | None = None) -> NetworkSession:
        """As `Predictor.start`; the length of the stream does not matter."""
        return NetworkSession(self, first)

    def score(self, tokens: Tokens, *, progress: Progress = SILENT) -> NDArray[np.float64]:
        """As `Predictor.score`. Raises `DataError` for tokens beyond the vocabulary.

        Over ranks, all of them must call it, each reads a share of the windows, and all have the
        answer.
        """
        with progress.stage(self.name, total=len(tokens) - 1, unit="tokens") as task:
            out = np.zeros(len(tokens) - 1)
            plan = self.share(self.plan(tokens))
            found = []  # moved when all is under way: a device must not wait for every group
            for group, logs in self.score_windows(tokens, plan):
                found.append((group, logs))
                task.advance(logs.numel() * world_size())
            self.scatter(found, out)
        return sum_array(out)

    @staticmethod
    def share(plan: Sequence[Window]) -> list[Window]:
        """This rank's windows, those of a shape together: a target's place is known anyhow."""
        return sorted(plan, key=lambda item: (-item.length, item.skip))[rank() :: world_size()]

    @staticmethod
    def scatter(found: Sequence[tuple[Sequence[Window], Tensor]], out: NDArray[np.float64]) -> None:
        """Put what was found in groups of windows (B, T - skip) into its targets' places."""
        for group, logs in found:
            for item, row in zip(group, logs.cpu().numpy(), strict=True):
                out[item.start + item.skip : item.start + item.length] = row

    def rows(
        self, tokens: Tokens, *, progress: Progress = SILENT
    ) -> Iterator[tuple[LogProbs, Tokens]]:
        """As `RowPredictor.rows`. Raises `DataError` for tokens beyond the vocabulary."""
        with progress.stage(self.name, total=len(tokens) - 1, unit="tokens") as task:
            for rows, targets in self.window_rows(tokens, self.plan(tokens)):
                yield rows, targets
                task.advance(len(targets))

    def plan(self, tokens: Tokens) -> list[Window]:
        """The windows in which `tokens` (n,) are read, in stream order."""
        check_vocab(np.asarray(tokens), self.vocab_size, "the tokens to score")
        if self.isolate is None:
            return windows(len(tokens), window=self.window, stride=self.stride)
        return document_windows(tokens, self.isolate, window=self.window, stride=self.stride)

    def score_windows(
        self, tokens: Tokens, plan: Sequence[Window]
    ) -> Iterator[tuple[list[Window], Tensor]]:
        """Groups of windows of the plan, in order, with the log-probabilities of their targets.

        (B, T - skip) float64 on the model's device, for B windows of one shape.
        """
        for group, logits, targets in self._passes(tokens, plan):
            parts = [
                log_softmax(rows[0]).gather(-1, goal[:, None])
                for rows, goal in blocks([logits], targets)
            ]
            yield group, torch.cat(parts).view(targets.shape)

    def window_rows(
        self, tokens: Tokens, plan: Sequence[Window]
    ) -> Iterator[tuple[LogProbs, Tokens]]:
        """Blocks of rows (b, V) and targets (b,), in the plan's order."""
        for _, logits, targets in self._passes(tokens, plan):
            for rows, goal in blocks([logits], targets):
                yield as_array(log_softmax(rows[0])), goal.cpu().numpy()

    def _passes(
        self, tokens: Tokens, plan: Sequence[Window]
    ) -> Iterator[tuple[list[Window], Tensor, Tensor]]:
        """Windows of one shape, logits (B, T - skip, V) and targets (B, T - skip) of each pass."""
        for group in batches(plan, self.batch):
            inputs, targets = gather(tokens, group, self.device)
            skip, more = group[0].skip, {}
            model: Any = self.model
            if inputs.size(1) < self.window and hasattr(model, "new_cache"):
                more["cache"] = model.new_cache(len(group), self.window)
            # Modes and gradients are switched here: a caller may do anything between two groups.
            with torch.no_grad(), evaluating(model):
                logits = scored_logits(model, inputs, skip, **more)
            yield group, logits, targets[:, skip:]


class NetworkSession:
    """One stream, read token by token: see the module's docstring for what it sees."""

    def __init__(self, network: Network, first: int) -> None:
        self._network = network
        self._row: LogProbs | None = None
        self._begin([first])

    def log_probs(self) -> LogProbs:
        """As `Session.log_probs`; not writable."""
        if self._row is None:
            row = self._read()
            row.setflags(write=False)
            self._row = row
        return self._row

    def observe(self, token: int) -> None:
        """As `Session.observe`. The network runs when it is asked, over all that is new."""
        network = self._network
        self._row = None
        if token == network.isolate:
            self._begin([token])
        elif len(self._context) == network.window:
            self._begin([*self._context[network.stride :], token])
        else:
            self._context.append(token)

    def reread(self) -> None:
        """The model has changed: forget what it made of the context."""
        self._begin(self._context)

    def _begin(self, context: list[int]) -> None:
        self._context = context
        self._cache: Any = None
        self._num_read = 0
        self._row = None

    def _read(self) -> LogProbs:
        """The row after the context."""
        network = self._network
        model: Any = network.model
        more = {}
        if hasattr(model, "new_cache"):
            if self._cache is None:
                self._cache = model.new_cache(1, network.window)
            more["cache"] = self._cache
        new = self._context[self._num_read :]
        if more:
            self._num_read = len(self._context)
        with torch.no_grad(), evaluating(model):
            inputs = torch.tensor([new], device=network.device)
            logits = scored_logits(model, inputs, len(new) - 1, **more)
        return as_array(log_softmax(logits[0, 0]))


def log_softmax(logits: Tensor) -> Tensor:
    """Log-probabilities (..., V) of logits (..., V), as precise as the device can."""
    return logits.log_softmax(-1, dtype=precise_dtype(logits.device))


def as_array(rows: Tensor) -> LogProbs:
    """The same in float64 on the host."""
    found: LogProbs = rows.cpu().double().numpy()
    return found
