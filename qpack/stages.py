"""What a run took: seconds and peak memory of each stage, with notes and warnings on record."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from qpack.progress import SILENT, Progress, Task

try:
    import resource
except ImportError:  # Windows
    resource = None  # type: ignore[assignment]


@dataclass(frozen=True, kw_only=True, slots=True)
class StageRow:
    """One finished stage."""

    name: str
    seconds: float
    peak_rss_bytes: int | None
    """peak resident memory of this process during the stage; where the system cannot reset its
    high-water mark, the peak so far; None where it keeps none"""


@dataclass
class RunLog:
    """A `Progress` that passes everything on and remembers it for the report."""

    progress: Progress = SILENT
    rows: list[StageRow] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    def stage(
        self, name: str, *, total: float | None = None, unit: str = ""
    ) -> AbstractContextManager[Task]:
        """Pass on."""
        return self.progress.stage(name, total=total, unit=unit)

    def note(self, message: str) -> None:
        """Remember and pass on."""
        self.notes.append(message)
        self.progress.note(message)

    def warn(self, message: str) -> None:
        """Remember and pass on, once."""
        if message not in self.warnings:
            self.warnings.append(message)
            self.progress.warn(message)

    @contextmanager
    def measured(self, name: str) -> Iterator[None]:
        """Time a stage of the pipeline and note its peak memory."""
        _reset_peak()
        begin = time.perf_counter()
        yield
        seconds = time.perf_counter() - begin
        self.rows.append(StageRow(name=name, seconds=seconds, peak_rss_bytes=peak_rss_bytes()))


def peak_rss_bytes() -> int | None:
    """High-water mark of this process's resident memory."""
    status = Path("/proc/self/status")
    if status.exists():
        for line in status.read_text("ascii", errors="replace").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    if resource is None:
        return None
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _reset_peak() -> None:
    """Linux resets the high-water mark on request; elsewhere it only grows."""
    try:
        Path("/proc/self/clear_refs").write_text("5", "ascii")
    except OSError:
        return
