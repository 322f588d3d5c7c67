"""The trellis that integers obey: what the quantizer searches and the entropy coder exploits.

Ungerboeck's form of trellis-coded quantization (Ungerboeck 1982; Marcellin and Fischer 1990): the
state fixes the parity of an integer m, its second bit picks the next state,

    q = s & 1 = m & 1,    b = (m >> 1) & 1,    s' = (s >> 1) ^ (s & 1) (h0 >> 1) ^ b (h1 >> 1)

with parity polynomials h0, h1 (octal 5 and 2 for four states). A state is 0 at the top of every
column of a matrix and runs down its rows. No floating point anywhere. numpy only, no torch.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

POLYNOMIALS = {
    4: (0o5, 0o2),
    8: (0o13, 0o4),
    16: (0o23, 0o4),
    32: (0o45, 0o10),
    64: (0o103, 0o24),
}
"""States -> (h0, h1): Ungerboeck's one-dimensional codes."""

STATES = tuple(POLYNOMIALS)
"""Numbers of states that there are trellises of."""


def next_states(states: int) -> NDArray[np.uint8]:
    """Next state (states, 2) by state and branch bit."""
    h0, h1 = POLYNOMIALS[states]
    s = np.arange(states)[:, None]
    b = np.arange(2)[None, :]
    return ((s >> 1) ^ ((s & 1) * (h0 >> 1)) ^ (b * (h1 >> 1))).astype(np.uint8)


def obeys(integers: NDArray[np.integer], states: int) -> bool:
    """Whether every column of `integers` (rows, cols) is a path; without states, always."""
    if states == 0:
        return True
    following = next_states(states)
    state = np.zeros(integers.shape[1], np.uint8)
    for row in integers:
        if ((row ^ state) & 1).any():
            return False
        state = following[state, (row >> 1) & 1]
    return True
