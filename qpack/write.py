"""Text that a model goes on with: temperature, top-k, a seed; piece by piece as it comes.

    p(v) ~ exp(log p_model(v) / temperature) over the k likeliest tokens, ties to the lower token

The context is that of `qpack.eval.network`: a key/value cache, and where it is full a new one that
begins with its second half. The same model, machine and arguments give the same text.
"""

from __future__ import annotations

import codecs
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from qpack.errors import ConfigError, DataError
from qpack.eval.coder import WINDOW_MAX
from qpack.eval.network import Network
from qpack.generate import draw
from qpack.progress import SILENT, Progress
from qpack.tokenizer import Tokenizer


@dataclass(frozen=True, kw_only=True, slots=True)
class WriteSettings:
    """How to draw."""

    num_tokens: int = 200
    """Tokens to write at most: the end of the text may come before."""
    temperature: float = 0.8
    """Divides log-probabilities; 0 takes the likeliest token."""
    top_k: int | None = None
    """Draw from this many likeliest tokens; None: from all."""
    seed: int = 0
    """Below 2^64."""
    window: int = 1024
    """Tokens of context at most."""

    def __post_init__(self) -> None:
        """Raises ConfigError naming every setting that cannot be."""
        counts = {"num_tokens": self.num_tokens, "window": self.window}
        if self.top_k is not None:
            counts["top_k"] = self.top_k
        problems = [f"{name} = {n}: must be at least 1" for name, n in counts.items() if n < 1]
        if self.window > WINDOW_MAX:
            problems.append(f"window = {self.window}: must be at most {WINDOW_MAX}")
        if not 0 <= self.seed < 1 << 64:
            problems.append(f"seed = {self.seed}: must be 0 or more, and below 2^64")
        if not 0.0 <= self.temperature < float("inf"):
            problems.append(f"temperature = {self.temperature}: must be 0 or more, and finite")
        if problems:
            raise ConfigError("cannot write text with these settings", items=problems)


def write(
    model: nn.Module,
    tokenizer: Tokenizer,
    prompt: str,
    settings: WriteSettings,
    *,
    progress: Progress = SILENT,
) -> Iterator[str]:
    """What comes after `prompt`, as text of whole characters, in pieces that are not empty.

    It ends after `num_tokens` tokens, or where the model begins or ends a document. `model` maps
    tokens (B, T) to logits (B, T, V); a cache makes each token cost one position. Raises
    `DataError` where model and tokenizer do not belong together or logits are not finite, and for a
    prompt of bytes that are no UTF-8.
    """
    try:
        prompt.encode()
    except UnicodeEncodeError:
        raise DataError("the prompt is no text", hint="write it in UTF-8") from None
    network = Network(model, window=settings.window, stride=-(-settings.window // 2))
    tokenizer.check_model(network.vocab_size)
    previous = tokenizer.bos
    session = network.start(previous)
    for token in tokenizer.encode(prompt):
        session.observe(token)
        previous = token
    # A space at the end is lost to the tokenizer, and stands there already.
    spaced = prompt[-1:].isspace() and not tokenizer.piece_texts[previous].endswith(b" ")
    generator = torch.Generator().manual_seed(settings.seed)
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    with progress.stage("write", total=settings.num_tokens, unit="tokens") as task:
        for _ in range(settings.num_tokens):
            token = choose(torch.from_numpy(session.log_probs().copy()), settings, generator)
            if tokenizer.boundary[token]:
                break
            piece = tokenizer.text_after(previous, token)
            if text := decoder.decode(piece.removeprefix(b" ") if spaced else piece):
                yield text
            spaced = False
            session.observe(token)
            previous = token
            task.advance()
    if text := decoder.decode(b"", final=True):
        yield text


def choose(logs: Tensor, settings: WriteSettings, generator: torch.Generator) -> int:
    """A token drawn from log-probabilities (V,). Raises `DataError` where there is a NaN."""
    if logs.isnan().any():
        raise DataError(
            "the model's logits are not finite: it cannot write text",
            hint="look for NaN or Inf in its weights",
        )
    if settings.top_k is not None:
        likeliest = logs.argsort(descending=True, stable=True)[: settings.top_k]
        kept = torch.full_like(logs, -torch.inf)
        kept[likeliest] = logs[likeliest]
        logs = kept
    if settings.temperature == 0.0:
        return int(logs.argmax())
    # The likeliest at 0: a small temperature must not make all of them infinite.
    return int(draw((logs[None] - logs.max()) / settings.temperature, generator))
