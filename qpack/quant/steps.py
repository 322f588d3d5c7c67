"""Steps that follow sensitivity: reverse water-filling at high rate.

GPTQ makes the rounding error of column j white with weight `1 / U_jj^2` (`H^-1 = U^T U`), so a
weight of step d costs `g_r d^2 / (12 U_jj^2)`, at `log2(sigma / d) + const` bits. Their sum is
least where `g_r d^2 / U_jj^2` is the same for every weight of the model:

    step_rj = c kappa U_jj / sqrt(g_r)

(column-dependent steps are the idea of WaterSIC, arXiv:2603.04956). `kappa` makes c comparable from
model to model: at c = 1 the mean over weights of `log2(step / sigma)` is `log2(REFERENCE)`, sigma
being the root mean square of the tensor's weights. In logarithms a step is a tensor's mean plus a
term for its row plus a term for its column; any of the three can be left out.

Codes are of 64 to an octave, but steps are rounded to coarser grids, which make the codes cheap.
The loss of a step that is off by at most a factor 2^a falls with a^2. On golf27m, rows and columns
rounded to 64 and 64, 16 and 16, 16 and 8, 16 and 4, 8 and 4 steps to an octave have the same bits
and the same KL within 1 %, but codes of 56, 39, 35, 32 and 27 kB; 16 and 2 lost 1 % of KL.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from qpack.quant.grid import precise
from qpack.rule import Rule

REFERENCE = 0.41
"""Step over sigma at c = 1: about 3.4 bits a weight, where the field's models are packed."""

OCTAVE = 64
ROW_GRID, COLUMN_GRID = 16, 4
"""Row and column steps to an octave, before gains. Rows without a term of their own take `OCTAVE`:
they all have one code, so a finer one costs nothing."""

TENSOR_RANGE = 6.0
"""Octaves that a tensor may be from the middle one: sensitivities that are off by many orders of
magnitude must not take all bytes from the rest of the model."""

ROW_EXPONENT, COL_EXPONENT = 80, 30
"""The product of a row step and a column step, a gain included, is a normal float32 number."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class LogSteps:
    """log2 of a tensor's steps at c = 1 as `mean + rows[r] + cols[j]`, float64."""

    mean: float
    rows: Tensor
    """(rows,), mean 0"""
    cols: Tensor
    """(cols,), mean 0 over the columns that count, in solver order"""
    compares: bool = True
    """whether `mean` can be compared between tensors"""


def log_steps(weights: Tensor, U: Tensor, scale: float, dead: Tensor) -> LogSteps:
    """`log2(U_jj / sqrt(scale g_r))` without kappa.

    `weights` (rows,) are g, `U` (cols, cols) is the factor of `H / scale` in solver order, `dead`
    (cols,) its columns without a meaning, which take the others' mean.
    """
    logs = precise(U.diagonal()).log2()
    mean_col = float(logs[~dead].mean()) if not bool(dead.all()) else 0.0
    rows = -0.5 * precise(weights).log2()
    mean_row = float(rows.mean())
    return LogSteps(
        mean=mean_col + mean_row - 0.5 * math.log2(scale),
        rows=rows - mean_row,
        cols=torch.where(dead, 0.0, logs - mean_col),
    )


def root_mean_square(W: Tensor) -> float:
    """Of all weights of a tensor: its sigma."""
    return math.sqrt(float(precise(W).square().mean())) if W.numel() else 0.0


class StepModel:
    """The steps of every rd tensor of a model, as functions of its rule (hence of c)."""

    def __init__(
        self,
        logs: Mapping[str, LogSteps],
        sigmas: Mapping[str, float],
        num_weights: Mapping[str, int],
    ) -> None:
        """`sigmas` are of every tensor; `logs` of those that have an H. A tensor without
        sensitivities has `compares = False` in its logs."""
        self._logs, self._sigmas = dict(logs), dict(sigmas)
        finer = {
            name: math.log2(REFERENCE * sigmas[name]) - log.mean
            for name, log in logs.items()
            if log.compares and sigmas[name] > 0
        }
        total = sum(num_weights[name] for name in finer)
        middle = _weighted_median([(value, num_weights[name]) for name, value in finer.items()])
        self._finer = {
            name: min(max(value, middle - TENSOR_RANGE), middle + TENSOR_RANGE)
            for name, value in finer.items()
        }
        """octaves that a tensor's steps are finer than equal relative ones, kappa apart"""
        self.held = {n: finer[n] - kept for n, kept in self._finer.items() if kept != finer[n]}
        """octaves that a tensor was held back by `TENSOR_RANGE`, either way"""
        self.log_kappa = (
            sum(num_weights[name] * value for name, value in self._finer.items()) / total
            if total
            else 0.0
        )

    def row_codes(self, name: str, rule: Rule) -> Tensor:
        """Codes (rows,), int16, of a tensor with an H. A trellis halves its steps."""
        log = self._logs[name]
        mean = self._mean(name, compared="tensor" in rule.terms)
        rows, grid = (log.rows, ROW_GRID) if "row" in rule.terms else (0.0 * log.rows, OCTAVE)
        shift = mean + math.log2(rule.c) - (1.0 if rule.trellis else 0.0)
        return _codes(rows + shift, grid, ROW_EXPONENT)

    def col_codes(self, name: str, rule: Rule) -> Tensor:
        """Codes (cols,), int16, in solver order; the same for tensors that share an H."""
        cols = self._logs[name].cols
        return _codes(cols if "column" in rule.terms else 0.0 * cols, COLUMN_GRID, COL_EXPONENT)

    def plain_code(self, name: str, rule: Rule) -> int:
        """The code of every row of a tensor without an H: c times its equal relative step."""
        log = torch.tensor(
            self._mean(name, compared=False) + math.log2(rule.c), dtype=torch.float64
        )
        return int(_codes(log, OCTAVE, ROW_EXPONENT))

    def _mean(self, name: str, *, compared: bool) -> float:
        """log2 of the tensor's mean step at c = 1; the equal relative one if not `compared`."""
        if self._sigmas[name] == 0:
            return 0.0
        equal = math.log2(REFERENCE * self._sigmas[name])
        if not compared or name not in self._finer:
            return equal
        return equal + self.log_kappa - self._finer[name]


def _weighted_median(values: Sequence[tuple[float, int]]) -> float:
    """The middle of (value, weight) pairs; 0 where there are none."""
    half = sum(weight for _, weight in values) / 2
    for value, weight in sorted(values):
        half -= weight
        if half <= 0:
            return value
    return 0.0


def _codes(logs: Tensor, grid: int, exponent: int) -> Tensor:
    """Codes (int16) of log2 steps, `grid` of them to an octave, inside +-`exponent` octaves."""
    codes = torch.round(logs * grid) * (OCTAVE // grid)
    return codes.clamp(-exponent * OCTAVE, exponent * OCTAVE).to(torch.int16)
