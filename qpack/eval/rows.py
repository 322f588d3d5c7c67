"""The rows of an evaluation: each a predictor on the same tokens, beside its control.

A row's nats are the sum over all targets, its bytes those of the text that was scored (which the
tokenizer may have normalised: BPB divides by what was scored, not by what a file once held), and
its gain is the control's bits per byte less its own. Where probes are asked for they come first,
and a predictor that one of them catches ends the evaluation: it has no row and no BPB.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qpack.errors import ConfigError, DataError, EvaluationError
from qpack.eval.bootstrap import bootstrap_error, by_document
from qpack.eval.checks import CheckSettings, Probe, check, refuse
from qpack.eval.predictor import Predictor, Tokens
from qpack.eval.registry import Contender
from qpack.progress import SILENT, Progress
from qpack.tokenizer import Tokenizer
from qpack.tokens import check_vocab

SEED = 0
"""Of the bootstrap."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Control:
    """What a row is compared with, on the same windows."""

    name: str
    bpb: float
    gain: float
    """The control's bits per byte less the row's: above 0 where the row is better."""
    gain_error: float | None
    """Standard error of the gain over documents, paired; None for fewer than two documents."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """One predictor's score."""

    name: str
    tokens: int
    """Targets scored."""
    bytes: int
    """UTF-8 bytes of the targets' text."""
    documents: int
    nats: float
    bpb: float
    bpb_error: float | None
    """Standard error over documents; None for fewer than two."""
    seconds: float
    """Wall clock of scoring, probes apart."""
    tokens_per_second: float
    settings: Mapping[str, Any]
    control: Control | None
    probes: tuple[Probe, ...] | None
    """None where none were asked for."""
    scores: NDArray[np.float64] = field(repr=False, compare=False)
    """(tokens,): the log-probability of each target, nats."""

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON: everything but the scores of single tokens."""
        document = asdict(self)
        del document["scores"]
        return document


def evaluate_row(
    predictor: Predictor,
    tokens: Tokens,  # (n,)
    tokenizer: Tokenizer,
    *,
    control: Row | None = None,
    settings: Mapping[str, Any] | None = None,
    probes: Iterable[Probe] | None = None,
    progress: Progress = SILENT,
) -> Row:
    """Score `tokens[1:]` under the predictor; `control` is the row of the same tokens beside it.

    `probes` are those that the predictor has passed. Raises `DataError` when predictor, tokenizer
    and tokens do not belong together, the text has no bytes or a score is not finite, and
    `EvaluationError` for another number of scores than targets.
    """
    tokens = np.asarray(tokens)
    tokenizer.check_model(predictor.vocab_size)
    check_vocab(tokens, tokenizer.vocab_size, "the tokens to score")
    if len(tokens) < 2:
        raise DataError(f"{len(tokens)} tokens hold no target to score", hint="give a longer shard")
    num_bytes = tokenizer.bytes_of(tokens[:-1], tokens[1:])
    if not num_bytes.any():
        raise DataError("the tokens to score stand for no text")
    began = time.perf_counter()
    scores = predictor.score(tokens, progress=progress)
    seconds = time.perf_counter() - began
    if scores.shape != (len(tokens) - 1,):
        raise EvaluationError(
            f'the predictor "{predictor.name}" gives {scores.size:,} scores'
            f" for {len(tokens) - 1:,} targets"
        )
    if not np.isfinite(scores).all():
        raise DataError(
            f'the predictor "{predictor.name}" gives no finite score',
            items=[f"first at target {int(np.flatnonzero(~np.isfinite(scores))[0]):,}"],
            hint="look for NaN or Inf in the model's weights",
        )
    sums = _Documents(tokens, num_bytes, tokenizer)
    total = int(num_bytes.sum())
    nats = -math.fsum(scores)
    bpb = nats / math.log(2) / total
    return Row(
        name=predictor.name,
        tokens=len(scores),
        bytes=total,
        documents=len(sums.bytes),
        nats=nats,
        bpb=bpb,
        bpb_error=sums.error(-scores),
        seconds=seconds,
        tokens_per_second=len(scores) / max(seconds, 1e-9),
        settings=dict(settings or {}),
        control=None
        if control is None
        else Control(
            name=control.name,
            bpb=control.bpb,
            gain=control.bpb - bpb,
            gain_error=sums.error(scores - control.scores),
        ),
        probes=None if probes is None else tuple(probes),
        scores=scores,
    )


def evaluate_rows(
    contenders: Iterable[Contender],
    tokens: Tokens,
    tokenizer: Tokenizer,
    *,
    checks: CheckSettings | None = None,
    progress: Progress = SILENT,
) -> Iterator[Row]:
    """A row for every contender and, ahead of the first that needs it, for each control.

    With `checks` everything is probed first, all contenders before any is scored: then a refusal,
    an `EvaluationError`, comes before any number does. Raises `ConfigError` for two that go by one
    name. Other errors as in `evaluate_row`.
    """
    contenders = list(contenders)
    _check_names(contenders)
    passed: dict[int, list[Probe] | None] = {}
    for contender in contenders:
        passed[id(contender)] = None
        if checks is not None:
            found = check(
                contender.rehearsal, tokens, tokenizer, settings=checks, progress=progress
            )
            refuse(contender.predictor, found)
            passed[id(contender)] = found
    known: dict[str, Row] = {}
    for contender in contenders:
        control = contender.control
        if control is not None and control.name not in known:
            settings = getattr(control, "settings", {})
            known[control.name] = evaluate_row(
                control, tokens, tokenizer, settings=settings, progress=progress
            )
            yield known[control.name]
        row = evaluate_row(
            contender.predictor,
            tokens,
            tokenizer,
            control=known[control.name] if control is not None else None,
            settings=contender.settings,
            probes=passed[id(contender)],
            progress=progress,
        )
        known[row.name] = row
        yield row


def _check_names(contenders: Sequence[Contender]) -> None:
    """Rows are told apart by name: a plugin may not call itself as the network that it reads."""
    names = [contender.predictor.name for contender in contenders]
    controls = [contender.control for contender in contenders if contender.control is not None]
    problems = {name for name in names if names.count(name) > 1}
    for predictor in (contender.predictor for contender in contenders):
        own = getattr(predictor, "settings", None)
        if any(
            control.name == predictor.name and getattr(control, "settings", None) != own
            for control in controls
        ):
            problems.add(predictor.name)
    if problems:
        raise ConfigError(
            "two rows go by one name", items=sorted(problems), hint="change a plugin's name"
        )


class _Documents:
    """Sums over the documents of a stream; the whole of it where the tokenizer knows no BOS."""

    def __init__(self, tokens: Tokens, num_bytes: NDArray[np.int64], tokenizer: Tokenizer) -> None:
        self._tokens = tokens
        try:
            self._bos = tokenizer.bos
        except DataError:
            self._bos = -1
        self.bytes = self._sums(num_bytes)

    def _sums(self, values: NDArray[Any]) -> NDArray[Any]:
        return by_document(values, self._tokens, self._bos)

    def error(self, nats: NDArray[np.float64]) -> float | None:
        """Standard error of these nats a byte, as bits."""
        return bootstrap_error(self._sums(nats), self.bytes, np.random.default_rng(SEED))
