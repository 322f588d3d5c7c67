from __future__ import annotations

from typing import Any

import pytest
import torch

from qpack.trainer.clock import Clock
from qpack.trainer.config import LoopSection

CPU = torch.device("cpu")


def clock(**keys: Any) -> tuple[Clock, list[float]]:
    """A clock whose time is the last element of the list."""
    time = [0.0]
    now = lambda: time[-1]  # noqa: E731
    return Clock(LoopSection(**keys), CPU, now=now), time


def test_steps_alone() -> None:
    watch, _ = clock(max_steps=4)
    watch.start()
    seen = [watch.progress]
    for _ in range(4):
        watch.tick()
        seen.append(watch.progress)
    assert seen == [0.0, 0.25, 0.5, 0.75, 1.0]


def test_seconds_leave_the_reserve_and_pauses_do_not_count() -> None:
    watch, time = clock(max_seconds=10.0, reserve_seconds=2.0)
    assert watch.max_seconds == 8.0
    watch.start()
    time.append(2.0)
    watch.tick()
    assert watch.progress == 0.25
    time.append(3.0)
    watch.pause()
    time.append(100.0)
    watch.start()
    time.append(101.0)
    watch.tick()
    assert watch.seconds == 4.0
    assert watch.progress == 0.5


def test_the_first_budget_reached_counts() -> None:
    watch, time = clock(max_seconds=10.0, max_steps=100)
    watch.start()
    time.append(9.0)
    watch.tick()
    assert watch.progress == 0.9
    assert watch.steps == 1


def test_the_pace_is_that_of_all_steps() -> None:
    watch, time = clock(max_seconds=100.0)
    assert watch.seconds_per_step == 0.0
    assert watch.steps_left == float("inf")
    watch.start()
    for length in (6.0, 2.0):
        time.append(time[-1] + length)
        watch.tick()
    assert watch.seconds_per_step == 4.0
    assert watch.steps_left == (100 - 8) / 4


def test_a_resumed_clock_goes_on() -> None:
    watch = Clock(LoopSection(max_steps=10), CPU, steps=4, seconds=7.5)
    assert (watch.progress, watch.seconds, watch.steps_left) == (0.4, 7.5, 6.0)
    timed = Clock(LoopSection(max_seconds=15.0), CPU, steps=4, seconds=5.0)
    assert timed.steps_left == 8.0  # at the pace of the steps before


@pytest.mark.parametrize("stop", [True, False])
def test_the_wish_to_stop_is_returned(stop: bool) -> None:
    watch, _ = clock(max_steps=4)
    watch.start()
    assert watch.tick(stop=stop) is stop
