"""The model again, one position at a time, in numpy float64, written from the formulas alone.

Reads nothing but parameters by name and the configuration; shares no code with the model.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def rms(x: Array) -> Array:
    return x / math.sqrt(sum(v * v for v in x) / len(x) + np.finfo(np.float64).eps)


def rope(x: Array, position: int, dims: int, base: float) -> Array:
    out = x.copy()
    for i in range(dims // 2):
        angle = position * base ** (-2 * i / dims)
        first, second = x[i], x[i + dims // 2]
        out[i] = first * math.cos(angle) + second * math.sin(angle)
        out[i + dims // 2] = -first * math.sin(angle) + second * math.cos(angle)
    return out


def attend(q: Array, keys: Sequence[Array], values: Sequence[Array]) -> Array:
    """One head's output at one position; keys and values of the positions up to it."""
    scores = np.array([q @ k for k in keys]) / math.sqrt(len(q))
    weights = np.exp(scores - scores.max())
    return sum(w * v for w, v in zip(weights / weights.sum(), values, strict=True))


def bigram_row(tokens: Sequence[int], t: int, rows: int) -> int:
    if t == 0:
        return rows - 1
    return ((36313 * tokens[t]) ^ (27191 * tokens[t - 1])) % (rows - 1)


def attention(W: Mapping[str, Array], prefix: str, xs: list[Array], c: Mapping[str, Any]) -> Any:
    d = c["model_dim"] // c["num_heads"]
    dims = d if c["rope_dims"] is None else c["rope_dims"]

    def heads(name: str, x: Array, count: int) -> Array:
        return (W[f"{prefix}.{name}.weight"] @ x).reshape(count, d)

    keys, values, out = [], [], []
    for t, x in enumerate(xs):
        k = [rope(rms(h), t, dims, c["rope_base"]) for h in heads("c_k", x, c["num_kv_heads"])]
        keys.append(k)
        values.append(heads("c_v", x, c["num_kv_heads"]))
        ys = []
        for h, q in enumerate(heads("c_q", x, c["num_heads"])):
            q = rope(rms(q), t, dims, c["rope_base"]) * W[f"{prefix}.q_gain"][h]
            j = h // (c["num_heads"] // c["num_kv_heads"])
            ys.append(attend(q, [k[j] for k in keys], [v[j] for v in values]))
        out.append(W[f"{prefix}.proj.weight"] @ np.concatenate(ys))
    return out


def block(
    W: Mapping[str, Array], prefix: str, xs: list[Array], x0s: list[Array], c: Mapping[str, Any]
) -> list[Array]:
    m = W[f"{prefix}.resid_mix"]
    xs = [m[0] * x + m[1] * x0 for x, x0 in zip(xs, x0s, strict=True)]
    ys = attention(W, f"{prefix}.attn", [rms(x) for x in xs], c)
    xs = [x + W[f"{prefix}.attn_scale"] * y for x, y in zip(xs, ys, strict=True)]
    out = []
    for x in xs:
        hidden = np.maximum(W[f"{prefix}.mlp.fc.weight"] @ rms(x), 0.0) ** 2
        out.append(x + W[f"{prefix}.mlp_scale"] * (W[f"{prefix}.mlp.proj.weight"] @ hidden))
    return out


def stem(W: Mapping[str, Array], tokens: Sequence[int], c: Mapping[str, Any]) -> list[Array]:
    xs = []
    for t, token in enumerate(tokens):
        e = W["tok_emb.weight"][token]
        if c["bigram_vocab_size"]:
            row = W["bigram.embed.weight"][bigram_row(tokens, t, c["bigram_vocab_size"])]
            e = e + W["bigram.scale"] * (W["bigram.proj.weight"] @ row)
        xs.append(rms(e))
    if c["smear_gate"]:
        g = 1 / (1 + np.exp(-W["smear.gate"]))
        zero = np.zeros_like(xs[0])
        xs = [(1 - g) * x + g * before for x, before in zip(xs, [zero, *xs[:-1]], strict=True)]
    return xs


def forward(W: Mapping[str, Array], tokens: Sequence[int], c: Mapping[str, Any]) -> Array:
    """Logits (T, V) of one sequence."""
    xs = x0s = stem(W, tokens, c)
    num_encoder = c["num_layers"] // 2
    pushed: list[list[Array]] = []
    for layer in range(c["num_layers"]):
        if c["unet_skips"] and layer >= num_encoder and pushed:
            w = W["skip_weights"][layer - num_encoder]
            xs = [x + w * skip for x, skip in zip(xs, pushed.pop(), strict=True)]
        xs = block(W, f"blocks.{layer}", xs, x0s, c)
        if c["unet_skips"] and layer < num_encoder:
            pushed.append(xs)
    head = W["tok_emb.weight"] if c["tie_embeddings"] else W["lm_head.weight"]
    logits = np.stack([head @ rms(x) for x in xs])
    cap = c["logit_softcap"]
    return cap * np.tanh(logits / cap) if cap else logits
