"""How a command talks, apart from what it does: the options that every command takes."""

from __future__ import annotations

import os
from dataclasses import dataclass
from enum import StrEnum
from typing import IO


class ProgressMode(StrEnum):
    """The values of `--progress`."""

    auto = "auto"
    plain = "plain"
    json = "json"
    none = "none"


@dataclass(frozen=True, kw_only=True, slots=True)
class Settings:
    """Resolved from `--json`, `--progress`, `-q`, `--no-color` and `--debug`."""

    json: bool = False
    """One JSON document on stdout; errors as JSON on stderr."""
    progress: ProgressMode = ProgressMode.auto
    quiet: int = 0
    """1: no progress and notes; 2: no warnings either."""
    color: bool = True
    """False after `--no-color`; a stream may still refuse colour, see `use_color`."""
    debug: bool = False
    """Show the traceback of every error."""


def use_color(stream: IO[str], settings: Settings) -> bool:
    """Whether to colour `stream`: a terminal, and nobody asked for none."""
    refused = bool(os.environ.get("NO_COLOR")) or os.environ.get("TERM") == "dumb"
    return settings.color and stream.isatty() and not refused
