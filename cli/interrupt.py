"""Ctrl-C: a message first, then an orderly stop; a second Ctrl-C stops at once."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from .failures import EXIT_INTERRUPTED
from .output import Output


@contextmanager
def interruptible(output: Output) -> Iterator[None]:
    """Within: the first Ctrl-C raises KeyboardInterrupt after saying so, the second exits."""
    if threading.current_thread() is not threading.main_thread():
        yield  # signals cannot be caught here: a test or an embedding program runs us
        return
    interrupted = False

    def stop(number: int, frame: FrameType | None) -> None:
        nonlocal interrupted
        if interrupted:
            os._exit(EXIT_INTERRUPTED)
        interrupted = True
        output.note("stopping; press Ctrl-C again to stop at once")
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGINT, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
