"""Auto-QMax: turn one knob until the written file just fits the budget.

The search knows nothing of tensors. It is given two functions of the knob value: `estimate`, bytes
predicted from the entropy of the integers that the final quantizer produces (seconds), and
`encode`, bytes of the real file (the real codec, slower). It comes near with the first, settles
with the second, and keeps every probe on record. What it avoids of the original (pull request
1440): probing with another quantizer than the final one, an end of the range that was never tried
yet returned, a reported size that is not the file's, and a final size that nobody checks.

The inner coordinate is the fineness u = log2(1 / step): size is close to linear in it,
`bytes = a + weights * u / 8`, so that two estimates and two real files are mostly enough.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from qpack.errors import BudgetError
from qpack.recipe import Knob

CODEC_OVER_ENTROPY = 1.0
"""First guess of real over estimated bytes. The first real probe corrects it."""

SLACK = 5e-4
"""A real probe that fits and leaves at most this share of the budget free ends the search."""

AIM = 2e-4
"""Share of the budget left free when aiming."""

PATIENCE, ENOUGH_USE = 6, 0.998
"""From this real probe on, one that uses ENOUGH_USE ends the search: noise may allow no better."""

CLOSE = 0.03
"""An estimate this near the budget, relative to it, is followed by a real probe."""

MAX_ESTIMATES, MAX_ENCODES = 12, 12

LONGEST_MOVE = 3.0
"""Octaves of the knob between two estimates: the size curve is straight only nearby."""

NEAR = 0.5
"""Octaves of the knob: no farther from an estimate than this is the curve taken for known."""

ONE_SIDE = 3
"""Real probes in a row on one side of the budget: the curve is not straight there, so halve."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Probe:
    """One point of the size curve."""

    value: float
    kind: str
    """`entropy` (estimated) or `codec` (really encoded)"""
    num_bytes: int
    fits: bool
    seconds: float


@dataclass(frozen=True, kw_only=True, slots=True)
class SearchResult:
    """The chosen knob value, proven by a real encoding, and why it was chosen."""

    value: float
    num_bytes: int
    reason: str
    probes: tuple[Probe, ...]


def search(
    knob: Knob,
    budget_bytes: int,
    *,
    estimate: Callable[[float], int],
    encode: Callable[[float], int],
    largest: Callable[[float], Sequence[str]] = lambda value: (),
    start: float | None = None,
    num_weights: int = 0,
) -> SearchResult:
    """Find the finest knob value whose file fits `budget_bytes`.

    `start` is where to look first (None: the middle of the range) and `num_weights` the weights
    that follow the knob, which give the curve its slope before there are two probes.
    Raises `BudgetError` with the size at the coarsest value, and the lines that `largest` gives for
    it, if even that does not fit.
    """
    probes = _Probes(knob, budget_bytes, estimate, encode, slope=num_weights / 8)
    coarse = probes.ends[0]
    if knob.integer:
        found = _settle_integer(probes, largest)
    else:
        _approach(probes, start)
        found = _settle_continuous(probes)
    # A codec can be far from the entropy (`store`): what was settled on may be the coarse end.
    check_fits(found.num_bytes, budget_bytes, f"{knob.name} = {found.value:g}", largest(coarse))
    return found


def nearby(
    knob: Knob,
    budget_bytes: int,
    *,
    estimate: Callable[[float], int],
    start: float | None,
    num_weights: int,
) -> tuple[float, int]:
    """(value, estimated bytes) near the budget: the estimates that `search` would begin with."""
    probes = _Probes(knob, budget_bytes, estimate, estimate, slope=num_weights / 8)
    value = _approach(probes, start)
    return value, probes.estimated(value)


def check_fits(smallest: int, budget_bytes: int, where: str, largest: Sequence[str]) -> None:
    """Raise `BudgetError` if the smallest file there is does not fit."""
    if smallest > budget_bytes:
        raise BudgetError(
            f"smallest possible artifact is {smallest:,} B, budget is {budget_bytes:,} B "
            f"({smallest - budget_bytes:,} B too many), at {where}",
            items=largest,
            hint="raise the budget, widen the knob's bounds, allow better codecs, or give the "
            "largest tensors fewer bits in a recipe",
        )


