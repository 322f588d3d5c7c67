"""`qpack generate`: text that a model goes on with."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .options import ModelArgument, check_input
from .output import Output


def generate(
    output: Output,
    model: ModelArgument,
    prompt: Annotated[str, typer.Option(metavar="TEXT", help="What the text begins with.")] = "",
    tokens: Annotated[int, typer.Option(min=1, help="Tokens to write at most.")] = 200,
    temperature: Annotated[
        float, typer.Option(min=0.0, help="Below 1 likelier tokens gain; 0 takes the likeliest.")
    ] = 0.8,
    top_k: Annotated[
        int | None, typer.Option(min=1, help="Draw from this many likeliest tokens alone.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="The same seed gives the same text.")] = 0,
    window: Annotated[int, typer.Option(min=1, help="Tokens of context at most.")] = 1024,
    tokenizer: Annotated[
        Path | None,
        typer.Option(
            metavar="MODEL", help="SentencePiece model; that in the artifact if not given."
        ),
    ] = None,
) -> None:
    """Write text with a checkpoint or an artifact, as it comes. Runs on the CPU.

    It ends where the model ends the document.
    """
    for path in (model, *([tokenizer] if tokenizer else [])):
        check_input(path)

    from dataclasses import asdict

    from qpack.checkpoint import build_model, read_model
    from qpack.eval.coder import find_tokenizer
    from qpack.progress import SILENT
    from qpack.write import WriteSettings, write

    settings = WriteSettings(
        num_tokens=tokens, temperature=temperature, top_k=top_k, seed=seed, window=window
    )
    checkpoint = read_model(model)
    pieces = find_tokenizer(checkpoint, tokenizer)
    # As text it shows by itself how far it is.
    progress = output.progress if output.settings.json else SILENT
    parts = write(build_model(checkpoint), pieces, prompt, settings, progress=progress)
    if output.settings.json:
        document = {
            "schema": "qpack.generate/1",
            "model": checkpoint.name,
            "prompt": prompt,
            "text": "".join(parts),
            **asdict(settings),
        }
        output.result(document, str)
        return
    first = next(parts, "")  # errors come before the prompt is printed
    print(f"{prompt}{first}", end="", flush=True)
    for part in parts:
        print(part, end="", flush=True)
    print()
