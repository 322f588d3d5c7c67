"""What the test of two ranks computes on each of them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch

from qpack.errors import DataError
from qpack.eval.adapt import Adapted
from qpack.eval.adapt_settings import AdaptSettings
from qpack.eval.lora import LoraAdapted
from qpack.eval.lora_settings import LoraSettings
from qpack.eval.network import Network
from qpack.eval.reference import Reference
from tests.unit.trainer.model.tiny import BOS, tiny


def scores() -> dict[str, list[float]]:
    """Scores under adaptation: an odd number of windows, of sequences, of documents; a chunk
    with one window, so that a rank has none; a rest of a sequence at the end of each chunk."""
    tokens = np.random.default_rng(0).choice([3, 4, 7, 11], 100).astype(np.uint16)
    tokens[[20, 21, 60, 70]] = BOS
    model = tiny(dtype=torch.float32, num_layers=2)
    found = {}
    for chunk_tokens, window, batch in [(36, 12, 3), (10, 12, 1), (31, 7, 4)]:
        settings = AdaptSettings(
            learning_rate=0.05, chunk_tokens=chunk_tokens, epochs=2, batch=batch
        )
        adapted = Adapted(Network(model, window=window), settings)
        found[f"{chunk_tokens} {window}"] = adapted.score(tokens).tolist()
    rows = np.concatenate([part for part, _ in adapted.rows(tokens)])
    found["rows"] = rows.max(axis=1).tolist()
    lora = LoraSettings(chunk_tokens=4, rank=2, learning_rate=0.05)
    isolated = Network(model, window=12, isolate=BOS)
    found["lora"] = LoraAdapted(isolated, lora).score(tokens).tolist()
    reference = Reference(tiny(dtype=torch.float32, num_layers=2, seed=1), isolated)
    found["float"] = reference.score(tokens).tolist()
    found["kl"] = [reference.kl or 0.0, 0.0]
    try:
        LoraAdapted(isolated, replace(lora, learning_rate=1e30, clip=0.0)).score(tokens)
    except DataError as error:  # one rank has all documents, and the other one is told
        found["diverged"] = [float("diverged" in error.message), 0.0]
    return found
