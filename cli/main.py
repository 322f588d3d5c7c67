"""The `qpack` command: the list of its commands, and the way in. Imports no torch."""

from __future__ import annotations

import sys
from typing import Annotated, Any

import typer
from typer.main import get_command

from qpack import __version__

from .bench import bench_bits, bench_codecs
from .command import register, unwrap
from .compress import compress, decompress
from .data import data_fineweb, data_stats, data_tokenize
from .demo import demo
from .doctor import doctor
from .evaluate import evaluate
from .failures import EXIT_USAGE
from .generate import generate
from .import_checkpoint import import_checkpoint
from .inspect import inspect
from .output import Output, discard
from .pack import pack
from .presets import presets
from .run import run
from .settings import ProgressMode, Settings
from .study import study_byte_spread, study_hashed_ngram, study_train_first
from .sweep import sweep
from .train import train
from .unpack import unpack
from .verify import verify

START, MAKE, READ, USE, MEASURE = "Start", "Make", "Read", "Use", "Measure"
"""Headings of the command list."""

EPILOG = """
Every option can be set by a variable: QPACK_, command, option (QPACK_PACK_BUDGET=16MB).

Exit codes: 0 done, 1 bug, 2 usage, 3 input, 4 artifact, 5 budget, 6 verification, 7 resources,
8 missing package or device, 130 interrupted.
"""


def build() -> Any:
    """The whole command tree, in the order of the help."""
    app = typer.Typer(
        name="qpack",
        no_args_is_help=True,
        context_settings={"auto_envvar_prefix": "QPACK", "help_option_names": ["-h", "--help"]},
    )
    app.callback(help=unwrap(root.__doc__), epilog=unwrap(EPILOG))(root)
    register(app, "demo", demo, panel=START)
    register(app, "doctor", doctor, panel=START)
    register(app, "presets", presets, panel=START)
    register(app, "run", run, panel=MAKE)
    register(app, "train", train, panel=MAKE)
    data = typer.Typer(no_args_is_help=True, help="Token shards: make, fetch or count them.")
    register(data, "tokenize", data_tokenize)
    register(data, "fineweb", data_fineweb)
    register(data, "stats", data_stats)
    app.add_typer(data, name="data", rich_help_panel=MAKE)
    register(app, "import", import_checkpoint, panel=MAKE)
    register(app, "pack", pack, panel=MAKE)
    register(app, "inspect", inspect, panel=READ)
    register(app, "verify", verify, panel=READ)
    register(app, "unpack", unpack, panel=READ)
    register(app, "compress", compress, panel=USE)
    register(app, "decompress", decompress, panel=USE)
    register(app, "generate", generate, panel=USE)
    register(app, "eval", evaluate, panel=MEASURE)
    register(app, "sweep", sweep, panel=MEASURE)
    bench = typer.Typer(no_args_is_help=True, help="Compare codecs, or bit widths.")
    register(bench, "codecs", bench_codecs)
    register(bench, "bits", bench_bits)
    app.add_typer(bench, name="bench", rich_help_panel=MEASURE)
    study = typer.Typer(
        no_args_is_help=True,
        help="Published scores that are no codes: claim, error, honest figure.",
    )
    register(study, "hashed-ngram", study_hashed_ngram)
    register(study, "byte-spread", study_byte_spread)
    register(study, "train-first", study_train_first)
    app.add_typer(study, name="study", rich_help_panel=MEASURE)
    tree = get_command(app)
    hide_variables(tree)
    return tree


def print_version(asked: bool) -> None:
    """Print the version and stop."""
    if asked:
        print(f"qpack {__version__}")
        raise typer.Exit


def root(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=print_version, is_eager=True, help="Print the version and stop."
        ),
    ] = False,
) -> None:
    """The best language model that fits in N bytes.

    A trained checkpoint and a byte budget go in; one file that decodes itself comes out, with a
    bits-per-byte report that anyone can check.
    """


def hide_variables(command: Any) -> None:
    """Show in the help only the variables that are not named by the rule of the epilog."""
    for parameter in command.params:
        if getattr(parameter, "envvar", None) is None:
            parameter.show_envvar = False
    for child in getattr(command, "commands", {}).values():
        hide_variables(child)


def main() -> None:
    """Run the command line and exit with its code."""
    for stream in (sys.stdout, sys.stderr):
        # A tensor name that the terminal cannot show must not end a command.
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    try:
        code = build().main(prog_name="qpack", standalone_mode=False)
    except typer.TyperException as error:
        code = report_usage(error)
    except SystemExit:  # Typer, whose --help went into a pipe that nobody reads: no failure
        code = 0
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        discard(sys.stdout)
    sys.exit(code)


def report_usage(error: typer.TyperException) -> int:
    """Say what is wrong with the command line. Options are unread, so look for them by hand."""
    message = error.format_message()
    if not message:  # no arguments at all: the help is the answer, and it has been printed
        return EXIT_USAGE
    arguments = sys.argv[1:]
    json_lines = "--progress json" in " ".join(arguments).replace("=", " ")
    settings = Settings(
        json="--json" in arguments,
        progress=ProgressMode.json if json_lines else ProgressMode.auto,
        color="--no-color" not in arguments,
    )
    context = getattr(error, "ctx", None)
    path = context.command_path if context is not None else "qpack"
    Output(settings).error(
        message,
        items=(),
        hint=f"{path} --help",
        error="UsageError",
        exit_code=EXIT_USAGE,
    )
    return EXIT_USAGE
