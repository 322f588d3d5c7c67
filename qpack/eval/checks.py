"""Probes: is a predictor a code, or does it only print small numbers?

A score is a number of bits per byte if and only if the distribution of each symbol is normalised
and fixed before the symbol is seen (Parameter Golf issue #1017). The probes below test that from
outside, on the first tokens of the stream, without knowing how the predictor works:

    normalisation   every row of a session, and of `rows`, sums to 1 over the whole vocabulary
    target swap     another token in a target's place scores what the session's row gives it, so
                    that nothing was blended at the target alone
    future          other tokens after a target do not change its score
    prefix          the stream cut after a target gives it the same score
    session         a session, which cannot look ahead, scores each target as `score` does
    order           being asked changes nothing: not asked twice, not asked never
    totals          one log-probability a target, none above 0, and the bytes of the decoded text

A predictor that declares the stream's length beforehand (its `start` refuses to go without) has its
prefix read by a session that knows the length and sees nothing else of what follows. Source:
`techniques.md` 12, after the harness of #1642.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qpack.errors import ConfigError, EvaluationError
from qpack.eval.byte_totals import byte_gap
from qpack.eval.predictor import LogProbs, Predictor, RowPredictor, Session, Tokens
from qpack.progress import SILENT, Progress
from qpack.tokenizer import Tokenizer
from qpack.tokens import check_vocab

NUM_TOKENS = 1_280


@dataclass(frozen=True, kw_only=True, slots=True)
class CheckSettings:
    """How thoroughly to look. Raises `ConfigError` naming every value that is out of range."""

    num_tokens: int = NUM_TOKENS
    """Tokens of the stream that are read; more than a window, so that one gives way to the next.
    `qpack eval` makes it what `tokens_for` says."""
    positions: int = 4
    """Targets, drawn at random in equal parts, whose swaps, futures and prefixes are tried."""
    sum_tolerance: float = 1e-5
    """Most that a sum of probabilities may be from 1."""
    nats_tolerance: float = 1e-3
    """Most that two scores of a target may differ: what float32 products make of other shapes."""
    seed: int = 0
    """Of the positions, swaps and futures."""

    def __post_init__(self) -> None:
        problems = [
            f"{name} = {getattr(self, name)}: must be at least {least}"
            for name, least in (("num_tokens", 3), ("positions", 1), ("seed", 0))
            if getattr(self, name) < least
        ]
        for name in ("sum_tolerance", "nats_tolerance"):
            if not 0.0 < getattr(self, name) < 1.0:
                problems.append(f"{name} = {getattr(self, name)}: must be above 0 and below 1")
        if problems:
            raise ConfigError("predictors cannot be checked with these settings", items=problems)


@dataclass(frozen=True, kw_only=True, slots=True)
class Probe:
    """What one probe found."""

    name: str
    passed: bool
    worst: float | None
    """The largest deviation, in the unit of `tolerance`; None where it is not finite."""
    where: str
    tolerance: float


def tokens_for(window: int) -> int:
    """How many tokens to check windows of `window` tokens on: a window and a quarter, or more."""
    return max(NUM_TOKENS, window + window // 4)


def check(
    predictor: Predictor,
    tokens: Tokens,
    tokenizer: Tokenizer | None = None,
    *,
    settings: CheckSettings | None = None,
    progress: Progress = SILENT,
) -> list[Probe]:
    """All probes of `predictor` on the first of `tokens` (n,), in the order of the docstring above.

    Without a tokenizer bytes are not counted. Raises `ConfigError` for fewer than three tokens,
    `DataError` for tokens beyond the vocabulary.
    """
    settings = settings or CheckSettings()
    tokens = np.asarray(tokens)[: settings.num_tokens]
    if len(tokens) < 3:
        raise ConfigError(f"{len(tokens)} tokens are too few to check a predictor on")
    check_vocab(tokens, predictor.vocab_size, f'the tokens to check "{predictor.name}" on')
    case = _Case(predictor, tokens, tokenizer, settings)
    with progress.stage(f"check {predictor.name}", total=len(PROBES), unit="probes") as task:
        found = []
        for name, probe in PROBES.items():
            found.append(_summary(name, probe(case), settings))
            task.advance(note=name)
    return found


def refuse(predictor: Predictor, probes: list[Probe]) -> None:
    """Raise `EvaluationError`, naming the predictor and every probe that caught it, if any did."""
    caught = [probe for probe in probes if not probe.passed]
    if caught:
        raise EvaluationError(
            f'the predictor "{predictor.name}" is refused: its score is not that of a code',
            items=[
                f"{probe.name}: "
                + ("no finite number" if probe.worst is None else f"off by {probe.worst:.3g}")
                + f" at {probe.where}, allowed {probe.tolerance:g}"
                for probe in caught
            ],
            hint="fix a normalised distribution before the token is seen, and learn from it after",
        )


Found = Iterator[tuple[float, str]]
"""Deviations, NaN where there is none to be had, and where they were met."""


@dataclass(frozen=True, slots=True)
class _Reading:
    """A session's stream, token by token; not all its rows, which may be of gigabytes."""

    sum_gaps: list[float]
    """How far each row's sum is from 1."""
    logs: list[float]
    """What each row gives the token that came."""
    rows: dict[int, LogProbs]
    """Those of the positions."""


