"""`qpack compress` and `qpack decompress`: files through a language model."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

import typer

from qpack.errors import InputError

from .options import ForceOption, check_input, check_output
from .output import Output

ModelOption = Annotated[
    Path,
    typer.Option(
        "-m", "--model", metavar="MODEL", help="A checkpoint, or an artifact (.qpk, .pyz)."
    ),
]
SUFFIX = ".qpz"
PiecesOption = Annotated[
    Path | None,
    typer.Option(metavar="MODEL", help="SentencePiece model; that in the artifact if not given."),
]


def compress(
    output: Output,
    file: Annotated[Path, typer.Argument(metavar="FILE", help="What to compress: any bytes.")],
    model: ModelOption,
    out: Annotated[
        Path | None, typer.Option("-o", "--out", metavar="OUT", help="FILE.qpz if not given.")
    ] = None,
    mix: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Learn from the file: ngram, tilt, ppm, token_ppm."),
    ] = None,
    tokenizer: PiecesOption = None,
    window: Annotated[
        int, typer.Option(min=2, max=65_536, help="Tokens of context at most.")
    ] = 1024,
    force: ForceOption = False,
) -> None:
    """Compress a file with a model: lossless for any bytes, best for the text that it knows.

    To decompress it takes the same model, tokenizer and arithmetic: processor, torch and other
    packages. Anything else is refused. Both run the whole model on one core for every token, which
    is slow: try a few kilobytes first.
    """
    out = out or file.with_name(f"{file.name}{SUFFIX}")
    inputs = [file, model, *([tokenizer] if tokenizer else [])]
    for path in inputs:
        check_input(path)
    check_output(out, force=force, inputs=inputs)

    import time

    from qpack.eval.coder import Setup, open_coder
    from qpack.eval.compress import compress_file

    from .show import show_compressed

    began = time.perf_counter()
    # Each context begins with half of the one before: twice the work, and no token without one.
    setup = Setup(window=window, stride=(window + 1) // 2, name=mix)
    coder = open_coder(model, tokenizer, setup)
    header, num_bytes = compress_file(file, out, coder, force=force, progress=output.progress)
    document = {
        "schema": "qpack.compress/1",
        "path": str(out),
        "bytes": num_bytes,
        "text_bytes": header.text_bytes,
        "stream_bytes": header.stream_bytes,
        "residual_bytes": header.residual_bytes,
        "header_bytes": num_bytes - header.stream_bytes - header.residual_bytes,
        "tokens": header.tokens,
        "model": header.model_name,
        "predictor": coder.predictor.name,
        "setup": header.predictor.model_dump(mode="json"),
        "seconds": time.perf_counter() - began,
    }
    output.result(document, lambda: show_compressed(document))
    pieces = f" --tokenizer {shlex.quote(str(tokenizer))}" if tokenizer else ""
    given = f"{shlex.quote(str(out))} -m {shlex.quote(str(model))}{pieces}"
    output.next(f"qpack decompress {given} -o OUT")


def decompress(
    output: Output,
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A .qpz file.")],
    model: ModelOption,
    out: Annotated[
        Path | None,
        typer.Option("-o", "--out", metavar="OUT", help="FILE without .qpz if not given."),
    ] = None,
    tokenizer: PiecesOption = None,
    force: ForceOption = False,
) -> None:
    """Give back what qpack compress was given, or say why that cannot be.

    The model and the tokenizer must be the very files, the machine and the packages must compute
    the same. Nothing is written before the whole original is there and has its digest.
    """
    if out is None:
        if file.suffix != SUFFIX:
            raise InputError(f"{file} does not end in {SUFFIX}", hint="say where to write: -o OUT")
        out = file.with_suffix("")
    inputs = [file, model, *([tokenizer] if tokenizer else [])]
    for path in inputs:
        check_input(path)
    check_output(out, force=force, inputs=inputs)

    from qpack.eval.compress import decompress_file
    from qpack.report.tables import describe_bytes

    num_bytes = decompress_file(
        file, out, model=model, tokenizer=tokenizer, force=force, progress=output.progress
    )
    output.result(
        {"schema": "qpack.decompress/1", "path": str(out), "bytes": num_bytes},
        lambda: f"{out}  {describe_bytes(num_bytes)}",
    )
