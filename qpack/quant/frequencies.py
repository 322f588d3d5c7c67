"""How often tables are looked up, from more text than is calibrated on.

Calibration meets a few ten thousand tokens; of 8,192 pieces most are not among them, and yet are a
fifth of all text. To count tokens costs nothing, so the table that tokens themselves look up gets
the frequencies of the whole shard. It is known by its lookups: they are the counts of the tokens.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from qpack.quant.fisher import PRIOR_LOOKUPS
from qpack.quant.statistics import Statistics

COUNT_TOLERANCE = 0.01
"""How closely counts come back from frequencies in float32, and a millionth of them more."""


def token_tables(
    frequencies: Mapping[str, Tensor], batches: Sequence[Tensor], places: int
) -> dict[str, int]:
    """Table -> lookups of it a token, of the tables that tokens themselves look up.

    `frequencies` are of `places` in `batches` (B, T) int64.
    """
    if not batches or places == 0:
        return {}
    seen = torch.bincount(torch.cat([batch.reshape(-1) for batch in batches])).double().cpu()
    found = {
        name: _uses(known.double().cpu() * places - PRIOR_LOOKUPS, seen)
        for name, known in frequencies.items()
    }
    return {name: uses for name, uses in found.items() if uses}


def recounted(statistics: Statistics, counts: Tensor) -> Statistics:
    """`statistics` with the frequencies that `counts` (vocabulary,) give their token tables."""
    total = int(counts.sum())
    frequencies = dict(statistics.frequencies)
    for name, uses in statistics.token_tables.items():
        known = frequencies.get(name)
        if total and known is not None and len(known) >= len(counts):
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
    near = (lookups - expected).abs() <= COUNT_TOLERANCE + 1e-6 * expected
    return uses if bool(near.all()) else 0
