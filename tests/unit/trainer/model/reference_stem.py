"""What enters the first block, in numpy float64 from the formulas alone; see `reference.py`."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def rms(x: Array) -> Array:
    return x / math.sqrt(sum(v * v for v in x) / len(x) + np.finfo(np.float64).eps)


def sigmoid(x: Array) -> Array:
    return 1 / (1 + np.exp(-x))


def token(tokens: Sequence[int], t: int) -> int:
    return tokens[t] if t >= 0 else 0


def bigram_row(tokens: Sequence[int], t: int, rows: int) -> int:
    if t == 0:
        return rows - 1
    return ((36313 * tokens[t]) ^ (27191 * tokens[t - 1])) % (rows - 1)


def trigram_row(tokens: Sequence[int], t: int, rows: int) -> int:
    if t < 2:
        return rows - 1
    mixed = (48271 * tokens[t]) ^ (36313 * tokens[t - 1]) ^ (27191 * tokens[t - 2])
    return mixed % (rows - 1)


def engram_rows(tokens: Sequence[int], t: int, rows: int) -> list[list[int]]:
    """Two hashes of the bigram, two of the trigram."""
    c, p, pp = (token(tokens, t - back) for back in range(3))
    return [
        [(1009 * p + c) % rows, ((2719 * p + 314159) ^ (3137 * c)) % rows],
        [
            ((36313 * pp) ^ (27191 * p) ^ (4903 * c)) % rows,
            ((7919 * pp) ^ (4391 * p) ^ (6151 * c)) % rows,
        ],
    ]


def hashed(W: Mapping[str, Array], name: str, row: int) -> Array:
    return W[f"{name}.scale"] * (W[f"{name}.proj.weight"] @ W[f"{name}.embed.weight"][row])


def engram_stem(
    W: Mapping[str, Array], tokens: Sequence[int], t: int, c: Mapping[str, Any]
) -> Array:
    B, heads = c["engram_rows"], c["engram_heads"]
    side_by_side = []
    for order, rows in enumerate(engram_rows(tokens, t, B)):
        for head in range(heads):
            slot = order * heads + head
            side_by_side.append(W["engram.embed.weight"][slot * B + rows[head]])
    return sigmoid(W["engram.gate"]) * (W["engram.proj.weight"] @ np.concatenate(side_by_side))


def engram_logits(
    W: Mapping[str, Array], tokens: Sequence[int], t: int, c: Mapping[str, Any]
) -> Array:
    total = np.zeros(c["engram_dim"])
    for order, rows in enumerate(engram_rows(tokens, t, c["engram_rows"])):
        for head in range(c["engram_heads"]):
            total += sigmoid(W["engram.gate"][order]) * W["engram.embed.weight"][rows[head]]
    return W["engram.proj.weight"] @ total


def stem(W: Mapping[str, Array], tokens: Sequence[int], c: Mapping[str, Any]) -> list[Array]:
    xs = []
    for t, current in enumerate(tokens):
        e = W["tok_emb.weight"][current]
        if c["bigram_vocab_size"]:
            e = e + hashed(W, "bigram", bigram_row(tokens, t, c["bigram_vocab_size"]))
        if c["trigram_vocab_size"]:
            e = e + hashed(W, "trigram", trigram_row(tokens, t, c["trigram_vocab_size"]))
        if c["engram"] == "stem":
            e = e + engram_stem(W, tokens, t, c)
        xs.append(rms(e))
    if not c["smear_gate"]:
        return xs
    g = sigmoid(W["smear.gate"])
    out = []
    for t, x in enumerate(xs):
        cut = t == 0 or (c["smear_mask_bos"] and tokens[t] == c["bos_token"])
        out.append((1 - g) * x + (0 if cut else g * xs[t - 1]))
    return out
