"""Fake quantization: the floats that the exporter's grid makes of weights, for training on them.

Legend: W (rows x cols) weights, s a row step, u = W / s, q the largest integer of the grid.

    hard    Q(w) = s clamp(round(u), -q, q)                     what rounding to nearest exports
    soft    Q(w) = s clamp(floor(u) + 1/2 + tanh(alpha r) / (2 tanh(alpha / 2)), -q, q)
            with r = u - floor(u) - 1/2: near the identity for alpha = 1, near `hard` for 16

The soft form is pull request 826's. It ran there without gradients, so that training saw plain
straight-through rounding whatever alpha was; 1089 had a logistic function with gradient. Here the
slope dQ/dw is that of the values used, the step held constant.

Steps are those of `qpack.quant.candidates`, rounded to their stored codes. Nothing here waits for
the device.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from qpack.quant import grid
from qpack.quant.candidates import step_candidates, step_codes, symbol_limit
from qpack.rule import Rule


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class RowGrid:
    """The grid of some rows of weights under one rule, on their device."""

    rule: Rule
    limits: Tensor
    """(rows,) float32, largest integer magnitude"""
    table: Tensor
    """float32 steps of all codes"""
    choice: Tensor | None = None
    """(rows,) int8, each row's index into `grid.PERCENTILES`; None for the other scale rules"""

    @classmethod
    def of(cls, rule: Rule, num_rows: int, device: torch.device) -> RowGrid:
        """The grid of `num_rows` rows under `rule`."""
        limits = torch.full((num_rows,), symbol_limit(rule), device=device)
        return cls(rule=rule, limits=limits, table=grid.step_table(rule.step_octave, device))

    @property
    def searches(self) -> bool:
        """Whether rows choose among several steps, by error."""
        return self.rule.scale == "percentile"

    def chosen(self, W: Tensor, hessians: Sequence[tuple[int, Tensor | None]]) -> RowGrid:
        """This grid with each row's percentile chosen for W (rows, cols).

        `hessians` gives H (cols, cols), or None, of consecutive groups of rows, each with its
        number of rows. As the exporter's search: least `e H e^T`, the earlier candidate where two
        are equal, e being the error of rounding to nearest.
        """
        if not self.searches:
            return self
        errors = []
        for codes in step_candidates(W, self.rule):
            error = W - self.hard(W, grid.look_up(self.table, codes, self.rule.step_octave))
            parts = torch.split(error, [rows for rows, _ in hessians])
            errors.append(
                torch.cat(
                    [grid.row_errors(e, H) for e, (_, H) in zip(parts, hessians, strict=True)]
                )
            )
        best, choice = errors[0], torch.zeros(len(W), dtype=torch.int8, device=W.device)
        for index, cost in enumerate(errors[1:], 1):
            better = cost < best
            best = torch.where(better, cost, best)
            choice = choice.masked_fill(better, index)
        return replace(self, choice=choice)

    def steps(self, W: Tensor) -> Tensor:
        """Row steps (rows,) float32 that the exporter would store for W (rows, cols) float32."""
        if self.searches:
            assert self.choice is not None, "percentiles are chosen first"
            wanted = grid.chosen_percentile_steps(W, self.rule.qmax, self.choice)
            codes = step_codes(wanted, W, self.rule)
        else:
            (codes,) = step_candidates(W, self.rule)
        return grid.look_up(self.table, codes, self.rule.step_octave)

    def hard(self, W: Tensor, steps: Tensor) -> Tensor:
        """Q(W), (rows, cols), rounded to nearest."""
        return grid.round_to_nearest(W, steps, self.limits).mul_(steps[:, None])

    def soft(self, W: Tensor, steps: Tensor, alpha: float) -> Tensor:
        """Q(W), (rows, cols), rounded softly with sharpness `alpha` > 0."""
        u = W / steps[:, None]
        limit = self.limits[:, None]
        return soft_round(u, alpha).clamp_(-limit, limit).mul_(steps[:, None])

    def slope(self, W: Tensor, steps: Tensor, alpha: float) -> Tensor:
        """dQ/dw, (rows, cols), of `soft`: zero where the grid clips."""
        u = W / steps[:, None]
        outside = u.abs() > self.limits[:, None]
        return soft_slope(u, alpha).masked_fill_(outside, 0.0)


def soft_round(u: Tensor, alpha: float) -> Tensor:
    """`floor(u) + 1/2 + tanh(alpha r) / (2 tanh(alpha / 2))`, r = u - floor(u) - 1/2.

    Integers stay what they are, half-way points too; continuous, with a continuous slope.
    """
    floor = u.floor()
    bend = torch.tanh((u - floor - 0.5).mul_(alpha)).mul_(0.5 / math.tanh(alpha / 2))
    return bend.add_(0.5).add_(floor)


def soft_slope(u: Tensor, alpha: float) -> Tensor:
    """Derivative of `soft_round`: `alpha (1 - tanh(alpha r)^2) / (2 tanh(alpha / 2))`."""
    bend = torch.tanh((u - u.floor()).sub_(0.5).mul_(alpha))
    return bend.square_().neg_().add_(1.0).mul_(0.5 * alpha / math.tanh(alpha / 2))
