"""How a stack of gradients becomes its update: Muon's mathematics, without its bookkeeping.

Pure functions of tensors, n matrices of one shape at a time; both compile without a break, and what
changes from step to step (momentum, clipping) comes as tensors, so that one graph serves all steps.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from . import mousse
from .mousse import Precondition, State
from .newton_schulz import Coefficients, orthogonalize
from .normalize import Normalization, normalize


@dataclass(frozen=True, kw_only=True, slots=True)
class Rule:
    """How a stack's gradients become its update."""

    ns_steps: int = 5
    coefficients: Coefficients = "ns5"
    normalization: Normalization = "none"
    precondition: Precondition = "none"


def accumulate(
    G: Tensor, momentum: Tensor, state: State, *, mu: Tensor, scale: Tensor, rule: Rule
) -> Tensor:
    """Take gradients `scale` G (n, rows, cols) into momentum and moments, in place.

    `mu` and `scale` are 0-d tensors, so that a compiled graph holds for all their values. Returns
    the Nesterov step, normalised, and whitened where that needs no decomposition.
    """
    G = G * scale
    momentum.copy_(mu * momentum + G)
    U = normalize(G + mu * momentum, rule.normalization)
    if rule.precondition == "mousse-diagonal":
        return mousse.whiten_diagonal(U, state)
    if rule.precondition == "mousse-kronecker":
        mousse.gather_kronecker(U, state)
    return U


def direction(U: Tensor, state: State, *, rule: Rule) -> Tensor:
    """The orthogonalized update (n, rows, cols), bfloat16 on CUDA."""
    if rule.precondition != "mousse-kronecker":
        return orthogonalize(U, steps=rule.ns_steps, coefficients=rule.coefficients)
    X = mousse.whiten_kronecker(U, state)
    X = orthogonalize(X, steps=rule.ns_steps, coefficients=rule.coefficients)
    # Messages of updates are half as long in bfloat16, on CUDA.
    return mousse.rotate_back(X, state).to(X.dtype)
