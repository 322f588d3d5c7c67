"""A study by its name, on files: the one document that `qpack study` prints."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from qpack.checkpoint import build_model, read_model
from qpack.device import choose
from qpack.environment import provenance
from qpack.errors import ConfigError
from qpack.eval.evaluation import Inputs
from qpack.plugins import did_you_mean
from qpack.progress import SILENT, Progress
from qpack.tokenizer import Tokenizer
from qpack.tokens import read_shard, sha256_file

STUDIES = {
    "hashed-ngram": ("hashed_ngram", "HashedNgramSettings"),
    "byte-spread": ("byte_spread", "ByteSpreadSettings"),
    "train-first": ("train_first", "TrainFirstSettings"),
}
"""The module of each study, and the name of its settings there; imported when asked for."""


def study_file(
    name: str,
    inputs: Inputs,
    settings: Mapping[str, Any],
    *,
    max_tokens: int | None = None,
    device: str = "auto",
    progress: Progress = SILENT,
) -> dict[str, Any]:
    """What the study `name` finds on these files: the keys of its package, and where they are from.

    `settings` are fields of the study's settings, the rest at their defaults; `max_tokens` limits
    the targets. Raises `ConfigError` for unknown studies and values out of range, before anything
    is read; else as `read_model` and the study do.
    """
    if name not in STUDIES:
        raise ConfigError(
            f'unknown study "{name}"{did_you_mean(name, STUDIES)}',
            hint=f"known: {', '.join(STUDIES)}",
        )
    module_name, settings_name = STUDIES[name]
    module: Any = importlib.import_module(f"qpack.eval.studies.{module_name}")
    values = getattr(module, settings_name)(**settings)
    shard, tokenizer = read_shard(inputs.tokens), Tokenizer.load(inputs.tokenizer)
    tokens = shard if max_tokens is None else shard[: max_tokens + 1]
    chosen, reason = choose(device)
    progress.note(f"device {chosen}: {reason}")
    checkpoint = read_model(inputs.model)
    checkpoint.check_tokenizer(tokenizer.sha256, inputs.tokenizer)
    model = build_model(checkpoint, device=str(chosen))
    return {
        "schema": "qpack.study/1",
        "study": name,
        **module.study(model, np.asarray(tokens), tokenizer, values, progress),
        "inputs": {
            role: {"name": path.name, "sha256": sha256_file(path)}
            for role, path in inputs.paths.items()
        },
        **provenance(chosen),
        "device": {"value": str(chosen), "reason": reason},
    }