def _approach(probes: _Probes, start: float | None) -> float:
    """Estimate until near the budget, or at an end; gives the last value."""
    coarse, fine = probes.ends
    value = min(max(math.sqrt(coarse * fine) if start is None else start, fine), coarse)
    for _ in range(MAX_ESTIMATES):
        size = probes.estimated(value)
        following = probes.solve(probes.budget_bytes)
        if abs(size - probes.budget_bytes) <= CLOSE * probes.budget_bytes or following == value:
            break
        value = following
    return value


def _settle_continuous(probes: _Probes) -> SearchResult:
    """Encode where the estimated curve should meet the budget, correct the curve, and again."""
    target = (1.0 - AIM) * probes.budget_bytes
    for count in range(1, MAX_ENCODES + 1):
        value = probes.aim(target)
        if probes.is_far(value):
            probes.estimated(value)
            value = probes.aim(target)
        if ("codec", value) in probes.sizes:  # nothing between what fits and what does not
            break
        probes.encoded(value)
        if probes.use() >= (1.0 - SLACK if count < PATIENCE else ENOUGH_USE):
            break
    best = probes.best_fit()
    if best is None:
        best = probes.ends[0]
        probes.encoded(best)
    if best == probes.ends[1]:
        return probes.result(best, f"the finest end of the range, {best:g}, fits")
    return probes.result(best, "the finest value found whose encoded file fits")


def _settle_integer(probes: _Probes, largest: Callable[[float], Sequence[str]]) -> SearchResult:
    """Encode what the estimate says until one value fits and the next does not."""
    coarse = probes.ends[0]
    if probes.estimated(coarse) * CODEC_OVER_ENTROPY > 0.97 * probes.budget_bytes:
        where = f"{probes.knob.name} = {coarse:g}"
        check_fits(probes.encoded(coarse), probes.budget_bytes, where, largest(coarse))
    low, high = (int(end) for end in sorted(probes.ends))
    inside, outside = low - 1, high + 1
    while outside - inside > 1:
        value = probes.guess(inside + 1, outside - 1)
        if probes.encoded(value) <= probes.budget_bytes:
            inside = value
        else:
            outside = value
    value = max(inside, low)
    if value == high:
        return probes.result(value, f"the finest end of the range, {high}, fits")
    return probes.result(value, f"{value} fits, {value + 1} does not")


