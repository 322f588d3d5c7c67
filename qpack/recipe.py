"""Recipes: which tensor gets which grid. TOML on disk, frozen dataclasses in memory.

    [knob]
    name = "c"                      # c | k | qmax | qmax-floor | none

    [[rule]]
    match = "class:embedding"       # a name, "re:<full match>", "class:<class>", or a list of them
    bits = 8
    scale = "sigma"
    k = 20.0

    [[rule]]
    match = "class:matrix"
    scale = "rd"
    trellis = 8
    knob = true                     # the budget search turns this rule's knob

Rules are tried from the top; the first that matches decides. Unknown keys are errors. Without a
[knob] it is c where a rule that follows it is rd, else k. Recipes in `qpack/recipes` go by their
names: `default`, `record`.
"""

from __future__ import annotations

import difflib
import math
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from importlib import resources
from pathlib import Path
from typing import Any

from qpack.errors import ConfigError
from qpack.rule import QMAX_LIMIT, Rule, is_number, parse_rule, unknown

KNOBS = ("c", "k", "qmax", "qmax-floor", "none")
BOUNDS = {"c": (0.05, 20.0), "k": (0.25, 256.0), "qmax": (31.0, 127.0)}
"""Default ends of a knob's range. c = 20 is a step of eight sigmas, which leaves zeros."""

DEFAULT = "default"
SUFFIX = ".toml"


@dataclass(frozen=True, kw_only=True, slots=True)
class Knob:
    """The one scalar that the budget search turns."""

    name: str = "k"
    low: float | None = None
    high: float | None = None
    choose: bool = True
    """knob c: whether held-out tokens decide between its steps and equal relative ones"""

    def __post_init__(self) -> None:
        if self.name not in KNOBS:
            raise ConfigError(unknown("knob", self.name, KNOBS))
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
        default = BOUNDS["qmax" if self.integer else "c" if self.name == "none" else self.name]
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

    @property
    def trellis(self) -> int:
        """The most states of a trellis that any of its rules asks for."""
        used = [
            r for r in self.rules if r.type == "int" and r.turned(self.knob.name, 1).scale == "rd"
        ]
        return max((rule.trellis for rule in used), default=0)

    def describe(self) -> dict[str, Any]:
        """Everything, defaults included, as plain values for the report."""
        low, high = self.knob.bounds
        return {
            "name": self.name,
            "knob": {
                "name": self.knob.name,
                "low": low,
                "high": high,
                "choose": self.knob.choose,
            },
            "rules": [
                {field.name: _plain(getattr(rule, field.name)) for field in fields(Rule)}
                for rule in self.rules
            ],
        }


def default_recipe() -> Recipe:
    """Matrices and tables by the sensitivity of outputs, trellis-coded; the rest float16."""
    return builtin_recipe(DEFAULT)


def builtin_names() -> tuple[str, ...]:
    """Recipes that come with qpack."""
    entries = resources.files("qpack").joinpath("recipes").iterdir()
    return tuple(sorted(e.name.removesuffix(SUFFIX) for e in entries if e.name.endswith(SUFFIX)))


def builtin_recipe(name: str) -> Recipe:
    """The recipe of qpack's own called `name`, one of `builtin_names`."""
    text = resources.files("qpack").joinpath(f"recipes/{name}{SUFFIX}").read_text("utf-8")
    return parse_recipe(text, name=name)


def read_recipe(value: str | Path | Mapping[str, Any] | None) -> Recipe:
    """The recipe that a configuration gives: a name or a file, its tables inline, or None.

    None is `default`. Raises `ConfigError` for anything unknown or out of range.
    """
    if value is None:
        return default_recipe()
    if isinstance(value, Mapping):
        return recipe_of(value, name="inline")
    path = recipe_path(value)
    return builtin_recipe(str(value)) if path is None else load_recipe(path)


def recipe_path(value: str | Path) -> Path | None:
    """The file that `value` means, or None where it is the name of one of qpack's own."""
    return None if str(value) in builtin_names() else Path(value)


def load_recipe(path: Path) -> Recipe:
    """Read a TOML recipe. Raises `ConfigError` for anything unknown or out of range."""
    try:
        text = path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"{path.name}: cannot be read as a recipe ({error})",
            hint=f"give a TOML file, or a recipe by its name{_meant(path)}: "
            f"{', '.join(builtin_names())}",
        ) from None
    return parse_recipe(text, name=path.name)


def _meant(path: Path) -> str:
    close = difflib.get_close_matches(path.stem, builtin_names(), n=1)
    return f" (did you mean {close[0]!r}?)" if close else ""


def parse_recipe(text: str, *, name: str) -> Recipe:
    """Parse TOML `text`; every problem of the document is reported at once."""
    try:
        document = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{name}: not valid TOML ({error})") from None
    return recipe_of(document, name=name)


def recipe_of(document: Mapping[str, Any], *, name: str) -> Recipe:
    """The recipe of tables already parsed; every problem is reported at once."""
    problems = [unknown("key", key, ("knob", "rule")) for key in document.keys() - {"knob", "rule"}]
    rules: list[Rule] = []
    knob = Knob()
    entries = document.get("rule", [])
    if not isinstance(entries, list | tuple) or not all(isinstance(e, Mapping) for e in entries):
        problems.append("`rule` must be an array of tables: write [[rule]]")
        entries = []
    for index, entry in enumerate(entries, 1):
        try:
            rules.append(parse_rule(entry))
        except ConfigError as error:
            problems.extend(f"rule {index}: {line}" for line in (error.items or (error.message,)))
    entry = document.get("knob", {})
    if not isinstance(entry, Mapping):
        problems.append("`knob` must be a table: write [knob]")
        entry = {}
    try:
        knob = _parse_knob({"name": _likely_knob(rules), **entry})
    except ConfigError as error:
        problems.extend(error.items or (error.message,))
    if not problems and not rules:
        problems.append("no [[rule]]: a recipe needs at least one")
    if problems:
        raise ConfigError(f"{name}: the recipe is not usable", items=sorted(problems))
    return Recipe(rules=tuple(rules), knob=knob, name=name)


def _likely_knob(rules: Sequence[Rule]) -> str:
    """The knob of a recipe that names none."""
    return "c" if any(rule.knob and rule.scale == "rd" for rule in rules) else "k"


def _parse_knob(entry: Mapping[str, Any]) -> Knob:
    allowed = [field.name for field in fields(Knob)]
    problems = [unknown("key", f"knob.{key}", allowed) for key in entry if key not in allowed]
    if not isinstance(entry.get("choose", True), bool):
        problems.append(f"knob.choose = {entry['choose']!r}: expected true or false")
    problems += [
        f"knob.{key} = {entry[key]!r}: expected a number"
        for key in ("low", "high")
        if key in entry and not is_number(entry[key])
    ]
    if problems:
        raise ConfigError("knob", items=problems)
    return Knob(**entry)


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value
