"""Integer grids: how large one step is for each row, and rounding to it. Pure functions.

Legend: W (rows x cols) a weight matrix, s a row step, q = qmax the largest integer of the grid.

    absmax      s = max|w| / q          no weight is clipped as it stands
    percentile  s = quantile(|w|, p) / q  p chosen a row by output error
    sigma       s = k * std(w) / q        "SDClip" (pull request 1394): k sets the rate

Steps are rounded to their stored form, a code on a logarithmic scale of `octave` codes to a
doubling (`qpack.tensors`), before anything is quantized with them. The scale floor of the
reference systems (s >= 1/q) turns qmax into a global step size; it is a parameter, off by default.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from qpack.tensors import EXPONENT_MAX, EXPONENT_MIN, decode_steps

PERCENTILES = (0.999, 0.9995, 0.9999, 0.99999, 1.0)
"""Candidates of the percentile search, as in pull requests 1019 and 1440."""

UNCLIPPED_MAX = 32_767
"""Symbols that a rule does not clip still fit int16."""

_HEADROOM = 2.0
"""Error feedback can push a weight past its row's maximum; unclipped steps leave room for it."""


def precise(x: Tensor) -> Tensor:
    """`x` in float64; on the CPU where its device has none (Apple GPUs)."""
    return x.cpu().double() if x.device.type == "mps" else x.double()


def encode_steps(steps: Tensor, octave: int, *, up: bool = False) -> Tensor:
    """Codes (int16) of `steps` (any shape, > 0): nearest on the log scale, or never below (`up`).

    Zero steps (an all-zero row) get code 0; its integers are zero whatever the step.
    """
    wide = precise(steps)
    logs = torch.log2(wide.clamp_min(2.0**EXPONENT_MIN)) * octave
    # A hair of slack keeps a step that is already on the grid from being pushed up by rounding.
    codes = torch.ceil(logs - 1e-9) if up else torch.round(logs)
    codes = codes.clamp(EXPONENT_MIN * octave, (EXPONENT_MAX + 1) * octave - 1)
    return torch.where(wide > 0, codes, 0.0).to(torch.int16).to(steps.device)


def step_values(codes: Tensor, octave: int) -> Tensor:
    """The float32 steps that decoders will use for `codes`, on the same device."""
    values = decode_steps(codes.cpu().numpy(), octave)
    return torch.from_numpy(values).to(codes.device)


def step_table(octave: int, device: torch.device | str) -> Tensor:
    """The steps of all codes that `encode_steps` gives, float32, for `look_up`."""
    lowest, end = EXPONENT_MIN * octave, (EXPONENT_MAX + 1) * octave
    return step_values(torch.arange(lowest, end, dtype=torch.int16), octave).to(device)


def look_up(table: Tensor, codes: Tensor, octave: int) -> Tensor:
    """`step_values` of `codes` (any shape) from a `step_table`, without leaving its device."""
    return table[codes.long() - EXPONENT_MIN * octave]


def absmax_steps(W: Tensor, qmax: float) -> Tensor:
    """Row steps (rows,) so that the largest weight of each row is the integer `qmax`."""
    return row_peaks(W) / qmax


def row_peaks(W: Tensor) -> Tensor:
    """Largest magnitude of each row (rows,), in one pass that stores nothing else."""
    low, high = torch.aminmax(W, dim=1)
    return torch.maximum(-low, high)


def percentile_steps(W: Tensor, qmax: float, percentile: float) -> Tensor:
    """Row steps (rows,) so that `percentile` of each row's magnitudes is the integer `qmax`.

    Falls back to the row's maximum where that percentile is zero (a mostly-zero row).
    """
    magnitudes = W.abs()
    peak = magnitudes.amax(dim=1)
    cut = peak if percentile >= 1.0 else torch.quantile(magnitudes, percentile, dim=1)
    return torch.where(cut > 0, cut, peak) / qmax


def chosen_percentile_steps(W: Tensor, qmax: float, choice: Tensor) -> Tensor:
    """`percentile_steps` (rows,) where each row has its own percentile.

    `choice` (rows,), integers, indexes `PERCENTILES`. These lie among a row's few largest
    magnitudes, so nothing is sorted: it costs little enough for every step of a training.
    """
    last = W.shape[1] - 1
    # As `torch.quantile` does it: ranks in the data's precision, linear between neighbours.
    ranks = [float(torch.tensor(p, dtype=W.dtype) * last) for p in PERCENTILES]
    top = W.abs().topk(last - math.floor(min(ranks)) + 1, dim=1).values  # (rows, few), descending
    cuts = []
    for rank in ranks:
        below, above = top[:, last - math.floor(rank)], top[:, last - math.ceil(rank)]
        cuts.append(torch.lerp(below, above, torch.full_like(below, rank - math.floor(rank))))
    cut = torch.stack(cuts).gather(0, choice.long()[None])[0]
    return torch.where(cut > 0, cut, top[:, 0]) / qmax


def sigma_steps(W: Tensor, qmax: float, k: float) -> Tensor:
    """Row steps (rows,) `k * std / qmax`, std over the row (population form).

    A row without spread (one column, or constant) has no sigma: its maximum takes the place of
    `k * std`, so that it is represented exactly up to the rounding of the step.
    """
    std = precise(W).std(dim=1, correction=0).to(W)
    peak = row_peaks(W)
    degenerate = std <= 1e-6 * peak
    return torch.where(degenerate, peak, k * std) / qmax


def floor_steps(steps: Tensor, floor: float) -> Tensor:
    """`max(step, floor)`: the reference systems' scale floor is `1 / qmax`."""
    return steps.clamp_min(floor) if floor > 0 else steps


def guard_unclipped(steps: Tensor, W: Tensor) -> Tensor:
    """Steps large enough that no symbol leaves int16, error feedback included."""
    return torch.maximum(steps, least_unclipped(W))


def least_unclipped(W: Tensor) -> Tensor:
    """The smallest step of each row (rows,) with which no symbol leaves int16."""
    return row_peaks(W) * (_HEADROOM / UNCLIPPED_MAX)


def round_to_nearest(W: Tensor, steps: Tensor, limits: Tensor) -> Tensor:
    """RTN: integers (rows, cols) as float32, `clamp(round(w / step), -limit, limit)` per row."""
    limit = limits[:, None]
    return (W / steps[:, None]).round_().clamp_(-limit, limit)


def row_errors(error: Tensor, hessian: Tensor | None) -> Tensor:
    """`e H e^T` for each row e of `error` (rows, cols); the squared norm without a Hessian."""
    if hessian is None:
        return error.square().sum(dim=1)
    return (error @ hessian).mul_(error).sum(dim=1)
