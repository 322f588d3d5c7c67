"""`qpack eval`: exact bits per byte of a checkpoint or an artifact."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .options import DeviceOption, ModelArgument, TokenizerOption, check_input
from .output import Output


def evaluate(
    output: Output,
    model: ModelArgument,
    tokens: Annotated[Path, typer.Option(metavar="SHARD", help="The tokens to score.")],
    tokenizer: TokenizerOption,
    window: Annotated[int, typer.Option(min=1, help="Tokens of context in a window.")] = 1024,
    stride: Annotated[
        int | None,
        typer.Option(min=1, help="Tokens between windows; the window itself if not given."),
    ] = None,
    max_tokens: Annotated[
        int | None, typer.Option(min=1, help="Score only the first N tokens.")
    ] = None,
    against: Annotated[
        Path | None,
        typer.Option(metavar="FLOAT", help="The float model, for the KL divergence to it."),
    ] = None,
    device: DeviceOption = "auto",
) -> None:
    """Score a model on a token shard: bits per byte, every token scored once."""
    for path in (model, tokens, tokenizer, *([against] if against else [])):
        check_input(path)

    from dataclasses import asdict

    from qpack.checkpoint import build_model, load, read_model
    from qpack.device import choose
    from qpack.environment import provenance
    from qpack.eval.bpb import score
    from qpack.tokenizer import Tokenizer
    from qpack.tokens import read_shard, sha256_file

    from .show import show_score

    shard, pieces = read_shard(tokens), Tokenizer.load(tokenizer)
    chosen, reason = choose(device)
    output.note(f"device {chosen}: {reason}")
    checkpoint = read_model(model)
    checkpoint.check_tokenizer(pieces.sha256, tokenizer)
    result = score(
        build_model(checkpoint, device=str(chosen)),
        shard,
        pieces,
        window=window,
        stride=stride,
        max_tokens=max_tokens,
        against=load(against, device=str(chosen)) if against else None,
        progress=output.progress,
    )
    document = {
        "schema": "qpack.eval/1",
        **asdict(result),
        "model": model.name,
        "text": tokens.name,
        "inputs": {
            role: {"name": path.name, "sha256": sha256_file(path)}
            for role, path in (
                ("model", model),
                ("tokens", tokens),
                ("tokenizer", tokenizer),
                ("against", against),
            )
            if path is not None
        },
        **provenance(chosen),
        "device": {"value": str(chosen), "reason": reason},
    }
    output.result(document, lambda: show_score(document))
    if model.suffix == ".safetensors":
        data = f"--calib TRAIN_SHARD --val {tokens} --tokenizer {tokenizer}"
        output.next(f"qpack pack {model} --budget 16MB {data} -o {model.stem}.pyz")
    else:
        output.next(f"qpack inspect {model}")
