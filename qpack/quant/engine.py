"""Quantizing a whole model at one knob value, again and again at little cost.

What does not depend on the knob is done once: Hessians are factored, weights are transposed into
the solver's order, and tensors with fixed rules are quantized. Weights that share an H stand side
by side as rows of one matrix, and matrices of one shape are solved as a batch, so another knob
value costs only the column loops.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from qpack.progress import SILENT, Progress
from qpack.quant import grid
from qpack.quant.factor import Factor, factor_hessian
from qpack.quant.gptq import quantize_columns
from qpack.quant.plan import Plan, TensorPlan
from qpack.quant.statistics import Statistics
from qpack.recipe import Rule
from qpack.tensors import QuantizedTensor


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class _Stack:
    """Weights that share one factor, stacked as rows: (sum of rows, cols)."""

    entries: tuple[TensorPlan, ...]
    factor: Factor
    hessian: Tensor

    @property
    def num_rows(self) -> int:
        return sum(_rows_of(entry) for entry in self.entries)


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class _Place:
    """Where one tensor's rows stand in a batch."""

    entry: TensorPlan
    index: int
    rows: slice
    order: Tensor


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class _Batch:
    """Stacks of one shape, ready for the column loop."""

    places: tuple[_Place, ...]
    WT: Tensor
    """(batch, cols, rows), columns in each stack's own order, dead ones zero"""
    U: Tensor
    """(batch, cols, cols)"""


