"""One rule of a recipe: how a tensor is stored, and what is wrong with a rule that is not usable.

    absmax, percentile, sigma    a step for each row, from the row's own weights
    rd                           steps from what the model's outputs feel (`qpack.quant.steps`)

Keys belong to a scale: `qmax`, `k`, `clip` and their like have no meaning for `rd`, nor `c`,
`terms`, `trellis`, `gains` and `row_feedback` for the others. A rule that names a key without
meaning is refused.
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

from qpack.errors import ConfigError

CLASSES = ("embedding", "matrix", "vector", "buffer")
TYPES = ("int", "float16", "float32", "keep")
SCALES = ("absmax", "percentile", "sigma", "rd")
SOLVERS = ("gptq", "rtn")
TERMS = ("tensor", "row", "column")
TRELLISES = (0, 4, 8, 16, 32, 64)
QMAX_LIMIT = 127
ROW_KEYS = ("qmax", "k", "scale_floor", "clip", "octave", "solver")
"""Without meaning for scale rd: its integers are unclipped, its solver is GPTQ."""
RD_KEYS = ("c", "terms", "trellis", "gains", "row_feedback")
"""With a meaning for scale rd alone."""
INTEGER_KEYS = ("scale", "damping", "act_order", *ROW_KEYS, *RD_KEYS)
RECIPROCAL_FLOOR = "1/qmax"
DEFAULT_OCTAVE = {"sigma": 16, "absmax": 64, "percentile": 64, "rd": 64}
"""Step codes to a doubling. Steps with a clip hug the largest weight, so they want a finer grid."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Rule:
    """How one tensor is stored."""

    match: tuple[str, ...]
    """plain name, `re:<pattern>` (full match), or `class:<class>`"""
    type: str = "int"
    """`int`; `float16` or `float32` (converted); `keep` (the checkpoint's own dtype)"""
    qmax: int = 31
    """largest integer magnitude, 1 to 127; `bits = b` in TOML means 2 ** (b - 1) - 1"""
    scale: str = "absmax"
    k: float = 12.85
    """sigma rule: the row step is k * std / qmax"""
    scale_floor: float | str = 0.0
    """smallest step; the reference systems' floor is "1/qmax". Off by default"""
    clip: bool = True
    """clip integers to +-qmax. The knob k never clips, whatever this says"""
    solver: str = "gptq"
    damping: float = 0.01
    """relative to the mean diagonal of H"""
    act_order: bool = True
    octave: int | None = None
    """step codes to a doubling, a power of two up to 64; None: 16 for sigma, 64 for the others"""
    c: float = 1.0
    """rd rule: steps relative to a model whose mean step is 0.41 sigma"""
    terms: tuple[str, ...] = TERMS
    """rd rule: what steps follow; a term that is left out is replaced by its mean"""
    trellis: int = 0
    """rd rule: states of the trellis that integers obey (4, 8, 16, 32, 64), or 0 for none"""
    gains: bool = False
    """rd rule: whether column steps are fitted to what the column was rounded to"""
    row_feedback: bool = False
    """rd rule: whether rows make up for what rows before them lost"""
    knob: bool = False
    """whether the budget search turns this rule"""

    def __post_init__(self) -> None:
        problems = list(_rule_problems(self))
        if problems:
            raise ConfigError(f"rule {', '.join(self.match)!r} is not usable", items=problems)

    @property
    def step_octave(self) -> int:
        """Step codes to a doubling."""
        return self.octave if self.octave is not None else DEFAULT_OCTAVE[self.scale]

    @property
    def clips(self) -> bool:
        """Whether integers stop at +-qmax."""
        return self.clip and self.scale != "rd"

    @property
    def floor(self) -> float:
        """The scale floor as a number."""
        if isinstance(self.scale_floor, str):
            return 1.0 / self.qmax
        return self.scale_floor

    @property
    def feeds_rows(self) -> bool:
        """Whether rows make up for each other; without terms, sensitivities are not followed."""
        return self.row_feedback and bool(self.terms)

    def turned(self, knob: str, value: float) -> Rule:
        """This rule with the knob at `value` (itself where it does not follow the knob)."""
        if not self.knob or knob == "none":
            return self
        if knob == "k":
            return replace(self, scale="sigma", k=float(value), clip=False)
        if knob == "c":
            return replace(self, scale="rd", c=float(value), solver="gptq", octave=None)
        floor: float | str = RECIPROCAL_FLOOR if knob == "qmax-floor" else self.scale_floor
        return replace(self, scale="absmax", qmax=int(value), scale_floor=floor, clip=True)

    def label(self) -> str:
        """A short description for tables: `int qmax 31 sigma k 12.85`."""
        if self.type != "int":
            return self.type
        if self.scale == "rd":
            return " ".join([f"int rd c {self.c:.4g}", *self._rd_words()])
        scale = f"sigma k {self.k:.4g}" if self.scale == "sigma" else self.scale
        floor = f" floor {self.scale_floor}" if self.floor else ""
        return f"int qmax {self.qmax} {scale}{floor}{'' if self.clip else ' unclipped'}"

    def _rd_words(self) -> Iterable[str]:
        if self.terms != TERMS:
            yield f"terms {'+'.join(self.terms) or 'none'}"
        if self.trellis:
            yield f"trellis {self.trellis}"
        if self.gains:
            yield "gains"
        if self.feeds_rows:
            yield "row feedback"


