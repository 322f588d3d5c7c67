"""Replacing weights by their quantized values, in place, and putting them back to the bit.

Tensors of one width, rule, device and dtype are rows of one matrix, so that a model of a hundred
weights costs a few dozen kernels. In place, because others may know a parameter by its memory: an
optimizer that keeps matrices in one bank, a captured graph, a tied module.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from qpack.quant.fake import RowGrid
from qpack.quant.grid import precise
from qpack.quant.selection import Member
from qpack.quant.statistics import Statistics


@dataclass(slots=True, eq=False)
class Group:
    """Tensors whose rows stand below one another in one matrix (rows, cols)."""

    members: list[Member]
    grid: RowGrid

    def weights(self) -> Tensor:
        """A copy of the members' rows, (rows, cols), in their dtype."""
        return torch.cat([m.parameter.detach().reshape(m.num_rows, -1) for m in self.members])

    def parts(self, rows: Tensor) -> list[Tensor]:
        """`rows` (rows, ...) cut into the members'."""
        return list(torch.split(rows, [member.num_rows for member in self.members]))

    def shaped(self, matrix: Tensor) -> list[Tensor]:
        """`matrix` (rows, cols) cut into tensors of the members' shapes."""
        parts = zip(self.parts(matrix), self.members, strict=True)
        return [part.reshape(member.parameter.shape) for part, member in parts]

    def write(self, matrix: Tensor) -> None:
        """Set the members' values to those of `matrix` (rows, cols)."""
        targets = [member.parameter for member in self.members]
        torch._foreach_copy_(targets, self.shaped(matrix))

    def choose(self, statistics: Statistics | None) -> dict[str, Tensor]:
        """The percentile of each row now, where the rule searches: name -> (rows,) int8."""
        pairs = [(m.num_rows, _hessian(statistics, m)) for m in self.members]
        choice = self.grid.chosen(self.weights().float(), pairs).choice
        if choice is None:
            return {}
        return {m.name: c for m, c in zip(self.members, self.parts(choice), strict=True)}

    def absolute_errors(self) -> Iterator[tuple[str, float, int]]:
        """(name, sum of |w - Q(w)| rounded to nearest, weights) of each member."""
        W = self.weights().float()
        error = (W - self.grid.hard(W, self.grid.steps(W))).abs_()
        for member, part in zip(self.members, self.parts(error), strict=True):
            yield member.name, float(precise(part).sum()), part.numel()


@dataclass(slots=True, eq=False)
class Swapped:
    """A group whose weights are replaced, and what they were."""

    group: Group
    weights: Tensor
    """(rows, cols), to the bit"""
    steps: Tensor
    """(rows,) float32"""
    alpha: float | None
    """sharpness of soft rounding; None: rounded to nearest"""
    gradients: list[list[Tensor | None]] = field(default_factory=list)
    """soft rounding: those that the parameters came with"""
    versions: list[int] = field(default_factory=list)

    @classmethod
    def of(cls, group: Group, alpha: float | None) -> Swapped:
        """The weights of `group` as they are, ready to be replaced."""
        weights = group.weights()
        return cls(group, weights, group.grid.steps(weights.float()), alpha)

    def replace(self) -> None:
        """Write Q(w). With soft rounding, set the gradients so far aside."""
        grid, W = self.group.grid, self.weights.float()
        if self.alpha is None:
            self.group.write(grid.hard(W, self.steps))
        else:
            self.group.write(grid.soft(W, self.steps, self.alpha))
            self.gradients = [member.take_gradients() for member in self.group.members]
        self.versions = [member.parameter._version for member in self.group.members]

    def changed(self) -> list[str]:
        """Members that were written to after `replace`."""
        now = zip(self.group.members, self.versions, strict=True)
        return [member.name for member, version in now if member.parameter._version != version]

    def restore(self) -> None:
        """Write w."""
        self.group.write(self.weights)

    def finish_gradients(self) -> None:
        """With soft rounding, multiply the gradients by dQ/dw and add those set aside."""
        if self.alpha is None or not self.gradients:
            return
        slope = self.group.grid.slope(self.weights.float(), self.steps, self.alpha)
        slopes = self.group.shaped(slope)
        for member, part, old in zip(self.group.members, slopes, self.gradients, strict=True):
            member.give_gradients(part, old)


def make_groups(members: Iterable[Member], choices: Mapping[str, Tensor]) -> list[Group]:
    """What can be computed at once. `choices` are the percentiles of the tensors that search."""
    groups: dict[tuple[object, ...], list[Member]] = {}
    for member in members:
        parameter = member.parameter
        key = (member.num_cols, member.rule, parameter.device, parameter.dtype)
        groups.setdefault(key, []).append(member)
    return [Group(found, _grid_of(found, choices)) for found in groups.values()]


def _grid_of(members: Sequence[Member], choices: Mapping[str, Tensor]) -> RowGrid:
    rule, device = members[0].rule, members[0].parameter.device
    grid = RowGrid.of(rule, sum(member.num_rows for member in members), device)
    if not grid.searches or not choices:
        return grid
    return replace(grid, choice=torch.cat([choices[m.name].to(device) for m in members]))


def _hessian(statistics: Statistics | None, member: Member) -> Tensor | None:
    H = None if statistics is None else statistics.hessian(member.name)
    return None if H is None else H.to(member.parameter.device)