@dataclass
class _Case:
    """A predictor on a stream, and what several probes need of it."""

    predictor: Predictor
    tokens: NDArray[np.integer[Any]]
    tokenizer: Tokenizer | None
    settings: CheckSettings
    rng: np.random.Generator = field(init=False)

    def __post_init__(self) -> None:
        self.rng = np.random.default_rng(self.settings.seed)

    @cached_property
    def positions(self) -> list[int]:
        """Indices of targets; never the last token, after which there is no future.

        One in each of as many equal parts of the stream, so that there is one where the last
        window has begun and what learns has learned.
        """
        most = len(self.tokens) - 2
        count = min(self.settings.positions, most)
        edges = [1 + most * i // count for i in range(count + 1)]
        return [int(self.rng.integers(begin, end)) for begin, end in pairwise(edges)]

    @cached_property
    def scores(self) -> NDArray[np.float64]:
        """(n,): of each token; the first has none."""
        return self.score(self.tokens)

    @cached_property
    def reading(self) -> _Reading:
        """What a session says, asked for every token."""
        found = _Reading([0.0], [0.0], {})
        size = self.predictor.vocab_size
        session = self.start()
        for i, token in enumerate(self.tokens[1:].tolist(), 1):
            row = session.log_probs()
            found.sum_gaps.append(_sum_gap(row, size))
            found.logs.append(float(row[token]) if row.shape == (size,) else np.nan)
            if i in self.positions:
                found.rows[i] = np.array(row)
            session.observe(token)
        return found

    @cached_property
    def declares_length(self) -> bool:
        try:
            self.predictor.start(int(self.tokens[0]))
        except ConfigError:
            return True
        return False

    def start(self) -> Session:
        return self.predictor.start(int(self.tokens[0]), num_tokens=len(self.tokens))

    def score(self, tokens: Tokens) -> NDArray[np.float64]:
        """Of each token; NaN for all where the predictor gives another number of scores."""
        found = np.asarray(self.predictor.score(tokens), dtype=np.float64)
        if found.shape != (len(tokens) - 1,):
            found = np.full(len(tokens) - 1, np.nan)
        return np.concatenate(([0.0], found))

    def given(self, i: int, token: int) -> float:
        """What the session's row gives `token` at i, which is one of the positions."""
        row = self.reading.rows[i]
        return float(row[token]) if row.shape == (self.predictor.vocab_size,) else np.nan

    def another(self, token: int) -> int:
        """A token that is not this one."""
        size = self.predictor.vocab_size
        return int((token + 1 + self.rng.integers(size - 1)) % size)


def _normalisation(case: _Case) -> Found:
    for i, gap in enumerate(case.reading.sum_gaps[1:], 1):
        yield gap, f"token {i} of a session"
    if isinstance(case.predictor, RowPredictor):
        i = 1
        for block, _ in case.predictor.rows(case.tokens):
            for row in block:
                yield _sum_gap(row, case.predictor.vocab_size), f"token {i} of the rows"
                i += 1
        yield float(abs(i - len(case.tokens))), "the number of rows"


def _target_swap(case: _Case) -> Found:
    for i in case.positions:
        swapped = case.tokens.copy()
        swapped[i] = case.another(int(case.tokens[i]))
        score = case.score(swapped)[i]
        yield _gap(score, case.given(i, int(swapped[i]))), f"token {swapped[i]} in place {i}"


def _future(case: _Case) -> Found:
    for i in case.positions:
        changed = case.tokens.copy()
        changed[i + 1 :] = [case.another(token) for token in changed[i + 1 :].tolist()]
        yield from _gaps(case.score(changed)[: i + 1], case.scores[: i + 1], f"with {i} the last")


def _prefix(case: _Case) -> Found:
    for i in case.positions:
        if case.declares_length:
            found = np.array(case.reading.logs[: i + 1])
        else:
            found = case.score(case.tokens[: i + 1])
        yield from _gaps(found, case.scores[: i + 1], f"cut after {i}")


def _session(case: _Case) -> Found:
    yield from _gaps(np.array(case.reading.logs), case.scores, "in the stream")


def _order(case: _Case) -> Found:
    session = case.start()
    asked = set(case.positions)
    for i, token in enumerate(case.tokens.tolist()):
        if i in asked:
            first = np.array(session.log_probs())
            second = np.array(session.log_probs())
            yield _row_gap(first, second), f"token {i}, asked twice"
            yield _row_gap(first, case.reading.rows[i]), f"token {i}, not asked before"
        if i:
            session.observe(token)


def _totals(case: _Case) -> Found:
    for i, score in enumerate(case.scores):
        yield max(0.0, score) if np.isfinite(score) else np.nan, f"token {i}"
    if case.tokenizer is not None:
        yield float(byte_gap(case.tokens, case.tokenizer)), "the bytes of the text"


PROBES: dict[str, Callable[[_Case], Found]] = {
    "normalisation": _normalisation,
    "target swap": _target_swap,
    "future": _future,
    "prefix": _prefix,
    "session": _session,
    "order": _order,
    "totals": _totals,
}


def _summary(name: str, found: Found, settings: CheckSettings) -> Probe:
    sums = name in ("normalisation", "totals")
    tolerance = settings.sum_tolerance if sums else settings.nats_tolerance
    worst, where = max(
        ((np.inf if np.isnan(gap) else gap, where) for gap, where in found),
        key=lambda pair: pair[0],
    )
    return Probe(
        name=name,
        passed=bool(worst <= tolerance),
        worst=float(worst) if np.isfinite(worst) else None,
        where=where,
        tolerance=tolerance,
    )


def _sum_gap(row: LogProbs, vocab_size: int) -> float:
    if row.shape != (vocab_size,):
        return np.nan
    return abs(float(np.exp(row).sum()) - 1.0)


def _gap(first: float, second: float) -> float:
    return 0.0 if first == second else abs(first - second)


def _gaps(first: NDArray[np.float64], second: NDArray[np.float64], how: str) -> Found:
    for i, pair in enumerate(zip(first.tolist(), second.tolist(), strict=True)):
        yield _gap(*pair), f"token {i}, {how}"


def _row_gap(first: LogProbs, second: LogProbs) -> float:
    """Largest difference of probabilities: tails far below any score do not matter."""
    if first.shape != second.shape:
        return np.nan
    return float(np.abs(np.exp(first) - np.exp(second)).max())