def parse_rule(entry: Mapping[str, Any]) -> Rule:
    """The rule of one `[[rule]]` table. Raises `ConfigError` with every problem as an item."""
    values = dict(entry)
    allowed = [*(field.name for field in fields(Rule)), "bits"]
    problems = [unknown("key", key, allowed) for key in values if key not in allowed]
    match = values.pop("match", None)
    patterns = (match,) if isinstance(match, str) else match
    if not isinstance(patterns, list | tuple) or not all(isinstance(p, str) for p in patterns):
        problems.append("`match` must be a string or a list of strings")
    if "bits" in values:
        bits = values.pop("bits")
        if "qmax" in values:
            problems.append("give `bits` or `qmax`, not both")
        elif type(bits) is not int or not 2 <= bits <= 8:
            problems.append(f"bits = {bits!r}: expected an integer from 2 to 8")
        else:
            values["qmax"] = 2 ** (bits - 1) - 1
    ignored = [key for key in values if key in INTEGER_KEYS]
    if ignored and values.get("type", "int") in TYPES[1:]:
        problems.append(f"{', '.join(ignored)}: without meaning for type {values['type']!r}")
    else:
        scale = values.get("scale", "absmax")
        idle = [key for key in values if key in (ROW_KEYS if scale == "rd" else RD_KEYS)]
        if idle:
            problems.append(f"{', '.join(idle)}: without meaning for scale {scale!r}")
    if isinstance(values.get("terms"), list):
        values["terms"] = tuple(values["terms"])
    if problems:
        raise ConfigError("rule", items=problems)
    assert patterns is not None
    return Rule(match=tuple(patterns), **values)


def _rule_problems(rule: Rule) -> Iterable[str]:
    for field, allowed in (("type", TYPES), ("scale", SCALES), ("solver", SOLVERS)):
        if getattr(rule, field) not in allowed:
            yield unknown(field, getattr(rule, field), allowed)
    if not rule.match:
        yield "`match` is empty"
    for pattern in rule.match:
        yield from _pattern_problems(pattern)
    yield from _number_problems(rule)
    yield from _rd_problems(rule)
    for field in ("clip", "act_order", "gains", "row_feedback", "knob"):
        if not isinstance(getattr(rule, field), bool):
            yield f"{field} = {getattr(rule, field)!r}: expected true or false"
    if rule.knob is True and rule.type != "int":
        yield f"knob = true needs type int, not {rule.type}"


def _number_problems(rule: Rule) -> Iterable[str]:
    if type(rule.qmax) is not int or not 1 <= rule.qmax <= QMAX_LIMIT:
        yield f"qmax = {rule.qmax!r}: expected an integer from 1 to {QMAX_LIMIT}"
    if not is_number(rule.k) or not 0 < rule.k < math.inf:
        yield f"k = {rule.k!r}: expected a number above 0"
    if not is_number(rule.damping) or not 0 <= rule.damping < math.inf:
        yield f"damping = {rule.damping!r}: expected a number, 0 or more"
    floor = rule.scale_floor
    if floor != RECIPROCAL_FLOOR and (not is_number(floor) or not 0 <= float(floor) < math.inf):
        yield f'scale_floor = {floor!r}: expected a number, 0 or more, or "{RECIPROCAL_FLOOR}"'
    octaves = (None, 1, 2, 4, 8, 16, 32, 64)
    if rule.octave not in octaves or type(rule.octave) not in (int, type(None)):
        yield f"octave = {rule.octave!r}: expected a power of two from 1 to 64"


def _rd_problems(rule: Rule) -> Iterable[str]:
    if not is_number(rule.c) or not 0 < rule.c < math.inf:
        yield f"c = {rule.c!r}: expected a number above 0"
    if rule.trellis not in TRELLISES or type(rule.trellis) is not int:
        yield f"trellis = {rule.trellis!r}: expected one of {', '.join(map(str, TRELLISES))}"
    if rule.gains is True and rule.row_feedback is True:
        yield "gains and row_feedback: a column's gain is fitted once all its rows are known"
    if not isinstance(rule.terms, tuple):
        yield f"terms = {rule.terms!r}: expected a list of {', '.join(TERMS)}"
        return
    for term in rule.terms:
        if term not in TERMS:
            yield unknown("term", term, TERMS)
    if len(set(rule.terms)) < len(rule.terms):
        yield f"terms = {list(rule.terms)!r}: one is given twice"


def _pattern_problems(pattern: str) -> Iterable[str]:
    if pattern.startswith("re:"):
        try:
            re.compile(pattern[3:])
        except re.error as error:
            yield f"match = {pattern!r}: not a regular expression ({error})"
    elif pattern.startswith("class:") and pattern[6:] not in CLASSES:
        yield unknown("class", pattern[6:], CLASSES)


def is_number(value: Any) -> bool:
    """Whether `value` is an integer or a float, and not NaN."""
    return isinstance(value, int | float) and not isinstance(value, bool) and value == value


def unknown(what: str, value: Any, allowed: Iterable[str]) -> str:
    """A line that says so, with the likely name meant."""
    names = list(allowed)
    close = difflib.get_close_matches(str(value).rpartition(".")[2], names, n=1)
    hint = f"did you mean {close[0]!r}?" if close else f"known: {', '.join(names)}"
    return f"unknown {what} {value!r}; {hint}"
