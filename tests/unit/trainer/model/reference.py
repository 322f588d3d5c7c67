"""The model again, one position at a time, in numpy float64, written from the formulas alone.

Reads nothing but parameters by name and the configuration; shares no code with the model.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from .reference_stem import Array, engram_logits, rms, sigmoid, stem

Stream = list[Array]
"""A vector for each position."""


def rope(x: Array, position: int, dims: int, base: float) -> Array:
    out = x.copy()
    for i in range(dims // 2):
        angle = position * base ** (-2 * i / dims)
        first, second = x[i], x[i + dims // 2]
        out[i] = first * math.cos(angle) + second * math.sin(angle)
        out[i + dims // 2] = -first * math.sin(angle) + second * math.cos(angle)
    return out


def attend(q: Array, keys: Sequence[Array], values: Sequence[Array]) -> Array:
    """One head's output at one position; keys and values of those it sees."""
    scores = np.array([q @ k for k in keys]) / math.sqrt(len(q))
    weights = np.exp(scores - scores.max())
    return sum(w * v for w, v in zip(weights / weights.sum(), values, strict=True))


def exclude(y: Array, v: Array, amount: float = 1.0) -> Array:
    unit = v / math.sqrt(sum(part * part for part in v))
    return y - amount * (y @ unit) * unit


def base_of(c: Mapping[str, Any], num_tokens: int, dims: int) -> float:
    if not c["rope_ntk"] or num_tokens <= c["train_seq_len"]:
        return c["rope_base"]
    return c["rope_base"] * (num_tokens / c["train_seq_len"]) ** (dims / (dims - 2))


def document_start(tokens: Sequence[int], t: int, c: Mapping[str, Any]) -> int:
    """First position that a query at t sees."""
    if not c["document_mask"]:
        return 0
    return max([0, *(s for s in range(t + 1) if tokens[s] == c["bos_token"])])


def attention(
    W: Mapping[str, Array], layer: int, xs: Stream, tokens: Sequence[int], c: Mapping[str, Any]
) -> Stream:
    prefix = f"blocks.{layer}.attn"
    d = c["model_dim"] // c["num_heads"]
    dims = d if c["rope_dims"] is None else c["rope_dims"]
    base = base_of(c, len(tokens), dims)

    def heads(name: str, x: Array, count: int) -> Array:
        return (W[f"{prefix}.{name}.weight"] @ x).reshape(count, d)

    keys, values, out = [], [], []
    for t, x in enumerate(xs):
        keys.append([rope(rms(h), t, dims, base) for h in heads("c_k", x, c["num_kv_heads"])])
        v = heads("c_v", x, c["num_kv_heads"])
        if layer in c["value_embed_layers"]:
            own = W["value_embed.proj.weight"] @ W["value_embed.embed.weight"][tokens[t]]
            own = W[f"{prefix}.value_scale"] * W["value_embed.scale"] * own
            v = v + own.reshape(v.shape)
        values.append(v)
        seen = slice(document_start(tokens, t, c), t + 1)
        ys = []
        for h, q in enumerate(heads("c_q", x, c["num_heads"])):
            q = rope(rms(q), t, dims, base) * W[f"{prefix}.q_gain"][h]
            j = h // (c["num_heads"] // c["num_kv_heads"])
            y = attend(q, [k[j] for k in keys[seen]], [v[j] for v in values[seen]])
            if layer in c["xsa_layers"]:
                gated = c["xsa_gated"]
                y = exclude(y, v[j], math.tanh(W[f"{prefix}.xsa_gate"][h]) if gated else 1.0)
            ys.append(y)
        out.append(W[f"{prefix}.proj.weight"] @ np.concatenate(ys))
    return out


def mlp(W: Mapping[str, Array], layer: int, xs: Stream, c: Mapping[str, Any]) -> Stream:
    slope = c["mlp_slope"]
    slope = slope[layer] if isinstance(slope, list) else slope
    out = []
    for x in xs:
        u = W[f"blocks.{layer}.mlp.fc.weight"] @ x
        hidden = np.array([v * v if v > 0 else (slope * v) ** 2 for v in u])
        out.append(W[f"blocks.{layer}.mlp.proj.weight"] @ hidden)
    return out


