"""The real checkpoint that another program trained, against the figures recorded with it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from qpack.checkpoint import build_model
from qpack.importing import import_file
from qpack.tokens import read_shard

WINDOW = 1_024


def nats(folder: Path, shard: str, num_targets: int) -> float:
    """Total of -ln p of the first targets, in windows of 1,024 that do not overlap."""
    model = build_model(import_file(folder / "models" / "golf27m_sp1024.safetensors"))
    tokens = read_shard(folder / "shards" / shard)[: num_targets + 1].astype(np.int64)
    inputs = torch.from_numpy(tokens[:-1]).view(-1, WINDOW)
    targets = torch.from_numpy(tokens[1:]).view(-1, WINDOW)
    total = 0.0
    with torch.inference_mode():
        for x, y in zip(inputs.split(2), targets.split(2), strict=True):
            logits = model(x).double().log_softmax(dim=-1)
            total -= logits.gather(-1, y[..., None]).sum().item()
    return total


def test_the_first_window_of_the_validation_head(shared_data: Path) -> None:
    total = nats(shared_data, "fineweb_val_head_sp1024.bin", 1_024)
    assert total == pytest.approx(2_711.513, abs=0.02)


@pytest.mark.slow
def test_the_recorded_total(shared_data: Path) -> None:
    total = nats(shared_data, "fineweb_val_head_sp1024.bin", 131_072)
    assert total == pytest.approx(335_190.080, abs=0.5)  # float32 sums differ by machine
