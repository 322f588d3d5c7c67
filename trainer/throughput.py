"""How fast a run is, and how much of its device it uses.

MFU (model flops utilisation) is the share of the device's peak that the model's own products need,
forward and backward: what is computed again or moved about does not count. The peaks are the
vendor's for dense products, bfloat16 with float32 sums; float32 without TF32.
"""

from __future__ import annotations

import torch

PEAK_FLOPS: tuple[tuple[str, float, float], ...] = (
    ("H200", 989e12, 67e12),
    ("H100 PCIe", 756e12, 51e12),
    ("H100", 989e12, 67e12),
    ("A100", 312e12, 19.5e12),
    ("L40S", 362e12, 91.6e12),
    ("RTX 4090", 165e12, 82.6e12),
    ("B200", 2250e12, 80e12),
)
"""Part of the device's name, peak with bfloat16 and with float32. From the vendor's data sheets."""


def peak_flops(device: torch.device, dtype: torch.dtype) -> float | None:
    """Floating-point operations a second that `device` can do at most; None where not known."""
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    for part, half, full in PEAK_FLOPS:
        if part in name:
            return half if dtype == torch.bfloat16 else full
    return None


def utilization(
    tokens_per_second: float, flops_per_token: int, device: torch.device, dtype: torch.dtype
) -> float | None:
    """MFU on this rank's device, 0 to 1; None where the peak is not known."""
    peak = peak_flops(device, dtype)
    return None if peak is None else tokens_per_second * flops_per_token / peak
