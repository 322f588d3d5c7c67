"""Late quantization-aware training: the last steps of training see the weights that will ship.

    qat = LateQAT(model, recipe, start=Start(lr_scale=0.15))
    for step in range(num_steps):
        qat.on_step(step, step / num_steps, lr_scale)
        with qat.quantized():              # parameters hold Q(w)
            loss(model, batch).backward()  # at Q(w)
        optimizer.step()                   # on w: straight through

Q is the exporter's own: its plan, its scale rules, its stored steps (`qpack.quant.fake`). Rules by
maximum or by sigma follow the weights at every step. Percentile rules choose each row's percentile
once, at the switch; from then on the step follows that percentile of the row. The value of the
recipe's knob is given, as nobody knows it before the budget search. GPTQ's error feedback is not
simulated: Q rounds to nearest.

Late quantization-aware training was dead code in all four reference systems and in much of their
lineage: the flag was a class attribute, which `torch.compile` folded into the graph as a constant
(techniques.md 0.2, 3). Parameters are inputs of compiled graphs, so here their values change, in
place, and nothing can be folded: not by a compiled forward, a compiled loss or a captured graph.

Works with any loop of any module. No communication: ranks that hold the same weights compute the
same Q. The gradient that a rank sees may be reduced within the context or after it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from qpack.errors import CheckpointError, ConfigError
from qpack.quant.selection import Member, select, unwrapped
from qpack.quant.statistics import Statistics
from qpack.quant.swap import Group, Swapped, make_groups
from qpack.recipe import Recipe

ALL = "(all)"
"""Key of the mean over all weights, among those over each tensor; no tensor's name."""

StatisticsSource = Statistics | Callable[[], Statistics] | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Start:
    """When training goes over to quantized weights: at the first of the given conditions."""

    lr_scale: float | None = None
    """the factor of the learning rates falls below this; a rising one (warm-up) does not count"""
    progress: float | None = None
    """this part (0 to 1) of the budget is used"""
    step: int | None = None
    """this step is reached"""

    def __post_init__(self) -> None:
        if self.lr_scale is None and self.progress is None and self.step is None:
            raise ConfigError("late QAT has no start: give lr_scale, progress or step")
        problems = []
        if self.lr_scale is not None and not self.lr_scale > 0:
            problems.append(f"lr_scale = {self.lr_scale}: expected a number above 0")
        if self.progress is not None and not 0 <= self.progress <= 1:
            problems.append(f"progress = {self.progress}: expected 0 to 1")
        if self.step is not None and self.step < 0:
            problems.append(f"step = {self.step}: expected 0 or more")
        if problems:
            raise ConfigError("the start of late QAT is out of range", items=problems)

    def due(self, step: int, progress: float, lr_scale: float, peak: float) -> bool:
        """Whether it is time; `peak` is the largest `lr_scale` before."""
        return (
            (self.step is not None and step >= self.step)
            or (self.progress is not None and progress >= self.progress)
            or (self.lr_scale is not None and lr_scale < min(self.lr_scale, peak))
        )


