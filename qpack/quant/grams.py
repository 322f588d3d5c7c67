"""Second moments of weights' inputs, as uses come in: all inputs alike, and by what they matter.

H = sum x x^T counts every input alike. The cost of an error e in row r, `E[(d_r e x)^2]`, does not:
it is the gradients' as well, and some tokens have a hundred times the gradients of others. One
matrix for all rows of a weight is `sum w x x^T` with w the input's share of the gradients
(`qpack.quant.fisher.shares_of`): a step towards the Kronecker product that is nearest in
likelihood, whose output factor is diagonal. Others weigh inputs by their gradients too: GuidedQuant
(arXiv:2505.07004) and YAQA (arXiv:2505.22988).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

_RECENT_INPUTS = 4
"""Inputs remembered within a forward pass: q, k and v follow one another closely."""

_SYMMETRIC_BLOCK = 384
"""H of wider inputs is accumulated by blocks of its upper triangle: up to 40 % fewer products."""


class _Recent(NamedTuple):
    """An input seen a moment ago. Holding it keeps its address from being used again."""

    x: Tensor
    version: int
    rows: Tensor
    gram: Tensor

    def is_same(self, x: Tensor) -> bool:
        """Whether `x` is this tensor, not changed since."""
        return (
            x.data_ptr() == self.x.data_ptr()
            and x.shape == self.x.shape
            and x.stride() == self.x.stride()
            and x._version == self.version
        )


class Grams:
    """H and the number of inputs of every weight; and the same of inputs by their shares."""

    def __init__(self) -> None:
        self.sums: dict[str, Tensor] = {}
        """weight -> (cols, cols) float32; only upper blocks until `finish`"""
        self.counts: dict[str, float] = {}
        self.weighted: dict[str, Tensor] = {}
        """weight -> (cols, cols) float32, likewise: sum of w x x^T over inputs that have a share;
        none where all shares are zero"""
        self.weights: dict[str, float] = {}
        """weight -> the sum of those shares, once finished"""
        self._weights: dict[str, Tensor] = {}
        self._recent: deque[_Recent] = deque(maxlen=_RECENT_INPUTS)
        self._shares: dict[str, list[Tensor]] = {}
        self.unmatched: set[str] = set()
        """weights of which a use and its gradients could not be paired: they have no weighted H"""
        self.last: str | None = None
        """the weight that was used last"""

    def expect(self, shares: Mapping[str, Sequence[Tensor]]) -> None:
        """Shares for the forward pass to come: weight -> one tensor a use, the last use first."""
        self.unmatched |= {name for name, uses in self._shares.items() if uses}
        self._shares = {name: list(uses) for name, uses in shares.items()}

    def observe(self, name: str, x: Tensor, rows: Callable[[], Tensor]) -> None:
        """Add one use of weight `name` with input `x`, as a `tap.Observer`."""
        self.last = name
        found = next((known for known in self._recent if known.is_same(x)), None)
        if found is None:
            inputs = rows().float()
            gram = torch.zeros((inputs.shape[1], inputs.shape[1]), device=inputs.device)
            add_outer(gram, inputs, inputs)
            found = _Recent(x, x._version, inputs, gram)
            self._recent.append(found)
        if name not in self.sums:
            self.sums[name] = torch.zeros_like(found.gram)
            self.counts[name] = 0
        self.sums[name] += found.gram
        self.counts[name] += found.rows.shape[0]
        if self._shares:
            self._weigh(name, found.rows)

    def _weigh(self, name: str, inputs: Tensor) -> None:
        """Add `inputs` by their shares. A weight whose uses and gradients are not paired one to
        one (a use that no output depends on) has no weighted H."""
        uses = self._shares.get(name)
        share = uses.pop() if uses else None
        if share is None or len(share) != len(inputs):
            self.unmatched.add(name)
            return
        if name not in self.weighted:
            self.weighted[name] = torch.zeros_like(self.sums[name])
            self._weights[name] = torch.zeros((), dtype=torch.float64, device=share.device)
        self._weights[name] += share.sum()
        add_outer(self.weighted[name], inputs, inputs * share[:, None])

    def finish(self) -> None:
        """Make every matrix whole."""
        self.expect({})
        self._recent.clear()
        for name in self.unmatched & self.weighted.keys():
            del self.weighted[name], self._weights[name]
        self.weights = {name: float(total) for name, total in self._weights.items()}
        for name in [name for name, total in self.weights.items() if total == 0.0]:
            del self.weighted[name], self.weights[name]
        for H in (*self.sums.values(), *self.weighted.values()):
            upper = H.triu()
            H.copy_(upper + upper.triu(1).T)


def add_outer(H: Tensor, rows: Tensor, others: Tensor) -> None:
    """`H += rows^T others`, symmetric: upper blocks only for wide inputs (mirrored later)."""
    cols = H.shape[0]
    if cols <= 2 * _SYMMETRIC_BLOCK:
        H.addmm_(rows.T, others)
        return
    for start in range(0, cols, _SYMMETRIC_BLOCK):
        stop = min(start + _SYMMETRIC_BLOCK, cols)
        H[start:stop, start:].addmm_(rows[:, start:stop].T, others[:, start:])
