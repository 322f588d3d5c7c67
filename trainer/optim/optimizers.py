"""All of a model's optimizers as one: what the training loop steps.

    gradients of this rank's part of the batch
    -> summed over ranks: whole for AdamW, to their owners for Muon, all under way at once
    -> one global norm, one factor for clipping
    -> AdamW and Muon at their rates times the schedule's factor; updates of matrices gathered

The sums of AdamW's gradients are sent first and travel while Muon's stacks are copied; the updates
of one stack travel while the next is computed.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from qpack.distributed import world_size
from qpack.errors import CheckpointError

from ..config import OptimSection
from .adamw import AdamW
from .clip import clip_factor, global_norm
from .groups import Kind, parameter_groups
from .muon import Muon
from .schedule import momentum_at
from .update import Rule

RATES: dict[Kind, tuple[str, str]] = {
    kind: (f"{kind}_lr", f"{kind}_decay") for kind in ("embedding", "head", "matrix", "scalar")
}
"""Options with the learning rate and the weight decay of each kind of parameter."""


class Optimizers:
    """Muon over the matrices of a model, AdamW over the rest, or over all."""

    def __init__(self, model: nn.Module, section: OptimSection, *, compiled: bool = False) -> None:
        """For the trainable parameters of `model`, where they are now.

        `compiled`: Muon's mathematics goes through `torch.compile`; the first step compiles it.
        """
        self.section = section
        self._parameters = [p for p in model.parameters() if p.requires_grad]
        self._device = self._parameters[0].device if self._parameters else torch.device("cpu")
        self.muon: Muon | None = None
        self.adamw: AdamW | None = None
        rest = []
        for kind, named in parameter_groups(model).items():
            rate, decay = (float(getattr(section, option)) for option in RATES[kind])
            if not named:
                continue
            if kind == "matrix" and section.matrix == "muon":
                self.muon = _muon(list(named.items()), section, rate, decay, compiled=compiled)
            else:
                rest.append({"params": list(named.items()), "lr": rate, "weight_decay": decay})
        if rest:
            betas = (section.beta1, section.beta2)
            self.adamw = AdamW(rest, betas=betas, eps=section.eps)
        self._rates = [(group, float(group["lr"])) for group in self.param_groups]

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """Of all optimizers, as torch has them."""
        return [group for some in self._optimizers for group in some.param_groups]

    @property
    def _optimizers(self) -> list[Muon | AdamW]:
        return [some for some in (self.muon, self.adamw) if some is not None]

    @torch.no_grad()
    def step(self, *, lr_scale: float, step: int) -> Tensor:
        """Update the model from its gradients and set them to None.

        Gradients are each rank's own mean; the update is that of their mean over ranks, whose
        global norm before clipping is returned (0-d, on the device, not waited for). `step` counts
        from 0 and decides the momentum, `lr_scale` multiplies all rates. A gradient that is not
        finite makes weights that are not: nothing is masked. Every rank must call this.
        """
        for group, rate in self._rates:
            group["lr"] = rate * lr_scale
        if self.muon is not None:
            for group in self.muon.param_groups:
                group["momentum"] = momentum_at(self.section, step)
        norm, scale = self._reduce()
        if self.muon is not None:
            self.muon.finish(scale)
        if self.adamw is not None:
            self.adamw.finish(scale)
        for parameter in self._parameters:
            parameter.grad = None
        return norm

    def _reduce(self) -> tuple[Tensor, Tensor]:
        """Global norm of the mean gradient, and the factor that makes the sums its clipped self."""
        owned: list[Tensor] = []
        whole: list[Tensor] = []
        for some in reversed(self._optimizers):
            some.start()
        if self.muon is not None:
            owned = self.muon.owned_gradients()
        if self.adamw is not None:
            whole = self.adamw.gradients()
        norm = global_norm(owned, whole, self._device) / world_size()
        return norm, clip_factor(norm, self.section.clip) / world_size()

    def state_tensors(self) -> dict[str, Tensor]:
        """Copies of the whole state by name, `{parameter}.{what}`, the same on every rank.

        All ranks must call this together. Momentum and moments, and `step`, a count.
        """
        tensors: dict[str, Tensor] = {}
        for some in self._optimizers:
            tensors |= some.state_tensors()
        return tensors

    def load_state_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """Go on, bit for bit, from `state_tensors` of the same model on any number of ranks.

        Raises CheckpointError that names every tensor that is missing or of no use.
        """
        known = [name for some in self._optimizers for name in some.state_names()]
        missing = [f"{name}: missing" for name in known if name not in tensors]
        unknown = [f"{name}: unknown" for name in tensors.keys() - set(known)]
        if missing or unknown:
            raise CheckpointError(
                "the state of the optimizers is that of another model or configuration",
                items=[*missing, *sorted(unknown)],
            )
        for some in self._optimizers:
            some.load_state_tensors(tensors)


def _muon(
    named: list[tuple[str, nn.Parameter]],
    section: OptimSection,
    lr: float,
    decay: float,
    *,
    compiled: bool,
) -> Muon:
    rule = Rule(
        ns_steps=section.ns_steps,
        coefficients=section.orthogonalize,
        normalization=section.normalize,
        precondition=section.precondition,
    )
    return Muon(
        named,
        lr=lr,
        momentum=section.momentum,
        weight_decay=decay,
        rule=rule,
        compiled=compiled,
    )
