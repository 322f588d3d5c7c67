"""Recipes: which tensor gets which grid. TOML on disk, frozen dataclasses in memory.

    [knob]
    name = "k"                      # k | qmax | qmax-floor | none

    [[rule]]
    match = "class:embedding"       # a name, "re:<full match>", "class:<class>", or a list of them
    bits = 8
    scale = "sigma"
    k = 20.0

    [[rule]]
    match = "class:matrix"
    bits = 6
    knob = true                     # the budget search turns this rule's knob

Rules are tried from the top; the first that matches decides. Unknown keys are errors.
"""

from __future__ import annotations

import difflib
import math
import re
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields, replace
from importlib import resources
from pathlib import Path
from typing import Any

from qpack.errors import ConfigError

CLASSES = ("embedding", "matrix", "vector", "buffer")
TYPES = ("int", "float16", "float32", "keep")
SCALES = ("absmax", "percentile", "sigma")
SOLVERS = ("gptq", "rtn")
KNOBS = ("k", "qmax", "qmax-floor", "none")
QMAX_LIMIT = 127
INTEGER_KEYS = (
    "qmax",
    "scale",
    "k",
    "scale_floor",
    "clip",
    "solver",
    "damping",
    "act_order",
    "octave",
)
RECIPROCAL_FLOOR = "1/qmax"
DEFAULT_OCTAVE = {"sigma": 16, "absmax": 64, "percentile": 64}
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
    def floor(self) -> float:
        """The scale floor as a number."""
        if isinstance(self.scale_floor, str):
            return 1.0 / self.qmax
        return self.scale_floor

    def turned(self, knob: str, value: float) -> Rule:
        """This rule with the knob at `value` (itself where it does not follow the knob)."""
        if not self.knob or knob == "none":
            return self
        if knob == "k":
            return replace(self, scale="sigma", k=float(value), clip=False)
        floor: float | str = RECIPROCAL_FLOOR if knob == "qmax-floor" else self.scale_floor
        return replace(self, scale="absmax", qmax=int(value), scale_floor=floor, clip=True)

    def label(self) -> str:
        """A short description for tables: `int qmax 31 sigma k 12.85`."""
        if self.type != "int":
            return self.type
        scale = f"sigma k {self.k:.4g}" if self.scale == "sigma" else self.scale
        floor = f" floor {self.scale_floor}" if self.floor else ""
        return f"int qmax {self.qmax} {scale}{floor}{'' if self.clip else ' unclipped'}"


@dataclass(frozen=True, kw_only=True, slots=True)
class Knob:
    """The one scalar that the budget search turns."""

    name: str = "k"
    low: float | None = None
    high: float | None = None

    def __post_init__(self) -> None:
        if self.name not in KNOBS:
            raise ConfigError(_unknown("knob", self.name, KNOBS))
        low, high = self.bounds
        problems = []
        if not 0 < low <= high < math.inf:
            problems.append(f"low = {low}, high = {high}: expected 0 < low <= high")
        if self.integer and (low < 1 or high > QMAX_LIMIT or low != int(low) or high != int(high)):
            problems.append(f"low = {low}, high = {high}: qmax is an integer from 1 to 127")
        if problems:
            raise ConfigError(f"[knob] {self.name} has unusable bounds", items=problems)

    @property
    def integer(self) -> bool:
        """Whether only whole values make sense."""
        return self.name in ("qmax", "qmax-floor")

    @property
    def finer_upwards(self) -> bool:
        """Whether a larger value means smaller steps, hence more bytes."""
        return self.integer

    @property
    def bounds(self) -> tuple[float, float]:
        """Smallest and largest value that the search may take."""
        default = (31.0, 127.0) if self.integer else (0.25, 256.0)
        low = default[0] if self.low is None else float(self.low)
        high = default[1] if self.high is None else float(self.high)
        return low, high


@dataclass(frozen=True, kw_only=True, slots=True)
class Recipe:
    """An ordered list of rules and the knob."""

    rules: tuple[Rule, ...]
    knob: Knob = Knob()
    name: str = "default"

    def with_knob(self, name: str) -> Recipe:
        """The same rules under another knob, at that knob's default bounds."""
        return self if name == self.knob.name else replace(self, knob=Knob(name=name))

    def describe(self) -> dict[str, Any]:
        """Everything, defaults included, as plain values for the report."""
        low, high = self.knob.bounds
        return {
            "name": self.name,
            "knob": {"name": self.knob.name, "low": low, "high": high},
            "rules": [
                {field.name: _plain(getattr(rule, field.name)) for field in fields(Rule)}
                for rule in self.rules
            ],
        }


def default_recipe() -> Recipe:
    """What the reference systems do: matrices int6, embeddings int8, the rest float16."""
    text = resources.files("qpack").joinpath("recipes/default.toml").read_text("utf-8")
    return parse_recipe(text, name="default")


def read_recipe(value: Path | Mapping[str, Any] | None) -> Recipe:
    """The recipe that a configuration gives: a file, its tables inline, or the default (None).

    Raises `ConfigError` for anything unknown or out of range.
    """
    if value is None:
        return default_recipe()
    return load_recipe(value) if isinstance(value, Path) else recipe_of(value, name="inline")


