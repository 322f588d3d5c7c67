"""Checkpoints of the challenge's scripts: the model's configuration from tensor names and shapes.

What names and shapes tell (layers, widths, heads, vocabulary, which parts exist and in which
blocks) is read from them and must agree with the hints; what they cannot tell (`rope_base`,
`rope_dims`, `logit_softcap`, slopes, masks, parts without weights, an order of layers) comes from
the hints, or else is the default in `GPTConfig`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from qpack.errors import CheckpointError, ConfigError
from qpack.plugins import did_you_mean

from .config import GPTConfig
from .engram import NUM_ORDERS
from .gpt import GPT

LAYER = re.compile(r"blocks\.(\d{1,4})\.")
XSA_GATE = re.compile(LAYER.pattern + r"attn\.xsa_gate")
VALUE_SCALE = re.compile(LAYER.pattern + r"attn\.value_scale")
LANE_ROUTE = re.compile(LAYER.pattern + r"lane_route")


def import_state(
    state: dict[str, Tensor], hints: Mapping[str, Any]
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Entry point `gpt` of `qpack.importers`: (tensors, configuration) of a lineage state dict.

    `hints` are configuration keys (a null value means not given). Tensors keep their dtypes. A head
    equal to the token embedding is dropped as tied. Raises ConfigError for unknown hints and for
    hints that contradict the shapes, CheckpointError with every missing, unexpected or mis-shaped
    tensor.
    """
    hints = {key: value for key, value in hints.items() if value is not None}
    _check_known(hints)
    tensors = dict(state)
    head, table = tensors.get("lm_head.weight"), tensors.get("tok_emb.weight")
    if head is not None and table is not None and torch.equal(head, table):
        del tensors["lm_head.weight"]
    found = _infer(tensors)
    wrong = [
        f"{key} = {hints[key]!r}, but the tensors say {value!r}"
        for key, value in found.items()
        if key in hints and _plain(hints[key]) != value
    ]
    if wrong:
        raise ConfigError("options contradict the checkpoint", items=wrong)
    config = GPTConfig.from_mapping({**hints, **found})
    _check_tensors(tensors, config)
    return tensors, config.to_dict()


def _plain(value: Any) -> Any:
    """A list of blocks in order, as tensors tell it."""
    return sorted(value) if isinstance(value, list | tuple) else value


def _check_known(hints: Mapping[str, Any]) -> None:
    known = list(GPTConfig.model_fields)
    unknown = [f"{key}{did_you_mean(key, known)}" for key in hints if key not in known]
    if unknown:
        raise ConfigError(
            "unknown model options (a part of the model that qpack does not compute?)",
            items=unknown,
            hint="if an option does not change what the model computes, drop it: --set KEY=null",
        )


def _infer(tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """Configuration keys that names and shapes settle."""
    layers = {int(match[1]) for match in map(LAYER.match, tensors) if match}
    ndims = {"tok_emb.weight": 2, "attn.q_gain": 1, "attn.c_k.weight": 2, "mlp.fc.weight": 2}
    # Any layer will do: one that lacks a tensor is named later, with everything else it lacks.
    shapes = {
        key: tensor.shape
        for name, tensor in tensors.items()
        if tensor.ndim == ndims.get(key := LAYER.sub("", name, count=1)) and tensor.numel()
    }
    absent = [name for name in ndims if name not in shapes]
    if absent or not layers:
        raise CheckpointError(
            "not a GPT of the challenge's lineage: no tensor tells its size",
            items=[name if name.startswith("tok") else f"blocks.N.{name}" for name in absent],
            hint="expected names like tok_emb.weight and blocks.0.attn.c_q.weight",
        )
    vocab_size, dim = shapes["tok_emb.weight"]
    num_heads = shapes["attn.q_gain"][0]
    return {
        "vocab_size": vocab_size,
        "num_layers": max(layers) + 1,
        "model_dim": dim,
        "num_heads": num_heads,
        "num_kv_heads": shapes["attn.c_k.weight"][0] * num_heads // dim,
        "mlp_mult": shapes["mlp.fc.weight"][0] / dim,
        "tie_embeddings": "lm_head.weight" not in tensors,
        "smear_gate": "smear.gate" in tensors,
        "unet_skips": "skip_weights" in tensors,
        "skip_gates": "skip_gates" in tensors,
        **_infer_tables(tensors),
        **_infer_engram(tensors),
        **_infer_blocks(tensors),
    }


def _infer_tables(tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """Of the tables whose rows and width are their sizes."""
    found: dict[str, Any] = {}
    for name in ("bigram", "trigram"):
        table = tensors.get(f"{name}.embed.weight")
        if table is not None and table.ndim == 2:
            found[f"{name}_vocab_size"], found[f"{name}_dim"] = table.shape
    table = tensors.get("value_embed.embed.weight")
    if table is not None and table.ndim == 2:
        found["value_embed_dim"] = table.shape[1]
    return found


def _infer_engram(tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """A projection as wide as the table is the logit form's, whose number of hashes is a hint."""
    table, proj = tensors.get("engram.embed.weight"), tensors.get("engram.proj.weight")
    if table is None or proj is None or not (table.ndim == proj.ndim == 2 and table.numel()):
        return {}
    rows, dim = table.shape
    if proj.shape[1] == dim:
        return {"engram": "logit", "engram_rows": rows, "engram_dim": dim}
    num_hashes = max(NUM_ORDERS, proj.shape[1] // dim)
    return {
        "engram": "stem",
        "engram_rows": rows // num_hashes,
        "engram_dim": dim,
        "engram_heads": num_hashes // NUM_ORDERS,
    }


def _infer_blocks(tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """Which blocks have a part of their own. A merge of lanes does not tell where they begin."""
    found: dict[str, Any] = {}
    gated, embedded, routed = (
        sorted({int(match[1]) for name in tensors if (match := re.fullmatch(pattern, name))})
        for pattern in (XSA_GATE, VALUE_SCALE, LANE_ROUTE)
    )
    if gated:
        found |= {"xsa_layers": gated, "xsa_gated": True}
    if embedded:
        found["value_embed_layers"] = embedded
    if routed:
        found |= {"parallel": "routed", "parallel_from": routed[0]}
    if "lane_merge" in tensors:
        found["parallel"] = "lanes"
    return found


def _check_tensors(tensors: Mapping[str, Tensor], config: GPTConfig) -> None:
    with torch.device("meta"):  # names and shapes without the memory
        expected = GPT(config).state_dict()
    problems = [
        *(f"{name}: missing" for name in expected if name not in tensors),
        *(f"{name}: unexpected" for name in tensors if name not in expected),
        *(
            f"{name}: shape {tuple(tensors[name].shape)}, expected {tuple(wanted.shape)}"
            for name, wanted in expected.items()
            if name in tensors and tensors[name].shape != wanted.shape
        ),
        *(
            f"{name}: {tensor.dtype}, expected floating point"
            for name, tensor in tensors.items()
            if name in expected and not tensor.is_floating_point()
        ),
    ]
    if problems:
        raise CheckpointError("the checkpoint is not a GPT that qpack can compute", items=problems)
