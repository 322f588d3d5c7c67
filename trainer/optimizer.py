"""AdamW with a group for each kind of parameter (techniques.md 2.1)."""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn
from torch.optim import AdamW

from .config import TrainConfig
from .model.layers import Embedding

CONTROLS = ("attn_scale", "mlp_scale", "resid_mix", "q_gain", "skip_weights")
"""Parameters that steer rather than project, some of them with two dimensions."""


def parameter_groups(model: nn.Module) -> dict[str, list[nn.Parameter]]:
    """The parameters of `model` by kind: `embedding` tables, `scalar` controls, `matrix` others."""
    tables = {id(p) for m in model.modules() if isinstance(m, Embedding) for p in m.parameters()}
    groups: dict[str, list[nn.Parameter]] = {"matrix": [], "embedding": [], "scalar": []}
    for name, parameter in model.named_parameters():
        if id(parameter) in tables:
            kind = "embedding"
        elif parameter.ndim < 2 or name.rpartition(".")[2] in CONTROLS:
            kind = "scalar"
        else:
            kind = "matrix"
        groups[kind].append(parameter)
    return groups


def make_optimizer(model: nn.Module, config: TrainConfig) -> AdamW:
    """AdamW over `model`; each group remembers its full rate as `base_lr`."""
    groups = [
        {
            "params": parameters,
            "lr": getattr(config, f"{kind}_lr"),
            "base_lr": getattr(config, f"{kind}_lr"),
            "weight_decay": 0.0 if kind == "scalar" else config.weight_decay,
        }
        for kind, parameters in parameter_groups(model).items()
        if parameters
    ]
    return AdamW(groups, betas=(config.beta1, config.beta2), eps=1e-8, fused=True)


def set_lr_scale(groups: Iterable[dict[str, float]], scale: float) -> None:
    """Set every group's learning rate to `scale` times its full rate."""
    for group in groups:
        group["lr"] = scale * group["base_lr"]


def lr_scale(step: int, progress: float, *, warmup_steps: int, warmdown: float) -> float:
    """Learning rate of `step` (from 0) at `progress` (0 to 1), as a part of the full one.

    A linear rise over `warmup_steps`, a plateau, and a linear fall to 0 over the last `warmdown`
    of the budget, be it counted in steps or in seconds.
    """
    rise = min(1.0, (step + 1) / warmup_steps) if warmup_steps else 1.0
    fall = min(1.0, max(0.0, 1.0 - progress) / warmdown) if warmdown else 1.0
    return rise * fall
