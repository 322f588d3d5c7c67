"""AdamW for what is no matrix (techniques.md 2.1): torch's fused one, its gradients shared by ranks
as Muon's are, its state by name.

Unlike Muon's, its gradients are summed to every rank: tables and gains are few bytes beside the
matrices, and each rank makes the same step.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from .sharding import sum_whole

MOMENTS = ("exp_avg", "exp_avg_sq")


class AdamW(torch.optim.AdamW):
    """AdamW whose gradients are each rank's own, not yet reduced: `start`, `gradients`, `finish`.

    A parameter without a gradient stays as it is; all ranks must agree which those are. `step`
    alone is torch's, for gradients that are whole already.
    """

    def __init__(
        self, groups: list[dict[str, Any]], *, betas: tuple[float, float], eps: float
    ) -> None:
        """`groups` as of any optimizer of torch, their parameters as (name, parameter)."""
        super().__init__(groups, betas=betas, eps=eps, fused=True)
        self._parameters: list[tuple[str, nn.Parameter]] = [
            pair
            for group in self.param_groups
            for pair in zip(group["param_names"], group["params"], strict=True)
        ]
        self._present: list[nn.Parameter] = []
        self._sums: Callable[[], list[Tensor]] = list

    def start(self) -> None:
        """Begin to sum the gradients over ranks."""
        self._present = [p for _, p in self._parameters if p.grad is not None]
        self._sums = sum_whole([p.grad for p in self._present if p.grad is not None])

    @torch.no_grad()
    def gradients(self) -> list[Tensor]:
        """Sums over ranks, waited for."""
        sums = self._sums()
        for parameter, grad in zip(self._present, sums, strict=True):
            parameter.grad = grad
        self._sums = lambda: sums
        return sums

    @torch.no_grad()
    def finish(self, scale: Tensor) -> None:
        """Step with the sums times `scale` (0-d, on the device)."""
        sums = self.gradients()
        if sums:
            torch._foreach_mul_(sums, scale)
            self.step()
        self._sums = list

    def state_tensors(self) -> dict[str, Tensor]:
        """Copies of the state: `{parameter}.{what}` -> tensor; zeros before the first step."""
        tensors = {}
        for name, parameter in self._parameters:
            state = self.state.get(parameter, {})
            for key in MOMENTS:
                moment = state.get(key)
                tensors[f"{name}.{key}"] = (
                    torch.zeros_like(parameter.detach()) if moment is None else moment.clone()
                )
            step = state.get("step")
            tensors[f"{name}.step"] = torch.zeros(()) if step is None else step.clone()
        return tensors

    def state_names(self) -> list[str]:
        """Names that `state_tensors` has and `load_state_tensors` needs."""
        return [f"{name}.{key}" for name, _ in self._parameters for key in (*MOMENTS, "step")]

    def load_state_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """Go on from `state_tensors`. Raises KeyError for one missing."""
        for name, parameter in self._parameters:
            device = parameter.device
            moments = {
                key: tensors[f"{name}.{key}"].to(device, parameter.dtype, copy=True)
                for key in MOMENTS
            }
            # The fused kernel counts steps on the device, in float32.
            step = tensors[f"{name}.step"].to(device, torch.float32, copy=True)
            self.state[parameter] = {"step": step, **moments}