class Quantizer:
    """A plan, its weights and their statistics, ready to be quantized at any knob value."""

    def __init__(
        self,
        tensors: Mapping[str, Tensor],
        plan: Plan,
        statistics: Statistics | None,
        *,
        device: torch.device | str = "cpu",
        progress: Progress = SILENT,
    ) -> None:
        """Factor every Hessian and quantize what does not follow the knob.

        `tensors` holds every planned tensor. Without `statistics` all is rounded to nearest.
        """
        self.plan = plan
        self._knob = plan.recipe.knob.name
        self._entries = [entry for entry in plan.tensors if entry.rule.type == "int"]
        self.weights = {
            entry.name: tensors[entry.name]
            .detach()
            .to(device, torch.float32)
            .reshape(_rows_of(entry), -1)
            for entry in self._entries
        }
        self._statistics = statistics
        self.fallbacks: dict[str, str] = {}
        self.factors: dict[str, Factor] = {}
        stacks = self._make_stacks(progress)
        stacked = {entry.name for stack in stacks for entry in stack.entries}
        self._plain = [entry for entry in self._entries if entry.name not in stacked]
        self._batches = {
            turned: self._make_batches([s for s in stacks if s.entries[0].rule.knob is turned])
            for turned in (False, True)
        }
        for batch in self._batches[False] + self._batches[True]:
            for place in batch.places:  # one copy of each U is enough
                name = place.entry.name
                self.factors[name] = replace(self.factors[name], U=batch.U[place.index])
        self._fixed = self._solve(turned=False, value=0.0)

    def quantize(self, value: float) -> dict[str, QuantizedTensor]:
        """Every integer tensor of the plan with the knob at `value`, by name."""
        return self._fixed | self._solve(turned=True, value=value)

    def errors(self, name: str, integers: Tensor, steps: Tensor) -> Tensor:
        """`e H e^T` of each row for given integers (rows, cols) and steps (rows,); H undamped,
        a mean over calibration inputs. The squared norm where there is no H."""
        error = self.weights[name] - integers * steps[:, None]
        return grid.row_errors(error, self.mean_hessian(name))

    def mean_hessian(self, name: str) -> Tensor | None:
        """H of `name` divided by the number of inputs, or None."""
        if self._statistics is None:
            return None
        H = self._statistics.hessian(name)
        if H is None:
            return None
        count = max(1, self._statistics.counts[self._statistics.members[name]])
        return H.to(self.weights[name].device) / count

    def rule_at(self, entry: TensorPlan, value: float) -> Rule:
        """The rule of `entry` with the knob at `value`."""
        return entry.rule.turned(self._knob, value)

    # -- preparation ---------------------------------------------------------------------------

    def _make_stacks(self, progress: Progress) -> list[_Stack]:
        """Group by shared H and by everything that changes the factor or the pass."""
        groups: dict[tuple[str, float, bool, bool], list[TensorPlan]] = {}
        for entry in self._entries:
            rule = entry.rule
            H = self._statistics.hessian(entry.name) if self._statistics else None
            if rule.solver == "rtn" or self._statistics is None:
                continue
            if H is None:
                self.fallbacks[entry.name] = _without_hessian(entry)
                continue
            leader = self._statistics.members[entry.name]
            key = (leader, rule.damping, rule.act_order, rule.knob)
            groups.setdefault(key, []).append(entry)
        stacks = []
        with progress.stage("factor", total=len(groups), unit="Hessians") as task:
            for (leader, damping, act_order, _), entries in groups.items():
                assert self._statistics is not None
                H = self._statistics.hessians[leader].to(self.weights[entries[0].name].device)
                factor = factor_hessian(H, damping=damping, act_order=act_order)
                task.advance(note=leader)
                self.factors |= {entry.name: factor for entry in entries}
                if factor.U is None:
                    reason = "rounded to nearest: its Hessian could not be factored"
                    self.fallbacks |= {entry.name: reason for entry in entries}
                    continue
                stacks.append(_Stack(entries=tuple(entries), factor=factor, hessian=H))
        return stacks

    def _make_batches(self, stacks: Sequence[_Stack]) -> list[_Batch]:
        shapes: dict[tuple[int, int], list[_Stack]] = {}
        for stack in stacks:
            shapes.setdefault((stack.num_rows, stack.hessian.shape[0]), []).append(stack)
        return [self._make_batch(members) for members in shapes.values()]

    def _make_batch(self, stacks: Sequence[_Stack]) -> _Batch:
        places = []
        for index, stack in enumerate(stacks):
            start = 0
            for entry in stack.entries:
                rows = slice(start, start + _rows_of(entry))
                order = stack.factor.order
                places.append(_Place(entry=entry, index=index, rows=rows, order=order))
                start = rows.stop
        return _Batch(
            places=tuple(places),
            WT=torch.stack([self._ordered_transpose(stack) for stack in stacks]),
            U=torch.stack([u for stack in stacks if (u := stack.factor.U) is not None]),
        )

    def _ordered_transpose(self, stack: _Stack) -> Tensor:
        """Dead columns multiply inputs that are always zero, so zeros cost nothing there; but the
        rows of a table are also looked up, where every column counts: those stay as they are."""
        columns = []
        for entry in stack.entries:
            WT = self.weights[entry.name].T.clone()
            if entry.kind != "embedding":
                WT[stack.factor.dead] = 0.0
            columns.append(WT)
        return torch.cat(columns, dim=1)[stack.factor.order]

    # -- one pass ------------------------------------------------------------------------------

    def _solve(self, *, turned: bool, value: float) -> dict[str, QuantizedTensor]:
        out: dict[str, QuantizedTensor] = {}
        for entry in self._plain:
            if entry.rule.knob is turned:
                out[entry.name] = self._round(entry, self.rule_at(entry, value))
        for batch in self._batches[turned]:
            out |= self._solve_batch(batch, value)
        return out

    def _round(self, entry: TensorPlan, rule: Rule) -> QuantizedTensor:
        """Round to nearest; the percentile search picks by error row by row."""
        W = self.weights[entry.name]
        limits = torch.full((W.shape[0],), symbol_limit(rule), device=W.device)
        best: _Rows | None = None
        for codes in step_candidates(W, rule):
            steps = grid.step_values(codes, rule.step_octave)
            integers = grid.round_to_nearest(W, steps, limits)
            cost = self.errors(entry.name, integers, steps)
            best = _keep_better(best, (integers, codes, cost))
        assert best is not None
        return _store(entry, best[0], best[1], rule)

    def _solve_batch(self, batch: _Batch, value: float) -> dict[str, QuantizedTensor]:
        rules = {p.entry.name: self.rule_at(p.entry, value) for p in batch.places}
        options = {name: step_candidates(self.weights[name], rule) for name, rule in rules.items()}
        size = batch.WT.shape[0], batch.WT.shape[2]
        steps, limits = batch.WT.new_empty(size), batch.WT.new_empty(size)
        best: dict[str, _Rows] = {}
        passes = max(len(codes) for codes in options.values())
        for turn in range(passes):
            for place in batch.places:
                rule, codes = rules[place.entry.name], options[place.entry.name]
                chosen = codes[min(turn, len(codes) - 1)]
                steps[place.index, place.rows] = grid.step_values(chosen, rule.step_octave)
                limits[place.index, place.rows] = symbol_limit(rule)
            solved = quantize_columns(batch.WT.clone(), batch.U, steps, limits)
            for place in batch.places:
                name = place.entry.name
                codes = options[name]
                if turn >= len(codes):
                    continue
                integers = _restore(solved, place)
                cost = steps[place.index, place.rows]  # stands in while there is one candidate
                if len(codes) > 1:
                    cost = self.errors(name, integers.float(), cost)
                best[name] = _keep_better(best.get(name), (integers, codes[turn], cost))
        return {
            place.entry.name: _store(place.entry, integers, codes, rules[place.entry.name])
            for place in batch.places
            for integers, codes, _ in [best[place.entry.name]]
        }


