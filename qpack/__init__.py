"""qpack: the best language model that fits in N bytes.

Names here load on first use, so that `import qpack` stays light and works without torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from qpack.artifact.inspect import inspect, verify
    from qpack.artifact.unpack import unpack
    from qpack.checkpoint import load
    from qpack.errors import QpackError
    from qpack.eval.bpb import compare, score
    from qpack.module import load_into, pack
    from qpack.pipeline import PackOptions, pack_checkpoint, plan_checkpoint

__version__ = "0.1.0"

_HOMES = {
    "PackOptions": "qpack.options",
    "QpackError": "qpack.errors",
    "compare": "qpack.eval.bpb",
    "inspect": "qpack.artifact.inspect",
    "load": "qpack.checkpoint",
    "load_into": "qpack.module",
    "pack": "qpack.module",
    "pack_checkpoint": "qpack.pipeline",
    "plan_checkpoint": "qpack.pipeline",
    "score": "qpack.eval.bpb",
    "unpack": "qpack.artifact.unpack",
    "verify": "qpack.artifact.inspect",
}

__all__ = [
    "PackOptions",
    "QpackError",
    "__version__",
    "compare",
    "inspect",
    "load",
    "load_into",
    "pack",
    "pack_checkpoint",
    "plan_checkpoint",
    "score",
    "unpack",
    "verify",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'qpack' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return __all__
