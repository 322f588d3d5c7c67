"""The two streams: results go to stdout; progress, notes, warnings and errors to stderr."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterable, Mapping
from functools import cached_property
from typing import IO, TYPE_CHECKING, Any

from .settings import Settings, use_color

if TYPE_CHECKING:
    from rich.console import Console

    from qpack.progress import Progress


class Output:
    """What a command writes with. Holds the settings and the console of stderr."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings

    @cached_property
    def console(self) -> Console:
        """The console of stderr, shared by messages and progress bars."""
        return make_console(sys.stderr, self.settings)

    @cached_property
    def progress(self) -> Progress:
        """What library functions report to, as `--progress` and `-q` ask."""
        from .progress import choose_progress

        return choose_progress(self)

    def result(self, document: Mapping[str, Any], text: Callable[[], str]) -> None:
        """Print the result: `document` with `--json`, else what `text` returns."""
        if self.settings.json:
            print(json.dumps(document, indent=2, allow_nan=False))
        else:
            print(text())

    def note(self, message: str) -> None:
        """A fact worth a line: an automatic choice and its reason."""
        if self.settings.quiet < 1:
            self.event("note", message)

    def warn(self, message: str) -> None:
        """Something that the user should act on."""
        if self.settings.quiet < 2:
            self.event("warning", message)

    def next(self, command: str) -> None:
        """The next useful command."""
        if self.settings.quiet < 1:
            self.event("next", command)

    def error(self, message: str, *, items: Iterable[str], hint: str | None, **more: Any) -> None:
        """An error: what happened, every offender, what to do; `more` is for machines only."""
        if self.settings.json or self.settings.progress == "json":
            record = {"schema": "qpack.error/1", **more}
            self.line({**record, "message": message, "items": list(items), "hint": hint})
            return
        self.event("error", message)
        for item in items:
            self.say(f"  {item}")
        if hint:
            self.say(f"  fix: {hint}")

    def event(self, kind: str, message: str) -> None:
        """One labelled message on stderr."""
        if self.settings.progress == "json":
            self.line({"event": kind, "message": message})
        else:
            style = {"error": "bold red", "warning": "yellow"}.get(kind, "dim")
            self.say(f"{kind}: {message}", prefix=len(kind) + 1, style=style)

    def say(self, text: str, *, prefix: int = 0, style: str = "") -> None:
        """One line on stderr; its first `prefix` characters in `style`."""
        if not use_color(sys.stderr, self.settings):
            print_quietly(text)  # no rich: this is the path of scripts, and it must be quick
            return
        from rich.text import Text

        line = Text(text)
        line.stylize(style, 0, prefix)
        self.console.print(line, soft_wrap=True)

    def line(self, record: Mapping[str, Any]) -> None:
        """One JSON object on one line of stderr."""
        print_quietly(json.dumps(record))


def print_quietly(text: str) -> None:
    """Print on stderr. Whoever read it may have gone: the work goes on."""
    try:
        print(text, file=sys.stderr, flush=True)
    except BrokenPipeError:
        discard(sys.stderr)


def discard(stream: IO[str]) -> None:
    """Send all that is still written to `stream` nowhere: its reader has gone."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, stream.fileno())
    os.close(nowhere)


def make_console(stream: IO[str], settings: Settings) -> Console:
    """A rich console that never guesses: colour as `use_color` says, a terminal if it is one."""
    from rich.console import Console

    class QuietConsole(Console):
        def on_broken_pipe(self) -> None:
            """Keep working; rich would end the process."""
            discard(stream)

    return QuietConsole(
        file=stream,
        force_terminal=stream.isatty(),
        no_color=not use_color(stream, settings),
        highlight=False,
        markup=False,
        emoji=False,
    )
