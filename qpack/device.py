"""Which device to compute on, and why: an automatic choice is always explained."""

from __future__ import annotations

from typing import TYPE_CHECKING

from qpack.errors import ConfigError, SetupError

if TYPE_CHECKING:
    import torch

NAMES = ("auto", "cpu", "cuda", "mps")


def choose(name: str = "auto") -> tuple[torch.device, str]:
    """The device for `name` (`auto`, `cpu`, `cuda`, `cuda:N` or `mps`) and the reason for it.

    Raises `ConfigError` for another name, `SetupError` when the device or torch is missing.
    """
    kind, _, index = name.partition(":")
    if kind not in NAMES or (index and (kind != "cuda" or not index.isdigit())) or name[-1:] == ":":
        raise ConfigError(f"unknown device {name!r}", hint=f"use one of {', '.join(NAMES)}, cuda:N")
    try:
        import torch
    except ImportError as error:
        raise SetupError("this command needs torch", hint="pip install 'qpack-lm[pack]'") from error
    if kind == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda"), f"auto: {torch.cuda.get_device_name()} is present"
        if torch.backends.mps.is_available():
            return torch.device("mps"), "auto: Apple GPU is present, no CUDA device"
        return torch.device("cpu"), "auto: no CUDA device and no Apple GPU"
    num_devices = {
        "cpu": 1,
        "cuda": torch.cuda.device_count(),
        "mps": int(torch.backends.mps.is_available()),
    }[kind]
    if int(index or 0) >= num_devices:
        raise SetupError(
            f"device {name} is not available ({num_devices} of that kind found)",
            hint="use cpu or auto",
        )
    return torch.device(name), "as asked"
