from __future__ import annotations

import sys

import pytest
import torch

from qpack.device import choose
from qpack.errors import ConfigError, SetupError


def test_cpu_is_always_there() -> None:
    assert choose("cpu") == (torch.device("cpu"), "as asked")


@pytest.mark.parametrize(
    ("cuda", "mps", "expected"), [(1, True, "cuda"), (0, True, "mps"), (0, False, "cpu")]
)
def test_auto_prefers_an_accelerator_and_says_why(
    monkeypatch: pytest.MonkeyPatch, cuda: int, mps: bool, expected: str
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: bool(cuda))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "NVIDIA H100")
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)
    device, reason = choose("auto")
    assert device.type == expected
    assert reason.startswith("auto: ")
    assert ("NVIDIA H100" in reason) == bool(cuda)


def test_a_missing_device_is_a_setup_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    assert choose("cuda:1")[0] == torch.device("cuda:1")
    for name in ("cuda:2", "mps"):
        with pytest.raises(SetupError, match=f"{name} is not available"):
            choose(name)


@pytest.mark.parametrize("name", ["", "gpu", "cpu:0", "cuda:", "cuda:x", "cuda:-1", "mps:1"])
def test_unknown_names(name: str) -> None:
    with pytest.raises(ConfigError, match="unknown device"):
        choose(name)


def test_without_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(SetupError, match="needs torch"):
        choose("cpu")