class LateQAT:
    """Fake quantization of some of a module's parameters, from some step on."""

    def __init__(
        self,
        model: nn.Module,
        recipe: Recipe,
        *,
        match: Sequence[str] = ("class:matrix",),
        start: Start,
        knob: float | None = None,
        soft_rounding: tuple[float, float] | None = None,
        statistics: StatisticsSource = None,
    ) -> None:
        """Choose the parameters of `model` that `match` names, as a recipe would.

        `knob` is the value of the recipe's knob (None: each rule's own k or qmax). `soft_rounding`
        gives alpha at the switch and at the end of training, linear in progress between; None:
        hard rounding. `statistics`, or a function called at the switch that collects them, weigh
        the errors by which percentile rules choose; without, all inputs count alike.
        Raises `ConfigError` for a recipe that does not fit the model, for a pattern that selects no
        parameter with an integer grid, and for numbers out of range.
        """
        self._model = unwrapped(model)
        self._start, self._soft, self._statistics = start, soft_rounding, statistics
        if soft_rounding is not None and not all(0 < alpha <= 1e3 for alpha in soft_rounding):
            raise ConfigError(f"soft_rounding = {soft_rounding}: expected two numbers above 0")
        self._selection = select(self._model, recipe, tuple(match), knob)
        self.active = False
        """Whether weights are quantized within `quantized()`."""
        self._inside = False
        self._peak = 0.0  # largest factor of the learning rates so far
        self._since = self._progress = 0.0
        self._choices: dict[str, Tensor] = {}
        self._prepared: tuple[list[object], list[Group]] = ([], [])
        self._swapped: list[Swapped] = []

    @property
    def names(self) -> tuple[str, ...]:
        """The tensors that are quantized; each storage once."""
        return tuple(self._selection.rules)

    @property
    def skipped(self) -> dict[str, str]:
        """Tensors that were matched but are not rounded, and why."""
        return dict(self._selection.skipped)

    @property
    def alpha(self) -> float | None:
        """Sharpness of the soft rounding now; None: hard rounding."""
        if self._soft is None:
            return None
        first, last = self._soft
        rest = 1.0 - self._since
        part = min(1.0, max(0.0, (self._progress - self._since) / rest)) if rest > 0 else 1.0
        return first + (last - first) * part

    def on_step(self, step: int, progress: float, lr_scale: float) -> bool:
        """Say where training stands before a step; True if this call switches quantization on.

        `step` from 0, `progress` 0 to 1, `lr_scale` the factor on the learning rates of this step.
        """
        if self._inside:
            raise RuntimeError("on_step() within quantized(): the weights are not the true ones")
        due = self._start.due(step, progress, lr_scale, self._peak)
        self._peak, self._progress = max(self._peak, lr_scale), progress
        if self.active or not due:
            return False
        self._choices = self._choose(self._selection.members(self._model))
        self._prepared = ([], [])
        self._since, self.active = progress, True
        return True

    @contextmanager
    def quantized(self) -> Iterator[None]:
        """Within, the selected parameters hold Q(w); afterwards w again, to the bit.

        Forward *and* backward belong inside, any number of them; the optimizer's step does not.
        Gradients are those at Q(w), taken for those at w; with soft rounding they are multiplied by
        dQ/dw on the way out, and those that were there before are kept apart and added. Also after
        an exception. Does nothing before the switch. Raises `RuntimeError` when it is entered twice
        or the weights were changed inside.
        """
        if self._inside:
            raise RuntimeError("quantized() within quantized(): the weights are quantized already")
        self._inside = True
        try:
            try:
                self._enter()
                yield
                self._check_unchanged()
            finally:
                self._leave()
        finally:
            self._inside = False

    def mean_error(self) -> dict[str, float]:
        """Mean |w - Q(w)| (hard rounding) of every selected tensor, and of all their weights under
        the key `(all)`. Before the switch: what it would be now. Waits for the device."""
        if self._inside:
            raise RuntimeError("mean_error() within quantized(): the weights are not the true ones")
        with torch.no_grad():
            groups = self._ready() if self.active else self._now()
            rows = [row for group in groups for row in group.absolute_errors()]
        found = {name: total / count for name, total, count in rows}
        overall = sum(total for _, total, _ in rows) / sum(count for *_, count in rows)
        return {name: found[name] for name in self.names} | {ALL: overall}

    def state_tensors(self) -> dict[str, Tensor]:
        """Everything that a resumed run needs, for `load_state_tensors`."""
        numbers = torch.tensor([self._peak, self._since, self._progress], dtype=torch.float64)
        choices = {f"percentile.{name}": choice for name, choice in self._choices.items()}
        return {"active": torch.tensor(self.active), "numbers": numbers, **choices}

    def load_state_tensors(self, state: Mapping[str, Tensor]) -> None:
        """Go on where `state_tensors` was taken.

        Raises `CheckpointError` naming what is missing or does not fit this model and recipe.
        """
        if self._inside:
            raise RuntimeError("load_state_tensors() within quantized()")
        problems = [f"{key}: missing" for key in ("active", "numbers") if key not in state]
        active = not problems and bool(state["active"])
        members = self._selection.members(self._model)
        rows = {m.name: m.num_rows for m in members if m.rule.scale == "percentile"}
        choices = {}
        for name in rows if active else ():
            choice = state.get(f"percentile.{name}")
            if choice is None or choice.shape != (rows[name],):
                problems.append(f"percentile.{name}: missing, or not of {rows[name]} rows")
            else:
                choices[name] = choice.clone()
        if problems:
            raise CheckpointError("the state of late QAT does not fit", items=problems)
        self.active, self._choices, self._prepared = active, choices, ([], [])
        self._peak, self._since, self._progress = state["numbers"].tolist()

    def _ready(self) -> list[Group]:
        """The groups of the parameters that the module holds now; as before while those stay."""
        members = self._selection.members(self._model)
        known: list[object] = [(id(p), p.device, p.dtype) for m in members for p in m.parameters]
        if self._prepared[0] != known:
            self._prepared = (known, make_groups(members, self._choices))
        return self._prepared[1]

    def _now(self) -> list[Group]:
        """Groups as they would be if the switch were now: percentiles chosen for these weights."""
        members = self._selection.members(self._model)
        return make_groups(members, self._choose(members))

    @torch.no_grad()
    def _choose(self, members: Sequence[Member]) -> dict[str, Tensor]:
        """The percentile of every row whose rule searches: name -> (rows,) int8."""
        searching = [group for group in make_groups(members, {}) if group.grid.searches]
        source = self._statistics if searching else None
        statistics = source() if callable(source) else source
        choices: dict[str, Tensor] = {}
        for group in searching:
            choices |= group.choose(statistics)
        return choices

    @torch.no_grad()
    def _enter(self) -> None:
        if not self.active:
            return
        torch.clear_autocast_cache()  # it may hold casts of the true weights
        for group in self._ready():
            swapped = Swapped.of(group, self.alpha)
            self._swapped.append(swapped)  # before it is replaced: from here on it is undone
            swapped.replace()

    def _check_unchanged(self) -> None:
        changed = [name for swapped in self._swapped for name in swapped.changed()]
        if changed:
            raise RuntimeError(
                "weights were changed inside quantized(), and are put back: step the optimizer "
                f"outside ({', '.join(changed)})"
            )

    @torch.no_grad()
    def _leave(self) -> None:
        """Put all weights back, then finish the gradients."""
        swapped, self._swapped = self._swapped, []
        for item in swapped:
            item.restore()
        for item in swapped:
            item.finish_gradients()
        if swapped:
            torch.clear_autocast_cache()
