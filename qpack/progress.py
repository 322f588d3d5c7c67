"""How long-running library functions report progress without knowing about terminals.

Functions take `progress: Progress = SILENT`. The command line passes one that draws bars on
stderr; `qpack.stages.RunLog` keeps notes and warnings for the report.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol


class Task(Protocol):
    """One stage under way."""

    def advance(self, amount: float = 1.0, *, note: str = "") -> None:
        """Move forward by `amount` of the stage's units; `note` is shown beside the bar."""


class Progress(Protocol):
    """What a caller of the library may pass in to see it work."""

    def stage(
        self, name: str, *, total: float | None = None, unit: str = ""
    ) -> AbstractContextManager[Task]:
        """Open a stage of `total` units (None: unknown)."""

    def note(self, message: str) -> None:
        """A fact worth a line: an automatic choice and its reason."""

    def warn(self, message: str) -> None:
        """Something the user should act on; also listed in the report."""


class _SilentTask:
    def advance(self, amount: float = 1.0, *, note: str = "") -> None:
        """Ignore."""


class Silent:
    """Reports nothing."""

    @contextmanager
    def stage(self, name: str, *, total: float | None = None, unit: str = "") -> Iterator[Task]:
        """A stage that shows nothing."""
        yield _SilentTask()

    def note(self, message: str) -> None:
        """Ignore."""

    def warn(self, message: str) -> None:
        """Ignore."""


SILENT: Progress = Silent()
