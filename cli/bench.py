"""`qpack bench`: tables of codecs and of bit widths for a checkpoint."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from .options import (
    CheckpointArgument,
    DeviceOption,
    ForceOption,
    ModelArgument,
    TokenizerOption,
    check_input,
    check_output,
    parse_bytes,
    split_names,
)
from .output import Output

TableOption = Annotated[
    Path | None, typer.Option("-o", "--out", metavar="OUT", help="Also write the table as JSON.")
]


def bench_codecs(
    output: Output,
    model: ModelArgument,
    codecs: Annotated[
        str | None,
        typer.Option(metavar="NAMES", help="Codecs to try; if not given, all that are installed."),
    ] = None,
    out: TableOption = None,
    force: ForceOption = False,
) -> None:
    """Every codec on every stream: bytes, bits a weight, encode and decode speed."""
    check_input(model)
    if out is not None:
        check_output(out, force=force)

    from qpack.bench import bench_codecs as run

    finish(output, run(model, codecs=split_names(codecs), progress=output.progress), out)
    output.next(f"qpack bench bits {model} --calib SHARD --tokenizer MODEL")


def bench_bits(
    output: Output,
    checkpoint: CheckpointArgument,
    calib: Annotated[Path, typer.Option(metavar="SHARD", help="Tokens to calibrate on.")],
    tokenizer: TokenizerOption,
    calib_tokens: Annotated[int, typer.Option(min=1, help="Tokens to calibrate on.")] = 65_536,
    val: Annotated[
        Path | None,
        typer.Option(
            metavar="SHARD", help="Tokens to score; if not given, those after the calibration's."
        ),
    ] = None,
    val_tokens: Annotated[int, typer.Option(min=1, help="Tokens to score.")] = 32_768,
    budget: Annotated[
        int | None,
        typer.Option(
            metavar="BYTES", parser=parse_bytes, help="Also a row for Auto-QMax at this size."
        ),
    ] = None,
    device: DeviceOption = "auto",
    out: TableOption = None,
    force: ForceOption = False,
) -> None:
    """int5, int6, int8 and the chosen qmax: bytes, BPB, gap, KL."""
    for path in (checkpoint, calib, tokenizer, *([val] if val else [])):
        check_input(path)
    if out is not None:
        check_output(out, force=force)

    from qpack.bench import bench_bits as run

    table = run(
        checkpoint,
        calib=calib,
        tokenizer=tokenizer,
        calib_tokens=calib_tokens,
        val=val,
        val_tokens=val_tokens,
        budget_bytes=budget,
        device=device,
        progress=output.progress,
    )
    finish(output, table, out)
    data = f"--calib {calib} --tokenizer {tokenizer}"
    output.next(f"qpack pack {checkpoint} --budget 16MB {data} -o {checkpoint.stem}.pyz")


def finish(output: Output, table: Mapping[str, Any], out: Path | None) -> None:
    """Print a table and, where asked, write it."""
    from qpack.artifact.writer import write_atomic
    from qpack.report.tables import rows_table

    if out is not None:
        data = json.dumps(table, indent=2, allow_nan=False).encode() + b"\n"
        write_atomic(out, data, force=True)  # refused above, before the work, where it exists
        output.note(f"wrote {out}")
    output.result(table, lambda: rows_table(table["rows"]))
