"""The plan: one rule for every tensor, decided and checked before any slow step.

Classes that rules can name:

    embedding   weights of `nn.Embedding` modules, tied or not
    matrix      other parameters of two or more dimensions, at least 8 rows and 8 columns
                (a convolution's weight is its output channels by everything else)
    vector      every other floating-point parameter
    buffer      buffers, integer tensors, empty tensors

Tied tensors are stored once; two different rules for one storage are refused.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from qpack.errors import CheckpointError, ConfigError
from qpack.recipe import Recipe
from qpack.rule import Rule

MATRIX_SIDE = 8
FLOAT16_MAX = 65_504.0
FEW_BITS = 1.0
"""A budget of less for each weight is warned of."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TensorPlan:
    """What happens to one tensor."""

    name: str
    shape: tuple[int, ...]
    kind: str
    """its class: embedding, matrix, vector or buffer"""
    rule: Rule

    @property
    def num_weights(self) -> int:
        """Elements."""
        return torch.Size(self.shape).numel()


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """One rule a tensor, in natural order of names, and what the user should know."""

    tensors: tuple[TensorPlan, ...]
    recipe: Recipe
    warnings: tuple[str, ...] = ()

    @property
    def num_weights(self) -> int:
        """Elements of all stored tensors: what bits a weight are relative to."""
        return sum(entry.num_weights for entry in self.tensors)

    @property
    def turned(self) -> tuple[TensorPlan, ...]:
        """Tensors that follow the knob."""
        return tuple(entry for entry in self.tensors if entry.rule.knob)

    @property
    def turned_weights(self) -> int:
        """Weights that follow the knob."""
        return sum(entry.num_weights for entry in self.turned)

    @property
    def knob_start(self) -> float | None:
        """The knob's value in the first rule that follows it; None where no rule does."""
        knob = self.recipe.knob.name
        return next((e.rule.c if knob == "c" else e.rule.k for e in self.turned), None)

    def warnings_at(self, budget_bytes: int) -> tuple[str, ...]:
        """The warnings, and that a file may fit, but hardly be the model any more."""
        bits = 8 * budget_bytes / self.num_weights
        if bits >= FEW_BITS or not self.turned:
            return self.warnings
        tight = f"the budget is {bits:.2f} bits a weight: little of the model will be left"
        return (*self.warnings, tight)


def classify(model: nn.Module) -> dict[str, str]:
    """Class of every tensor of the module's state dict, tied names included."""
    parameters = dict(model.named_parameters(remove_duplicate=False))
    tables = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    kinds = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        if name not in parameters or not tensor.is_floating_point() or tensor.numel() == 0:
            kinds[name] = "buffer"
        elif id(tensor) in tables:
            kinds[name] = "embedding"
        else:
            kinds[name] = "matrix" if _is_matrix(tensor) else "vector"
    return kinds


def untied(model: nn.Module) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The module's tensors, each storage once, and the other names of tied ones."""
    first: dict[tuple[int, torch.Size, tuple[int, ...]], str] = {}
    tensors: dict[str, Tensor] = {}
    aliases: dict[str, str] = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        key = (tensor.data_ptr(), tensor.shape, tensor.stride())
        if tensor.numel() and key in first:
            aliases[name] = first[key]
        else:
            first[key] = name
            tensors[name] = tensor.detach()
    return tensors, aliases


def _is_matrix(tensor: Tensor) -> bool:
    if tensor.ndim < 2:
        return False
    rows = tensor.shape[0]
    return rows >= MATRIX_SIDE and tensor.numel() // rows >= MATRIX_SIDE


