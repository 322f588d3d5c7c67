"""Quantizing a whole model at one knob value, again and again at little cost.

What does not depend on the knob is done once: Hessians are factored, weights are transposed into
the solver's order (`qpack.quant.stacks`), and tensors with fixed rules are quantized. Another knob
value costs only the column loops.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from qpack.errors import CalibrationError
from qpack.progress import SILENT, Progress
from qpack.quant import grid
from qpack.quant.blockwise import quantize_blocks
from qpack.quant.candidates import step_candidates, symbol_limit
from qpack.quant.columns import BlockSteps, ColumnSteps
from qpack.quant.factor import Factor
from qpack.quant.gptq import Nearest, quantize_columns
from qpack.quant.moments import joint_cost
from qpack.quant.plan import Plan, TensorPlan
from qpack.quant.sensitivity import form_of, mean_hessian
from qpack.quant.stacks import Batch, Place, Stacker, rows_of
from qpack.quant.statistics import Statistics
from qpack.quant.steps import (
    OCTAVE,
    TENSOR_RANGE,
    LogSteps,
    StepModel,
    log_steps,
    root_mean_square,
)
from qpack.rule import Rule
from qpack.tensors import QuantizedTensor


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
        entries = [entry for entry in plan.tensors if entry.rule.type == "int"]
        self.weights = {
            entry.name: tensors[entry.name]
            .detach()
            .to(device, torch.float32)
            .reshape(rows_of(entry), -1)
            for entry in entries
        }
        self._statistics = statistics
        self._batches: list[Batch] = []
        self.fallbacks: dict[str, str] = {}
        self.factors: dict[str, Factor] = {}
        self.floored: dict[str, int] = {}
        """rd: rows of each tensor whose sensitivity was raised to the floor"""
        self._row_weights: dict[str, Tensor] = {}
        self._terms: tuple[str, ...] | None = None
        if statistics is not None:
            self._check_sensitivities(entries, statistics)
            self._prepare(entries, statistics, progress)
        self._steps = self._step_model(entries)
        self._unheld = self.fallbacks
        self.fallbacks = self._unheld | {
            name: "; ".join(filter(None, (self._unheld.get(name), _held(octaves))))
            for name, octaves in self._steps.held.items()
        }
        stacked = {place.entry.name for batch in self._batches for place in batch.places}
        self._plain = [entry for entry in entries if entry.name not in stacked]
        self._fixed = self._solve(turned=False, value=0.0)

    def quantize(self, value: float) -> dict[str, QuantizedTensor]:
        """Every integer tensor of the plan with the knob at `value`, by name."""
        return self._fixed | self._solve(turned=True, value=value)

    def with_terms(self, terms: tuple[str, ...]) -> Quantizer:
        """The same tensors with these terms in every rd rule. With none, steps do without
        sensitivities, and rows have no feedback. Factors are shared, so H stays what it is."""
        other = copy.copy(self)
        other._terms = terms
        other.fallbacks = self.fallbacks if "tensor" in terms else self._unheld
        other._fixed = other._solve(turned=False, value=0.0)
        return other

    def errors(self, name: str, decoded: Tensor) -> Tensor:
        """`e H e^T` of each row for decoded weights (rows, cols); H undamped, a mean over
        calibration inputs. The squared norm where there is no H."""
        H = None if self._statistics is None else mean_hessian(name, self._statistics)
        error = self.weights[name] - decoded
        return grid.row_errors(error, None if H is None else H.to(error.device))

    def predicted_nats(self, name: str, decoded: Tensor) -> float | None:
        """Loss rise a token that decoded weights (rows, cols) should cost, by the quadratic form of
        `qpack.quant.sensitivity`, with all pairs of rows that have moments. None where calibration
        gathered no sensitivities of `name`."""
        form = None if self._statistics is None else form_of(name, self._statistics)
        if self._statistics is None or form is None or not form.known:
            return None
        error = self.weights[name] - decoded
        H, moments = form.H.to(error.device), self._statistics.moments.get(name)
        if moments is not None:
            return 0.5 * joint_cost(error, H, moments.to(error.device))
        costs = grid.row_errors(error, H) * form.weights.to(error.device)
        return 0.5 * float(grid.precise(costs).sum())

    def rule_at(self, entry: TensorPlan, value: float) -> Rule:
        """The rule of `entry` with the knob at `value`."""
        rule = entry.rule.turned(self._knob, value)
        return rule if self._terms is None else replace(rule, terms=self._terms)

    # -- preparation ---------------------------------------------------------------------------

    def _check_sensitivities(self, entries: list[TensorPlan], statistics: Statistics) -> None:
        names = [entry.name for entry in entries if self.rule_at(entry, 1.0).scale == "rd"]
        if names and statistics.sensitivity_tokens == 0:
            raise CalibrationError(
                f"rule rd needs output sensitivities, and the statistics have none, for "
                f"{len(names)} tensor(s)",
                items=names,
                hint="calibrate again, without --stats; or take a recipe without rule rd: "
                "--recipe record",
            )

    def _prepare(
        self, entries: list[TensorPlan], statistics: Statistics, progress: Progress
    ) -> None:
        """Factor what has an H, and arrange it for the column loops."""
        stacker = Stacker(statistics, lambda entry: self.rule_at(entry, 1.0), self.weights)
        stacks = stacker.stacks(entries, progress)
        for turned in (False, True):
            self._batches += stacker.batches([s for s in stacks if s.turned is turned])
        self.fallbacks, self.factors = stacker.fallbacks, stacker.factors
        self.floored, self._row_weights = stacker.floored, stacker.row_weights
        for batch in self._batches:
            for place in batch.places:  # one copy of each U is enough
                name = place.entry.name
                self.factors[name] = replace(self.factors[name], U=batch.U[place.index])

    def _step_model(self, entries: list[TensorPlan]) -> StepModel:
        rd = [entry.name for entry in entries if self.rule_at(entry, 1.0).scale == "rd"]
        logs = {}
        for batch in self._batches:
            for place in batch.places:
                name = place.entry.name
                if name in rd:
                    logs[name] = self._log_steps(name, batch.U[place.index])
        return StepModel(
            logs,
            {name: root_mean_square(self.weights[name]) for name in rd},
            {name: self.weights[name].numel() for name in rd},
        )

    def _log_steps(self, name: str, U: Tensor) -> LogSteps:
        factor = self.factors[name]
        known = self._row_weights.get(name)
        weights = self.weights[name].new_ones(len(self.weights[name])) if known is None else known
        logs = log_steps(weights, U, factor.scale, factor.dead[factor.order])
        return replace(logs, compares=known is not None)

    # -- one pass ------------------------------------------------------------------------------

    def _solve(self, *, turned: bool, value: float) -> dict[str, QuantizedTensor]:
        out: dict[str, QuantizedTensor] = {}
        for entry in self._plain:
            if entry.rule.knob is turned:
                out[entry.name] = self._round(entry, self.rule_at(entry, value))
        for batch in self._batches:
            if batch.places[0].entry.rule.knob is turned:
                rules = {p.entry.name: self.rule_at(p.entry, value) for p in batch.places}
                solve = self._solve_rows if batch.flavour is None else self._solve_columns
                out |= solve(batch, rules)
        return out

    def _round(self, entry: TensorPlan, rule: Rule) -> QuantizedTensor:
        """Round to nearest; the percentile search picks by error row by row."""
        W = self.weights[entry.name]
        if rule.scale == "rd":
            codes = torch.full((len(W),), self._steps.plain_code(entry.name, rule))
            options = [torch.maximum(codes.to(W.device), least_codes(W, 0)).to(torch.int16)]
        else:
            options = step_candidates(W, rule)
        limits = torch.full((W.shape[0],), symbol_limit(rule), device=W.device)
        best: _Rows | None = None
        for codes in options:
            steps = grid.step_values(codes, rule.step_octave)
            integers = grid.round_to_nearest(W, steps, limits)
            cost = self.errors(entry.name, integers * steps[:, None])
            best = _keep_better(best, (integers, codes, cost))
        assert best is not None
        return _store(entry, best[0], best[1], rule)

    def _solve_rows(self, batch: Batch, rules: Mapping[str, Rule]) -> dict[str, QuantizedTensor]:
        """Steps from each row's own weights; several passes where a rule chooses among several."""
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
            solved = quantize_columns(batch.WT.clone(), batch.U, Nearest(steps, limits))
            for place in batch.places:
                name = place.entry.name
                codes = options[name]
                if turn >= len(codes):
                    continue
                integers = _restore(solved, place)
                cost = steps[place.index, place.rows]  # stands in while there is one candidate
                if len(codes) > 1:
                    cost = self.errors(name, integers * cost[:, None])
                best[name] = _keep_better(best.get(name), (integers, codes[turn], cost))
        return {
            place.entry.name: _store(place.entry, integers, codes, rules[place.entry.name])
            for place in batch.places
            for integers, codes, _ in [best[place.entry.name]]
        }

    def _solve_columns(self, batch: Batch, rules: Mapping[str, Rule]) -> dict[str, QuantizedTensor]:
        """Steps for rows and columns, by the sensitivity of outputs."""
        assert batch.flavour is not None
        size = batch.WT.shape[0], batch.WT.shape[2]
        rows = torch.zeros(size, dtype=torch.int16, device=batch.WT.device)
        cols = torch.stack([self._col_codes(p, rules) for p in batch.places if p.rows.start == 0])
        weights, spreads = batch.WT.new_ones(size), batch.WT.new_ones(size)
        for place in batch.places:
            name, at = place.entry.name, (place.index, place.rows)
            W = self.weights[name]
            codes = self._steps.row_codes(name, rules[name])
            rows[at] = torch.maximum(codes, least_codes(W, int(cols[place.index].min())))
            spreads[at] = W.square().mean(dim=1).sqrt()
            if name in self._row_weights:
                weights[at] = self._row_weights[name]
        steps, trellis = grid.step_values(rows, OCTAVE), batch.flavour.trellis
        col_codes = cols
        feeds = not batch.flavour.row_feedback or all(rule.feeds_rows for rule in rules.values())
        if batch.blocks and feeds:
            given = BlockSteps.of(steps, cols, trellis=trellis, spreads=spreads)
            solved = quantize_blocks(batch.WT, batch.U, batch.blocks, given)
        else:
            gains = weights if batch.flavour.gains else None
            rounder = ColumnSteps(
                steps,
                cols,
                gain_weights=gains,
                trellis=trellis,
                spreads=spreads,
                bounds=batch.bounds,
            )
            solved = quantize_columns(batch.WT.clone(), batch.U, rounder)
            col_codes = rounder.col_codes
        out = {}
        for place in batch.places:
            name, rule = place.entry.name, rules[place.entry.name]
            found = _store(
                place.entry, _restore(solved, place), rows[place.index, place.rows], rule
            )
            columns = None
            if "column" in rule.terms or rule.gains:
                columns = torch.empty_like(col_codes[place.index])
                columns[place.order] = col_codes[place.index]
            out[name] = replace(
                found,
                col_codes=None if columns is None else columns.cpu().numpy(),
                trellis=rule.trellis,
            )
        return out

    def _col_codes(self, place: Place, rules: Mapping[str, Rule]) -> Tensor:
        return self._steps.col_codes(place.entry.name, rules[place.entry.name])


_Rows = tuple[Tensor, Tensor, Tensor]
"""integers (rows, cols), step codes (rows,), cost (rows,)"""


def _held(octaves: float) -> str:
    """That a tensor is so many octaves coarser than its sensitivities ask for (finer: below 0)."""
    return (
        f"steps {TENSOR_RANGE:g} octaves from the model's: by its sensitivities they would be "
        f"{abs(octaves):.1f} octaves {'finer' if octaves > 0 else 'coarser'}"
    )


def least_codes(W: Tensor, col_code: int) -> Tensor:
    """Codes (rows,) below which a row's integers could leave int16, at columns of `col_code`."""
    return grid.encode_steps(grid.least_unclipped(W), OCTAVE, up=True) - col_code


def _restore(solved: Tensor, place: Place) -> Tensor:
    """One tensor's integers (rows, cols), int16, from a batch in solver order (.., cols, rows)."""
    part = solved[place.index, :, place.rows].to(torch.int16)
    restored = torch.empty_like(part)
    restored[place.order] = part
    return restored.T


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
        integers=narrow.contiguous().cpu().numpy(),
        row_codes=codes.cpu().numpy(),
        octave=rule.step_octave,
    )
