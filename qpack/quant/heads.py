"""Sensitivities of the head without drawing labels.

The gradient of the loss at logit v is p_v less one for the label drawn; its mean square over labels
is p_v (1 - p_v), which needs no draw and no backward pass. Of thousands of pieces most are never
drawn in calibration, and their rows would get their share of the file from p_v^2 alone. So the rows
of the weight that makes the logits share what its gradients come to by the mean of p (1 - p) over
all calibration tokens.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
import torch.distributed as dist
from torch import Tensor

from qpack.distributed import world_size

BLOCK_ELEMENTS = 1 << 24
"""Outputs taken at a time: 64 MiB of float32."""


@dataclass(eq=False)
class Head:
    """Mean variance of the labels, and which weight makes the outputs: the last one used."""

    sums: Tensor | None = None
    """(outputs,) float64"""
    names: set[str] = field(default_factory=set)

    def add(self, name: str | None, y: Tensor) -> None:
        """Add logits `y` (..., outputs) of a pass in which weight `name` was the last one used."""
        rows = y.detach().reshape(-1, y.shape[-1])
        if self.sums is None:
            self.sums = torch.zeros(rows.shape[1], dtype=torch.float64, device=y.device)
        block = max(1, BLOCK_ELEMENTS // rows.shape[1])
        for part in torch.split(rows, block):
            p = torch.softmax(part.float(), dim=1)
            self.sums += (p - p.square()).sum(dim=0).double()
        self.names.add(name or "")

    def weight_of(self, gradients: Mapping[str, Tensor]) -> str | None:
        """The head; None where it is not the same weight in all passes, or has other rows than
        there are outputs."""
        name = next(iter(self.names), "")
        g = gradients.get(name)
        if self.sums is None or len(self.names) != 1 or g is None or len(g) != len(self.sums):
            return None
        return name

    def share(self, gradients: dict[str, Tensor]) -> dict[str, Tensor]:
        """`gradients`, weight -> (rows,) float64, with those of the head shared out anew."""
        name = self.weight_of(gradients)
        if name is None or self.sums is None:
            return gradients
        total = self.sums.sum()
        if not bool(total > 0) or not bool(torch.isfinite(total)):
            return gradients
        return gradients | {name: self.sums * (gradients[name].sum() / total)}


def all_reduced(head: Head, parameters: Mapping[str, Tensor], device: torch.device | str) -> Head:
    """The head of all ranks; one without sums where they do not agree on it."""
    if world_size() == 1:
        return head
    known = list(parameters)
    seen = torch.zeros(len(known) + 1, dtype=torch.int64, device=device)
    for name in head.names:
        seen[known.index(name) if name in known else len(known)] = 1
    width = 0 if head.sums is None else len(head.sums)
    least = torch.tensor(width or torch.iinfo(torch.int64).max, device=device)
    most = torch.tensor(width, device=device)
    dist.all_reduce(seen)
    dist.all_reduce(least, op=dist.ReduceOp.MIN)
    dist.all_reduce(most, op=dist.ReduceOp.MAX)
    if int(most) == 0 or int(least) != int(most) or bool(seen[-1]):
        return Head()
    sums = head.sums
    if sums is None:
        sums = torch.zeros(int(most), dtype=torch.float64, device=device)
    dist.all_reduce(sums)
    names = {known[index] for index in torch.nonzero(seen[:-1])[:, 0].tolist()}
    return Head(sums=sums, names=names)
