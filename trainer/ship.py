"""Which weights a run ships: the last, an average, or the best of them after quantization."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from qpack.distributed import on_first
from qpack.eval.bpb import Score

from .run import Run, score_now
from .select import choose_for


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Choice:
    """The weights to ship."""

    name: str
    """`last`, `ema`, `swa` or `mixture`"""
    tensors: dict[str, Tensor]
    score: Score | None
    """theirs; None without validation tokens"""
    rows: list[dict[str, Any]]
    """what every candidate scored"""


def ship(run: Run) -> Choice:
    """The choice that `[average]` asks for. Every candidate is scored, so that the record shows
    what the others would have given; with `best`, after quantization too.

    The model's weights are those of a candidate afterwards: load the choice's.
    """
    candidates = run.averages.candidates()
    rows: list[dict[str, Any]] = [{"weights": name} for name in candidates]
    scores: dict[str, Score] = {}
    if run.validation is not None:
        for row, tensors in zip(rows, candidates.values(), strict=True):
            run.model.load_state_dict(tensors)
            scores[row["weights"]] = got = score_now(run)
            row["bpb"] = got.bpb
    name: str = run.config.average.ship
    if name not in (*candidates, "best"):
        run.progress.warn(
            f"average.ship = {name!r}: that average never began; the last weights are shipped"
        )
        name = "last"
    if name == "best":
        name, details = _best(run, candidates)
        rows = [row | details.get(row["weights"], {}) for row in rows]
    return Choice(name=name, tensors=candidates[name], score=scores.get(name), rows=rows)


def _best(
    run: Run, candidates: dict[str, dict[str, Tensor]]
) -> tuple[str, dict[str, dict[str, Any]]]:
    """The verdict, rank 0's for all, and what it rests on."""
    verdict = choose_for(run, candidates)
    name = on_first(lambda: verdict.name)
    return name, {row["weights"]: row for row in verdict.rows}
