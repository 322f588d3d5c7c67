"""In what a model's products are computed while it learns."""

from __future__ import annotations

import torch

PRECISIONS = ("float32", "bfloat16")
"""As stored, or under autocast: fast on CUDA, and for a CPU that has it."""


def products(precision: str, device: torch.device) -> torch.autocast:
    """The context of a forward pass in one of `PRECISIONS`."""
    on = precision == "bfloat16"
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=on)
