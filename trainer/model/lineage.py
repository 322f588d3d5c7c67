"""Checkpoints of the challenge's scripts: the model's configuration from tensor names and shapes.

What shapes tell (layers, widths, heads, vocabulary, which parts exist) is read from them and must
agree with the hints; what they cannot tell (`rope_base`, `rope_dims`, `logit_softcap`,
`train_seq_len`) comes from the hints, or else is the lineage's default in `GPTConfig`.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from qpack.errors import CheckpointError, ConfigError
from qpack.plugins import did_you_mean

from .config import GPTConfig
from .gpt import GPT

LAYER = re.compile(r"blocks\.(\d{1,4})\.")


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
        if key in hints and hints[key] != value
    ]
    if wrong:
        raise ConfigError("options contradict the checkpoint", items=wrong)
    config = GPTConfig.from_mapping({**hints, **found})
    _check_tensors(tensors, config)
    return tensors, config.to_dict()


def _check_known(hints: Mapping[str, Any]) -> None:
    known = [field.name for field in dataclasses.fields(GPTConfig)]
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
    found = {
        "vocab_size": vocab_size,
        "num_layers": max(layers) + 1,
        "model_dim": dim,
        "num_heads": num_heads,
        "num_kv_heads": shapes["attn.c_k.weight"][0] * num_heads // dim,
        "mlp_mult": shapes["mlp.fc.weight"][0] / dim,
        "tie_embeddings": "lm_head.weight" not in tensors,
        "smear_gate": "smear.gate" in tensors,
        "unet_skips": "skip_weights" in tensors,
    }
    bigram = tensors.get("bigram.embed.weight")
    if bigram is not None and bigram.ndim == 2:
        found["bigram_vocab_size"], found["bigram_dim"] = bigram.shape
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
