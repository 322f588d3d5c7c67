"""The one factor on all learning rates, and Muon's momentum (techniques.md 2.4).

    warm-up    (step + 1) / warmup_steps, at most 1
    warmdown   x = what is left of the budget over what the fall takes, at most 1:
                 fraction form (pull requests 1440, 1959):  (1 - progress) / warmdown
                 iteration form (398, 826):                 steps left / warmdown_steps
    linear     floor + (1 - floor) x
    cosine     floor + (1 - floor) (1 - cos(pi x)) / 2

The iteration form of a budget in seconds is the scripts' `remaining / (steps x measured seconds a
step)`: steps left are seconds left over the measured pace. The README of 1440 says cosine; its code
falls linearly, to max(x, floor): the same where the floor is 0, as in every reference system.
"""

from __future__ import annotations

import math

from ..config import OptimSection, ScheduleSection


def lr_scale(section: ScheduleSection, *, step: int, progress: float, steps_left: float) -> float:
    """Factor of `step` (from 0), with `progress` (0 to 1) of the budget used before it.

    `steps_left` counts this one; infinite while no pace is known.
    """
    rise = min(1.0, (step + 1) / section.warmup_steps) if section.warmup_steps else 1.0
    if section.warmdown_steps:
        x = steps_left / section.warmdown_steps
    elif section.warmdown:
        x = (1.0 - progress) / section.warmdown
    else:
        x = 1.0
    x = min(1.0, max(0.0, x))
    if section.shape == "cosine":
        x = (1.0 - math.cos(math.pi * x)) / 2
    return rise * (section.floor + (1.0 - section.floor) * x)


def momentum_at(section: OptimSection, step: int) -> float:
    """Muon's momentum at `step` (from 0): it rises in a straight line over the warm-up."""
    if not section.momentum_warmup_steps:
        return section.momentum
    part = min(1.0, step / section.momentum_warmup_steps)
    return section.momentum_start + (section.momentum - section.momentum_start) * part