@dataclass
class _Probes:
    """Every point measured so far; never measures one twice."""

    knob: Knob
    budget_bytes: int
    estimate: Callable[[float], int]
    encode: Callable[[float], int]
    slope: float
    """bytes an octave, until two estimates give it"""
    log: list[Probe] = field(default_factory=list)
    sizes: dict[tuple[str, float], int] = field(default_factory=dict)

    @property
    def ends(self) -> tuple[float, float]:
        """(coarsest, finest) values of the range."""
        low, high = self.knob.bounds
        return (low, high) if self.knob.finer_upwards else (high, low)

    @property
    def ratio(self) -> float:
        """Real over estimated bytes at the last encoded point."""
        for probe in reversed(self.log):
            if probe.kind == "codec":
                predicted = self.predicted(self.fineness(probe.value))
                return probe.num_bytes / predicted if predicted > 0 else CODEC_OVER_ENTROPY
        return CODEC_OVER_ENTROPY

    def predicted(self, u: float) -> float:
        """The estimated curve at fineness u: straight between estimates, and beyond the last."""
        points = self.points("entropy")
        below = max((p for p in points if p[0] <= u), default=None)
        above = min((p for p in points if p[0] > u), default=None)
        if below is not None and above is not None:
            return below[1] + (u - below[0]) * (above[1] - below[1]) / (above[0] - below[0])
        nearest = points[-1] if above is None else points[0]
        return nearest[1] + self.slope_at(nearest) * (u - nearest[0])

    def is_far(self, value: float) -> bool:
        """Whether the estimated curve is not known there: no estimate is near."""
        u = self.fineness(value)
        return all(abs(u - known) > NEAR for known, _ in self.points("entropy"))

    def slope_at(self, end: tuple[float, int]) -> float:
        """Bytes an octave beyond the last estimate on a side."""
        others = [p for p in self.points("entropy") if p[1] != end[1]]
        if not others:
            return self.slope
        other = min(others, key=lambda p: abs(p[0] - end[0]))
        return (other[1] - end[1]) / (other[0] - end[0])

    def estimated(self, value: float) -> int:
        """Bytes by entropy."""
        return self._probe("entropy", value, self.estimate)

    def guess(self, low: int, high: int) -> int:
        """The largest of `low` to `high` that should fit by estimate and ratio, else `low`."""
        ratio = self.ratio
        while low < high:
            middle = (low + high + 1) // 2
            if self.estimated(middle) * ratio <= self.budget_bytes:
                low = middle
            else:
                high = middle - 1
        return low

    def encoded(self, value: float) -> int:
        """Bytes by the real codec."""
        return self._probe("codec", value, self.encode)

    def _probe(self, kind: str, value: float, measure: Callable[[float], int]) -> int:
        known = self.sizes.get((kind, value))
        if known is not None:
            return known
        begin = time.perf_counter()
        size = self.sizes[kind, value] = measure(value)
        self.log.append(
            Probe(
                value=value,
                kind=kind,
                num_bytes=size,
                fits=size <= self.budget_bytes,
                seconds=time.perf_counter() - begin,
            )
        )
        return size

    def fineness(self, value: float) -> float:
        """u of a knob value, in octaves."""
        u = math.log2(value)
        return u if self.knob.finer_upwards else -u

    def value_at(self, u: float) -> float:
        """The knob value of fineness u, to six digits."""
        return float(f"{2.0 ** (u if self.knob.finer_upwards else -u):.6g}")

    def points(self, kind: str) -> list[tuple[float, int]]:
        """(fineness, bytes) of all probes of a kind, coarsest first."""
        return sorted((self.fineness(v), n) for (k, v), n in self.sizes.items() if k == kind)

    def aim(self, target: float) -> float:
        """Where the real size should be `target`: between what is known to fit and not to.

        Real probes on both sides give a straight line; if probe after probe falls on one side of
        the budget, the middle is next. Before that, the estimated curve is solved with the
        real-to-estimated ratio of the last real probe.
        """
        real = self.points("codec")
        low = max((p for p in real if p[1] <= self.budget_bytes), default=None)
        high = min((p for p in real if p[1] > self.budget_bytes), default=None)
        if low is not None and high is not None:
            fits = [probe.fits for probe in self.log if probe.kind == "codec"]
            if len(fits) > ONE_SIDE and len(set(fits[-ONE_SIDE:])) == 1:
                return self.value_at((low[0] + high[0]) / 2)
            return self.value_at(_on_line(low, high, target))
        return self.solve(target / self.ratio)

    def solve(self, target: float) -> float:
        """The knob value at which the estimated curve should come to `target` bytes.

        The line between the nearest estimates on both sides, or through the nearest two, or from
        the only one at the slope that was given.
        """
        points = self.points("entropy")
        below = max((p for p in points if p[1] <= target), default=None)
        above = min((p for p in points if p[1] > target), default=None)
        if below is not None and above is not None:
            return self.inside(_on_line(below, above, target))
        nearest = points[-1] if above is None else points[0]
        slope = self.slope_at(nearest)
        wanted = (target - nearest[1]) / slope if slope > 0 else math.inf
        wanted = math.copysign(wanted, target - nearest[1])
        return self.inside(nearest[0] + min(max(wanted, -LONGEST_MOVE), LONGEST_MOVE))

    def inside(self, u: float) -> float:
        """The knob value of fineness u, or the nearer end of the range."""
        coarse, fine = self.ends
        if u <= self.fineness(coarse):
            return coarse
        return fine if u >= self.fineness(fine) else self.value_at(u)

    def best_fit(self) -> float | None:
        """The value of the largest encoded file that fits."""
        fitting = [p for p in self.log if p.kind == "codec" and p.fits]
        return max(fitting, key=lambda p: p.num_bytes).value if fitting else None

    def use(self) -> float:
        """Share of the budget that the largest fitting file uses."""
        best = self.best_fit()
        return 0.0 if best is None else self.sizes["codec", best] / self.budget_bytes

    def result(self, value: float, reason: str) -> SearchResult:
        return SearchResult(
            value=value,
            num_bytes=self.sizes["codec", value],
            reason=reason,
            probes=tuple(self.log),
        )


def _on_line(first: tuple[float, int], second: tuple[float, int], size: float) -> float:
    """Where the line through two (fineness, bytes) points reaches `size`."""
    (u0, size0), (u1, size1) = first, second
    return u0 if size0 == size1 else u0 + (size - size0) * (u1 - u0) / (size1 - size0)
