"""Score-first training of low-rank adapters, anew for each document (#826; techniques.md 8.4).

A document is scored in chunks of K targets. Chunk c is read in a window of up to W tokens that ends
with the chunk, by the adapters as they are; then they are trained on those same targets, which are
now known. The last chunk of a document is not learned from, for nothing comes after it. Where the
adapters have learned nothing this is the document-isolated network with stride K, the control.

Documents of one batch run side by side, each row with its own adapters, the longest first, so that
those that have ended are left out. Nothing in a document's score depends on the others. Over ranks
each takes every world-th batch, and the scores are added up once, with a mark of those that failed:
a rank that stopped before that would be waited for.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from qpack.distributed import rank, world_size
from qpack.errors import ConfigError, DataError
from qpack.eval.adapter_training import Documents, diverged
from qpack.eval.adapters import LowRank
from qpack.eval.batches import blocks
from qpack.eval.documents import documents
from qpack.eval.lessons import IGNORED
from qpack.eval.lora_settings import LoraSettings
from qpack.eval.modes import evaluating
from qpack.eval.network import Network, as_array, log_softmax
from qpack.eval.predictor import LogProbs, Session, Tokens
from qpack.eval.ranks import sum_array
from qpack.progress import SILENT, Progress, Task
from qpack.tokens import check_vocab

BATCH_TOKENS = {"cpu": 2_048, "cuda": 16_384}
"""Tokens of the windows of one batch of documents: a backward pass goes through all of them."""

Document = tuple[int, int]
"""Where it starts in the stream, and how many targets it has."""


class LoraAdapted:
    """A document-isolated network with adapters that learn inside each document."""

    def __init__(self, network: Network, settings: LoraSettings | None = None) -> None:
        """The network's model is run with hooks and never changed.

        Raises `ConfigError` for a network that does not isolate documents, a window that is no
        multiple of the chunk, and targets that the model does not have.
        """
        settings = settings or LoraSettings()
        problems = []
        if network.isolate is None:
            problems.append("the network's context goes over documents: give it `isolate`")
        if network.window % settings.chunk_tokens:
            fits = math.gcd(settings.chunk_tokens, network.window)
            problems.append(
                f"chunk_tokens = {settings.chunk_tokens} does not divide window {network.window}"
                f", {fits} does"
            )
        if problems:
            raise ConfigError("adapters cannot be trained on this network", items=problems)
        self.how = settings
        self.control = Network(
            network.model,
            window=network.window,
            stride=settings.chunk_tokens,
            isolate=network.isolate,
        )
        """The same windows without adapters."""
        self.vocab_size = network.vocab_size
        self.name = f"{self.control.name} + lora"
        self._low_rank = LowRank(
            network.model, settings.targets, rank=settings.rank, window=network.window
        )

    @property
    def settings(self) -> dict[str, Any]:
        """What a report says of it."""
        return {**self.control.settings, "lora": asdict(self.how)}

    def start(self, first: int, *, num_tokens: int | None = None) -> Session:
        """As `Predictor.start`. The length of the stream is of no account."""
        return LoraSession(self, first)

    def score(self, tokens: Tokens, *, progress: Progress = SILENT) -> NDArray[np.float64]:
        """As `Predictor.score`. Raises `DataError` for tokens beyond the vocabulary, and on all
        ranks alike where adapters diverge."""
        check_vocab(np.asarray(tokens), self.vocab_size, "the tokens to score")
        scores = np.zeros(max(1, len(tokens)))  # the last one marks a rank that failed
        failure: DataError | None = None
        with (
            evaluating(self.control.model),
            torch.no_grad(),
            progress.stage("adapt and score", total=len(scores) - 1, unit="tokens") as task,
        ):
            try:
                self._score(tokens, scores, task)
            except DataError as error:
                failure, scores[-1] = error, 1.0
        if sum_array(scores)[-1]:
            raise failure or diverged()
        return scores[:-1]

    def _score(self, tokens: Tokens, scores: NDArray[np.float64], task: Task) -> None:
        """Fill in this rank's share of the scores."""
        bos = self.control.isolate
        assert bos is not None, "checked when it was made"
        size, window = self.how.chunk_tokens, self.control.window
        spans = sorted(documents(tokens, bos), key=lambda span: -span[1])
        batch = max(1, BATCH_TOKENS.get(self.device.type, BATCH_TOKENS["cuda"]) // window)
        groups = [spans[i : i + batch] for i in range(0, len(spans), batch)]
        for group in groups[rank() :: world_size()]:
            state = self.documents(len(group))
            for index in range(-(-group[0][1] // size)):
                chunk = _Chunk(tokens, group, index, chunk=size, window=window)
                self._chunk(state, chunk, scores, task)

    def _chunk(
        self, state: Documents, chunk: _Chunk, scores: NDArray[np.float64], task: Task
    ) -> None:
        """Score one chunk of every document that has it; learn from it where another follows."""
        inputs, targets = (tensor.to(self.device) for tensor in (chunk.inputs, chunk.targets))
        logs = self.log_likelihoods(state, inputs, targets, chunk.skip)
        for (start, _), row, length in zip(chunk.spans, logs, chunk.lengths, strict=True):
            begin = start + chunk.begin
            scores[begin : begin + length] = row[:length]
        task.advance(sum(chunk.lengths))
        more = sum(num_targets > chunk.end for _, num_targets in chunk.spans)
        if more:
            self.learn(state, inputs[:more], targets[:more], chunk.index)

    def documents(self, count: int) -> Documents:
        """Adapters of `count` documents that have learned nothing."""
        return Documents(self._low_rank, self.how, count)

    def log_likelihoods(
        self, state: Documents, inputs: Tensor, targets: Tensor, skip: int
    ) -> NDArray[np.float64]:
        """(n, T - skip): of targets (n, T - skip), by the adapters as they are."""
        logits = self.logits(state, inputs, skip)
        found = [
            log_softmax(rows).gather(-1, goal.clamp_min(0)[:, None])[:, 0]
            for (rows,), goal in blocks([logits], targets)
        ]
        return as_array(torch.cat(found)).reshape(targets.shape)

    def logits(self, state: Documents, inputs: Tensor, skip: int, cache: Any = None) -> Tensor:
        """(n, T - skip, V) of inputs (n, T) by the adapters as they are, after what is in `cache`
        where one is given."""
        return self._low_rank.logits(
            inputs,
            state.scoring(len(inputs)),
            scored_from=skip,
            temperature=self.how.temperature,
            cache=cache,
        )

    def learn(self, state: Documents, inputs: Tensor, targets: Tensor, chunk: int) -> None:
        """Train on targets (n, K) at the end of the windows `inputs` (n, T) of chunk `chunk`."""
        inputs, targets = inputs.to(self.device), targets.to(self.device)
        skip = inputs.size(1) - targets.size(1)
        state.learn(inputs, targets, scored_from=skip, chunk=chunk)

    def new_cache(self) -> Any:
        """An empty one for one document; None where the model has none."""
        return self._low_rank.new_cache(1)

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return self.control.device


class _Chunk:
    """Chunk `index` of each document of a batch that has it: the first ones, the longest."""

    def __init__(
        self, tokens: Tokens, spans: Sequence[Document], index: int, *, chunk: int, window: int
    ) -> None:
        self.index = index
        self.begin, self.end = index * chunk, (index + 1) * chunk
        """First target, and the one after the last, counted in the document."""
        self.spans = [span for span in spans if span[1] > self.begin]
        context = max(0, self.end - window)
        self.skip = self.begin - context
        """Inputs before those whose targets are the chunk's."""
        self.lengths = [min(self.end, count) - self.begin for _, count in self.spans]
        longest = self.skip + max(self.lengths)
        self.inputs = torch.zeros(len(self.spans), longest, dtype=torch.int64)
        """(n, T), padded on the right with token 0."""
        self.targets = torch.full((len(self.spans), longest - self.skip), IGNORED)
        """(n, T - skip), padded with `IGNORED`."""
        for row, ((start, _), length) in enumerate(zip(self.spans, self.lengths, strict=True)):
            piece = tokens[start + context : start + self.begin + length + 1].astype(np.int64)
            self.inputs[row, : self.skip + length] = torch.from_numpy(piece[:-1])
            self.targets[row, :length] = torch.from_numpy(piece[self.skip + 1 :])


class LoraSession:
    """One document after another, token by token."""

    def __init__(self, adapted: LoraAdapted, first: int) -> None:
        self._adapted = adapted
        self._row: LogProbs | None = None
        self._cache: Any = None
        self._unread: list[int] = []
        self._begin_document(first)

    def log_probs(self) -> LogProbs:
        """As `Session.log_probs`; not writable."""
        if self._row is None:
            self._row = self._read()
            self._row.setflags(write=False)
        return self._row

    def _read(self) -> LogProbs:
        """The row after the document so far."""
        adapted, unread = self._adapted, self._unread
        if self._cache is None:
            self._cache = adapted.new_cache()
        if self._cache is not None:
            self._unread = []
        inputs = torch.tensor([unread], device=adapted.device)
        with torch.no_grad(), evaluating(adapted.control.model):
            logits = adapted.logits(self._state, inputs, len(unread) - 1, self._cache)
        return as_array(log_softmax(logits[0, 0]))

    def observe(self, token: int) -> None:
        """As `Session.observe`. At the end of a chunk the document's adapters learn from it."""
        if token == self._adapted.control.isolate:
            self._begin_document(token)
            return
        self._document.append(token)
        self._unread.append(token)
        self._row = None
        size = self._adapted.how.chunk_tokens
        chunk, inside = divmod(len(self._document) - 1, size)
        if not inside:
            self._learn(chunk - 1)

    def _begin_document(self, first: int) -> None:
        self._document = [first]
        self._state = self._adapted.documents(1)
        self._begin_window(0)

    def _begin_window(self, start: int) -> None:
        """The next rows read the document from token `start` on, by the adapters as they are."""
        self._unread = self._document[start:]
        self._cache = self._row = None

    def _learn(self, index: int) -> None:
        """Chunk `index`, which ends the document so far, is known: learn from it."""
        adapted = self._adapted
        size, window = adapted.how.chunk_tokens, adapted.control.window
        span = (0, len(self._document) - 1)
        chunk = _Chunk(np.array(self._document), [span], index, chunk=size, window=window)
        with evaluating(adapted.control.model):
            adapted.learn(self._state, chunk.inputs, chunk.targets, index)
        self._begin_window(max(0, (index + 2) * size - window))
