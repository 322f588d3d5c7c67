"""`qpack study`: what made invalid scores look good, measured beside the honest form."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from .options import (
    DeviceOption,
    ForceOption,
    ModelArgument,
    TokenizerOption,
    check_input,
    check_output,
)
from .output import Output

TokensOption = Annotated[Path, typer.Option(metavar="SHARD", help="The text, as tokens.")]
WindowOption = Annotated[int, typer.Option(min=1, help="Tokens of context in a window.")]
MaxTokensOption = Annotated[int | None, typer.Option(min=1, help="Study only the first N tokens.")]
SeedOption = Annotated[int, typer.Option(min=0, help="Of the positions that are sampled.")]
OutOption = Annotated[
    Path | None, typer.Option("-o", "--out", metavar="OUT", help="Also write the JSON document.")
]


@dataclass(frozen=True, kw_only=True, slots=True)
class Asked:
    """What every study is asked with."""

    model: Path
    tokens: Path
    tokenizer: Path
    max_tokens: int | None
    device: str
    out: Path | None
    force: bool


def study_hashed_ngram(  # noqa: PLR0913  one parameter an option
    output: Output,
    model: ModelArgument,
    tokens: TokensOption,
    tokenizer: TokenizerOption,
    buckets: Annotated[
        int,
        typer.Option(
            min=1, help="Buckets of a table, a power of two; the original had 14.8 tokens a bucket."
        ),
    ] = 4_194_304,
    chunk_tokens: Annotated[
        int, typer.Option(min=1, help="Tokens scored before the tables take them in.")
    ] = 32_768,
    samples: Annotated[
        int, typer.Option(min=1, help="Positions at which sums are measured by order.")
    ] = 256,
    seed: SeedOption = 0,
    window: WindowOption = 1024,
    max_tokens: MaxTokensOption = None,
    device: DeviceOption = "auto",
    out: OutOption = None,
    force: ForceOption = False,
) -> None:
    """The hashed n-gram cache: its claim, and what it sums to over the alphabet."""
    run(
        output,
        "hashed-ngram",
        Asked(
            model=model, tokens=tokens, tokenizer=tokenizer, max_tokens=max_tokens, device=device,
            out=out, force=force,
        ),
        {
            "buckets": buckets, "chunk_tokens": chunk_tokens, "samples": samples, "seed": seed,
            "window": window,
        },
    )  # fmt: skip


def study_byte_spread(
    output: Output,
    model: ModelArgument,
    tokens: TokensOption,
    tokenizer: TokenizerOption,
    positions: Annotated[
        int, typer.Option(min=1, help="Positions at which the scores of all tokens are summed.")
    ] = 200,
    seed: SeedOption = 0,
    window: WindowOption = 1024,
    max_tokens: MaxTokensOption = None,
    device: DeviceOption = "auto",
    out: OutOption = None,
    force: ForceOption = False,
) -> None:
    """A token's probability spread over its bytes: its claim, and what all tokens sum to."""
    run(
        output,
        "byte-spread",
        Asked(
            model=model, tokens=tokens, tokenizer=tokenizer, max_tokens=max_tokens, device=device,
            out=out, force=force,
        ),
        {"positions": positions, "seed": seed, "window": window},
    )  # fmt: skip


def study_train_first(  # noqa: PLR0913  one parameter an option
    output: Output,
    model: ModelArgument,
    tokens: TokensOption,
    tokenizer: TokenizerOption,
    epochs: Annotated[int, typer.Option(min=1, help="Passes over the text before scoring.")] = 20,
    learning_rate: Annotated[float, typer.Option(help="Of SGD with momentum 0.9.")] = 0.008,
    batch: Annotated[int, typer.Option(min=1, help="Sequences of an optimiser step.")] = 32,
    held_out: Annotated[
        float, typer.Option(help="Share of the tokens, at the end, that are not trained on.")
    ] = 0.25,
    chunk_tokens: Annotated[
        int, typer.Option(min=1, help="Tokens the honest form scores before it learns from them.")
    ] = 32_768,
    window: WindowOption = 1024,
    max_tokens: MaxTokensOption = None,
    device: DeviceOption = "auto",
    out: OutOption = None,
    force: ForceOption = False,
) -> None:
    """Training on the text before scoring it: its claim, and how much of it is the text itself."""
    run(
        output,
        "train-first",
        Asked(
            model=model, tokens=tokens, tokenizer=tokenizer, max_tokens=max_tokens, device=device,
            out=out, force=force,
        ),
        {
            "epochs": epochs, "learning_rate": learning_rate, "batch": batch,
            "held_out": held_out, "chunk_tokens": chunk_tokens, "window": window,
        },
    )  # fmt: skip


def run(output: Output, name: str, asked: Asked, settings: Mapping[str, Any]) -> None:
    """Check the paths, study, print, and write where asked."""
    paths = (asked.model, asked.tokens, asked.tokenizer)
    for path in paths:
        check_input(path)
    if asked.out is not None:
        check_output(asked.out, force=asked.force, inputs=paths)

    from qpack.artifact.writer import write_atomic
    from qpack.eval.evaluation import Inputs
    from qpack.eval.studies.run import study_file

    from .show import show_study

    document = study_file(
        name,
        Inputs(model=asked.model, tokens=asked.tokens, tokenizer=asked.tokenizer),
        settings,
        max_tokens=asked.max_tokens,
        device=asked.device,
        progress=output.progress,
    )
    if asked.out is not None:
        data = json.dumps(document, indent=2, allow_nan=False).encode() + b"\n"
        write_atomic(asked.out, data, force=True)  # refused above, before the work, where it exists
        output.note(f"wrote {asked.out}")
    output.result(document, lambda: show_study(document))
    model, tokens, tokenizer = (shlex.quote(str(path)) for path in paths)
    output.next(f"qpack eval {model} --tokens {tokens} --tokenizer {tokenizer} --check")
