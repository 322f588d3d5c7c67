"""Ctrl-C in the middle of training: finish the step, keep a checkpoint, then stop."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from qpack.progress import Progress

SIGNALS = (signal.SIGINT, signal.SIGTERM)
"""SIGTERM is how schedulers and torchrun ask a process to end."""


class Wish:
    """Whether somebody asked the run to stop."""

    def __init__(self) -> None:
        self.stop = False


@contextmanager
def stoppable(progress: Progress) -> Iterator[Wish]:
    """Within, the first Ctrl-C or SIGTERM sets `stop`; a second Ctrl-C interrupts at once."""
    wish = Wish()
    if threading.current_thread() is not threading.main_thread():
        yield wish  # signals cannot be caught here: an embedding program runs us
        return

    def ask(number: int, frame: FrameType | None) -> None:
        if wish.stop:
            raise KeyboardInterrupt
        wish.stop = True
        progress.note("stopping after this step, with a checkpoint; Ctrl-C again stops at once")

    before = {number: signal.signal(number, ask) for number in SIGNALS}
    try:
        yield wish
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
