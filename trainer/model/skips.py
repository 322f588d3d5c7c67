"""U-Net skips over the virtual order of layers (techniques.md 1.4, 1.8).

Of N steps the first floor(N / 2) are the encoder: what each puts out goes on a stack. The i-th step
after them takes the top of the stack before its block:

    x <- x + w_i skip                                         additive (#398, #826), w from 1
    x <- (1 - s) w_i skip + s x, s = sigmoid(g_i)             gated (#1089), g from 0

Where the stream has split, both lanes take a skip with the same w and g, and a skip that was pushed
as two lanes goes lane by lane. Weights are there for the configuration's order of layers; a shorter
one (during training, before recurrence begins) uses the first of them.
"""

from __future__ import annotations

from torch import Tensor

from .parallel import Lanes


def add_skip(x: Lanes, skip: Lanes, weight: Tensor, gate: Tensor | None) -> Lanes:
    """The stream with `skip` (as many lanes, or one) mixed in; weight and gate are (D,)."""
    weight = weight.to(x[0].dtype)
    incoming = [weight * lane for lane in skip]
    if gate is None:
        return tuple(lane + incoming[min(i, len(skip) - 1)] for i, lane in enumerate(x))
    s = gate.sigmoid().to(x[0].dtype)
    return tuple((1 - s) * incoming[min(i, len(skip) - 1)] + s * lane for i, lane in enumerate(x))
