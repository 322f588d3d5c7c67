"""What the column loops work on: weights that share an H as one stack, like stacks as one batch.

Weights that share an input (q, k and v) stand side by side as rows of one matrix; stacks of one
shape are solved together. Under rule rd a tied or looked-up table has an H of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from qpack.progress import Progress
from qpack.quant.blockwise import RowBlock
from qpack.quant.factor import Factor, factor_hessian
from qpack.quant.plan import TensorPlan
from qpack.quant.rowwise import BLOCK_ROWS, RowFeedback, factor_rows
from qpack.quant.sensitivity import Form, form_of, informs
from qpack.quant.statistics import Statistics
from qpack.rule import Rule


@dataclass(frozen=True, kw_only=True, slots=True)
class Flavour:
    """How the columns of an rd stack are rounded."""

    columns: bool
    """whether column steps follow U"""
    gains: bool
    trellis: int
    row_feedback: bool
    """whether rows make up for rows before them"""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Stack:
    """Weights that share one factor, stacked as rows: (sum of rows, cols)."""

    entries: tuple[TensorPlan, ...]
    factor: Factor
    U: Tensor
    """(cols, cols), the factor's"""
    turned: bool
    """whether the entries follow the knob"""
    flavour: Flavour | None
    """None: row steps alone, by each entry's own scale"""

    @property
    def bounds(self) -> tuple[int, ...]:
        """Row at which each entry starts."""
        starts, row = [], 0
        for entry in self.entries:
            starts.append(row)
            row += rows_of(entry)
        return tuple(starts)


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Place:
    """Where one tensor's rows stand in a batch."""

    entry: TensorPlan
    index: int
    rows: slice
    order: Tensor


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Batch:
    """Stacks of one shape, ready for the column loop."""

    places: tuple[Place, ...]
    WT: Tensor
    """(batch, cols, rows), columns in each stack's own order, dead ones zero"""
    U: Tensor
    """(batch, cols, cols)"""
    bounds: tuple[int, ...]
    flavour: Flavour | None
    blocks: tuple[RowBlock, ...]
    """of all rows, in order; none where `qpack.quant.blockwise` does not apply"""


