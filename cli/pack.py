"""`qpack pack`: a checkpoint and a byte budget in, one file that fits it out."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from .options import (
    CheckpointArgument,
    DeviceOption,
    ForceOption,
    TokenizerOption,
    parse_bytes,
    split_names,
)
from .output import Output

DATA, QUANTIZE, FILE = "Data", "Quantization", "File"
"""Headings of the option list."""


def pack(  # noqa: PLR0913  one parameter an option
    output: Output,
    checkpoint: CheckpointArgument,
    budget: Annotated[
        int,
        typer.Option(
            metavar="BYTES", parser=parse_bytes, help="Size of the whole file: 16000000, 16MB."
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
    out: Annotated[
        Path,
        typer.Option(
            "-o", "--out", metavar="OUT", help="model.pyz decodes itself; model.qpk needs qpack."
        ),
    ],
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
            help="Tokens for the report; if not given, those after the calibration's.",
            rich_help_panel=DATA,
        ),
    ] = None,
    val_tokens: Annotated[
        int, typer.Option(min=1, help="Tokens to score for the report.", rich_help_panel=DATA)
    ] = 32_768,
    window: Annotated[
        int, typer.Option(min=1, help="Tokens of context in a window.", rich_help_panel=DATA)
    ] = 1024,
    recipe: Annotated[
        str | None,
        typer.Option(
            metavar="NAME|FILE",
            help="Rules for each tensor: default, record or a TOML file.",
            rich_help_panel=QUANTIZE,
        ),
    ] = None,
    knob: Annotated[
        str | None,
        typer.Option(
            help="What the search turns: c, k, qmax or qmax-floor; if not given, the recipe's.",
            rich_help_panel=QUANTIZE,
        ),
    ] = None,
    stats: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Reuse statistics.", rich_help_panel=QUANTIZE),
    ] = None,
    save_stats: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Keep the statistics.", rich_help_panel=QUANTIZE),
    ] = None,
    tune: Annotated[
        int,
        typer.Option(
            metavar="STEPS",
            min=0,
            help="Train steps and small tensors after the search; 100 is a start.",
            rich_help_panel=QUANTIZE,
        ),
    ] = 0,
    tune_tokens: Annotated[
        int,
        typer.Option(
            min=1, help="Tune on up to so many, calibration's among them.", rich_help_panel=QUANTIZE
        ),
    ] = 262_144,
    codecs: Annotated[
        str | None,
        typer.Option(
            metavar="NAMES", help="Codecs to try: brotli,lzma,zstd.", rich_help_panel=FILE
        ),
    ] = None,
    stdlib_codecs: Annotated[
        bool,
        typer.Option(
            "--stdlib-codecs",
            help="Only codecs of Python itself: decoding needs numpy alone.",
            rich_help_panel=FILE,
        ),
    ] = False,
    code: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="FILE",
            help="Source to embed, minified, and to count; repeatable.",
            rich_help_panel=FILE,
        ),
    ] = None,
    embed_tokenizer: Annotated[
        bool,
        typer.Option(
            "--embed-tokenizer", help="Embed and count the tokenizer.", rich_help_panel=FILE
        ),
    ] = False,
    report: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Write the report: JSON here, Markdown beside it."),
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of every random choice.")] = 0,
    device: DeviceOption = "auto",
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the plan and predicted sizes; write nothing.")
    ] = False,
    force: ForceOption = False,
) -> None:
    """Fit a checkpoint into a byte budget.

    Calibrates, quantizes with GPTQ, searches the one knob that makes the file fit, writes it, has
    it decoded by its own decoder in a fresh process, and scores what came out.
    """
    from qpack.pipeline import PackOptions, pack_checkpoint, plan_checkpoint

    from .show import show_pack, show_plan

    options = PackOptions(
        checkpoint=checkpoint,
        budget_bytes=budget,
        out=out,
        tokenizer=tokenizer,
        calib=None if calib == "self" else Path(calib),
        calib_tokens=calib_tokens,
        sens_tokens=sens_tokens,
        tune=tune,
        tune_tokens=tune_tokens,
        val=val,
        val_tokens=val_tokens,
        window=window,
        recipe=recipe,
        knob=knob,
        codecs=split_names(codecs),
        stdlib_codecs=stdlib_codecs,
        code=tuple(code or ()),
        embed_tokenizer=embed_tokenizer,
        save_stats=save_stats,
        stats=stats,
        device=device,
        seed=seed,
        force=force,
        report=report,
        command=("qpack", *sys.argv[1:]),
    )
    if dry_run:
        plan = plan_checkpoint(options, progress=output.progress)
        output.result(plan, lambda: show_plan(plan))
        output.next("the same without --dry-run")
        return
    result = pack_checkpoint(options, progress=output.progress)
    if not result:
        return  # one of several ranks under torchrun: the first one reports
    output.result(result, lambda: show_pack(result))
    output.next(f"qpack verify {out} --sha256 {result['sha256']}")