def load_recipe(path: Path) -> Recipe:
    """Read a TOML recipe. Raises `ConfigError` for anything unknown or out of range."""
    try:
        text = path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path.name}: cannot be read as a recipe ({error})") from None
    return parse_recipe(text, name=path.name)


def parse_recipe(text: str, *, name: str) -> Recipe:
    """Parse TOML `text`; every problem of the document is reported at once."""
    try:
        document = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{name}: not valid TOML ({error})") from None
    return recipe_of(document, name=name)


def recipe_of(document: Mapping[str, Any], *, name: str) -> Recipe:
    """The recipe of tables already parsed; every problem is reported at once."""
    problems = [
        _unknown("key", key, ("knob", "rule")) for key in document.keys() - {"knob", "rule"}
    ]
    rules: list[Rule] = []
    knob = Knob()
    entries = document.get("rule", [])
    if not isinstance(entries, list | tuple) or not all(isinstance(e, Mapping) for e in entries):
        problems.append("`rule` must be an array of tables: write [[rule]]")
        entries = []
    for index, entry in enumerate(entries, 1):
        try:
            rules.append(_parse_rule(entry))
        except ConfigError as error:
            problems.extend(f"rule {index}: {line}" for line in (error.items or (error.message,)))
    try:
        knob = _parse_knob(document.get("knob", {}))
    except ConfigError as error:
        problems.extend(error.items or (error.message,))
    if not problems and not rules:
        problems.append("no [[rule]]: a recipe needs at least one")
    if problems:
        raise ConfigError(f"{name}: the recipe is not usable", items=sorted(problems))
    return Recipe(rules=tuple(rules), knob=knob, name=name)


def _parse_rule(entry: Mapping[str, Any]) -> Rule:
    values = dict(entry)
    allowed = [*(field.name for field in fields(Rule)), "bits"]
    problems = [_unknown("key", key, allowed) for key in values if key not in allowed]
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
    if problems:
        raise ConfigError("rule", items=problems)
    assert patterns is not None
    return Rule(match=tuple(patterns), **values)


def _parse_knob(entry: Any) -> Knob:
    if not isinstance(entry, Mapping):
        raise ConfigError("`knob` must be a table: write [knob]")
    allowed = [field.name for field in fields(Knob)]
    problems = [_unknown("key", f"knob.{key}", allowed) for key in entry if key not in allowed]
    problems += [
        f"knob.{key} = {entry[key]!r}: expected a number"
        for key in ("low", "high")
        if key in entry and not _is_number(entry[key])
    ]
    if problems:
        raise ConfigError("knob", items=problems)
    return Knob(**entry)


def _rule_problems(rule: Rule) -> Iterable[str]:
    for field, allowed in (("type", TYPES), ("scale", SCALES), ("solver", SOLVERS)):
        if getattr(rule, field) not in allowed:
            yield _unknown(field, getattr(rule, field), allowed)
    if not rule.match:
        yield "`match` is empty"
    for pattern in rule.match:
        yield from _pattern_problems(pattern)
    yield from _number_problems(rule)
    for field in ("clip", "act_order", "knob"):
        if not isinstance(getattr(rule, field), bool):
            yield f"{field} = {getattr(rule, field)!r}: expected true or false"
    if rule.knob is True and rule.type != "int":
        yield f"knob = true needs type int, not {rule.type}"


def _number_problems(rule: Rule) -> Iterable[str]:
    if type(rule.qmax) is not int or not 1 <= rule.qmax <= QMAX_LIMIT:
        yield f"qmax = {rule.qmax!r}: expected an integer from 1 to {QMAX_LIMIT}"
    if not _is_number(rule.k) or not 0 < rule.k < math.inf:
        yield f"k = {rule.k!r}: expected a number above 0"
    if not _is_number(rule.damping) or not 0 <= rule.damping < math.inf:
        yield f"damping = {rule.damping!r}: expected a number, 0 or more"
    floor = rule.scale_floor
    if floor != RECIPROCAL_FLOOR and (not _is_number(floor) or not 0 <= float(floor) < math.inf):
        yield f'scale_floor = {floor!r}: expected a number, 0 or more, or "{RECIPROCAL_FLOOR}"'
    octaves = (None, 1, 2, 4, 8, 16, 32, 64)
    if rule.octave not in octaves or type(rule.octave) not in (int, type(None)):
        yield f"octave = {rule.octave!r}: expected a power of two from 1 to 64"


def _pattern_problems(pattern: str) -> Iterable[str]:
    if pattern.startswith("re:"):
        try:
            re.compile(pattern[3:])
        except re.error as error:
            yield f"match = {pattern!r}: not a regular expression ({error})"
    elif pattern.startswith("class:") and pattern[6:] not in CLASSES:
        yield _unknown("class", pattern[6:], CLASSES)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and value == value


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _unknown(what: str, value: Any, allowed: Iterable[str]) -> str:
    names = list(allowed)
    close = difflib.get_close_matches(str(value).rpartition(".")[2], names, n=1)
    hint = f"did you mean {close[0]!r}?" if close else f"known: {', '.join(names)}"
    return f"unknown {what} {value!r}; {hint}"
