from __future__ import annotations

import pytest
import torch

from qpack.trainer.throughput import peak_flops, utilization

CUDA = torch.device("cuda")


@pytest.mark.parametrize(
    ("name", "dtype", "peak"),
    [
        ("NVIDIA H100 80GB HBM3", torch.bfloat16, 989e12),
        ("NVIDIA H100 PCIe", torch.bfloat16, 756e12),
        ("NVIDIA H200", torch.float32, 67e12),
        ("NVIDIA Unheard-of", torch.bfloat16, None),
    ],
)
def test_the_peak_is_found_by_name(
    name: str, dtype: torch.dtype, peak: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: name)
    assert peak_flops(CUDA, dtype) == peak


def test_utilization_is_work_over_peak(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA H100 80GB HBM3")
    assert utilization(1e6, 200_000_000, CUDA, torch.bfloat16) == pytest.approx(2e14 / 989e12)


def test_a_cpu_has_no_known_peak() -> None:
    assert utilization(1e6, 200_000_000, torch.device("cpu"), torch.float32) is None