def make_plan(
    tensors: Mapping[str, Tensor],
    kinds: Mapping[str, str],
    aliases: Mapping[str, str],
    recipe: Recipe,
) -> Plan:
    """Give each of `tensors` the first rule that matches it.

    Raises `ConfigError` naming every tensor that no rule matches, that its rule cannot take, or
    that two tied names put under different rules, and `CheckpointError` where there are no weights.
    Patterns that match nothing become warnings.
    """
    problems: list[str] = []
    used: set[tuple[int, str]] = set()
    entries = []
    for name in sorted(tensors, key=natural_key):
        names = [name, *(other for other, stored in aliases.items() if stored == name)]
        found = {other: _first_match(recipe, other, kinds[name], used) for other in names}
        indices = {index for index in found.values() if index is not None}
        if not indices:
            problems.append(f"{name}: no rule matches it")
            continue
        if len(indices) > 1:
            listing = ", ".join(f"{other} by rule {(i or 0) + 1}" for other, i in found.items())
            problems.append(f"{name}: tied tensors under different rules ({listing})")
            continue
        rule = recipe.rules[indices.pop()]
        if kinds[name] == "embedding":  # its rows are pieces, of which a token has one
            rule = replace(rule, row_feedback=False)
        problem = _offence(tensors[name], rule)
        if problem:
            problems.append(f"{name}: {problem}")
        shape = tuple(tensors[name].shape)
        entries.append(TensorPlan(name=name, shape=shape, kind=kinds[name], rule=rule))
    if problems:
        raise ConfigError(
            f"the recipe does not fit {len(problems)} tensor(s)",
            items=problems,
            hint='add a rule above the others, for example match = "re:..." with type = "float32"',
        )
    if not any(tensor.numel() for tensor in tensors.values()):
        raise CheckpointError("there is nothing to pack: no tensor has elements")
    warnings = tuple(_unmatched(recipe, used, [*tensors, *aliases], set(kinds.values())))
    return Plan(tensors=tuple(entries), recipe=recipe, warnings=warnings)


def _first_match(recipe: Recipe, name: str, kind: str, used: set[tuple[int, str]]) -> int | None:
    """Index of the first matching rule; every pattern that matches is noted as used."""
    first = None
    for index, rule in enumerate(recipe.rules):
        for pattern in rule.match:
            if matches(pattern, name, kind):
                used.add((index, pattern))
                first = index if first is None else first
    return first


def matches(pattern: str, name: str, kind: str) -> bool:
    """Whether a recipe's `pattern` (a name, `re:...`, `class:...`) means this tensor."""
    if pattern.startswith("class:"):
        return pattern[6:] == kind
    if pattern.startswith("re:"):
        return re.fullmatch(pattern[3:], name) is not None
    return pattern == name


def _offence(tensor: Tensor, rule: Rule) -> str | None:
    """Why `rule` cannot take `tensor`, or None."""
    if rule.type == "keep":
        return None
    if not tensor.is_floating_point():
        return f"{rule.type} cannot hold {str(tensor.dtype).removeprefix('torch.')} values"
    if rule.type == "int" and tensor.numel() == 0:
        return f"an integer grid needs at least one weight; the shape is {tuple(tensor.shape)}"
    if rule.type == "float16" and tensor.numel():
        peak = float(tensor.abs().max())
        if peak > FLOAT16_MAX:
            return f"float16 ends at {FLOAT16_MAX:.0f}; the largest magnitude is {peak:.4g}"
    return None


def _unmatched(
    recipe: Recipe, used: set[tuple[int, str]], names: list[str], kinds: set[str]
) -> Iterable[str]:
    for index, rule in enumerate(recipe.rules):
        for pattern in rule.match:
            # A class that this model lacks is no mistake of the recipe's author.
            if (index, pattern) in used or pattern.startswith("class:"):
                continue
            bare = re.sub(r"[\\^$.*+?()\[\]|]+", ".", pattern.removeprefix("re:"))
            close = difflib.get_close_matches(bare, names, n=1, cutoff=0.3)
            hint = f"; did you mean {close[0]!r}?" if close else ""
            yield f"pattern {pattern!r} of rule {index + 1} matched no tensor{hint}"


def natural_key(name: str) -> list[tuple[int, int, str]]:
    """Sort key that puts `blocks.2` before `blocks.10`."""
    parts = re.split(r"(\d+)", name)
    return [(1, int(part), "") if part.isdigit() else (0, 0, part) for part in parts]
