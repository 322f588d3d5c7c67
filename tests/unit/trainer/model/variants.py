"""Models that between them use every technique, alone and together: overrides of `tiny.CONFIG`."""

from __future__ import annotations

from typing import Any

OVERRIDES = dict[str, Any]

PLAIN: list[OVERRIDES] = [
    {},
    {"num_layers": 6},
    {"num_layers": 1, "unet_skips": False},
    {"unet_skips": False},
    {"bigram_vocab_size": 0, "bigram_dim": 0},
    {"smear_gate": False},
    {"tie_embeddings": False},
    {"logit_softcap": 0.0},
    {"rope_dims": None, "rope_base": 100.0},
    {"rope_dims": 0},
    {"num_kv_heads": 1},
    {"num_kv_heads": 4},
]
"""The lineage's own options."""

TRIGRAM = {"trigram_vocab_size": 41, "trigram_dim": 3}
STEM = {"engram": "stem", "engram_rows": 23, "engram_dim": 3}
LOGIT = {"engram": "logit", "engram_rows": 31, "engram_dim": 5}
VALUES = {"value_embed_layers": [3, 4], "value_embed_dim": 5}
RECUR = {"layer_order": [0, 1, 2, 1, 2, 3, 4]}
NTK = {"rope_ntk": True, "train_seq_len": 6}

SINGLE: list[OVERRIDES] = [
    NTK,
    TRIGRAM,
    STEM,
    {**STEM, "engram_heads": 1},
    LOGIT,
    {**LOGIT, "engram_heads": 1, "tie_embeddings": False},
    {"smear_mask_bos": True, "bos_token": 5},
    {"xsa_layers": [0, 1, 2, 3, 4]},
    {"xsa_layers": [1, 4], "xsa_gated": True},
    {"ln_scale": True},
    VALUES,
    {"mlp_slope": 0.5},
    {"mlp_slope": [0.0, 0.9, 0.3, 1.0, 0.5]},
    {"skip_gates": True},
    {"parallel": "stream", "parallel_from": 3},
    {"parallel": "lanes", "parallel_from": 3},
    {"parallel": "lanes", "parallel_from": 1, "skip_gates": True},
    {"parallel": "routed", "parallel_from": 3},
    {"parallel": "routed", "parallel_from": 0, "skip_gates": True},
    RECUR,
    {"document_mask": True, "bos_token": 5},
]
"""One technique each."""

MIXED: list[OVERRIDES] = [
    {  # what #1440 described
        **LOGIT, **RECUR, "bigram_vocab_size": 0, "bigram_dim": 0, "smear_gate": False,
        "xsa_layers": [0, 1, 2, 3, 4], "ln_scale": True, "mlp_slope": 0.5, "skip_gates": True,
        "parallel": "lanes", "parallel_from": 3,
    },
    {  # what #826 ran
        **VALUES, "xsa_layers": [2, 3, 4], "ln_scale": True, "mlp_slope": 0.9,
    },
    {  # what #1959 ran
        "layer_order": [0, 1, 2, 1, 2, 1, 2, 3, 4], "xsa_layers": [0, 1, 2, 3, 4],
        "bigram_vocab_size": 0, "bigram_dim": 0, "smear_gate": False, "ln_scale": True,
        "mlp_slope": 0.5, "skip_gates": True, "parallel": "stream", "parallel_from": 2,
    },
    {  # everything that can go together
        **NTK, **TRIGRAM, **STEM, **VALUES, **RECUR, "smear_mask_bos": True, "bos_token": 5,
        "xsa_layers": [2, 3, 4], "xsa_gated": True, "ln_scale": True, "document_mask": True,
        "mlp_slope": [0.0, 0.9, 0.3, 1.0, 0.5], "skip_gates": True, "parallel": "routed",
        "parallel_from": 3, "tie_embeddings": False,
    },
]  # fmt: skip

VARIANTS = PLAIN + SINGLE + MIXED


def variant_id(overrides: OVERRIDES) -> str:
    return ",".join(f"{key}={value}" for key, value in overrides.items())[:60] or "all parts"