_Rows = tuple[Tensor, Tensor, Tensor]
"""integers (rows, cols), step codes (rows,), cost (rows,)"""


def _restore(solved: Tensor, place: _Place) -> Tensor:
    """One tensor's integers (rows, cols), int16, from a batch in solver order (.., cols, rows)."""
    part = solved[place.index, :, place.rows].to(torch.int16)
    restored = torch.empty_like(part)
    restored[place.order] = part
    return restored.T


def _without_hessian(entry: TensorPlan) -> str:
    if entry.kind == "embedding":
        return "rounded to nearest: a table that is only looked up has no input to weigh errors by"
    return "rounded to nearest: calibration never saw a product with it"


def symbol_limit(rule: Rule) -> float:
    """Largest magnitude that the rule lets a symbol take."""
    return float(rule.qmax if rule.clip else grid.UNCLIPPED_MAX)


def step_candidates(W: Tensor, rule: Rule) -> list[Tensor]:
    """Step codes (rows,) to try for W (rows, cols): one, or several for the percentile search."""
    if rule.scale == "absmax":
        candidates = [grid.absmax_steps(W, rule.qmax)]
    elif rule.scale == "sigma":
        candidates = [grid.sigma_steps(W, rule.qmax, rule.k)]
    else:
        candidates = [grid.percentile_steps(W, rule.qmax, p) for p in grid.PERCENTILES]
    return [step_codes(steps, W, rule) for steps in candidates]


def step_codes(steps: Tensor, W: Tensor, rule: Rule) -> Tensor:
    """Codes (rows,) in which `rule` stores `steps` (rows,), its scale's for W (rows, cols)."""
    if not rule.clip:
        steps = grid.guard_unclipped(steps, W)
    # Steps that hug the largest weight round upwards, so that it is not clipped.
    up = rule.scale != "sigma" and rule.clip
    return grid.encode_steps(grid.floor_steps(steps, rule.floor), rule.step_octave, up=up)


def _keep_better(old: _Rows | None, new: _Rows) -> _Rows:
    """Row by row the (integers, codes, cost) of smaller cost; the earlier one wins ties."""
    if old is None:
        return new
    better = new[2] < old[2]
    return (
        torch.where(better[:, None], new[0], old[0]),
        torch.where(better, new[1], old[1]),
        torch.where(better, new[2], old[2]),
    )


def _store(entry: TensorPlan, integers: Tensor, codes: Tensor, rule: Rule) -> QuantizedTensor:
    peak = int(integers.abs().max()) if integers.numel() else 0
    narrow = integers.to(torch.int8 if peak <= 127 else torch.int16)
    return QuantizedTensor(
        name=entry.name,
        shape=entry.shape,
        integers=np.ascontiguousarray(narrow.cpu().numpy()),
        row_codes=codes.cpu().numpy(),
        octave=rule.step_octave,
    )


def _rows_of(entry: TensorPlan) -> int:
    """A tensor of fewer than two dimensions is one row."""
    return entry.shape[0] if len(entry.shape) >= 2 else 1
