"""Tuning within the budget: tuned steps cost bytes of their own, and these must be saved elsewhere.

Codes of steps that were trained repeat less, and float tensors use all of their digits: the file
grows by some thousandths. Where it no longer fits, the search fits the integers to so much less,
and these are tuned anew: what tuning learns makes up for one rounding, and is worse than nothing
for another.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from qpack.artifact.encode import encode
from qpack.artifact.writer import file_bytes
from qpack.codec.base import Codec
from qpack.errors import BudgetError
from qpack.fit import Fitted, Fitter
from qpack.progress import Progress
from qpack.quant.tune import Tuned, Tuning, tune

ROUNDS = 4
MARGIN = 1.05
"""Room made for what the tuned file is too large by."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TuningRecord:
    """What tuning did, for the report."""

    steps: int
    """asked for"""
    kept: bool
    reason: str
    before: float
    """held-out KL a token in nats (or relative squared error) of the untuned file"""
    after: float
    """the same of the file that is written"""
    measured: tuple[tuple[int, float], ...]
    """(steps, held-out distance) in the last tuning"""

    def describe(self) -> dict[str, Any]:
        """Plain values for the report."""
        rows = [{"steps": steps, "held_out_distance": value} for steps, value in self.measured]
        return {**asdict(self), "measured": rows}


def fit_tuned(
    fitter: Fitter,
    fitted: Fitted,
    tuning: Tuning,
    budget_bytes: int,
    *,
    form: str,
    codecs: Sequence[Codec],
    progress: Progress,
) -> tuple[Fitted, TuningRecord]:
    """`fitted`, which `fitter` found for this budget, with tuned contents; as it is if those do not
    pay. `form` and `codecs` are the fitter's.

    Never larger than `budget_bytes`. Raises what `tune` raises.
    """
    current, room = fitted, budget_bytes
    before = math.nan
    reason, advice = "no tuned file within the budget was nearer on held-out tokens", ""
    for _ in range(ROUNDS):
        tuned = tune(current.contents, tuning, progress=progress)
        before = tuned.before if current is fitted else before
        if not tuned.after < before:
            if current is fitted:
                reason = "no nearer to the float model on held-out tokens"
                advice = ": more steps, or more tokens to tune on, may help"
            break
        encoded = encode(
            tuned.contents, codecs=codecs, choices=current.encoded.choices, progress=progress
        )
        size = file_bytes(encoded, form)
        if size <= budget_bytes:
            search = replace(current.search, num_bytes=size)
            better = replace(current, search=search, contents=encoded.contents, encoded=encoded)
            reason = "nearer to the float model on held-out tokens"
            return better, _record(tuning, tuned, before, tuned.after, reason)
        progress.note(f"tuned: {size:,} B, {size - budget_bytes:,} B over the budget")
        room -= math.ceil(MARGIN * (size - budget_bytes))
        try:
            current = fitter.fit(room)
        except BudgetError:
            break
    progress.note(f"tuning was not kept: {reason}{advice}")
    return fitted, _record(tuning, tuned, before, before, reason)


def _record(tuning: Tuning, tuned: Tuned, before: float, after: float, reason: str) -> TuningRecord:
    return TuningRecord(
        steps=tuning.steps,
        kept=after < before,
        reason=reason,
        before=before,
        after=after,
        measured=tuned.measured,
    )
