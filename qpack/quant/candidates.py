"""Row steps that a rule of scale absmax, percentile or sigma gives a matrix, as they are stored."""

from __future__ import annotations

from torch import Tensor

from qpack.quant import grid
from qpack.rule import Rule


def symbol_limit(rule: Rule) -> float:
    """Largest magnitude that the rule lets a symbol take."""
    return float(rule.qmax if rule.clips else grid.UNCLIPPED_MAX)


def step_candidates(W: Tensor, rule: Rule) -> list[Tensor]:
    """Step codes (rows,) to try for W (rows, cols): one, or several for the percentile search."""
    if rule.scale == "absmax":
        candidates = [grid.absmax_steps(W, rule.qmax)]
    elif rule.scale == "sigma":
        candidates = [grid.sigma_steps(W, rule.qmax, rule.k)]
    else:
        candidates = [grid.percentile_steps(W, rule.qmax, p) for p in grid.PERCENTILES]
    return [step_codes(steps, W, rule) for steps in candidates]


def step_codes(steps: Tensor, W: Tensor, rule: Rule) -> Tensor:
    """Codes (rows,) in which `rule` stores `steps` (rows,), its scale's for W (rows, cols)."""
    if not rule.clips:
        steps = grid.guard_unclipped(steps, W)
    # Steps that hug the largest weight round upwards, so that it is not clipped.
    up = rule.scale != "sigma" and rule.clips
    return grid.encode_steps(grid.floor_steps(steps, rule.floor), rule.step_octave, up=up)
