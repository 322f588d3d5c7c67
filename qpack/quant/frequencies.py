"""How often tables are looked up, from more text than is calibrated on.

Calibration meets a few ten thousand tokens; of 8,192 pieces most are not among them, and yet are a
fifth of all text. To count tokens costs nothing, so the table that tokens themselves look up gets
the frequencies of the whole shard. It is known by its lookups: they are the counts of the tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from qpack.quant.fisher import PRIOR_LOOKUPS
from qpack.quant.statistics import Statistics

COUNT_TOLERANCE = 0.01
"""Frequencies are float32: counts of up to some 100,000 come back this closely."""


def recounted(statistics: Statistics, batches: Sequence[Tensor], counts: Tensor) -> Statistics:
    """`statistics` with the frequencies that `counts` (vocabulary,) give, for the tables that the
    tokens of `batches` look up. `batches` (B, T) int64 are those that had a backward pass."""
    places = statistics.sensitivity_tokens
    if not batches or places == 0 or int(counts.sum()) == 0:
        return statistics
    seen = torch.bincount(torch.cat([batch.reshape(-1) for batch in batches]))
    total = int(counts.sum())
    frequencies = dict(statistics.frequencies)
    for name, known in frequencies.items():
        uses = _uses(known.double().cpu() * places - PRIOR_LOOKUPS, seen.double().cpu())
        if uses and len(known) >= len(counts):
            full = torch.zeros(len(known), dtype=torch.float64)
            full[: len(counts)] = uses * counts.double().cpu()
            frequencies[name] = ((full + PRIOR_LOOKUPS) / total).float().to(known.device)
    return replace(statistics, frequencies=frequencies)


def _uses(lookups: Tensor, seen: Tensor) -> int:
    """Lookups of every token, if tokens are what is looked up; else 0."""
    if len(lookups) < len(seen):
        return 0
    uses = round(float(lookups.sum()) / float(seen.sum()))
    expected = torch.zeros_like(lookups)
    expected[: len(seen)] = uses * seen
    return uses if bool(((lookups - expected).abs() <= COUNT_TOLERANCE).all()) else 0
