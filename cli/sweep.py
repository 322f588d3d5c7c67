"""`qpack sweep`: what a checkpoint loses at each of several budgets, under several recipes."""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

from .options import (
    CheckpointArgument,
    DeviceOption,
    ForceOption,
    TokenizerOption,
    check_input,
    parse_bytes,
    split_names,
)
from .output import Output

DATA = "Data"
"""A heading of the option list."""

COLUMNS = ("recipe", "budget_bytes", "bytes", "bits_per_weight", "bpb", "gap", "kl")


def sweep(  # noqa: PLR0913  one parameter an option
    output: Output,
    checkpoint: CheckpointArgument,
    budgets: Annotated[
        list[int],
        typer.Argument(
            metavar="BUDGET", parser=parse_bytes, help="Sizes of the whole file: 8MB 10MB 12MB."
        ),
    ],
    calib: Annotated[
        str,
        typer.Option(
            metavar="SHARD|self",
            help="Tokens to calibrate on, or self: text that the model writes.",
            rich_help_panel=DATA,
        ),
    ],
    tokenizer: TokenizerOption,
    out: Annotated[Path, typer.Option("-o", "--out", metavar="OUT", help="The curve, as JSON.")],
    plot: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Draw the curve too: .svg or .png (extra plot)."),
    ] = None,
    recipes: Annotated[
        str, typer.Option(metavar="NAMES", help="Recipes to compare, by name or file.")
    ] = "default,record",
    calib_tokens: Annotated[
        int, typer.Option(min=1, help="Tokens to calibrate on.", rich_help_panel=DATA)
    ] = 65_536,
    sens_tokens: Annotated[
        int,
        typer.Option(
            min=1,
            help="The first of them get a backward pass too: how much each output matters.",
            rich_help_panel=DATA,
        ),
    ] = 16_384,
    val: Annotated[
        Path | None,
        typer.Option(
            metavar="SHARD",
            help="Tokens to score; if not given, those after the calibration's.",
            rich_help_panel=DATA,
        ),
    ] = None,
    val_tokens: Annotated[
        int, typer.Option(min=1, help="Tokens to score.", rich_help_panel=DATA)
    ] = 32_768,
    window: Annotated[
        int, typer.Option(min=1, help="Tokens of context in a window.", rich_help_panel=DATA)
    ] = 1024,
    stats: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Reuse statistics.", rich_help_panel=DATA)
    ] = None,
    save_stats: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Keep the statistics.", rich_help_panel=DATA),
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of every random choice.")] = 0,
    device: DeviceOption = "auto",
    force: ForceOption = False,
) -> None:
    """The rate-distortion curve of a checkpoint.

    Fits it to every budget under every recipe, each time as a whole file that decodes itself, and
    scores what came out. Calibrates once; writes no artifact, only the curve.
    """
    given = [checkpoint, tokenizer, *([] if calib == "self" else [Path(calib)])]
    given += filter(None, (val, stats))
    for path in given:
        check_input(path)

    from qpack.artifact.writer import write_atomic
    from qpack.inputs import check_outputs
    from qpack.pipeline import PackOptions
    from qpack.report.curve import check_plot, draw_curve
    from qpack.report.tables import rows_table
    from qpack.sweep import sweep as run

    made = [out, *filter(None, (plot, save_stats))]
    check_outputs(made, inputs=given, force=force)
    if plot is not None:
        check_plot(plot)
    curve = run(
        PackOptions(
            checkpoint=checkpoint,
            budget_bytes=min(budgets),
            out=out.with_suffix(".pyz"),
            tokenizer=tokenizer,
            calib=None if calib == "self" else Path(calib),
            calib_tokens=calib_tokens,
            sens_tokens=sens_tokens,
            val=val,
            val_tokens=val_tokens,
            window=window,
            stats=stats,
            save_stats=save_stats,
            seed=seed,
            device=device,
            force=force,
            command=("qpack", *sys.argv[1:]),
        ),
        budgets,
        recipes=split_names(recipes) or (),
        progress=output.progress,
    )
    # refused above, before the work, where they exist
    write_atomic(out, json.dumps(curve, indent=1, allow_nan=False).encode() + b"\n", force=True)
    output.note(f"wrote {out}")
    if plot is not None:
        draw_curve(curve, plot, force=True)
        output.note(f"wrote {plot}")
    rows = [{key: point[key] for key in COLUMNS} for point in curve["points"]]
    output.result(curve, lambda: rows_table(rows))
    known = stats or save_stats
    words = [
        *("qpack", "pack", checkpoint, "--budget", budgets[0], "--calib", calib),
        *("--calib-tokens", calib_tokens, "--sens-tokens", sens_tokens, "--tokenizer", tokenizer),
        *(() if known is None else ("--stats", known)),
        *("--seed", seed, "-o", f"{checkpoint.stem}.pyz"),
    ]
    output.next(shlex.join(map(str, words)))
