"""`qpack eval`: bits per byte of a checkpoint or an artifact, and of what is built on it."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from .options import DeviceOption, ModelArgument, TokenizerOption, check_input
from .output import Output

PREDICTORS, TRUST = "Predictors", "Trust"
"""Headings of the option list."""


class Adaptation(StrEnum):
    """The values of `--adapt`."""

    sgd = "sgd"
    adamw = "adamw"
    lora = "lora"


def evaluate(  # noqa: PLR0913  one parameter an option
    output: Output,
    model: ModelArgument,
    tokens: Annotated[Path, typer.Option(metavar="SHARD", help="The tokens to score.")],
    tokenizer: TokenizerOption,
    window: Annotated[int, typer.Option(min=1, help="Tokens of context in a window.")] = 1024,
    stride: Annotated[
        int | None,
        typer.Option(min=1, help="Tokens between windows; the window itself if not given."),
    ] = None,
    isolate_documents: Annotated[
        bool, typer.Option("--isolate-documents", help="Context begins anew at each BOS.")
    ] = False,
    max_tokens: Annotated[
        int | None, typer.Option(min=1, help="Score only the first N tokens.")
    ] = None,
    against: Annotated[
        Path | None,
        typer.Option(metavar="FLOAT", help="The float model: a row beside, and the KL divergence."),
    ] = None,
    mix: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="Another row: mixed with ngram, tilt, ppm, token_ppm or a plugin; repeatable.",
            rich_help_panel=PREDICTORS,
        ),
    ] = None,
    adapt: Annotated[
        list[Adaptation] | None,
        typer.Option(
            help="Another row: the model learning from what was scored; repeatable.",
            rich_help_panel=PREDICTORS,
        ),
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="KEY=VALUE",
            help="A setting of a mixture, of adapt, lora or check: ngram.max_order=5.",
            rich_help_panel=PREDICTORS,
        ),
    ] = None,
    check: Annotated[
        bool,
        typer.Option(
            "--check",
            help="Probe every predictor first; one that is no code is refused.",
            rich_help_panel=TRUST,
        ),
    ] = False,
    prove: Annotated[
        int | None,
        typer.Option(
            min=1,
            metavar="N",
            help="Write the first N bytes as a file by each predictor, and decode it elsewhere.",
            rich_help_panel=TRUST,
        ),
    ] = None,
    device: DeviceOption = "auto",
) -> None:
    """Score a model on a token shard: bits per byte, every token scored once."""
    for path in (model, tokens, tokenizer, *([against] if against else [])):
        check_input(path)
    names = [*(mix or ()), *(str(name) for name in adapt or ())]

    from qpack.device import choose
    from qpack.environment import provenance
    from qpack.eval.checks import CheckSettings, tokens_for
    from qpack.eval.evaluation import Inputs, Wanted, evaluate_file
    from qpack.eval.registry import CHECK, read_settings, settings_tables
    from qpack.tokens import sha256_file

    from .show import show_evaluation

    checks = None
    tables = settings_tables(settings or (), [*names, *([CHECK] if check else [])])
    if check:
        table = {"num_tokens": tokens_for(window), **tables.get(CHECK, {})}
        checks = read_settings(CheckSettings, table, CHECK)
    chosen, reason = choose(device)
    output.note(f"device {chosen}: {reason}")
    inputs = Inputs(model=model, tokens=tokens, tokenizer=tokenizer, against=against)
    wanted = Wanted(
        window=window,
        stride=stride,
        isolate=isolate_documents,
        max_tokens=max_tokens,
        names=names,
        tables=tables,
        checks=checks,
        prove_bytes=prove,
    )
    found = evaluate_file(inputs, wanted, device=str(chosen), progress=output.progress)
    if found is None:
        return  # one of several ranks under torchrun: the first one reports
    document = {
        "schema": "qpack.eval/1",
        **found,
        "model": model.name,
        "text": tokens.name,
        "inputs": {
            role: {"name": path.name, "sha256": sha256_file(path)}
            for role, path in inputs.paths.items()
        },
        **provenance(chosen),
        "device": {"value": str(chosen), "reason": reason},
    }
    output.result(document, lambda: show_evaluation(document))
    if model.suffix == ".safetensors":
        data = f"--calib TRAIN_SHARD --val {tokens} --tokenizer {tokenizer}"
        output.next(f"qpack pack {model} --budget 16MB {data} -o {model.stem}.pyz")
    else:
        output.next(f"qpack inspect {model}")
