"""Python functions as machine code, for loops that wait for the token before.

What counts symbols does a few dozen operations a token on tables that the token before has changed:
too few for array operations, too many for Python. Modules of such loops decorate them with
`compiled` and are imported only where they are used, as numba comes with the extra `pack` and takes
long to load. The machine code is not cached on disk: that would be written beside the sources,
which may be read-only. No sum is reordered, so results do not depend on the processor's vectors.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import ParamSpec, TypeVar

from qpack.errors import SetupError

try:
    from numba import njit
except ImportError as error:
    raise SetupError(
        "mixtures need the package numba, which cannot be imported",
        items=[str(error)],
        hint='pip install "qpack-lm[pack]"',
    ) from None

P = ParamSpec("P")
R = TypeVar("R")


def compiled(function: Callable[P, R]) -> Callable[P, R]:
    """`function` compiled on its first call, for the types of that call; it leaves the GIL.

    Divisions follow IEEE 754 and indices are not checked: callers check what they pass in.
    """
    return njit(nogil=True, error_model="numpy")(function)