def block(
    W: Mapping[str, Array],
    layer: int,
    lanes: list[Stream],
    x0s: Stream,
    tokens: Sequence[int],
    c: Mapping[str, Any],
) -> list[Stream]:
    m, a, b = (W[f"blocks.{layer}.{name}"] for name in ("resid_mix", "attn_scale", "mlp_scale"))
    scale = 1 / math.sqrt(layer + 1) if c["ln_scale"] else 1.0
    parallel = c["parallel"] if c["parallel"] != "off" and layer >= c["parallel_from"] else "off"

    def mix(xs: Stream) -> Stream:
        return [m[0] * x + m[1] * x0 for x, x0 in zip(xs, x0s, strict=True)]

    def attn(xs: Stream) -> Stream:
        return [a * y for y in attention(W, layer, [rms(x) * scale for x in xs], tokens, c)]

    def feed(xs: Stream) -> Stream:
        return [b * y for y in mlp(W, layer, [rms(x) * scale for x in xs], c)]

    def plus(xs: Stream, ys: Stream, keep: float = 1.0, route: float = 1.0) -> Stream:
        return [keep * x + route * y for x, y in zip(xs, ys, strict=True)]

    if parallel == "off":
        x = mix(lanes[0])
        x = plus(x, attn(x))
        return [plus(x, feed(x))]
    if parallel == "stream":
        x = mix(lanes[0])
        return [plus(plus(x, attn(x)), feed(x))]
    first, second = lanes if len(lanes) == 2 else (lanes[0], lanes[0])
    if parallel == "lanes":
        u = mix(first)
        return [plus(u, attn(u)), plus(second, feed(second))]
    keep, route = W[f"blocks.{layer}.lane_keep"], W[f"blocks.{layer}.lane_route"]
    o = attn(mix(first))
    first, second = (plus(x, o, keep[0], route[0][i]) for i, x in enumerate((first, second)))
    o = feed(mix(second))
    return [plus(x, o, keep[1], route[1][i]) for i, x in enumerate((first, second))]


def with_skip(
    W: Mapping[str, Array], i: int, lanes: list[Stream], skip: list[Stream], c: Mapping[str, Any]
) -> list[Stream]:
    w, out = W["skip_weights"][i], []
    for lane, xs in enumerate(lanes):
        incoming = [w * s for s in skip[lane if len(skip) == 2 else 0]]
        if c["skip_gates"]:
            s = sigmoid(W["skip_gates"][i])
            out.append([(1 - s) * y + s * x for x, y in zip(xs, incoming, strict=True)])
        else:
            out.append([x + y for x, y in zip(xs, incoming, strict=True)])
    return out


def forward(W: Mapping[str, Array], tokens: Sequence[int], c: Mapping[str, Any]) -> Array:
    """Logits (T, V) of one sequence; `c` has every key."""
    x0s = stem(W, tokens, c)
    lanes = [x0s]
    order = c["layer_order"] or list(range(c["num_layers"]))
    num_encoder = len(order) // 2
    pushed: list[list[Stream]] = []
    for step, layer in enumerate(order):
        if c["unet_skips"] and step >= num_encoder and pushed:
            lanes = with_skip(W, step - num_encoder, lanes, pushed.pop(), c)
        lanes = block(W, layer, lanes, x0s, tokens, c)
        if c["unet_skips"] and step < num_encoder:
            pushed.append(lanes)
    xs = lanes[0]
    if len(lanes) == 2:
        share = W["lane_merge"] if c["parallel"] == "lanes" else 0.5
        xs = [share * x + (1 - share) * y for x, y in zip(*lanes, strict=True)]
    head = W["tok_emb.weight"] if c["tie_embeddings"] else W["lm_head.weight"]
    logits = np.stack([head @ rms(x) for x in xs])
    if c["engram"] == "logit":
        logits += np.stack([engram_logits(W, tokens, t, c) for t in range(len(tokens))])
    cap = c["logit_softcap"]
    return cap * np.tanh(logits / cap) if cap else logits
