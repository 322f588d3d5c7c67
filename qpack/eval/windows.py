"""How a token stream is cut into windows so that every target is scored exactly once.

Target i (0-based) is token i + 1. The window at `start` reads tokens `start .. start + length - 1`
and predicts the token after each; it scores the predictions from its own position `skip` on.
Disjoint windows have `stride == window`. Sliding ones begin every `stride` tokens: the first
scores all of its positions, the others only those that no earlier window has reached, so each
target sees at least `window - stride` tokens of context. Source: `techniques.md` 8.2.
"""

from __future__ import annotations

from dataclasses import dataclass

from qpack.errors import ConfigError, DataError


@dataclass(frozen=True, slots=True)
class Window:
    """Tokens `start` to `start + length` (inputs); positions `skip` to `length` are scored."""

    start: int
    length: int
    skip: int


def windows(num_tokens: int, *, window: int, stride: int | None = None) -> list[Window]:
    """Windows over the `num_tokens - 1` targets of a stream; `stride` None means disjoint.

    Raises `ConfigError` for an impossible window or stride, `DataError` for a stream without a
    target.
    """
    stride = window if stride is None else stride
    if not 1 <= stride <= window:
        raise ConfigError(
            f"window {window} with stride {stride} is impossible",
            hint="use 1 <= stride <= window",
        )
    num_targets = num_tokens - 1
    if num_targets < 1:
        raise DataError(f"{num_tokens} tokens hold no target to score", hint="give a longer shard")
    kept = window - stride
    found = [
        Window(start, min(window, num_targets - start), kept if start else 0)
        # A window adds targets only while its first `stride` unscored positions exist.
        for start in range(0, max(num_targets - kept, 1), stride)
    ]
    scored = sum(item.length - item.skip for item in found)
    assert scored == num_targets, (scored, num_targets)
    return found
