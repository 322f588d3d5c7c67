"""What every command shares: the options of `Settings`, error handling and exit codes.

A command is a plain function `(output, own parameters...)`. `register` gives it to Typer under a
signature that has the shared options in place of `output`, so that they are declared once.
"""

from __future__ import annotations

import inspect
import os
import sys
from collections.abc import Callable
from typing import Annotated, Any

import typer

from .failures import report
from .interrupt import interruptible
from .output import Output, discard
from .settings import ProgressMode, Settings

PANEL = "Output"

SHARED = {
    "json": (
        Annotated[
            bool,
            typer.Option(
                "--json",
                help="Print one JSON document on stdout; errors as JSON on stderr.",
                rich_help_panel=PANEL,
            ),
        ],
        False,
    ),
    "progress": (
        Annotated[
            ProgressMode,
            typer.Option(
                help="How to show progress on stderr: auto is bars on a terminal, else plain.",
                envvar="QPACK_PROGRESS",
                rich_help_panel=PANEL,
            ),
        ],
        ProgressMode.auto,
    ),
    "quiet": (
        Annotated[
            int,
            typer.Option(
                "-q",
                "--quiet",
                count=True,
                help="No progress and notes; twice: no warnings either.",
                rich_help_panel=PANEL,
            ),
        ],
        0,
    ),
    "no_color": (
        Annotated[
            bool,
            typer.Option("--no-color", help="No colour, as with NO_COLOR.", rich_help_panel=PANEL),
        ],
        False,
    ),
    "debug": (
        Annotated[
            bool,
            typer.Option(
                "--debug",
                help="Show the traceback of every error.",
                envvar="QPACK_DEBUG",
                rich_help_panel=PANEL,
            ),
        ],
        False,
    ),
}
"""Name -> (annotation, default) of the options that every command takes."""


def register(
    app: typer.Typer, name: str, function: Callable[..., None], *, panel: str | None = None
) -> None:
    """Make `function` the command `name` of `app`; `panel` is its heading in the help."""

    def run(**values: Any) -> None:
        output = Output(take_settings(values))
        code = invoke(function, output, values)
        if code:
            raise typer.Exit(code)

    signature = with_shared_options(inspect.signature(function, eval_str=True))
    run.__signature__ = signature  # type: ignore[attr-defined]
    run.__annotations__ = {p.name: p.annotation for p in signature.parameters.values()}
    app.command(name, help=unwrap(function.__doc__), rich_help_panel=panel)(run)


def unwrap(text: str | None) -> str:
    """A docstring with one line a paragraph: the terminal, not the source, wraps the help."""
    paragraphs = inspect.cleandoc(text or "").split("\n\n")
    return "\n\n".join(" ".join(paragraph.split()) for paragraph in paragraphs)


def with_shared_options(signature: inspect.Signature) -> inspect.Signature:
    """The signature that Typer sees: without `output`, with the shared options at the end."""
    _, *own = signature.parameters.values()
    shared = [
        inspect.Parameter(
            name, inspect.Parameter.KEYWORD_ONLY, annotation=annotation, default=default
        )
        for name, (annotation, default) in SHARED.items()
    ]
    own = [parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY) for parameter in own]
    return signature.replace(parameters=[*own, *shared])


def take_settings(values: dict[str, Any]) -> Settings:
    """Remove the shared options from `values`; returns them as `Settings`."""
    shared = {name: values.pop(name) for name in SHARED}
    if "WORLD_SIZE" in os.environ and os.environ.get("RANK", "0") != "0":
        # Under torchrun the first rank speaks for all; the others tell their errors alone.
        shared |= {"quiet": 2, "progress": ProgressMode.none}
    return Settings(color=not shared.pop("no_color"), **shared)


def invoke(function: Callable[..., None], output: Output, values: dict[str, Any]) -> int:
    """Run a command; returns its exit code. Results reach stdout before this returns."""
    try:
        with interruptible(output):
            function(output, **values)
            sys.stdout.flush()
    except BrokenPipeError:  # stderr is guarded: whoever read our result has seen enough
        discard(sys.stdout)
    except typer.TyperException:  # a wrong option: the caller prints usage errors
        raise
    except (Exception, KeyboardInterrupt) as error:
        return report(error, output)
    return 0
