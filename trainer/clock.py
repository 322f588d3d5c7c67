"""Budget, wall clock and the wish to stop, the same on every rank.

Training may be limited in steps, in seconds, or both; progress is the larger part used. Seconds are
those of the steps alone. On CUDA kernels run behind the program, so the clock waits for the step
before last: it is at most one step ahead of the device. Rank 0's clock counts for all ranks, else
they could disagree about the last step and wait for one another for ever.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
import torch.distributed as dist

from qpack import distributed

from .config import LoopSection


class Clock:
    """Steps and seconds used of a budget."""

    def __init__(
        self,
        section: LoopSection,
        device: torch.device,
        *,
        steps: int = 0,
        seconds: float = 0.0,
        now: Callable[[], float] = time.perf_counter,
    ) -> None:
        """`steps` and `seconds` are what earlier parts of a resumed run used."""
        self.steps, self.seconds = steps, seconds
        self.max_steps = section.max_steps
        self.max_seconds = (
            None if section.max_seconds is None else section.max_seconds - section.reserve_seconds
        )
        self._cuda = device.type == "cuda"
        self._now = now
        self._began: float | None = None
        self._events: list[torch.cuda.Event] = []

    def start(self) -> None:
        """The steps begin, or go on after something that does not count."""
        self._began = self._now()

    def pause(self) -> None:
        """Something begins that does not count: wait for the device first. All ranks together."""
        self._events.clear()
        if self._cuda:
            torch.cuda.synchronize()
        self._advance()
        self._began = None
        self._agree(stop=False)

    def tick(self, *, stop: bool = False) -> bool:
        """A step has been given to the device. Returns whether any rank wants to `stop`."""
        self.steps += 1
        if self._cuda:
            event = torch.cuda.Event()  # type: ignore[no-untyped-call]
            event.record()
            self._events.append(event)
            if len(self._events) > 1:
                self._events.pop(0).synchronize()
        self._advance()
        return self._agree(stop=stop)

    def _agree(self, *, stop: bool) -> bool:
        """Take rank 0's seconds; whether any rank wants to `stop`."""
        if distributed.world_size() == 1:
            return stop
        # One message: the others' clocks do not count, and any rank's wish does.
        mine = self.seconds if distributed.rank() == 0 else 0.0
        state = torch.tensor([mine, float(stop)], dtype=torch.float64)
        dist.all_reduce(state)
        self.seconds = float(state[0])
        return bool(state[1])

    def _advance(self) -> None:
        now = self._now()
        if self._began is not None:
            self.seconds += now - self._began
        self._began = now

    @property
    def progress(self) -> float:
        """Part of the budget used, 0 to 1."""
        parts = (
            self.steps / self.max_steps if self.max_steps else 0.0,
            self.seconds / self.max_seconds if self.max_seconds else 0.0,
        )
        return min(1.0, max(parts))

    @property
    def seconds_per_step(self) -> float:
        """Mean of all steps so far; 0 before the first."""
        return self.seconds / self.steps if self.steps else 0.0

    @property
    def steps_left(self) -> float:
        """Steps to the end of the budget at the present pace."""
        by_steps = float("inf") if self.max_steps is None else self.max_steps - self.steps
        if self.max_seconds is None:
            return float(by_steps)
        pace = self.seconds_per_step
        by_seconds = (self.max_seconds - self.seconds) / pace if pace else float("inf")
        return max(0.0, min(by_steps, by_seconds))
