"""How near to the Gaussian rate-distortion bound is rounding, with and without a trellis?

    python benchmarks/gap.py -o OUT.json

The gap is `bits - 0.5 log2(1 / relative MSE)` on N(0, 1) samples: what a format spends above the
fewest bits that reach its error. Each way of rounding is brought to each of `RATES` by its step.
`bits` is the entropy of what is coded, a trellis's integers by parity; `stream_bits` is the size of
the real rANS segment, tables and all.

On samples of one scale the weight d of the rate is another step: u / (1 + shrink) is x over
`step (1 + d step^2)`. Integers at a given rate do not depend on it, what they stand for does:

    gap         at the step that regression gives, which a column gain stores
    gap_plain   at the step that the search was told, with the default d
    best_d      the d with which a search at the regression's step finds the same integers, so
                that no gain is needed

Columns have 8,192 rows; `gap_short` is `gap` where they have fewer, as each starts in state 0.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from qpack.codec import rans
from qpack.environment import provenance
from qpack.quant.columns import RATE_SHARE, SHRINK
from qpack.quant.tcq import round_column
from qpack.trellis import STATES

ROWS, COLUMNS = 8_192, 128
SHORT_ROWS = (64, 512)
RATES = (1.5, 2.0, 2.5, 3.0, 3.5, 4.0)
CLOSE_BITS = 5e-4
"""A step is good enough when its rate is this near to the one wanted."""

SEED = 0

Round = Callable[[float], NDArray[np.int16]]
"""Integers (columns, rows) by step."""


def main() -> None:
    options = parse()
    generator = torch.Generator().manual_seed(SEED)
    x = torch.randn(COLUMNS, ROWS, generator=generator)
    result = {
        "schema": "qpack.bench-gap/1",
        "samples": x.numel(),
        "rows": [row for states in (0, *STATES) for row in measure(x, states)],
        **provenance(torch.device("cpu")),
    }
    print(json.dumps(result, indent=1))
    if options.out:
        options.out.write_text(json.dumps(result, indent=1) + "\n", "utf-8")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Gaps to the Gaussian bound.")
    parser.add_argument("-o", "--out", type=Path)
    return parser.parse_args()


def measure(x: Tensor, states: int) -> list[dict[str, Any]]:
    """A row for each rate."""
    rows = []
    for rate in RATES:
        step = step_of(x, states, rate)
        m = rounded(x, step, states)
        bits, fitted = coded_bits(m, states), regression(x, m)
        rows.append(
            {
                "states": states,
                "rate": rate,
                "bits": bits,
                "stream_bits": len(rans.encode([m.T], [states])) * 8 / m.size,
                "gap": bits - bound_bits(x, m, fitted),
                "gap_plain": bits - bound_bits(x, m, step),
                "d": d_of(states),
                "best_d": (step * (1 + d_of(states) * step**2) / fitted - 1) / fitted**2,
                "gap_short": {str(n): short_gap(x, step, states, n) for n in SHORT_ROWS},
            }
        )
    return rows


def d_of(states: int) -> float:
    """The default weight of the rate; a scalar quantizer rounds to nearest."""
    return RATE_SHARE * SHRINK[states] if states else 0.0


def rounded(x: Tensor, step: float, states: int, *, rows: int = ROWS) -> NDArray[np.int16]:
    """Integers (columns, rows); a trellis starts again after `rows`."""
    u = x / step
    if states:
        shrink = torch.full_like(u, d_of(states) * step**2)
        u = round_column(u, shrink, tuple(range(0, ROWS, rows)), states)
    return u.round().to(torch.int16).numpy()


def step_of(x: Tensor, states: int, rate: float) -> float:
    """The step that gives `rate` bits, by secants: bits fall by one where the step doubles."""
    log = math.log2(math.sqrt(2 * math.pi * math.e)) - rate - (1 if states else 0)
    for _ in range(20):
        bits = coded_bits(rounded(x, 2**log, states), states)
        if abs(bits - rate) < CLOSE_BITS:
            break
        log += bits - rate
    return 2**log


def coded_bits(m: NDArray[np.int16], states: int) -> float:
    """Entropy a symbol; a decoder of a trellis knows the parity beforehand."""
    parts = [m[m & 1 == parity] for parity in (0, 1)] if states else [m]
    return sum(total_bits(part) for part in parts) / m.size


def total_bits(symbols: NDArray[np.int16]) -> float:
    counts = np.unique(symbols, return_counts=True)[1]
    return float(-(counts * np.log2(counts / counts.sum())).sum())


def regression(x: Tensor, m: NDArray[np.int16]) -> float:
    """The step by which m approximates x best."""
    y = torch.from_numpy(m).double()
    return float((x.double() * y).sum() / y.square().sum())


def bound_bits(x: Tensor, m: NDArray[np.int16], step: float) -> float:
    """The fewest bits by which a Gaussian can be told to the error of `m` times `step`."""
    error = (x.double() - step * torch.from_numpy(m).double()).square().mean()
    return 0.5 * math.log2(float(x.double().square().mean() / error))


def short_gap(x: Tensor, step: float, states: int, rows: int) -> float:
    """The gap, with a regression's step, where columns have `rows` rows."""
    m = rounded(x, step, states, rows=rows)
    return coded_bits(m, states) - bound_bits(x, m, regression(x, m))


if __name__ == "__main__":
    main()
