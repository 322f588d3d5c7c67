"""Averages of the weights over training (techniques.md 2.4).

    EMA      w <- d w + (1 - d) theta after every step, in float32; its first value is theta.
             With warm-up the t-th update, from 0, has d = min(decay, t / (t + 50)) (pull request
             826), so that the first weights, far from the last, are soon forgotten.
    SWA      the uniform mean of the weights after every n-th step, once the factor of the learning
             rates is below a bound (398: every 50 steps below .2)
    mixture  mix x EMA + (1 - mix) x SWA (the third Raki system shipped .3 and .7)

Everything in the state dict that is a floating number is averaged; the rest is the model's own.
Counts are the program's, so nothing waits for the device.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from qpack.errors import CheckpointError

from .config import AverageSection

WARMUP = 50.0
Tensors = dict[str, Tensor]


class Averages:
    """The averages that `[average]` asks for, of one model."""

    def __init__(self, model: nn.Module, section: AverageSection) -> None:
        self.section = section
        self._model = model
        self._ema: Tensors = {}
        self._swa: Tensors = {}
        self._ema_updates = self._swa_updates = 0
        self._peak = 0.0  # largest factor of the learning rates so far

    @torch.no_grad()
    def update(self, *, step: int, progress: float, lr_scale: float) -> None:
        """Take in the weights as they are after `step` (from 0).

        `progress` and `lr_scale` are those that the step had.
        """
        section = self.section
        if section.ema_decay and progress >= section.ema_from and step >= section.ema_from_step:
            self._ema = self._moved(self._ema, 1.0 - self._decay())
            self._ema_updates += 1
        every = section.swa_every
        below = min(section.swa_below, self._peak)  # a rising factor (warm-up) does not count
        self._peak = max(self._peak, lr_scale)
        if every and lr_scale < below and (step + 1) % every == 0:
            self._swa = self._moved(self._swa, 1.0 / (self._swa_updates + 1))
            self._swa_updates += 1

    def _decay(self) -> float:
        t = self._ema_updates
        return (
            min(self.section.ema_decay, t / (t + WARMUP))
            if self.section.ema_warmup
            else (self.section.ema_decay)
        )

    def _moved(self, average: Tensors, part: float) -> Tensors:
        """`average`, that much of the way to the weights; a copy of them where there is none."""
        weights = self._weights()
        if not average:
            return {name: t.to(torch.float32, copy=True) for name, t in weights.items()}
        torch._foreach_lerp_(
            list(average.values()), [weights[name].float() for name in average], part
        )
        return average

    def _weights(self) -> Tensors:
        """The floating tensors of the model, not copied."""
        state = self._model.state_dict()
        return {name: t.detach() for name, t in state.items() if t.is_floating_point()}

    @torch.no_grad()
    def candidates(self) -> dict[str, Tensors]:
        """Whole state dicts to choose from, copies: `last`, and `ema`, `swa`, `mixture` where they
        exist."""
        last = {name: t.detach().clone() for name, t in self._model.state_dict().items()}
        found = {"last": last}
        if self._ema:
            found["ema"] = self._filled(last, self._ema)
        if self._swa:
            found["swa"] = self._filled(last, self._swa)
        if self._ema and self._swa:
            mix = self.section.mix
            mixed = {name: torch.lerp(self._swa[name], ema, mix) for name, ema in self._ema.items()}
            found["mixture"] = self._filled(last, mixed)
        return found

    @staticmethod
    def _filled(last: Tensors, average: Tensors) -> Tensors:
        return {
            name: average[name].to(t.dtype, copy=True) if name in average else t.clone()
            for name, t in last.items()
        }

    def state_tensors(self) -> Tensors:
        """Copies of the averages, by name, and how many updates they had."""
        tensors = {
            "ema_updates": torch.tensor(self._ema_updates),
            "swa_updates": torch.tensor(self._swa_updates),
            "peak": torch.tensor(self._peak, dtype=torch.float64),
        }
        for kind, average in (("ema", self._ema), ("swa", self._swa)):
            tensors |= {f"{kind}.{name}": tensor.clone() for name, tensor in average.items()}
        return tensors

    def load_state_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """Go on, bit for bit, from `state_tensors` of the same model.

        Raises CheckpointError that names every tensor that is missing or of no use.
        """
        weights = self._weights()
        expected = ["ema_updates", "swa_updates", "peak"]
        counts = {name: int(tensors[name]) for name in expected[:2] if name in tensors}
        for kind in ("ema", "swa"):
            if counts.get(f"{kind}_updates"):
                expected += [f"{kind}.{name}" for name in weights]
        problems = [f"{name}: missing" for name in expected if name not in tensors]
        problems += [f"{name}: unknown" for name in sorted(tensors.keys() - set(expected))]
        if problems:
            raise CheckpointError("the averages are those of another model", items=problems)
        self._ema, self._swa = (
            {
                name: tensors[f"{kind}.{name}"].to(weight.device, torch.float32, copy=True)
                for name, weight in weights.items()
                if f"{kind}.{name}" in tensors
            }
            for kind in ("ema", "swa")
        )
        self._ema_updates, self._swa_updates = counts["ema_updates"], counts["swa_updates"]
        self._peak = float(tensors["peak"])
