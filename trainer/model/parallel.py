"""How attention and MLP of a block meet the residual stream (techniques.md 1.1, 1.7).

With n = RMS norm times the block's LN scale, a and b the element-wise scales of the branches (they
are inside `attention` and `mlp` below) and u = m0 x + m1 x0:

    one after the other   x <- u + a Attn(n(u));  x <- x + b MLP(n(x))
    stream (#1412)        x <- u + a Attn(n(u)) + b MLP(n(u))
    lanes (#1339, #1440)  lane0 <- u(lane0) + a Attn(n(u(lane0)));  lane1 <- lane1 + b MLP(n(lane1))
    routed (#1204)        o = a Attn(n(u(lane0)));  lane_j <- r_0 lane_j + P_0j o
                          o = b MLP(n(u(lane1)));   lane_j <- r_1 lane_j + P_1j o

The stream splits into two equal lanes at the first block of such a form and stays split. After the
last block `lanes` are merged as m lane0 + (1 - m) lane1 with one learned m, from 1/2, and `routed`
as their mean. #1440 went on adding U-Net skips to the stream after the split, where nothing read
them, so that their weights were dead; here, as in #1204, a skip goes to both lanes (`skips.py`).

`read` leaves out the positions whose output nothing reads after the block: of the last block, those
that are not scored. `attention` returns what is left, and still sees all of its input.

Forms go by the index of the block, also where blocks repeat. `lanes` and `routed` cannot go back to
a single stream, so an order of layers that returns below `parallel_from` is refused (`rules.py`).
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

Lanes = tuple[Tensor, ...]
"""The residual stream, (B, T, D): one tensor, or two once it has split."""
Branch = Callable[[Tensor], Tensor]


def sequential(
    x: Tensor, *, mix: Branch, norm: Branch, attention: Branch, mlp: Branch, read: Branch
) -> Tensor:
    """One branch after the other."""
    x = mix(x)
    x = read(x) + attention(norm(x))
    return x + mlp(norm(x))


def stream(
    x: Tensor, *, mix: Branch, norm: Branch, attention: Branch, mlp: Branch, read: Branch
) -> Tensor:
    """Both branches read the same."""
    x = mix(x)
    normed = norm(x)
    return read(x) + attention(normed) + mlp(read(normed))


def lanes(
    x: Lanes, *, mix: Branch, norm: Branch, attention: Branch, mlp: Branch, read: Branch
) -> Lanes:
    """A lane for each branch; only the first mixes in the stem."""
    first, second = mix(x[0]), read(x[-1])
    return read(first) + attention(norm(first)), second + mlp(norm(second))


def routed(
    x: Lanes,
    *,
    mix: Branch,
    norm: Branch,
    attention: Branch,
    mlp: Branch,
    read: Branch,
    keep: Tensor,  # (2,): r, of attention and of the MLP
    route: Tensor,  # (2, 2): P, branch by lane
) -> Lanes:
    """Each branch reads its lane and writes to both."""
    r, P = keep.to(x[0].dtype), route.to(x[0].dtype)
    out = attention(norm(mix(x[0])))
    first, second = read(x[0]), read(x[-1])
    first, second = r[0] * first + P[0, 0] * out, r[0] * second + P[0, 1] * out
    out = mlp(norm(mix(second)))
    return r[1] * first + P[1, 0] * out, r[1] * second + P[1, 1] * out


def merged(x: Lanes, merge: Tensor | None) -> Tensor:
    """The stream after the last block; `merge` is the learned m of `lanes`, () or None."""
    if len(x) == 1:
        return x[0]
    if merge is None:
        return (x[0] + x[1]) / 2
    m = merge.to(x[0].dtype)
    return m * x[0] + (1 - m) * x[1]
