"""One stream of interleaved rANS for all integers of an artifact: encode, decode, estimate.

`docs/FORMAT.md` specifies the segment. numpy and the standard library only; no floating point in
what is decoded.
"""

from __future__ import annotations

from qpack.codec.rans.decode import decode
from qpack.codec.rans.encode import encode
from qpack.codec.rans.estimate import estimate_bytes

__all__ = ["decode", "encode", "estimate_bytes"]