class Stacker:
    """Stacks of a plan, with every fallback and factor on record."""

    def __init__(
        self,
        statistics: Statistics,
        rule_of: Callable[[TensorPlan], Rule],
        weights: Mapping[str, Tensor],
    ) -> None:
        """`rule_of` gives each entry's rule as the knob makes it; `weights` are (rows, cols)."""
        self._statistics, self._rule_of, self._weights = statistics, rule_of, weights
        self.fallbacks: dict[str, str] = {}
        self.factors: dict[str, Factor] = {}
        self.row_weights: dict[str, Tensor] = {}
        """rd: (rows,) sensitivities, floored"""
        self.floored: dict[str, int] = {}
        self._feedback: dict[str, RowFeedback] = {}

    def stacks(self, entries: Sequence[TensorPlan], progress: Progress) -> list[Stack]:
        """Group `entries` and factor each group's H. Entries that cannot take part are left out."""
        groups: dict[_Key, list[TensorPlan]] = {}
        hessians: dict[_Key, Tensor] = {}
        for entry in entries:
            rule = self._rule_of(entry)
            if rule.solver == "rtn":
                continue
            found = self._hessian(entry, rule)
            if found is None:
                self.fallbacks[entry.name] = _without_hessian(entry)
                continue
            leader, H = found
            flavour = self._flavour(entry.name, rule)
            key = (leader, rule.damping, rule.act_order, entry.rule.knob, flavour)
            groups.setdefault(key, []).append(entry)
            hessians[key] = H
        stacks = []
        with progress.stage("factor", total=len(groups), unit="Hessians") as task:
            for key, members in groups.items():
                stack = self._stack(members, hessians.pop(key))
                task.advance(note=members[0].name)
                if stack is not None:
                    stacks.append(stack)
        return stacks

    def batches(self, stacks: Sequence[Stack]) -> list[Batch]:
        """Stacks that one column loop can take."""
        alike: dict[tuple[object, ...], list[Stack]] = {}
        for stack in stacks:
            rows = sum(rows_of(entry) for entry in stack.entries)
            flavour = stack.flavour
            bounds = stack.bounds if flavour and (flavour.trellis or flavour.row_feedback) else None
            alike.setdefault((rows, len(stack.U), bounds, stack.flavour), []).append(stack)
        return [self._batch(members) for members in alike.values()]

    def _hessian(self, entry: TensorPlan, rule: Rule) -> tuple[str, Tensor] | None:
        """(name of the group, H) of an entry, or None."""
        name = entry.name
        if rule.scale != "rd":
            H = self._statistics.hessian(name)
            return None if H is None else (self._statistics.members[name], H)
        form = form_of(name, self._statistics)
        if form is None:
            return None
        self._note_form(entry, rule, form)
        own = name in self._statistics.table_sensitivities
        return (name if own else self._statistics.members[name]), form.H

    def _note_form(self, entry: TensorPlan, rule: Rule, form: Form) -> None:
        name = entry.name
        if not form.known:
            g = self._statistics.sensitivities.get(name)
            why = "its sensitivities are out of the range of float32"
            if g is None or not informs(g):
                why = "its outputs have no sensitivities"
            self.fallbacks[name] = f"equal relative steps: {why}"
            return
        device = self._weights[name].device
        self.row_weights[name] = form.weights.to(device)
        self.floored[name] = form.floored
        moments, tables = self._statistics.moments.get(name), self._statistics.table_sensitivities
        if not rule.feeds_rows or moments is None or name in tables:
            return
        found = factor_rows(moments.to(device), rows_of(entry), BLOCK_ROWS[rule.trellis])
        if found is None:
            self.fallbacks[name] = "no row feedback: its moments could not be factored"
            return
        self.row_weights[name], self._feedback[name] = found.weights, found

    def _stack(self, entries: list[TensorPlan], hessian: Tensor) -> Stack | None:
        rule = self._rule_of(entries[0])
        H = hessian.to(self._weights[entries[0].name].device)
        factor = factor_hessian(H, damping=rule.damping, act_order=rule.act_order)
        self.factors |= {entry.name: factor for entry in entries}
        if factor.U is None:
            reason = "rounded to nearest: its Hessian could not be factored"
            self.fallbacks |= {entry.name: reason for entry in entries}
            return None
        return Stack(
            entries=tuple(entries),
            factor=factor,
            U=factor.U,
            turned=entries[0].rule.knob,
            flavour=self._flavour(entries[0].name, rule),
        )

    def _flavour(self, name: str, rule: Rule) -> Flavour | None:
        if rule.scale != "rd":
            return None
        return Flavour(
            columns="column" in rule.terms,
            gains=rule.gains,
            trellis=rule.trellis,
            row_feedback=name in self._feedback,
        )

    def _batch(self, stacks: Sequence[Stack]) -> Batch:
        places = []
        for index, stack in enumerate(stacks):
            for entry, start in zip(stack.entries, stack.bounds, strict=True):
                rows = slice(start, start + rows_of(entry))
                order = stack.factor.order
                places.append(Place(entry=entry, index=index, rows=rows, order=order))
        return Batch(
            places=tuple(places),
            WT=torch.stack([self._ordered_transpose(stack) for stack in stacks]),
            U=torch.stack([stack.U for stack in stacks]),
            bounds=stacks[0].bounds,
            flavour=stacks[0].flavour,
            blocks=self._blocks(stacks),
        )

    def _blocks(self, stacks: Sequence[Stack]) -> tuple[RowBlock, ...]:
        """Blocks of rows and what they do for each other; none where columns have gains, or paths
        run through rows that have no feedback."""
        flavour = stacks[0].flavour
        if flavour is None or flavour.gains:
            return ()
        if not flavour.row_feedback:
            return () if flavour.trellis else _independent(sum(map(rows_of, stacks[0].entries)))
        blocks: list[RowBlock] = []
        for members in zip(*(stack.entries for stack in stacks), strict=True):
            carries = zip(*(self._feedback[entry.name].carry for entry in members), strict=True)
            start = blocks[-1].rows.stop if blocks else 0
            level = 0
            for carry in carries:
                stop = start + carry[0].shape[1]
                carried = torch.stack(carry) if len(carry[0]) else None
                blocks.append(RowBlock(rows=slice(start, stop), level=level, carry=carried))
                run_ends = carried is None and not flavour.trellis
                start, level = stop, 0 if run_ends else level + 1
        return tuple(blocks)

    def _ordered_transpose(self, stack: Stack) -> Tensor:
        """Dead columns multiply inputs that are always zero, so zeros cost nothing there; but the
        rows of a table are also looked up, where every column counts: those stay as they are."""
        columns = []
        for entry in stack.entries:
            WT = self._weights[entry.name].T.clone()
            if entry.kind != "embedding":
                WT[stack.factor.dead] = 0.0
            columns.append(WT)
        return torch.cat(columns, dim=1)[stack.factor.order]


def _independent(rows: int) -> tuple[RowBlock, ...]:
    """Blocks that wait for none."""
    starts = range(0, rows, BLOCK_ROWS[0])
    slices = [slice(start, min(start + BLOCK_ROWS[0], rows)) for start in starts]
    return tuple(RowBlock(rows=each, level=0, carry=None) for each in slices)


_Key = tuple[str, float, bool, bool, Flavour | None]
"""what a group shares: H, damping, activation order, following the knob, flavour"""


def rows_of(entry: TensorPlan) -> int:
    """A tensor of fewer than two dimensions is one row."""
    return entry.shape[0] if len(entry.shape) >= 2 else 1


def _without_hessian(entry: TensorPlan) -> str:
    if entry.kind == "embedding":
        return "rounded to nearest: a table that is only looked up has no input to weigh errors by"
    return "rounded to nearest: calibration never saw a product with it"
