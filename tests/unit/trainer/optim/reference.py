"""The update rules again, one matrix at a time in float64 numpy, written from the formulas."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Matrix = NDArray[np.float64]

SAFETY = 1.02
POLAR = [
    (8.287, -23.596, 17.300),
    (4.107, -2.948, 0.5448),
    (3.949, -2.909, 0.5518),
    (3.318, -2.488, 0.5100),
    (2.301, -1.669, 0.4188),
    (1.891, -1.268, 0.3768),
]


def newton_schulz(G: Matrix, *, steps: int, coefficients: str = "ns5") -> Matrix:
    """By the singular values: the iteration is a polynomial of them."""
    U, s, V = np.linalg.svd(G, full_matrices=False)
    polar = coefficients == "polar-express"
    s = s / (np.sqrt((G**2).sum()) * (SAFETY if polar else 1.0) + 1e-7)
    for step in range(steps):
        if not polar:
            a, b, c = 3.4445, -4.7750, 2.0315
        elif step < len(POLAR):
            a, b, c = POLAR[step]
            a, b, c = a / SAFETY, b / SAFETY**3, c / SAFETY**5
        else:
            a, b, c = 1.875, -1.25, 0.375
        s = a * s + b * s**3 + c * s**5
    result: Matrix = (U * s) @ V
    return result


def normalize(U: Matrix, normalization: str) -> Matrix:
    U = U.copy()
    if normalization in ("rows", "rows-columns"):
        for row in U:
            row /= max(np.sqrt((row**2).sum()), 1e-7)
    if normalization == "rows-columns":
        for column in U.T:
            column /= max(np.sqrt((column**2).sum()), 1e-7)
    return U


class Mousse:
    """State of one matrix."""

    def __init__(self, precondition: str) -> None:
        self.precondition = precondition
        self.steps = 0
        self.state: dict[str, Any] = {}

    def direction(self, U: Matrix, **options: Any) -> Matrix:
        if self.precondition == "mousse-diagonal":
            return newton_schulz(self._diagonal(U), **options)
        if self.precondition == "mousse-kronecker":
            return self._kronecker(U, **options)
        return newton_schulz(U, **options)

    def _diagonal(self, U: Matrix) -> Matrix:
        rows, cols = (U**2).sum(1), (U**2).sum(0)
        if self.steps:
            rows = 0.95 * self.state["L"] + 0.05 * rows
            cols = 0.95 * self.state["R"] + 0.05 * cols
        self.state = {"L": rows, "R": cols}
        self.steps += 1
        return U / np.sqrt(rows)[:, None] / np.sqrt(cols)[None, :]

    def _kronecker(self, U: Matrix, **options: Any) -> Matrix:
        bases = {}
        for side, now in (("L", U @ U.T), ("R", U.T @ U)):
            before = self.state.get(side, np.zeros_like(now))
            self.state[side] = 0.99 * before + 0.01 * now
            if self.steps % 10 == 0:
                H = self.state[side] * len(now) / np.trace(self.state[side])
                values, basis = np.linalg.eigh(H)
                gains = (np.maximum(values, 0) + 1e-6) ** -0.125
                self.state[side + "basis"] = (basis, gains)
            bases[side] = self.state[side + "basis"]
        self.steps += 1
        (QL, l), (QR, r) = bases["L"], bases["R"]  # noqa: E741
        X = newton_schulz(l[:, None] * (QL.T @ U @ QR) * r[None, :], **options)
        result: Matrix = QL @ X @ QR.T
        return result


class Muon:
    """One matrix and its update."""

    def __init__(self, W: Matrix, *, precondition: str = "none") -> None:
        self.W, self.M = W.copy(), np.zeros_like(W)
        self.mousse = Mousse(precondition)

    def step(
        self,
        G: Matrix,
        *,
        lr: float,
        mu: float,
        decay: float = 0.0,
        normalization: str = "none",
        steps: int = 5,
        coefficients: str = "ns5",
    ) -> None:
        self.M = mu * self.M + G
        U = normalize(G + mu * self.M, normalization)
        X = self.mousse.direction(U, steps=steps, coefficients=coefficients)
        rows, cols = X.shape
        self.W = (1 - lr * decay) * self.W - lr * np.sqrt(max(1.0, rows / cols)) * X
