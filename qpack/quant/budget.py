"""Auto-QMax: turn one knob until the written file just fits the budget.

The search knows nothing of tensors. It is given two functions of the knob value: `estimate`, bytes
predicted from the entropy of the integers that the final quantizer produces (seconds), and
`encode`, bytes of the real file (the real codec, much slower). It brackets with the first, settles
with the second, verifies both ends, and keeps every probe on record. What it avoids of the original
(pull request 1440): probing with another quantizer than the final one, a lower end that was never
tried, a reported size that is not the file's, and a final size that nobody checks.

The inner coordinate is the fineness u = log2(1 / step): size is close to linear in it,
`bytes = a + weights * u / 8`.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from qpack.errors import BudgetError
from qpack.recipe import Knob

CODEC_OVER_ENTROPY = 1.0
"""First guess of real over estimated bytes: a codec that adapts to what differs within a stream
gains about what it loses to an ideal coder. The first real probe corrects it."""

AIM = 3e-4
"""Share of the budget left free when aiming; doubles with each overshoot."""

GOOD_USE, ENOUGH_USE, PATIENCE = 0.9993, 0.999, 3
"""A real probe that fits and uses GOOD_USE of the budget ends the search; so does one that uses
ENOUGH_USE from the third real probe on, as a codec's noise may allow no better."""

ESTIMATE_TOLERANCE = 1e-4
MAX_ESTIMATES, MAX_ENCODES = 12, 12

NEAR, LEAST_MOVE = 0.5, 1e-4
"""Octaves of the knob: real probes this near define a straight line; the next is this far off."""


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
) -> SearchResult:
    """Find the finest knob value whose file fits `budget_bytes`.

    Raises `BudgetError` with the smallest possible size, and the lines that `largest` gives for the
    coarsest value, if even that does not fit.
    """
    probes = _Probes(knob, budget_bytes, estimate, encode)
    coarse, fine = probes.ends
    if probes.estimated(coarse) * CODEC_OVER_ENTROPY > 0.97 * budget_bytes:
        check_fits(
            probes.encoded(coarse), budget_bytes, f"{knob.name} = {coarse:g}", largest(coarse)
        )
    if coarse == fine or probes.estimated(fine) < 1.03 * budget_bytes:
        size = probes.encoded(fine)
        if size <= budget_bytes:
            return probes.result(fine, f"the finest end of the range, {fine:g}, fits")
    found = _settle_integer(probes) if knob.integer else _settle_continuous(probes)
    # A codec can be far from the entropy (`store`): what was settled on may be the coarse end.
    check_fits(found.num_bytes, budget_bytes, f"{knob.name} = {found.value:g}", largest(coarse))
    return found


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


def _settle_continuous(probes: _Probes) -> SearchResult:
    """Encode where the curve should meet the budget, correct the curve, and again."""
    misses = 0
    for count in range(1, MAX_ENCODES + 1):
        target = probes.budget_bytes * max(0.5, 1.0 - AIM * 2.0**misses)
        value = probes.aim(target)
        if ("codec", value) in probes.sizes:  # nothing between what fits and what does not
            break
        misses += probes.encoded(value) > probes.budget_bytes
        if probes.use() >= (GOOD_USE if count < PATIENCE else ENOUGH_USE):
            break
    best = probes.best_fit()
    if best is None:
        best = probes.ends[0]
        probes.encoded(best)
    return probes.result(best, "the finest value found whose encoded file fits")


def _settle_integer(probes: _Probes) -> SearchResult:
    """Bisect on the estimate, then step with the codec until one fits and the next does not."""
    low, high = (int(end) for end in sorted(probes.ends))
    ratio = probes.ratio or CODEC_OVER_ENTROPY
    inside, outside = low, high + 1
    while outside - inside > 1:
        middle = (inside + outside) // 2
        if probes.estimated(middle) * ratio <= probes.budget_bytes:
            inside = middle
        else:
            outside = middle
    value = inside
    while value > low and probes.encoded(value) > probes.budget_bytes:
        value -= 1
    while value < high and probes.encoded(value + 1) <= probes.budget_bytes:
        value += 1
    probes.encoded(value)  # the lower end included: what is returned was really encoded
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
    log: list[Probe] = field(default_factory=list)
    sizes: dict[tuple[str, float], int] = field(default_factory=dict)

    @property
    def ends(self) -> tuple[float, float]:
        """(coarsest, finest) values of the range."""
        low, high = self.knob.bounds
        return (low, high) if self.knob.finer_upwards else (high, low)

    @property
    def ratio(self) -> float | None:
        """Real over estimated bytes at the last encoded point."""
        for probe in reversed(self.log):
            known = self.sizes.get(("entropy", probe.value))
            if probe.kind == "codec" and known:
                return probe.num_bytes / known
        return None

    def estimated(self, value: float) -> int:
        """Bytes by entropy."""
        return self._probe("entropy", value, self.estimate)

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

        Real probes on both sides, or two near each other, give a straight line. Before that, the
        estimated curve is solved with the real-to-estimated ratio of the last real probe.
        """
        real = self.points("codec")
        low = max((p for p in real if p[1] <= self.budget_bytes), default=None)
        high = min((p for p in real if p[1] > self.budget_bytes), default=None)
        if low is not None and high is not None:
            margin = 0.1 * (high[0] - low[0])
            u = min(max(_on_line(low, high, target), low[0] + margin), high[0] - margin)
        else:
            near = sorted(real, key=lambda p: abs(p[1] - target))[:2]
            if len(near) == 2 and abs(near[0][0] - near[1][0]) <= NEAR:
                u = _on_line(near[0], near[1], target)
            else:
                u = self.fineness(self.solve(target / (self.ratio or CODEC_OVER_ENTROPY)))
            if low is not None:
                u = max(u, low[0] + LEAST_MOVE)
            if high is not None:
                u = min(u, high[0] - LEAST_MOVE)
        coarse, fine = (self.fineness(end) for end in self.ends)
        return self.value_at(min(max(u, coarse), fine))

    def solve(self, target: float) -> float:
        """The knob value whose estimate comes just under `target` bytes: bracketed secant steps."""
        points = self.points("entropy")
        below = max((p for p in points if p[1] <= target), default=points[0])
        above = min((p for p in points if p[1] > target), default=points[-1])
        for _ in range(MAX_ESTIMATES):
            width = above[0] - below[0]
            if target - below[1] <= ESTIMATE_TOLERANCE * target or width <= 1e-5:
                break
            share = (target - below[1]) / max(1, above[1] - below[1])
            value = self.value_at(below[0] + width * min(0.95, max(0.05, share)))
            u = self.fineness(value)
            if not below[0] < u < above[0]:
                break
            size = self.estimated(value)
            if size <= target:
                below = (u, size)
            else:
                above = (u, size)
        return self.value_at(below[0])

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
