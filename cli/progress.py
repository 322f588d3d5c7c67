"""Progress with the time left: bars on a terminal, else a line now and then, or JSON lines.

A stage shorter than `QUIET_SECONDS` is not mentioned. On anything but a terminal a running stage
gets one line after `QUIET_SECONDS`, then one every `LINE_SECONDS`.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from qpack.progress import Progress, Task

from .output import Output
from .settings import ProgressMode

if TYPE_CHECKING:
    from rich.progress import Progress as Display
    from rich.progress import TaskID

QUIET_SECONDS = 2.0
LINE_SECONDS = 10.0

Clock = Callable[[], float]


def choose_progress(output: Output) -> Progress:
    """What `--progress` and `-q` ask for; `auto` is bars on a terminal, plain lines elsewhere."""
    mode = output.settings.progress
    if output.settings.quiet or mode is ProgressMode.none:
        return Messages(output)
    if mode is ProgressMode.auto and sys.stderr.isatty():
        return Bars(output)
    return Lines(output)


class Messages:
    """Notes and warnings, no stages; what the other kinds build on."""

    def __init__(self, output: Output) -> None:
        self.output = output

    @contextmanager
    def stage(self, name: str, *, total: float | None = None, unit: str = "") -> Iterator[Task]:
        """A stage that shows nothing."""
        yield Meter(total, unit)

    def note(self, message: str) -> None:
        """A note on stderr."""
        self.output.note(message)

    def warn(self, message: str) -> None:
        """A warning on stderr."""
        self.output.warn(message)


class Meter:
    """How far a stage is and how long it will take. Safe to advance from several threads."""

    def __init__(
        self,
        total: float | None,
        unit: str,
        *,
        on_change: Callable[[Meter], None] | None = None,
        clock: Clock = time.monotonic,
    ) -> None:
        self.total, self.unit = total, unit
        self.done = 0.0
        self.note = ""
        self._clock = clock
        self._start = clock()
        self._on_change = on_change
        self._lock = threading.Lock()

    def advance(self, amount: float = 1.0, *, note: str = "") -> None:
        """Move forward by `amount` units."""
        with self._lock:
            self.done += amount
            self.note = note or self.note
            if self._on_change is not None:
                self._on_change(self)

    @property
    def seconds(self) -> float:
        """Seconds since the stage began."""
        return self._clock() - self._start

    @property
    def seconds_left(self) -> float | None:
        """Seconds left at the mean speed so far; None while that is unknown."""
        if not self.total or not self.done:
            return None
        return self.seconds * max(self.total - self.done, 0.0) / self.done


class Lines(Messages):
    """A line at most every `LINE_SECONDS`, and one when a long stage ends."""

    def __init__(self, output: Output, *, clock: Clock = time.monotonic) -> None:
        super().__init__(output)
        self._clock = clock

    @contextmanager
    def stage(self, name: str, *, total: float | None = None, unit: str = "") -> Iterator[Task]:
        """A stage reported by lines."""
        due = self._clock() + QUIET_SECONDS

        def report(meter: Meter) -> None:
            nonlocal due
            if self._clock() >= due:
                due = self._clock() + LINE_SECONDS
                self._running(name, meter)

        meter = Meter(total, unit, on_change=report, clock=self._clock)
        yield meter
        if meter.seconds >= QUIET_SECONDS:
            self._ended(name, meter)

    def _running(self, name: str, meter: Meter) -> None:
        if self.output.settings.progress is ProgressMode.json:
            self.output.line({
                "event": "progress", "stage": name, "done": meter.done, "total": meter.total,
                "unit": meter.unit, "note": meter.note, "seconds": round(meter.seconds, 3),
                "seconds_left": meter.seconds_left,
            })  # fmt: skip
        else:
            self.output.say(describe(name, meter))

    def _ended(self, name: str, meter: Meter) -> None:
        if self.output.settings.progress is ProgressMode.json:
            record = {"event": "stage", "stage": name, "seconds": round(meter.seconds, 3)}
            self.output.line(record)
        else:
            self.output.say(f"{name}: done in {meter.seconds:.1f} s")


class Bars(Messages):
    """One live bar for each running stage; a finished long stage leaves a line behind."""

    def __init__(self, output: Output) -> None:
        super().__init__(output)
        self._display: Display | None = None
        self._running = 0

    @contextmanager
    def stage(self, name: str, *, total: float | None = None, unit: str = "") -> Iterator[Task]:
        """A stage shown as a bar with the time left."""
        display = self._open()
        task = display.add_task(name, total=total, note="", count="")

        def show(meter: Meter) -> None:
            display.update(task, completed=meter.done, note=meter.note, count=describe_count(meter))

        meter = Meter(total, unit, on_change=show)
        try:
            yield meter
        finally:
            self._close(display, task)
        if meter.seconds >= QUIET_SECONDS:
            self.output.say(f"{name}: done in {meter.seconds:.1f} s")

    def _open(self) -> Display:
        if self._display is None:
            self._display = make_display(self.output)
        if not self._running:
            self._display.start()
        self._running += 1
        return self._display

    def _close(self, display: Display, task: TaskID) -> None:
        display.remove_task(task)
        self._running -= 1
        if not self._running:
            display.stop()


def make_display(output: Output) -> Display:
    """The live bars on stderr."""
    from rich.progress import BarColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Display

    return Display(
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=28),
        TextColumn("{task.fields[count]}", markup=False),
        TimeRemainingColumn(compact=True),
        TextColumn("left", style="dim"),
        TextColumn("{task.fields[note]}", style="dim", markup=False),
        console=output.console,
        transient=True,
        redirect_stdout=False,
        redirect_stderr=False,
    )


def describe(name: str, meter: Meter) -> str:
    """One plain line: `calibrate: 34 % (22,282 of 65,536 tokens), 0:25 left  blocks.3`."""
    parts = [part for part in (describe_count(meter), describe_left(meter)) if part]
    line = f"{name}: {', '.join(parts) or f'{meter.seconds:.0f} s so far'}"
    return f"{line}  {meter.note}" if meter.note else line


def describe_count(meter: Meter) -> str:
    """`34 % (22,282 of 65,536 tokens)`, or the bare count where the total is unknown."""
    unit = f" {meter.unit}" if meter.unit else ""
    if not meter.total:
        return f"{meter.done:,.0f}{unit}"
    percent = 100.0 * min(meter.done / meter.total, 1.0)
    return f"{percent:.0f} % ({meter.done:,.0f} of {meter.total:,.0f}{unit})"


def describe_left(meter: Meter) -> str:
    """`0:25 left`, or nothing while that is unknown."""
    left = meter.seconds_left
    if left is None:
        return ""
    minutes, seconds = divmod(round(left), 60)
    hours, minutes = divmod(minutes, 60)
    clock = f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
    return f"{clock} left"
