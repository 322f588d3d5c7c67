"""Which parameters of a module are quantized in training, and under which rules at which knob."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from qpack.errors import ConfigError
from qpack.quant.plan import TensorPlan, classify, make_plan, matches, untied
from qpack.recipe import Knob, Recipe
from qpack.rule import Rule

PATTERNS_HINT = 'patterns are those of a recipe: a name, "re:<full match>" or "class:<class>"'


@dataclass(frozen=True, kw_only=True, slots=True)
class Selection:
    """What was chosen of a module, by name, each storage once."""

    rules: dict[str, Rule]
    """name -> integer rule, with the knob at its value"""
    names: dict[str, tuple[str, ...]]
    """name -> all names of the same storage, itself first"""
    skipped: dict[str, str]
    """matched, but not rounded: name -> why"""

    def members(self, model: nn.Module) -> list[Member]:
        """The parameters that `model` holds under the chosen names now."""
        known = dict(model.named_parameters(remove_duplicate=False))
        return [
            Member(name=name, rule=rule, parameters=_distinct(known[n] for n in self.names[name]))
            for name, rule in self.rules.items()
        ]


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Member:
    """One stored tensor: the parameters that share its memory, mostly a single one."""

    name: str
    rule: Rule
    parameters: tuple[Tensor, ...]

    @property
    def parameter(self) -> Tensor:
        """The first; the others hold the same values."""
        return self.parameters[0]

    @property
    def num_rows(self) -> int:
        """Rows of the grid: a tensor of fewer than two dimensions is one row."""
        return self.parameter.shape[0] if self.parameter.ndim >= 2 else 1

    @property
    def num_cols(self) -> int:
        """Weights that share a step."""
        return self.parameter.numel() // self.num_rows

    def take_gradients(self) -> list[Tensor | None]:
        """The gradients so far, which the parameters give up."""
        taken = [parameter.grad for parameter in self.parameters]
        for parameter in self.parameters:
            parameter.grad = None
        return taken

    def give_gradients(self, slope: Tensor, old: Sequence[Tensor | None]) -> None:
        """Multiply the gradients that came meanwhile by `slope` and add them to the `old`."""
        for parameter, before in zip(self.parameters, old, strict=True):
            if parameter.grad is not None:
                parameter.grad.mul_(slope)
            if before is not None:
                if parameter.grad is not None:
                    before.add_(parameter.grad)
                parameter.grad = before


def unwrapped(model: nn.Module) -> nn.Module:
    """The module inside what `torch.compile` or `DistributedDataParallel` made of it."""
    while True:
        if isinstance(model, nn.parallel.DistributedDataParallel):
            model = model.module
        elif isinstance(inner := getattr(model, "_orig_mod", None), nn.Module):
            model = inner
        else:
            return model


def select(model: nn.Module, recipe: Recipe, match: Sequence[str], knob: float | None) -> Selection:
    """The parameters of `model` that a pattern of `match` names and that `recipe` rounds.

    A tied tensor is chosen by any of its names. `knob` is the value of the recipe's knob; None
    takes each rule's own k or qmax. Raises `ConfigError` naming every tensor that the recipe does
    not fit, every pattern that chooses nothing, or what is wrong with the knob.
    """
    try:
        Rule(match=tuple(match))
    except ConfigError as error:
        raise ConfigError(
            "late QAT cannot match tensors so", items=error.items, hint=PATTERNS_HINT
        ) from None
    tensors, aliases = untied(model)
    plan = make_plan(tensors, classify(model), aliases, recipe)
    parameters = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    rules, names, skipped = {}, {}, {}
    idle = dict.fromkeys(match, "matches no tensor")
    for entry in plan.tensors:
        all_names = (entry.name, *(n for n, stored in aliases.items() if stored == entry.name))
        found = [p for p in match if any(matches(p, name, entry.kind) for name in all_names)]
        if not found:
            continue
        reason = _not_rounded(entry, parameters)
        if reason is None:
            rules[entry.name], names[entry.name] = entry.rule, all_names
            for pattern in found:
                idle.pop(pattern, None)
        else:
            skipped[entry.name] = reason
            idle |= {p: f"{entry.name} is {reason}" for p in found if p in idle}
    if idle:
        raise ConfigError(
            "late QAT selects nothing to round",
            items=[f"{pattern}: {reason}" for pattern, reason in idle.items()],
            hint=PATTERNS_HINT,
        )
    turned = dict(_turned(rules, recipe.knob, knob))
    _check_scales(turned)
    return Selection(rules=turned, names=names, skipped=skipped)


def _not_rounded(entry: TensorPlan, parameters: set[str]) -> str | None:
    if entry.name not in parameters:
        return "a buffer, which is not trained"
    if entry.rule.type != "int":
        return f"stored as {entry.rule.type}"
    return None


def _check_scales(rules: Mapping[str, Rule]) -> None:
    """Refuse steps that the weights alone do not give."""
    names = [name for name, rule in rules.items() if rule.scale == "rd"]
    if names:
        raise ConfigError(
            "late QAT cannot round as rule rd does: its steps come from calibration, column by "
            "column",
            items=names,
            hint='pack by another recipe, for example recipe = "record", or train without late QAT',
        )


def _turned(
    rules: Mapping[str, Rule], knob: Knob, value: float | None
) -> Iterator[tuple[str, Rule]]:
    """Each rule with the knob at `value`, or at its own where that is None."""
    if value is not None:
        low, high = knob.bounds
        problems = []
        if knob.name == "none" or not any(rule.knob for rule in rules.values()):
            problems.append("no selected tensor follows a knob")
        elif not low <= value <= high:
            problems.append(f"the recipe's {knob.name} goes from {low:g} to {high:g}")
        elif knob.integer and value != int(value):
            problems.append(f"{knob.name} is a whole number")
        if problems:
            raise ConfigError(f"late QAT cannot set the knob to {value:g}", items=problems)
    for name, rule in rules.items():
        own = rule.qmax if knob.integer else rule.k
        yield name, rule.turned(knob.name, own if value is None else value)


def _distinct(parameters: Iterator[Tensor]) -> tuple[Tensor, ...]:
    return tuple({id(parameter): parameter for parameter in parameters}.values())
