from __future__ import annotations

import math
from typing import Any

import pytest

from qpack.trainer.config import OptimSection, ScheduleSection
from qpack.trainer.optim.schedule import lr_scale, momentum_at

INF = math.inf


def scale(
    section: dict[str, Any], *, step: int = 1000, progress: float = 0.0, left: float = INF
) -> float:
    return lr_scale(ScheduleSection(**section), step=step, progress=progress, steps_left=left)


def test_it_rises_stays_and_falls() -> None:
    section = {"warmup_steps": 4, "warmdown": 0.5}
    assert [scale(section, step=s) for s in range(5)] == [0.25, 0.5, 0.75, 1.0, 1.0]
    falls = [scale(section, progress=p) for p in (0.25, 0.5, 0.75, 0.9, 1.0)]
    assert falls == pytest.approx([1.0, 1.0, 0.5, 0.2, 0.0])


def test_fraction_form_of_1440() -> None:
    """scale = 1 if f < 1 - w else (1 - f) / w"""
    w = 0.667
    for f in (0.0, 0.2, 0.334, 0.5, 0.99):
        want = 1.0 if f < 1 - w else (1 - f) / w
        assert scale({"warmdown": w}, progress=f) == pytest.approx(want)


def test_iteration_form_of_398() -> None:
    """Milliseconds left over those that so many iterations take at the measured pace."""
    iterations, step_ms, budget_ms = 3000, 80.0, 600_000.0
    for step in (10, 4000, 5000, 7000, 7500):
        elapsed = step * step_ms
        left = max(budget_ms - elapsed, 0.0)
        want = left / (iterations * step_ms) if left <= iterations * step_ms else 1.0
        got = scale({"warmdown_steps": iterations}, step=step, progress=0.99, left=left / step_ms)
        assert got == pytest.approx(want)


def test_iteration_form_of_a_step_budget() -> None:
    got = [scale({"warmdown_steps": 4}, step=s, left=10 - s) for s in range(10)]
    assert got == [1, 1, 1, 1, 1, 1, 1, 0.75, 0.5, 0.25]


def test_no_pace_yet_means_no_fall() -> None:
    assert scale({"warmdown_steps": 100}, step=0, left=INF) == 1.0


@pytest.mark.parametrize("shape", ["linear", "cosine"])
def test_shapes_and_floor(shape: str) -> None:
    section = {"warmdown": 1.0, "floor": 0.1, "shape": shape}
    assert scale(section, progress=0.0) == pytest.approx(1.0)
    assert scale(section, progress=0.5) == pytest.approx(0.55)
    assert scale(section, progress=1.0) == pytest.approx(0.1)
    quarter = 0.75 if shape == "linear" else (1 + math.cos(math.pi / 4)) / 2
    assert scale(section, progress=0.25) == pytest.approx(0.1 + 0.9 * quarter)


def test_no_warmdown_keeps_the_rate() -> None:
    assert scale({"warmdown": 0.0}, progress=1.0) == 1.0


def test_momentum_rises_linearly() -> None:
    section = OptimSection(momentum_start=0.92, momentum=0.99, momentum_warmup_steps=1500)
    got = [momentum_at(section, step) for step in (0, 750, 1500, 9000)]
    assert got == pytest.approx([0.92, 0.955, 0.99, 0.99])
    at_once = OptimSection(momentum_start=0.5, momentum=0.9, momentum_warmup_steps=0)
    assert momentum_at(at_once, 0) == 0.9
