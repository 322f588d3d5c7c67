"""`qpack demo`: the whole line on this machine, from text to a report."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .options import ForceOption, parse_bytes
from .output import Output


def demo(
    output: Output,
    out: Annotated[
        Path, typer.Option("-o", "--out", metavar="DIR", help="Folder for everything it makes.")
    ] = Path("runs/demo"),
    train_seconds: Annotated[float, typer.Option(min=1.0, help="Seconds of training.")] = 120.0,
    budget: Annotated[
        int | None,
        typer.Option(metavar="BYTES", parser=parse_bytes, help="Size of the artifact."),
    ] = None,
    force: ForceOption = False,
) -> None:
    """Text, tokenizer, model, artifact, report: the whole line in about five minutes.

    The text is Python's own documentation, so nothing is downloaded.
    """
    from qpack.demo import run_demo

    from .show import show_pack

    chosen = {} if budget is None else {"budget_bytes": budget}
    report = run_demo(
        out, train_seconds=train_seconds, progress=output.progress, force=force, **chosen
    )
    output.result(report, lambda: show_pack(report))
    output.next(f"qpack inspect {report['path']}")
